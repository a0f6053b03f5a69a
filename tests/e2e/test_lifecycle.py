"""A gateway's life: keys that come and go while it runs, and an end that cuts nobody off."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest

from gateway.core.gateway_key import is_well_formed
from gateway.demo.gitlab import DemoGitLab
from tests.e2e.conftest import DEMO_SECRETS, Passage, demo_config
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer, ask, stranger
from tests.fakes.gitlab import Answer, FakeGitLab, Then

REVOKED_WITHIN_S = 10.0
"""A second of memory, and what a busy machine adds."""
LARGE = b"x" * 1_000_000
"""More than is gathered before it is sent on: small answers with a length go down whole."""


def until(holds: Callable[[], bool], within_s: float) -> None:
    """Ask again and again, for so long."""
    ends_at = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends_at, f"not within {within_s} s"


def test_a_new_key_is_the_last_line_alone_and_works_at_once(gateway: GatewayProcess) -> None:
    done = gateway.command("keys", "new", "reader")
    lines = done.stdout.splitlines()
    assert is_well_formed(lines[-1])
    assert lines[-1] not in done.stderr
    assert ask(gateway.port, "/api/v4/projects/platform%2Fapi", token=lines[-1]).status == 200
    listed = gateway.command("keys", "list").stdout
    assert "reader" in listed
    assert lines[-1] not in listed


def _revoke_last(gateway: GatewayProcess, identity: str) -> None:
    records = json.loads(gateway.command("keys", "list", "--json").stdout)
    mine = [record for record in records if record["identity"] == identity and record["state"] == "live"]
    newest = max(mine, key=lambda record: (record["created_at"], record["id"]))
    gateway.command("keys", "revoke", newest["id"])


def _only_key(gateway: GatewayProcess, identity: str) -> str:
    for record in json.loads(gateway.command("keys", "list", identity, "--json").stdout):
        if record["state"] == "live":
            gateway.command("keys", "revoke", record["id"])
    return gateway.new_key(identity)


def test_revocation_reaches_a_running_gateway_through_its_file(gateway: GatewayProcess) -> None:
    key = _only_key(gateway, "spare")
    source = stranger()
    assert ask(gateway.port, "/api/v4/version", token=key).status == 200
    _revoke_last(gateway, "spare")
    until(lambda: ask(gateway.port, "/api/v4/version", token=key, source=source).status == 401, REVOKED_WITHIN_S)


def test_revocation_reaches_every_gateway_through_redis(pair: tuple[GatewayProcess, GatewayProcess]) -> None:
    first, second = pair
    key = _only_key(first, "spare")
    source = stranger()
    for process in pair:
        assert ask(process.port, "/api/v4/version", token=key).status == 200
    _revoke_last(second, "spare")
    for process in pair:
        until(lambda: ask(process.port, "/api/v4/version", token=key, source=source).status == 401, REVOKED_WITHIN_S)  # noqa: B023


def test_sigterm_lets_a_slow_download_end(upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> None:
    """New connections are refused, what runs is completed, and then the process ends with 0."""
    gitlab = FakeGitLab()
    upstreams.run(gitlab.__aenter__())
    rest = asyncio.Event()
    gitlab.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000005\r\n\r\n" + LARGE, rest, b"-last"))
    config = {"upstream": {"url": gitlab.url}, "identities": [{"id": "anyone", "anonymous": True}]}
    gateway = GatewayProcess(config, tmp_path_factory.mktemp("ending"))
    try:
        with Peer(gateway.port) as peer:
            peer.send(b"GET /api/v4/projects/1/jobs/1/artifacts HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _ = peer.read_head()
            assert (status, peer.read_exactly(len(LARGE))) == (200, LARGE)
            gateway.process.terminate()
            gateway.log.find(lambda line: "draining" in line or None)
            until(lambda: _refuses(gateway.port), 20.0)
            assert gateway.process.poll() is None
            upstreams.call(rest.set)
            assert peer.read_exactly(5) == b"-last"
            assert peer.more() == b""  # a kept connection ends with its last answer
        assert gateway.process.wait(20) == 0
        gateway.audit.join()
        (line,) = gateway.audit.all
        assert (json.loads(line)["status"], json.loads(line).get("aborted")) == (200, None)
    finally:
        gateway.stop()
        upstreams.run(gitlab.__aexit__(None, None, None))


def _refuses(port: int) -> bool:
    try:
        with Peer(port):
            return False
    except ConnectionError:
        return True


def test_sigterm_turns_readiness_off_while_it_drains(
    upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gitlab = FakeGitLab()
    upstreams.run(gitlab.__aenter__())
    rest = asyncio.Event()
    gitlab.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n" + LARGE, rest, b"2"))
    config = {"upstream": {"url": gitlab.url}, "identities": [{"id": "anyone", "anonymous": True}]}
    gateway = GatewayProcess(config, tmp_path_factory.mktemp("readiness"))
    try:
        with Peer(gateway.port) as peer:
            peer.send(b"GET /api/v4/projects/1/jobs/1/artifacts HTTP/1.1\r\nHost: x\r\n\r\n")
            peer.read_head()
            gateway.process.terminate()
            gateway.log.find(lambda line: "draining" in line or None)
            until(lambda: ask(gateway.admin_port, "/readyz").status == 503, 20.0)
            assert ask(gateway.admin_port, "/livez").status == 200
            upstreams.call(rest.set)
            assert peer.read_exactly(len(LARGE) + 1) == LARGE + b"2"
        assert gateway.process.wait(20) == 0
    finally:
        gateway.stop()
        upstreams.run(gitlab.__aexit__(None, None, None))


def test_x10_a_long_poll_outlasts_the_usual_wait(upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runners wait for work; another request's timeout, set far shorter here, shows that theirs is not the same."""
    gitlab = FakeGitLab()
    upstreams.run(gitlab.__aenter__())
    work = asyncio.Event()
    gitlab.script(Answer(work, b"HTTP/1.1 204 No Content\r\n\r\n"), Answer(then=Then.STALL))
    config = {
        "upstream": {"url": gitlab.url, "timeouts": {"first_byte": "100ms"}},
        "identities": [{"id": "anyone", "anonymous": True}],
    }
    gateway = GatewayProcess(config, tmp_path_factory.mktemp("polling"))
    try:
        with Peer(gateway.port) as runner:
            runner.send(
                b"POST /api/v4/jobs/request HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 20\r\n\r\n{"token":"glrt-abc"}'
            )
            upstreams.run(gitlab.until(lambda fake: len(fake.requests) == 1))
            impatient = ask(gateway.port, "/api/v4/projects")
            assert (impatient.status, impatient.value("X-Gateway-Error")) == (504, "upstream_timeout")
            upstreams.call(work.set)
            assert runner.read_reply("POST").status == 204
    finally:
        assert gateway.stop() == 0
        upstreams.run(gitlab.__aexit__(None, None, None))


def test_a_config_with_mistakes_does_not_start(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = demo_config(demo.url, limitz=[], stores={"shared": "mysql://x"})
    with pytest.raises(AssertionError) as failed:
        GatewayProcess(config, tmp_path_factory.mktemp("mistakes"), DEMO_SECRETS)
    assert "limitz" in str(failed.value)
    assert "stores.shared" in str(failed.value)


def test_an_answer_in_pieces_is_not_waited_for(passage: Passage, upstreams: LoopThread) -> None:
    """What GitLab has sent goes down at once, however long the rest takes."""
    rest = asyncio.Event()
    passage.recorder.script(
        Answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n", rest, b"3\r\ntwo\r\n0\r\n\r\n")
    )
    with Peer(passage.gateway.port) as peer:
        peer.send(b"GET /api/v4/projects/1/jobs/1/trace HTTP/1.1\r\nHost: x\r\n\r\n")
        peer.read_head()
        assert (peer.read_line(), peer.read_exactly(5)) == (b"3", b"one\r\n")
        upstreams.call(rest.set)
        assert (peer.read_line(), peer.read_exactly(5)) == (b"3", b"two\r\n")
