"""GitLab fails in every way it can: each failure has its own answer, and its end is noticed without a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.e2e.conftest import OWN_TOKEN, _unknown_token, _whose_token
from tests.e2e.load import checks, descriptors, figure, quiet, until
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer, ask
from tests.fakes.gitlab import Answer, FakeGitLab, Then, When, early_close, garbage, reset, response, stall, wrong_length
from tests.fakes.line import TcpRelay

OPEN_FOR_S = 3.0
FIRST_BYTE_S = 0.6
IDLE_S = 0.6
TARGET = "/api/v4/projects?fault"


@pytest.fixture(scope="module")
def world(upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A gateway with short timeouts, its upstream, and the line between them."""
    gitlab = FakeGitLab()
    gitlab.stand(b"/api/v4/personal_access_tokens/self", _whose_token)
    gitlab.stand(b"/oauth/token/info", _unknown_token)
    gitlab.stand(b"/api/v4/job", _unknown_token)
    upstreams.run(gitlab.__aenter__())
    line = TcpRelay(gitlab.port)
    upstreams.run(line.open())
    gateway = GatewayProcess(
        {
            "upstream": {
                "url": f"http://127.0.0.1:{line.port}",
                "timeouts": {
                    "connect": "500ms",
                    "first_byte": f"{int(FIRST_BYTE_S * 1000)}ms",
                    "idle": f"{int(IDLE_S * 1000)}ms",
                },
                "breaker": {"window": "3s", "min_requests": 10, "error_ratio": 0.9, "open_for": f"{OPEN_FOR_S:.0f}s"},
                "max_in_flight": 4,
            },
            "identities": [{"id": "people", "gitlab_token": True, "verify": {"ttl": "1h"}}],
            "cache": {"mode": "off"},
        },
        tmp_path_factory.mktemp("upstream-faults"),
    )
    try:
        # The token is verified once, so that what follows is about the request itself.
        gitlab.script(response(200))
        assert ask(gateway.port, TARGET, token=OWN_TOKEN).status == 200
        yield SimpleNamespace(gateway=gateway, gitlab=gitlab, line=line, upstreams=upstreams)
        assert gateway.stop() == 0
    finally:
        gateway.stop()
        upstreams.run(line.cut())
        upstreams.run(gitlab.__aexit__(None, None, None))


@pytest.fixture
def healthy(world: SimpleNamespace) -> SimpleNamespace:
    """The world, well: successes keep single failures from opening the breaker."""
    _recover(world)
    for _ in range(10):
        world.gitlab.script(response(200))
        assert ask(world.gateway.port, TARGET, token=OWN_TOKEN).status == 200
    world.gitlab.settle()
    return world


def _recover(world: SimpleNamespace) -> None:
    def answered() -> bool:
        world.gitlab.script(response(200))
        well = ask(world.gateway.port, TARGET, token=OWN_TOKEN).status == 200
        if not well:
            world.gitlab._script.clear()
        return well

    until(answered, "GitLab is asked again")


