"""An upstream of raw octets: records what it receives exactly, answers from a script, misbehaves on demand.

    async with FakeGitLab() as gitlab:
        gitlab.script(response(200, b"[]"), Answer(b"HTTP/1.1 200 OK\\r\\nContent-Le", then=Then.RESET))
        ...
        assert gitlab.requests[0].target == b"/api/v4/projects/a%2fb"

One answer is used per request, in order, whichever connection it comes on. A request beyond the script cuts its connection
and fails the test at the end, and so does an answer that nobody asked for. What is asked beside the test's own requests
(whose token is this?) can be given a standing answer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Self


class Then(Enum):
    """What happens to the connection after an answer's octets."""

    KEEP = auto()
    """It waits for the next request."""
    CLOSE = auto()
    """An orderly end: early when the octets promise more."""
    RESET = auto()
    """A TCP reset."""
    STALL = auto()
    """Nothing more, ever, until the peer gives up."""


class When(Enum):
    """How much of the request is read before the answer goes out."""

    WHOLE = auto()
    HEAD = auto()
    """After the head; the body is then left unread, so the connection can't be kept."""
    ACCEPT = auto()
    """At once, before any octet of a request: for a connection that dies young."""


Piece = bytes | asyncio.Event | float
"""Octets to send; or an event to wait for before going on, or for so many seconds."""


class Answer:
    """One scripted answer."""

    def __init__(self, *pieces: Piece, then: Then = Then.KEEP, when: When = When.WHOLE, continues: bool = False) -> None:
        self.pieces = pieces
        self.then = then
        self.when = when
        self.continues = continues
        """Whether ``100 Continue`` goes out once the head is there."""


def response(status: int, body: bytes = b"", *fields: tuple[str, str], reason: str = "Status") -> Answer:
    """A well-formed answer with its Content-Length (none for 204 and 304)."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields)]
    if status not in {204, 304} and not any(name.lower() in {"content-length", "transfer-encoding"} for name, _ in fields):
        lines.append(f"Content-Length: {len(body)}")
    return Answer("\r\n".join([*lines, "", ""]).encode() + body)


# Faults, by name


def reset(after: bytes = b"") -> Answer:
    return Answer(after, then=Then.RESET)


def stall(after: bytes = b"") -> Answer:
    return Answer(after, then=Then.STALL)


def early_close(after: bytes = b"") -> Answer:
    return Answer(after, then=Then.CLOSE)


def garbage(octets: bytes = b"\x16\x03\x01 this is no HTTP\r\n\r\n") -> Answer:
    return Answer(octets, then=Then.CLOSE)


def wrong_length(body: bytes, claimed: int) -> Answer:
    """A Content-Length that does not fit its body; the connection ends after the body."""
    return Answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (claimed, body), then=Then.CLOSE)


@dataclass(frozen=True, slots=True)
class Received:
    """A request, octet for octet."""

    head: bytes
    """Request line and fields, with the empty line."""
    framed_body: bytes
    """The body as it came, chunk framing and trailers among it."""
    body: bytes
    """The body's content."""
    connection: int
    """Which connection it came on, counted from 0."""

    @property
    def octets(self) -> bytes:
        return self.head + self.framed_body

    @property
    def line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Names and values in order, spelled as sent."""
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]

    def values(self, name: str) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name.lower().encode()]


class FakeGitLab:
    """The server. Leaving its context asserts that script and requests matched."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[Received] = []
        self.unscripted: list[bytes] = []
        self.asides: list[Received] = []
        """Requests that got a standing answer."""
        self.connections = 0
        self.port = 0
        self._script: deque[Answer] = deque(answers)
        self._standing: dict[bytes, Callable[[Received], Answer]] = {}
        self._open: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def is_open(self, connection: int) -> bool:
        """Whether the connection of that number still is."""
        return connection in self._open

    def script(self, *answers: Answer) -> None:
        """Add answers."""
        self._script.extend(answers)

    def unscript(self) -> None:
        """Take back the answers that nobody asked for."""
        self._script.clear()

    def stand(self, target: bytes, answer: Callable[[Received], Answer]) -> None:
        """From now on, answer each request for ``target`` so, past the script."""
        self._standing[target] = answer

    def settle(self) -> None:
        """Assert that script and requests matched so far, and forget both."""
        unscripted, left = self.unscripted, len(self._script)
        self.requests, self.asides, self.unscripted = [], [], []
        self._script.clear()
        assert not unscripted, f"requests beyond the script: {unscripted}"
        assert not left, f"{left} answers were never asked for"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._open.values()):
            task.cancel()
        await asyncio.gather(*self._open.values(), return_exceptions=True)
        await self._server.wait_closed()
        if kind is None:
            self.settle()

    async def until(self, holds: Callable[[FakeGitLab], bool], timeout_s: float = 5.0) -> None:
        """Wait for a fact about this server, e.g. ``lambda gitlab: gitlab.open_connections == 0``."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: holds(self))

    # One connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open[number] = task
        try:
            await self._tell()
            while await self._exchange(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the peer went away: `until` sees it
        finally:
            writer.close()
            del self._open[number]
            await self._tell()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        """One request and its answer; False when the connection is done."""
        if self._script and self._script[0].when is When.ACCEPT:
            return await self._reply(self._script.popleft(), reader, writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as ended:
            if ended.partial:
                self.unscripted.append(ended.partial)
            return False
        standing = self._standing.get(head.split(b" ", 2)[1]) if self._standing else None
        if standing is not None:
            received = Received(head, *await _read_body(head, reader), number)
            self.asides.append(received)
            return await self._reply(standing(received), reader, writer)
        if not self._script:
            self.unscripted.append(head)
            _cut(writer)
            return False
        answer = self._script.popleft()
        if answer.continues:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        framed, body = (b"", b"") if answer.when is When.HEAD else await _read_body(head, reader)
        self.requests.append(Received(head, framed, body, number))
        await self._tell()
        return await self._reply(answer, reader, writer)

    async def _reply(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for piece in answer.pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                writer.write(piece)
                await writer.drain()
        if answer.then is Then.STALL:
            while await reader.read(65536):
                pass
        elif answer.then is Then.RESET:
            _cut(writer)
        return answer.then is Then.KEEP

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _cut(writer: asyncio.StreamWriter) -> None:
    """End the connection by RST: linger for no time."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The body as framed, and its content."""
    fields = {
        name.lower(): value.strip().lower()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:-2])
    }
    if fields.get(b"transfer-encoding", b"").endswith(b"chunked"):
        return await _read_chunks(reader)
    body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
    return body, body


async def _read_chunks(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    framed, content = bytearray(), bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        framed += line
        size = int(line.partition(b";")[0].strip(), 16)
        if size == 0:
            while line != b"\r\n":  # trailers, up to the empty line
                line = await reader.readuntil(b"\r\n")
                framed += line
            return bytes(framed), bytes(content)
        chunk = await reader.readexactly(size + 2)
        framed += chunk
        content += chunk[:-2]
