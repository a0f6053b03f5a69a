"""What GitLab says about its work and its own limits changes what callers may do, through the real process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.e2e.conftest import SHARED_SECRETS
from tests.e2e.load import until
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import ask
from tests.fakes.gitlab import Answer, FakeGitLab, Received, response

OWN, BROKER = "glpat-limits-own-000000", "glpat-limits-broker-000"
JSON = ("Content-Type", "application/json")


def whose(_: Received) -> Answer:
    token = {"id": 1, "user_id": 7, "name": "n", "active": True, "revoked": False, "scopes": ["api"]}
    return response(200, json.dumps(token).encode(), JSON, ("X-Gitlab-Meta", "{}"))


@pytest.fixture
def world(upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A gateway of this test's own: what it learns of GitLab stays here."""
    gitlab = FakeGitLab()
    gitlab.stand(b"/api/v4/personal_access_tokens/self", whose)
    upstreams.run(gitlab.__aenter__())
    config = {
        "upstream": {"url": gitlab.url},
        "identities": [{"id": "bot", "key": "issued"}, {"id": "people", "gitlab_token": True}],
        "credentials": [{"id": "sa", "token": "${env:SA}"}],
        "rules": [{"id": "bot", "for": ["bot"], "use": "sa", "allow": [{"access": "write"}]}],
        "limits": [
            {
                "id": "caller",
                "by": "caller",
                "rate": "1/min",
                "burst": 100,
                "settle": {"cached": 0, "not_modified": 0, "second": 5, "mebibyte": 10},
            }
        ],
    }
    gateway = GatewayProcess(config, tmp_path_factory.mktemp("settled"), {"SA": BROKER})
    try:
        yield SimpleNamespace(gateway=gateway, gitlab=gitlab, key=gateway.new_key("bot"))
        assert gateway.stop() == 0
    finally:
        gateway.stop()
        upstreams.run(gitlab.__aexit__(None, None, None))


def throttled(seconds: int) -> Answer:
    """Rack::Attack's refusal."""
    fields = (
        ("RateLimit-Name", "throttle_authenticated_api"),
        *(("RateLimit-Limit", "600"), ("RateLimit-Observed", "600"), ("RateLimit-Remaining", "0")),
        *(("RateLimit-Reset", str(int(time.time()) + seconds)), ("Retry-After", str(seconds))),
    )
    return response(429, b"Retry later\n", ("Content-Type", "text/plain"), *fields)


def left(world: SimpleNamespace, answer: Answer | None, *fields: str, target: str = "/api/v4/projects") -> int:
    """Tokens left, by the fields of one request's answer: what it settles itself shows in the next."""
    if answer is not None:
        world.gitlab.script(answer)
    reply = ask(world.gateway.port, target, *fields, token=OWN)
    return int(reply.value("RateLimit-Remaining") or "-1")


def test_costs_are_settled_by_what_was_used(world: SimpleNamespace) -> None:
    answers = (
        response(200, b"[]", JSON, ("X-Runtime", "4.0")),
        response(200, b"x" * (1 << 20), JSON, ("X-Runtime", "0")),
        response(200, b"[]", JSON, ("X-Runtime", "0"), ("ETag", 'W/"1"')),
    )
    # Heads are octets too: a little below what the bodies alone would leave.
    assert [left(world, answer) for answer in answers] == [99, 77, 66]
    unchanged = left(world, response(304, b"", ("X-Runtime", "0"), ("ETag", 'W/"1"')), 'If-None-Match: W/"1"')
    assert unchanged == 65
    assert left(world, response(200, b"[]", JSON, ("X-Runtime", "0"))) == 65  # the 304 was given back


def test_after_gitlabs_429_nobody_asks_with_that_credential(world: SimpleNamespace) -> None:
    world.gitlab.script(throttled(30))
    first = ask(world.gateway.port, "/api/v4/projects", token=world.key)
    before = time.time()
    second = ask(world.gateway.port, "/api/v4/groups", token=world.key)
    after = time.time()
    assert (first.status, second.status) == (429, 429)
    assert first.value("X-Gateway-Error") is None
    assert second.value("X-Gateway-Error") == "rate_limited"
    wait_s = int(second.value("Retry-After") or "0")
    assert 10 <= wait_s <= 30
    assert before + wait_s - 2 < int(second.value("RateLimit-Reset") or "0") < after + wait_s + 2
    assert second.value("RateLimit-Remaining") == "0"
    assert len(world.gitlab.requests) == 1
    world.gitlab.script(response(200, b"[]", JSON))
    assert ask(world.gateway.port, "/api/v4/projects", token=OWN).status == 200  # their own credential is another
    assert 'gitlab_gateway_limit_decisions_total{limit="upstream",outcome="refused"} 1.0' in world.gateway.metrics()


