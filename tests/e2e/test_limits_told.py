"""Every kind of answer tells the limits, with GitLab's meanings and one set only."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Reply, ask, raw

PER_MINUTE = 600
BURST = 300
SET = ("RateLimit-Limit", "RateLimit-Name", "RateLimit-Observed", "RateLimit-Remaining", "RateLimit-Reset")
VERSION = "/api/v4/version"


@pytest.fixture(scope="module")
def limited(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    limits = [
        {"id": "caller", "by": "caller", "rate": f"{PER_MINUTE}/min", "burst": BURST, "advertise": True},
        {"id": "places", "by": "caller", "concurrent": 50},
    ]
    cache = {"ttl": "1m"}
    config = demo_config(demo.url, limits=limits, cache=cache)
    process = GatewayProcess(config, tmp_path_factory.mktemp("told"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


def told(reply: Reply) -> dict[str, str]:
    """The set; each field once."""
    for name in (*SET, "RateLimit", "RateLimit-Policy"):
        assert len(reply.values(name)) == 1, name
    return {name: reply.values(name)[0] for name in SET}


def check(reply: Reply) -> None:
    """A whole set, in GitLab's meanings."""
    found = told(reply)
    assert found["RateLimit-Limit"] == str(PER_MINUTE)
    assert found["RateLimit-Name"] == "caller"
    assert int(found["RateLimit-Observed"]) + int(found["RateLimit-Remaining"]) == BURST
    assert abs(int(found["RateLimit-Reset"]) - time.time()) < 60
    assert reply.value("RateLimit-ResetTime") is None
    assert reply.value("Retry-After") is None


def test_hits_misses_and_304(limited: GatewayProcess) -> None:
    first = ask(limited.port, VERSION, token=TOKENS.ada)
    hit = ask(limited.port, VERSION, token=TOKENS.ada)
    tag = first.value("ETag")
    assert tag is not None
    unchanged = ask(limited.port, VERSION, f"If-None-Match: {tag}", token=TOKENS.ada)
    assert [reply.status for reply in (first, hit, unchanged)] == [200, 200, 304]
    assert "hit" in (hit.value("Cache-Status") or "")
    for reply in (first, hit, unchanged):
        check(reply)
    left = [int(told(reply)["RateLimit-Remaining"]) for reply in (first, hit, unchanged)]
    assert left[0] > left[1] > left[2] - 1  # the stored answer's numbers are not repeated


@pytest.mark.parametrize(
    ("target", "status"),
    [
        pytest.param("/api/v4/projects/999999", 404, id="gitlabs-404"),
        pytest.param("/api/v4/projects?per_page=1", 200, id="list"),
    ],
)
def test_gitlabs_answers(limited: GatewayProcess, target: str, status: int) -> None:
    reply = ask(limited.port, target, token=TOKENS.ada)
    assert reply.status == status
    check(reply)


def test_refusals_before_the_limiter_tell_the_quota_alone(limited: GatewayProcess) -> None:
    key = limited.new_key("reader")
    answers = {
        401: ask(limited.port, VERSION, token="glpat-unknown-unknown-0"),
        403: ask(limited.port, "/api/v4/admin/ci/variables", token=key),
        404: ask(limited.port, "/api/v4/internal/check", token=TOKENS.ada),
    }
    for status, reply in answers.items():
        assert reply.status == status
        assert reply.values("RateLimit-Limit") == [str(PER_MINUTE)]
        assert reply.value("X-Gateway-Error")


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        pytest.param(b"GET /api/v4/version HTTP/1.1\r\nHost: a\r\nbro ken: x\r\n\r\n", 400, id="bad-field"),
        pytest.param(b"nonsense\r\n\r\n", 400, id="no-request"),
        pytest.param(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 40_000), 414, id="long-target"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"x" * 40_000), 431, id="long-field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n" % (b"X: y\r\n" * 300), 431, id="many-fields"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, id="version"),
        pytest.param(b"GET /api/v4/../x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, id="target"),
        pytest.param(b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, id="method"),
    ],
)
def test_what_the_parser_refuses_tells_the_quota_alone(limited: GatewayProcess, octets: bytes, status: int) -> None:
    """Nobody is known yet. Clients take a missing quota for a server without limits."""
    reply = raw(limited.port, octets)
    assert reply.status == status
    assert reply.values("RateLimit-Limit") == [str(PER_MINUTE)]
    assert reply.value("RateLimit-Remaining") is None
    assert reply.value("X-Gateway-Error")
    assert reply.value("X-Gateway-Request-Id")


def test_the_gateway_s_own_502_tells_the_whole_set(tmp_path_factory: pytest.TempPathFactory) -> None:
    limits = [{"id": "caller", "by": "caller", "rate": f"{PER_MINUTE}/min", "burst": BURST}]
    config = {
        "upstream": {"url": "http://127.0.0.1:1"},
        "identities": [{"id": "anyone", "anonymous": True}],
        "limits": limits,
    }
    process = GatewayProcess(config, tmp_path_factory.mktemp("down"), {})
    try:
        reply = ask(process.port, VERSION)
        assert reply.status == 502
        check(reply)
    finally:
        assert process.stop() == 0
