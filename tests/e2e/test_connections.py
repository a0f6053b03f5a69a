"""Many connections with few requests: limits hold, and everybody else is answered as ever."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.load import figure, quiet, resident_kib, until
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, ask

_HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
MANY = 10_000 if _HARD == resource.RLIM_INFINITY else min(10_000, _HARD - 2000)
"""As many as a process may open here, if that is fewer."""
SOME = min(2000, MANY)
KIB_EACH = 24
"""More memory than this per idle or dripping connection would be a leak of promises (docs/attacks.md)."""


def _started(demo: DemoGitLab, directory: Path, **limits: object) -> GatewayProcess:
    listen = {"address": "127.0.0.1:0", "admin": "127.0.0.1:0", "limits": limits}
    return GatewayProcess(demo_config(demo.url, listen=listen), directory, DEMO_SECRETS)


@contextmanager
def connections(port: int, count: int, octets: bytes, sources: int = 4) -> Iterator[list[socket.socket]]:
    """So many connections that have each sent ``octets``, from a few addresses: a port range is finite."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 1000)), hard))
    with ExitStack() as stack:
        found = []
        for number in range(count):
            one = socket.create_connection(("127.0.0.1", port), 10, (f"127.9.0.{1 + number % sources}", 0))
            stack.callback(one.close)
            if octets:
                one.sendall(octets)
            found.append(one)
        yield found


DRIPS = {
    "silent": b"",
    "dripping_a_head": b"GET /api/v4/version HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "dripping_a_body": (
        f"POST /api/v4/projects HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {TOKENS.ada}\r\nContent-Length: 100\r\n\r\nx".encode()
    ),
}


@pytest.mark.parametrize(("drip", "count"), [("silent", MANY), ("dripping_a_head", MANY), ("dripping_a_body", SOME)])
def test_slow_clients_hold_up_nobody(demo: DemoGitLab, tmp_path: Path, drip: str, count: int) -> None:
    gateway = _started(demo, tmp_path, request_head="5m", body_idle="5m", body_rate=0, idle="5m")
    try:
        with Peer(gateway.port) as peer:
            before = _pace(peer)
            kib = resident_kib(gateway)
            with connections(gateway.port, count, DRIPS[drip]) as held:
                until(lambda: figure(gateway, "gitlab_gateway_client_connections") == count + 1, "all are let in")
                each = (resident_kib(gateway) - kib) / count
                for one in held[:200] if drip != "silent" else ():
                    one.sendall(b"y")
                during = _pace(peer)
        assert each < KIB_EACH
        assert during < before * 3 + 0.05
        quiet(gateway)
    finally:
        assert gateway.stop() == 0


def _pace(peer: Peer) -> float:
    """The median of a hundred answers, in seconds: the longest may be the machine's, which pauses. Each must come."""
    took = []
    for _ in range(100):
        started = time.monotonic()
        peer.send(f"GET /api/v4/version HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {TOKENS.ada}\r\n\r\n".encode())
        assert peer.read_reply().status == 200
        took.append(time.monotonic() - started)
    return sorted(took)[50]


def test_slow_clients_are_let_go(demo: DemoGitLab, tmp_path: Path) -> None:
    # Idle connections have longer: on a machine that pauses, a head that comes late would be no head at all.
    gateway = _started(demo, tmp_path, request_head="1s", body_idle="1s", idle="4s")
    try:
        for name, octets in DRIPS.items():
            with connections(gateway.port, 50, octets) as held:
                for one in held:
                    received = one.recv(4096)
                    assert not received or received.startswith(b"HTTP/1.1 408 "), name
            quiet(gateway)
        assert figure(gateway, "gitlab_gateway_slow_heads_total") >= 50
    finally:
        assert gateway.stop() == 0


def test_connections_of_one_address_are_limited_and_others_get_in(demo: DemoGitLab, tmp_path: Path) -> None:
    gateway = _started(demo, tmp_path, connections_per_peer=20)
    try:
        with connections(gateway.port, 20, b"", sources=1):
            until(lambda: figure(gateway, "gitlab_gateway_client_connections") == 20, "as many as may")
            with pytest.raises((AssertionError, ConnectionError)):
                ask(gateway.port, "/api/v4/version", token=TOKENS.ada, source="127.9.0.1")
            assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada, source="127.9.0.2").status == 200
            assert figure(gateway, "gitlab_gateway_client_connections_refused_total") == 1
        until(lambda: figure(gateway, "gitlab_gateway_client_connections") == 0, "they are gone")
        assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada, source="127.9.0.1").status == 200
    finally:
        assert gateway.stop() == 0


def test_a_gateway_without_descriptors_comes_back(demo: DemoGitLab, tmp_path: Path) -> None:
    """Who is connected gets an answer, if only a 503; when there are descriptors again, all is as before."""
    gateway = _started(demo, tmp_path)
    process = gateway.process.pid
    try:
        with Peer(gateway.port) as peer:
            _pace(peer)
            most = len(list(Path(f"/proc/{process}/fd").iterdir())) + 20
            before = resource.prlimit(process, resource.RLIMIT_NOFILE)
            resource.prlimit(process, resource.RLIMIT_NOFILE, (most, before[1]))
            with connections(gateway.port, 60, b""):
                until(lambda: len(list(Path(f"/proc/{process}/fd").iterdir())) >= most - 1, "none is left")
                for _ in range(20):
                    peer.send(f"GET /api/v4/version HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {TOKENS.ada}\r\n\r\n".encode())
                    assert peer.read_reply().status in {200, 503}
        resource.prlimit(process, resource.RLIMIT_NOFILE, before)
        quiet(gateway)
        assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == 200
        assert 'status="500"' not in gateway.metrics()
    finally:
        assert gateway.stop() == 0


def test_connections_in_all_are_limited(demo: DemoGitLab, tmp_path: Path) -> None:
    gateway = _started(demo, tmp_path, connections=20)
    try:
        with connections(gateway.port, 20, b""):
            until(lambda: figure(gateway, "gitlab_gateway_client_connections") == 20, "as many as may")
            with pytest.raises((AssertionError, ConnectionError)):
                ask(gateway.port, "/api/v4/version", token=TOKENS.ada)
        quiet(gateway)
        assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == 200
    finally:
        assert gateway.stop() == 0
