"""The client's side of a tunnel: its connection, taken over from the HTTP server after a 101."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from ..reply import Ending

# As for upstream streams: above HIGH the socket is not read until the buffer is down to LOW.
_HIGH_BYTES = 128 * 1024
_LOW_BYTES = 32 * 1024


class TunnelConnection(Protocol):
    """What a tunnel needs of its connection."""

    transport: asyncio.Transport | None

    @property
    def writing_paused(self) -> bool: ...
    async def drained(self) -> None: ...


class TunnelCounters(Protocol):
    """Counts the octets of all tunnels."""

    tunnel_bytes_in: int
    tunnel_bytes_out: int


class ClientTunnel:
    """The client's side of one tunnel, see ``reply.ClientSide``."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_counters",
        "_ended",
        "_paused",
        "_waiter",
        "buffered",
        "half_closes",
        "over",
        "received",
        "sent",
    )

    def __init__(self, connection: TunnelConnection, counters: TunnelCounters, early: bytes = b"") -> None:
        self._connection = connection
        self._counters = counters
        self._chunks: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = self._paused = False
        self.half_closes = connection.transport is not None and connection.transport.can_write_eof()
        self.over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.buffered = self.received = self.sent = 0
        if early:
            self.feed(early)

    # The pipeline's side

    async def read(self) -> bytes:
        """The next octets; ``b""`` when the client will send no more, or is no longer listened to."""
        while not self._chunks:
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        self.buffered -= len(chunk)
        if self._paused and self.buffered <= _LOW_BYTES:
            self._paused = False
            transport = self._connection.transport
            if transport is not None and not transport.is_closing():
                transport.resume_reading()
        return chunk

    async def write(self, chunk: bytes) -> None:
        """Send to the client, with back-pressure. Raises ConnectionError when the client is gone."""
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("client gone")
        transport.write(chunk)
        self.sent += len(chunk)
        self._counters.tunnel_bytes_out += len(chunk)
        if self._connection.writing_paused:
            await self._connection.drained()

    def write_eof(self) -> None:
        """Half-close. TLS can't: there the client is no longer listened to, and its connection ends with the tunnel."""
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            return
        if self.half_closes:
            transport.write_eof()
        else:
            self.end()

    def close(self) -> None:
        """Close the connection once what was written has gone out. Idempotent."""
        self._chunks.clear()
        self.buffered = 0
        transport = self._connection.transport
        if transport is not None and not transport.is_closing():
            transport.close()  # the connection then closes gracefully, which may take a while

    # The connection's side

    def feed(self, data: bytes) -> None:
        if self._ended:
            return
        self._chunks.append(data)
        self.buffered += len(data)
        self.received += len(data)
        self._counters.tunnel_bytes_in += len(data)
        self._wake()
        transport = self._connection.transport
        if self.buffered > _HIGH_BYTES and not self._paused and transport is not None and not transport.is_closing():
            self._paused = True
            transport.pause_reading()

    def end(self) -> None:
        """Note that the client half-closed."""
        self._ended = True
        self._wake()

    def lost(self) -> None:
        """Note that the connection is gone. Over TLS that is how a client ends its side."""
        whole = self._ended and not (self.half_closes or self._chunks)  # octets still unread are cut off
        self._set_ending(Ending.BOTH if whole else Ending.CLIENT)

    def stop(self) -> None:
        """End the tunnel because the gateway drains."""
        self._set_ending(Ending.GATEWAY)

    def _set_ending(self, ending: Ending) -> None:
        if not self.over.done():
            self.over.set_result(ending)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
