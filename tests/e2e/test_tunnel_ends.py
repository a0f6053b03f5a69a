"""How tunnels end, in clear and over TLS on either side: who learns of it, and whom the audit names."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer
from tests.fakes.certificates import Authority

HANDSHAKE = (
    b"GET /-/cable HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: a close that is none
sides = pytest.mark.parametrize(
    ("tls_up", "tls_down"),
    [
        pytest.param(False, False, id="clear"),
        pytest.param(True, False, id="tls to gitlab"),
        pytest.param(False, True, id="tls to clients"),
        pytest.param(True, True, id="tls"),
    ],
)


class Far:
    """A GitLab that switches, says ``hello``, then does what it receives: ``end``, ``reset``; ``stall`` reads no more."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context = context
        self.said = b"hello"
        self.received = b""
        self.switches = asyncio.Event()
        self.switches.set()
        self.ends = True
        """When its client has."""
        self.server: asyncio.Server
        self.asked = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)

    async def close(self) -> None:
        self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            await self.switches.wait()
            writer.write(SWITCHING + self.said)
            while octets := await reader.read(65536):
                self.received += octets
                if octets == b"end" and writer.can_write_eof():
                    writer.write_eof()
                elif octets == b"end":
                    writer.close()
                elif octets == b"reset":
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    writer.transport.abort()
                elif octets.startswith(b"stall"):
                    writer.transport.pause_reading()  # type: ignore[attr-defined]
            if not self.ends:
                await asyncio.Event().wait()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


class World:
    """A GitLab, a gateway and its clients."""

    def __init__(self, upstreams: LoopThread, authority: Authority, directory: Path, stack: ExitStack) -> None:
        self._upstreams, self._authority, self._directory, self._stack = upstreams, authority, directory, stack
        self._tls_down = False
        self.gitlab: Far
        self.gateway: GatewayProcess

    def start(self, *, tls_up: bool = False, tls_down: bool = False, **upstream: Any) -> GatewayProcess:
        context = None
        if tls_up:
            pair = self._authority.issue("gitlab")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.cert, pair.key)
            upstream["ca_file"] = str(self._authority.file)
        self.gitlab = Far(context)
        self._upstreams.run(self.gitlab.start())
        self._stack.callback(lambda: self._upstreams.run(self.gitlab.close()))
        listen: dict[str, Any] = {"address": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        self._tls_down = tls_down
        if tls_down:
            pair = self._authority.issue("gateway")
            listen["tls"] = {"cert_file": str(pair.cert), "key_file": str(pair.key)}
        config = {
            "upstream": {"url": self.gitlab.url, **upstream},
            "identities": [{"id": "anyone", "anonymous": True}],
            "listen": listen,
        }
        self.gateway = GatewayProcess(config, self._directory / "gateway")
        self._stack.callback(self.gateway.stop)
        return self.gateway

    def connect(self) -> Peer:
        peer = self._stack.enter_context(Peer(self.gateway.port))
        if self._tls_down:
            context = ssl.create_default_context(cafile=str(self._authority.file))
            peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost")
            self._stack.callback(peer.socket.close)
        return peer

    def tunnel(self) -> tuple[Peer, str]:
        """A client's end of one, GitLab's greeting read; and the request's id."""
        peer = self.connect()
        peer.send(HANDSHAKE)
        status, fields = peer.read_head()
        assert status == 101
        assert peer.read_exactly(len(self.gitlab.said)) == self.gitlab.said
        return peer, dict(fields)["X-Gateway-Request-Id"]

    def ended(self, number: str) -> str:
        """Who the audit says cut it; nothing of it is left."""
        line = self.gateway.audited(number)
        assert line["status"] == 101
        assert "gitlab_gateway_tunnels_open 0.0\n" in self.gateway.metrics()
        assert "gitlab_gateway_requests_in_flight 0.0\n" in self.gateway.metrics()
        return str(line.get("aborted", ""))


@pytest.fixture
def world(upstreams: LoopThread, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(upstreams, Authority(tmp_path), tmp_path, stack)


@sides
def test_a_client_that_ends_frees_both_sides(world: World, tls_up: bool, tls_down: bool) -> None:
    gateway = world.start(tls_up=tls_up, tls_down=tls_down)
    peer, number = world.tunnel()
    peer.send(b"bye")
    if tls_down:
        peer.socket.unwrap()  # type: ignore[attr-defined]
    else:
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.read_to_end() == b""
    assert world.ended(number) == ""
    assert world.gitlab.received == b"bye"
    assert gateway.stop() == 0


@sides
def test_gitlab_that_ends_cuts_nobody(world: World, tls_up: bool, tls_down: bool) -> None:
    gateway = world.start(tls_up=tls_up, tls_down=tls_down)
    peer, number = world.tunnel()
    peer.send(b"end")
    assert peer.read_to_end() == b""
    if not (tls_up or tls_down):
        peer.send(b"heard still")
        peer.socket.shutdown(socket.SHUT_WR)
    assert world.ended(number) == ""
    assert world.gitlab.received == (b"end" if tls_up or tls_down else b"endheard still")
    peer.socket.close()
    assert gateway.stop() == 0


@sides
def test_gitlab_that_resets_is_reported(world: World, tls_up: bool, tls_down: bool) -> None:
    world.start(tls_up=tls_up, tls_down=tls_down)
    peer, number = world.tunnel()
    peer.send(b"reset")
    assert peer.read_to_end() == b""
    assert world.ended(number) == "upstream"
    assert 'gitlab_gateway_aborted_responses_total{by="upstream"} 1.0' in world.gateway.metrics()


@sides
def test_a_client_that_resets_is_told_of(world: World, tls_up: bool, tls_down: bool) -> None:
    world.start(tls_up=tls_up, tls_down=tls_down)
    peer, number = world.tunnel()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.socket.close()
    assert world.ended(number) == "client"


def test_silence_is_ended_by_the_gateway(world: World) -> None:
    world.start(timeouts={"tunnel_idle": "1s"})
    peer, number = world.tunnel()
    assert peer.read_to_end() == b""
    assert world.ended(number) == "gateway"


def half_closed(peer: Peer) -> None:
    peer.socket.shutdown(socket.SHUT_WR)


def gitlab_takes_nothing(peer: Peer) -> None:
    peer.send(b"stall")
    peer.socket.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            peer.send(bytes(1 << 20))


@pytest.mark.parametrize("how", [half_closed, gitlab_takes_nothing])
def test_draining_ends_what_nobody_reads(world: World, how: Callable[[Peer], None]) -> None:
    gateway = world.start()
    world.gitlab.ends = False
    peer, number = world.tunnel()
    how(peer)
    began = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - began < 20
    assert gateway.audited(number)["aborted"] == "gateway"


def test_draining_opens_no_more(world: World, upstreams: LoopThread) -> None:
    """GitLab's 101 comes when the gateway is going down."""
    gateway = world.start()
    upstreams.call(world.gitlab.switches.clear)
    peer = world.connect()
    peer.send(HANDSHAKE)
    while not world.gitlab.asked:
        time.sleep(0.01)
    gateway.process.terminate()
    gateway.log.find(lambda line: True if "drain" in line else None)
    upstreams.call(world.gitlab.switches.set)
    reply = peer.read_reply()
    assert (reply.status, reply.value("X-Gateway-Error")) == (503, "draining")
    began = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - began < 20
