"""The streams that a connection hands to their readers: bodies and tunnels. Bounded memory, one reader each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..core.errors import Rejection
from .errors import Failure, UpstreamFailure, rejection

# Above HIGH the socket is not read until the buffer is down to LOW. One read is at most 256 KiB, so a stream whose reader
# is slow holds at most HIGH + 256 KiB.
HIGH_BYTES = 128 * 1024
LOW_BYTES = 32 * 1024


class StreamConnection(Protocol):
    """What a stream needs of its connection."""

    def resume(self) -> None: ...
    def close(self) -> None: ...
    def write(self, data: bytes) -> bool: ...
    async def writable(self) -> None: ...
    def write_eof(self) -> None: ...


class Stream:
    """Octets that have arrived and wait for their reader."""

    __slots__ = ("_chunks", "_connection", "_end_callback", "_ended", "_error", "_paused", "_waiter", "buffered")

    def __init__(self, connection: StreamConnection) -> None:
        self._connection: StreamConnection | None = connection
        self._chunks: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: Rejection | None = None
        self._paused = False
        self._end_callback: Callable[[], None] | None = None
        self.buffered = 0

    def on_end(self, then: Callable[[], None]) -> None:
        """Call ``then`` when no more will come, however much has been read by then; at once if that is so already."""
        if self._ended or self._error is not None:
            then()
        else:
            self._end_callback = then

    async def read(self) -> bytes:
        """The next octets; ``b""`` at the end. After a failure: first what had arrived before, then the Rejection."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        self.buffered -= len(chunk)
        if self._paused and self.buffered <= LOW_BYTES:
            self._paused = False
            if self._connection is not None:
                self._connection.resume()
        return chunk

    def push(self, chunk: bytes) -> bool:
        """Add octets, as the connection does. True: enough, the socket must not be read until ``resume``."""
        self._chunks.append(chunk)
        self.buffered += len(chunk)
        self._wake()
        if self.buffered > HIGH_BYTES:
            self._paused = True
        return self._paused

    def end(self) -> None:
        """Note that all of it has arrived."""
        self._ended = True
        self._wake()

    def detach(self) -> None:
        """Part the stream from its connection, which has no more to do with it."""
        self._connection = None

    def fail(self, error: Rejection) -> None:
        self._connection = None
        self._error = error
        self._wake()

    def close(self) -> None:
        """Read no more of it. Idempotent; before the end this closes the connection."""
        connection, self._connection = self._connection, None
        self._chunks.clear()
        self.buffered = 0
        if not self._ended and self._error is None:
            # A reader that goes on must not take this for the end of the body.
            self._error = rejection(Failure.INCOMPLETE, "released before its end")
            self._wake()
        if connection is not None:
            connection.close()

    def _wake(self) -> None:
        if self._end_callback is not None and (self._ended or self._error is not None):
            end_callback, self._end_callback = self._end_callback, None
            end_callback()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Body(Stream):
    """A response body as an async iterator."""

    __slots__ = ()

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.read()
        if not chunk:
            raise StopAsyncIteration
        return chunk


class UpstreamTunnel(Stream):
    """A tunnel to GitLab after a 101, in both directions."""

    __slots__ = ("half_closes",)

    def __init__(self, connection: StreamConnection, *, half_closes: bool) -> None:
        super().__init__(connection)
        self.half_closes = half_closes

    async def write(self, chunk: bytes) -> None:
        """Send to GitLab, with back-pressure. Raises Rejection UPSTREAM_RESET when it is gone. Where it ends its side by
        closing, as over TLS, the chunk is dropped instead: what GitLab sent last may still have to be read."""
        connection = self._connection
        try:
            if connection is None or not connection.write(chunk):
                raise UpstreamFailure(Failure.RESET)
            await connection.writable()
        except UpstreamFailure as error:
            if not self._ended or self.half_closes:
                raise rejection(error.failure, "tunnel") from error

    def write_eof(self) -> None:
        """Half-close. TLS can't (RFC 8446 §6.1 allows it, our TLS stack doesn't): there both directions end, and what has
        come can still be read."""
        if self._connection is not None:
            self._connection.write_eof()