def test_the_limit_of_one_endpoint_takes_the_credential_from_nobody(world: SimpleNamespace) -> None:
    """GitLab's application limits: one caller who overdoes it must not stop all that share the credential."""
    refusal = b'{"message":{"error":"This endpoint has been requested too many times. Try again later."}}'
    world.gitlab.script(response(429, refusal, JSON, ("Retry-After", "60")))
    assert ask(world.gateway.port, "/api/v4/projects/7/repository/archive", token=world.key).status == 429
    again = ask(world.gateway.port, "/api/v4/projects/8/repository/archive", token=world.key)
    assert (again.status, again.value("X-Gateway-Error")) == (429, "rate_limited")
    world.gitlab.script(response(200, b"[]", JSON))
    assert ask(world.gateway.port, "/api/v4/projects", token=world.key).status == 200


def test_what_is_left_of_gitlabs_window_is_spread_over_it(world: SimpleNamespace) -> None:
    def low(remaining: int) -> Answer:
        return response(
            200,
            b"[]",
            JSON,
            ("RateLimit-Limit", "6000"),
            ("RateLimit-Observed", "900"),
            ("RateLimit-Remaining", str(remaining)),
            ("RateLimit-Reset", str(int(time.time()) + 20)),
        )

    asked: Callable[[int], int] = lambda n: ask(world.gateway.port, f"/api/v4/projects/{n}", token=world.key).status  # noqa: E731
    started = time.monotonic()
    world.gitlab.script(low(100))
    assert asked(0) == 200
    for _ in range(8):
        world.gitlab.script(low(100))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(asked, range(1, 9))) == [200] * 8
    assert time.monotonic() - started > 7 / 5.0  # 90 in 20 s is 4.5 a second


def test_what_one_gateway_learns_of_gitlabs_limit_slows_the_other(
    upstreams: LoopThread, start_redis: Any, tmp_path: Path
) -> None:
    gitlab = FakeGitLab()
    gitlab.stand(b"/api/v4/personal_access_tokens/self", whose)
    upstreams.run(gitlab.__aenter__())
    config: dict[str, Any] = {
        "upstream": {"url": gitlab.url},
        "stores": {"shared": "${env:REDIS_URL}"},
        "identities": [{"id": "bot", "key": "issued"}],
        "credentials": [{"id": "sa", "token": "${env:SA}"}],
        "rules": [{"id": "bot", "for": ["bot"], "use": "sa", "allow": [{"access": "write"}]}],
    }
    config["secrets"] = {"pepper": "${env:PEPPER}", "encryption_key": "${env:CACHE_KEY}", "audit_key": "${env:AUDIT_KEY}"}
    secrets = {**SHARED_SECRETS, "SA": BROKER, "REDIS_URL": start_redis().url}
    gateways = [GatewayProcess(config, tmp_path / str(number), secrets) for number in range(2)]
    try:
        key = gateways[0].new_key("bot")
        gitlab.script(throttled(60))
        assert ask(gateways[0].port, "/api/v4/projects", token=key).status == 429
        gitlab.stand(b"/api/v4/groups", lambda _: response(200, b"[]", JSON))

        def refused() -> bool:
            return ask(gateways[1].port, "/api/v4/groups", token=key).value("X-Gateway-Error") == "rate_limited"

        until(refused, "the other gateway heard of it", 20.0)
        asked = len(gitlab.requests)
        reply = ask(gateways[1].port, "/api/v4/groups", token=key)
        assert 20 < int(reply.value("Retry-After") or "0") <= 60
        assert reply.value("RateLimit-Remaining") == "0"
        assert len(gitlab.requests) == asked
        assert 'gitlab_gateway_limit_decisions_total{limit="upstream",outcome="refused"}' in gateways[1].metrics()
    finally:
        assert [gateway.stop() for gateway in gateways] == [0, 0]
        upstreams.run(gitlab.__aexit__(None, None, None))
