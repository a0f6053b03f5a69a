"""A client of raw octets, and a server whose handler is a function of the test."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from gateway.core.errors import Rejection
from gateway.core.messages import ResponseHead
from gateway.core.refusal import render
from gateway.edge.downstream import AiohttpDownstream
from gateway.edge.server import TrafficServer, TryAnswer
from gateway.edge.settings import EdgeSettings

Handler = Callable[[AiohttpDownstream], Awaitable[None]]
SOON_S = 60.0
"""Longer than anything here takes; a test that waits it out has failed."""


class Client:
    """One connection, read answer by answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def answer(self, *, head_only: bool = False) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, fields as received, and the body with its framing undone."""
        async with asyncio.timeout(SOON_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = head[:-4].split(b"\r\n")
            assert line.startswith(b"HTTP/1.1 "), line
            status = int(line[9:12])
            fields = [(name, value[1:]) for name, _, value in (each.partition(b":") for each in lines)]
            found = {name.lower(): value for name, value in fields}
            if head_only or status in {204, 304} or 100 <= status < 200:
                return status, fields, b""
            if found.get(b"transfer-encoding") == b"chunked":
                return status, fields, await self._chunks()
            if b"content-length" in found:
                return status, fields, await self.reader.readexactly(int(found[b"content-length"]))
            return status, fields, await self.reader.read()

    async def _chunks(self) -> bytes:
        body = b""
        while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def rest(self) -> bytes:
        """Everything up to the connection's end."""
        async with asyncio.timeout(SOON_S):
            return await self.reader.read()

    async def is_cut(self) -> bool:
        """Whether the connection ends, or is reset, without another octet."""
        try:
            return await self.rest() == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        """Vanish: RST instead of FIN."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Traffic:
    """A data port; ``refused`` keeps what never became a request."""

    def __init__(self, server: TrafficServer, port: int, refused: list[Rejection], clients: list[Client]) -> None:
        self.server = server
        self.port = port
        self.refused = refused
        self._clients = clients

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    async def ask(self, octets: bytes) -> bytes:
        """Everything one connection answers to ``octets``, up to its end."""
        client = await self.connect()
        await client.send(octets)
        return await client.rest()


@asynccontextmanager
async def traffic(
    handler: Handler, try_answer: TryAnswer | None = None, tls: ssl.SSLContext | None = None, **settings: object
) -> AsyncIterator[Traffic]:
    """Listen with ``handler``, and ``try_answer`` for what it answered before; at the end no connection is left."""
    refused: list[Rejection] = []
    clients: list[Client] = []

    def render_early(rejection: Rejection, peer: str) -> tuple[ResponseHead, bytes]:
        assert peer == "127.0.0.1"
        refused.append(rejection)
        return render(rejection)

    given = {} if try_answer is None else {"try_answer": try_answer}
    server = TrafficServer(handler, render_early, EdgeSettings(**settings), **given)  # type: ignore[arg-type]
    listening = await server.listen("127.0.0.1", 0, ssl_context=tls)
    try:
        yield Traffic(server, listening.sockets[0].getsockname()[1], refused, clients)
    finally:
        for client in clients:
            client.writer.close()
        listening.close()
        server.pre_shutdown()
        await server.shutdown(SOON_S)
        async with asyncio.timeout(SOON_S):
            while server.client_connections.open:
                await asyncio.sleep(0)


async def echo(down: AiohttpDownstream) -> None:
    """200 with the target, and the body if the target asks to read it."""
    body = b""
    if down.body is not None and b"read" in down.head.target:
        while chunk := await down.body.read():
            body += chunk
    await down.respond(ResponseHead(200, ((b"X-Echo", b"1"),)), down.head.target + b" " + body)


def request(target: str = "/", *lines: str, method: str = "GET", version: str = "1.1", body: bytes = b"") -> bytes:
    """A well-formed request."""
    head = [f"{method} {target} HTTP/{version}", "Host: git.example.com", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body