HALF = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n[1,2,"
HALF_OF_MUCH = HALF.replace(b"100", b"1000000") + b"x" * 500_000
HALF_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1,2,\r\n"

REFUSED = [
    pytest.param(reset(), 502, "upstream_reset", id="reset_before_the_head"),
    pytest.param(early_close(), 502, "upstream_reset", id="closed_before_the_head"),
    pytest.param(early_close(b"HTTP/1.1 200 OK\r\nContent-"), 502, "upstream_reset", id="closed_within_the_head"),
    pytest.param(garbage(), 502, "upstream_protocol", id="garbage"),
    pytest.param(stall(), 504, "upstream_timeout", id="silent"),
    pytest.param(stall(b"HTTP/1.1 200 OK\r\nContent-"), 504, "upstream_timeout", id="silent_within_the_head"),
    pytest.param(stall(b"HTTP/1.1 100 Continue\r\n\r\n" * 200), 502, "upstream_protocol", id="interim_flood"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "status", "code"), REFUSED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_failure_before_the_head_has_its_own_answer(
    healthy: SimpleNamespace, answer: Answer, status: int, code: str, method: str
) -> None:
    refusals = f'gitlab_gateway_refusals_total{{code="{code}"}}'
    before = figure(healthy.gateway, refusals)
    quiet(healthy.gateway)
    healthy.gitlab.script(answer, *([answer] if method == "GET" and code == "upstream_reset" else []))
    body = b"{}" if method == "POST" else None
    started = time.monotonic()
    reply = ask(healthy.gateway.port, TARGET, method=method, body=body, token=OWN_TOKEN)
    took_s = time.monotonic() - started
    assert (reply.status, reply.value("X-Gateway-Error")) == (status, code)
    assert took_s < FIRST_BYTE_S + 10.0
    assert figure(healthy.gateway, refusals) == before + 1
    sent = [one for one in healthy.gitlab.requests if one.target == TARGET.encode()]
    # A GET goes again once, and only where a kept connection broke before a word; a POST never does.
    assert len(sent) == (1 if method == "POST" else len(sent))
    assert len(sent) <= 2
    healthy.gitlab._script.clear()
    quiet(healthy.gateway)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(reset(HALF), id="reset"),
        pytest.param(early_close(HALF), id="closed"),
        pytest.param(stall(HALF), id="silent"),
        pytest.param(early_close(HALF_OF_MUCH), id="closed_late"),
        pytest.param(stall(HALF_OF_MUCH), id="silent_late"),
        pytest.param(wrong_length(b"[1,2,", 100), id="shorter_than_it_says"),
        pytest.param(early_close(HALF_CHUNKED), id="chunked"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_never_looks_whole(healthy: SimpleNamespace, answer: Answer) -> None:
    healthy.gitlab.script(answer)
    with Peer(healthy.gateway.port) as peer:
        peer.send(f"GET {TARGET} HTTP/1.1\r\nHost: g\r\nPRIVATE-TOKEN: {OWN_TOKEN}\r\n\r\n".encode())
        status, fields = peer.read_head()
        if status == 200:
            with pytest.raises((AssertionError, ConnectionError)):  # it ends, before its end
                peer.read_exactly(1_000_000)
        else:  # the gateway had not begun to answer
            assert status == (504 if answer.then is Then.STALL else 502)
            assert "X-Gateway-Error" in dict(fields)
    quiet(healthy.gateway)
    healthy.gitlab.settle()


def test_gitlab_is_slow_for_some_and_the_rest_wait_in_line(healthy: SimpleNamespace) -> None:
    """Four places: those who wait are served as places come free, and no answer is mixed up."""
    healthy.gitlab.script(*[stall()] * 4)
    slow = [Peer(healthy.gateway.port) for _ in range(4)]
    try:
        for peer in slow:
            peer.send(f"GET {TARGET} HTTP/1.1\r\nHost: g\r\nPRIVATE-TOKEN: {OWN_TOKEN}\r\n\r\n".encode())
        healthy.upstreams.run(healthy.gitlab.until(lambda gitlab: len(gitlab.requests) == 4))
        healthy.gitlab.script(response(200, b'"mine"'))
        assert ask(healthy.gateway.port, TARGET, token=OWN_TOKEN).body == b'"mine"'
        assert [peer.read_reply().status for peer in slow] == [504] * 4
    finally:
        for peer in slow:
            peer.socket.close()
    quiet(healthy.gateway)


def test_an_upload_is_cut_short_by_a_gitlab_that_dies(healthy: SimpleNamespace) -> None:
    healthy.gitlab.script(Answer(then=Then.RESET, when=When.HEAD))
    with Peer(healthy.gateway.port) as peer:
        peer.send(f"POST {TARGET} HTTP/1.1\r\nHost: g\r\nPRIVATE-TOKEN: {OWN_TOKEN}\r\n".encode())
        peer.send(b"Content-Length: 50000000\r\n\r\n" + b"x" * 200_000)
        reply = peer.read_reply()
        assert (reply.status, reply.value("X-Gateway-Error"), reply.value("Connection")) == (502, "upstream_reset", "close")
    quiet(healthy.gateway)
    healthy.gitlab.settle()


def test_clients_that_vanish_release_everything(healthy: SimpleNamespace) -> None:
    """In the head, in the body, while GitLab thinks, in the middle of the answer."""
    gateway, gitlab = healthy.gateway, healthy.gitlab
    quiet(gateway)
    before = descriptors(gateway)
    head = f"POST {TARGET} HTTP/1.1\r\nHost: g\r\nPRIVATE-TOKEN: {OWN_TOKEN}\r\n".encode()
    get = f"GET {TARGET} HTTP/1.1\r\nHost: g\r\nPRIVATE-TOKEN: {OWN_TOKEN}\r\n\r\n".encode()
    for _ in range(25):
        for octets in (head[:40], head + b"Content-Length: 10\r\n\r\nx", head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n"):
            with Peer(gateway.port) as peer:
                peer.send(octets)
    # Connections are accepted in their order: behind this one all of the vanished have been; none takes an answer below.
    with Peer(gateway.port) as peer:
        peer.send(b"GET /-/gateway/none HTTP/1.1\r\nHost: g\r\n\r\n")
        peer.read_reply()
    quiet(gateway)
    for answer in [stall(), stall(HALF)] * 10:
        gitlab.script(answer)
        asked = len(gitlab.requests) + 1
        with Peer(gateway.port) as peer:
            peer.send(get)
            healthy.upstreams.run(gitlab.until(lambda one, asked=asked: len(one.requests) >= asked))
    gitlab._script.clear()
    quiet(gateway)
    until(lambda: gitlab.open_connections <= 4, "GitLab is let go of")
    until(lambda: descriptors(gateway) <= before + 4, "descriptors are given back")
    gitlab.unscripted.clear()


def test_the_breaker_opens_and_closes_again_by_itself(healthy: SimpleNamespace) -> None:
    """GitLab goes away: 502 until it is certain, then 503 at once with a Retry-After; it comes back: 200."""
    gateway = healthy.gateway
    healthy.upstreams.run(healthy.line.cut())
    seen = []

    def opened() -> bool:
        reply = ask(gateway.port, TARGET, token=OWN_TOKEN)
        seen.append((reply.status, reply.value("X-Gateway-Error")))
        return reply.status == 503

    until(opened, "the breaker opens")
    assert {status for status, _ in seen[:-1]} == {502}
    assert {code for _, code in seen[:-1]} <= {"upstream_refused", "upstream_reset"}
    reply = ask(gateway.port, TARGET, token=OWN_TOKEN)
    assert (reply.status, reply.value("X-Gateway-Error")) == (503, "upstream_breaker_open")
    assert 1 <= int(reply.value("Retry-After") or 0) <= OPEN_FOR_S + 1
    assert checks(gateway)["upstream"].startswith("degraded: breaker")
    assert figure(gateway, 'gitlab_gateway_upstream_breaker{state="closed"}') == 0
    assert ask(gateway.admin_port, "/readyz").status == 200
    healthy.upstreams.run(healthy.line.open())
    _recover(healthy)
    assert checks(gateway)["upstream"] == "ok"
    assert figure(gateway, 'gitlab_gateway_upstream_breaker{state="closed"}') == 1
    quiet(gateway)
