"""A GitLab of bytes: each test scripts what the other side of the socket does, octet by octet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.ports import UpstreamRequest
from gateway.upstream.client import HttpUpstream, UpstreamSettings


class Peer:
    """One accepted connection, from GitLab's side."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.heads: list[bytes] = []
        self.ended = asyncio.Event()

    async def request(self) -> bytes:
        """The next request head, with its empty line; b"" when the client closed instead."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        self.heads.append(head)
        return head

    async def body(self, octets: int) -> bytes:
        return await self.reader.readexactly(octets)

    async def rest(self) -> bytes:
        """Everything until the client closes; also after a reset."""
        got = b""
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(65536):
                got += piece
        return got

    async def send(self, octets: bytes) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):  # the latter is uvloop's word for a closed transport
            self.writer.write(octets)
            await self.writer.drain()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


Script = Callable[[Peer], Awaitable[None]]


class Gitlab:
    """Runs one script per connection and keeps what it saw."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.faults: list[BaseException] = []
        self.port = 0
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def play(self, script: Script, *, host: str = "127.0.0.1", path: str | None = None, ssl: object = None) -> str:
        """Start listening; returns the URL."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(len(self.peers), reader, writer)
            self.peers.append(peer)
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await script(peer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            except asyncio.CancelledError:
                return
            except Exception as fault:  # noqa: BLE001 — a script that is wrong fails its test, not only its task
                self.faults.append(fault)
            finally:
                self._tasks.discard(task)
                peer.ended.set()
                writer.close()

        if path is not None:
            server = await asyncio.start_unix_server(serve, path)
            self._servers.append(server)
            return f"unix:{path}"
        server = await asyncio.start_server(serve, host, 0, ssl=ssl, limit=1 << 22)  # type: ignore[arg-type]
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        return f"{'https' if ssl else 'http'}://{name}:{self.port}"

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for peer in self.peers:
            with contextlib.suppress(AttributeError):  # asyncio's over TLS, before 3.11.5: it is over already
                peer.writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)
        assert not self.faults, self.faults

    @property
    def requests(self) -> int:
        return sum(len(peer.heads) for peer in self.peers)


class Pieces:
    """A request body in given pieces; ``then`` is awaited before the end."""

    def __init__(self, *pieces: bytes, then: Callable[[], Awaitable[None]] | None = None) -> None:
        self._pieces = list(pieces)
        self._then = then
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        if self._pieces:
            return self._pieces.pop(0)
        if self._then is not None:
            await self._then()
        return b""


def get(target: bytes = b"/api/v4/version", **more: object) -> UpstreamRequest:
    """A request as the pipeline makes them."""
    given: dict[str, object] = {"method": "GET", "own": ((b"Host", b"gitlab.test"),)} | more
    return UpstreamRequest(target=target, **given)  # type: ignore[arg-type]


def always(octets: bytes) -> Script:
    """Answers each request on each connection with the same octets."""

    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.send(octets)

    return script


def once(octets: bytes) -> Script:
    """Answers one request, then closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(octets)

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def gitlab() -> AsyncIterator[Gitlab]:
    fake = Gitlab()
    yield fake
    await fake.stop()


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., HttpUpstream]]:
    """Makes clients, and checks at the end that nothing of them is left."""
    made: list[HttpUpstream] = []

    def make(url: str, **settings: object) -> HttpUpstream:
        client = HttpUpstream(UpstreamSettings(url=url, **settings))  # type: ignore[arg-type]
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()
        assert (client.in_flight, client.waiting, client.open, client.idle) == (0, 0, 0, 0)
