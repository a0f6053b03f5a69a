"""One of each configuration per worker: gateways over the demo GitLab, over a recorder of octets, and two on one Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import TOKENS
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Reply, ask
from tests.fakes.gitlab import Answer, FakeGitLab, Received, response

EXTERNAL_URL = "https://gitlab.example.com"
"""What the GitLabs believe they are called: nobody can get there, so whoever goes round the gateway fails."""

OWN_TOKEN = "glpat-recorder-own-00000"
BROKER_TOKEN = "glpat-recorder-broker-00"
SUDO_TOKEN = "glpat-recorder-sudo-0000"


@pytest.fixture(scope="session")
def upstreams() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def session_redis(redis_server: Any) -> Iterator[Any]:
    """A Redis that no other test empties."""
    server = type(redis_server)()
    yield server
    server.close()


# Over the demo GitLab


@pytest.fixture(scope="session")
def demo(upstreams: LoopThread) -> Iterator[DemoGitLab]:
    gitlab = build_demo_gitlab(external_url=EXTERNAL_URL, reveal=True)
    upstreams.run(gitlab.start())
    yield gitlab
    upstreams.run(gitlab.close())


@pytest.fixture(scope="session")
def gateway(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The embedded gateway, its stores in memory: own tokens, brokered keys and anonymous callers."""
    process = GatewayProcess(demo_config(demo.url), tmp_path_factory.mktemp("gateway"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="session")
def bot_key(gateway: GatewayProcess) -> str:
    """A gateway key that may do everything, as Ada."""
    return gateway.new_key("bot")


@pytest.fixture(scope="session")
def reader_key(gateway: GatewayProcess) -> str:
    """A gateway key that may read what lies under ``platform``, as Ada."""
    return gateway.new_key("reader")


@pytest.fixture(scope="session")
def sudo_key(gateway: GatewayProcess) -> str:
    """A gateway key whose rule lets it name Bob in ``Sudo``."""
    return gateway.new_key("impersonator")


DEMO_SECRETS = {"ADA": TOKENS.ada, "SUDO": TOKENS.root_sudo}


def demo_config(url: str, **more: Any) -> dict[str, Any]:
    return {
        "upstream": {"url": url, "external_url": EXTERNAL_URL},
        "identities": [
            {"id": "bot", "team": "platform", "key": "issued"},
            {"id": "reader", "key": "issued"},
            {"id": "impersonator", "key": "issued"},
            {"id": "spare", "key": "issued"},
            {"id": "people", "gitlab_token": True},
            {"id": "anyone", "anonymous": True},
        ],
        "credentials": [{"id": "ada", "token": "${env:ADA}"}, {"id": "root", "token": "${env:SUDO}", "sudo": True}],
        "rules": [
            {"id": "bot", "for": ["bot", "spare"], "use": "ada", "allow": [{"access": "write"}]},
            {
                "id": "reader",
                "for": ["reader"],
                "use": "ada",
                "allow": [{"access": "read", "projects": {"under_group": "platform"}}],
            },
            {"id": "impersonator", "for": ["impersonator"], "use": "root", "allow": [{"access": "read"}], "sudo": ["bob"]},
        ],
        **more,
    }


# Over a recorder of octets


@pytest.fixture(scope="session")
def recording(upstreams: LoopThread) -> Iterator[FakeGitLab]:
    gitlab = FakeGitLab()
    gitlab.stand(b"/api/v4/personal_access_tokens/self", _whose_token)
    gitlab.stand(b"/oauth/token/info", _unknown_token)
    gitlab.stand(b"/api/v4/job", _unknown_token)
    upstreams.run(gitlab.__aenter__())
    yield gitlab
    upstreams.run(gitlab.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def recorded_gateway(recording: FakeGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(
        {
            "upstream": {"url": recording.url, "external_url": EXTERNAL_URL},
            "identities": [
                {"id": "bot", "key": "issued"},
                {"id": "impersonator", "key": "issued"},
                {"id": "people", "gitlab_token": True, "verify": {"ttl": "1h"}},
                {"id": "anyone", "anonymous": True},
            ],
            "credentials": [{"id": "sa", "token": "${env:SA}"}, {"id": "root", "token": "${env:ROOT}", "sudo": True}],
            "rules": [
                {"id": "bot", "for": ["bot"], "use": "sa", "allow": [{"access": "write"}]},
                {"id": "sudo", "for": ["impersonator"], "use": "root", "allow": [{"access": "write"}], "sudo": ["bob"]},
            ],
        },
        tmp_path_factory.mktemp("recorded"),
        {"SA": BROKER_TOKEN, "ROOT": SUDO_TOKEN},
    )
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="session")
def recorded_keys(recorded_gateway: GatewayProcess) -> SimpleNamespace:
    return SimpleNamespace(bot=recorded_gateway.new_key("bot"), sudo=recorded_gateway.new_key("impersonator"))


@pytest.fixture
def recorder(recording: FakeGitLab, recorded_gateway: GatewayProcess) -> Iterator[FakeGitLab]:
    """The upstream of ``recorded_gateway``, with an empty script; what it got must match what the test scripted."""
    recording.settle()
    yield recording
    recording.settle()


class Passage:
    """One request through ``recorded_gateway``: what the client got, and what GitLab got."""

    def __init__(self, gateway: GatewayProcess, recorder: FakeGitLab) -> None:
        self.gateway = gateway
        self.recorder = recorder

    def __call__(
        self, target: str | bytes, *fields: str, answer: Answer | None = None, **options: Any
    ) -> tuple[Reply, Received]:
        self.recorder.script(answer or response(200, b"[]", ("Content-Type", "application/json")))
        reply = ask(self.gateway.port, target, *fields, **options)
        return reply, self.recorder.requests[-1]

    def refused(self, target: str | bytes, *fields: str, **options: Any) -> Reply:
        """A request that must not reach GitLab (the recorder fails on what nobody scripted)."""
        return ask(self.gateway.port, target, *fields, **options)


@pytest.fixture
def passage(recorded_gateway: GatewayProcess, recorder: FakeGitLab) -> Passage:
    return Passage(recorded_gateway, recorder)


def _whose_token(received: Received) -> Answer:
    scopes = {OWN_TOKEN: ["api"], BROKER_TOKEN: ["api"], SUDO_TOKEN: ["api", "sudo"]}
    token = b"".join(received.values("private-token")) or b"".join(received.values("authorization"))[7:]
    known = scopes.get(token.decode("latin-1"))
    if known is None:
        return _unknown_token(received)
    answer = {"id": 1, "user_id": 7, "name": "recorded", "active": True, "revoked": False, "scopes": known}
    return response(200, json.dumps(answer).encode(), ("Content-Type", "application/json"), ("X-Gitlab-Meta", "{}"))


def _unknown_token(_: Received) -> Answer:
    return response(401, b'{"message":"401 Unauthorized"}', ("Content-Type", "application/json"), ("X-Gitlab-Meta", "{}"))


# Two gateways on one Redis


@pytest.fixture(scope="session")
def pair(
    demo: DemoGitLab, session_redis: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    directory = tmp_path_factory.mktemp("pair")
    secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": session_redis.url}
    with ExitStack() as started:
        processes = []
        for name in ("first", "second"):
            process = GatewayProcess(shared_config(demo.url), directory / name, secrets)
            started.callback(_stop, process)
            processes.append(process)
        yield processes[0], processes[1]


def _stop(process: GatewayProcess) -> None:
    assert process.stop() == 0


SHARED_SECRETS = {
    "PEPPER": "e2e-pepper-e2e-pepper-e2e-pepper-0001",
    "CACHE_KEY": "e2e-encryption-e2e-encryption-key-0002",
    "AUDIT_KEY": "e2e-audit-e2e-audit-e2e-audit-key-0003",
}


def shared_config(url: str, **more: Any) -> dict[str, Any]:
    """As ``demo_config``, with everything that can be shared in ``REDIS_URL``."""
    secrets = {"pepper": "${env:PEPPER}", "encryption_key": "${env:CACHE_KEY}", "audit_key": "${env:AUDIT_KEY}"}
    return demo_config(url, secrets=secrets, stores={"shared": "${env:REDIS_URL}"}, **more)
