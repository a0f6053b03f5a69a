"""What many connections are to be sent, written in one go at the end of the event loop's turn.

A write wakes whoever sleeps at the other end: where that one is on the same machine, by an interrupt to its core, which
costs as much as the write. Written one right behind the other, the first wakes it, and it is awake for the rest; a write
between every two requests' own work would find it asleep again. So answers and requests wait for each other: no longer than
``MOST`` of them take, and where there is only one, for nobody.

The order of a connection's octets is its user's to keep: who writes past the outbox, or closes, calls ``flush`` first.
"""

from __future__ import annotations

import asyncio

MOST = 32
"""So many are written at once, whatever else the turn brings."""


class Outbox:
    """Of one event loop."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[asyncio.WriteTransport, bytes]] = []

    def put(self, transport: asyncio.WriteTransport, octets: bytes) -> None:
        """Write ``octets`` soon, unless ``transport`` is closed by then."""
        waiting = self._waiting
        if waiting:
            waiting.append((transport, octets))
            if len(waiting) == MOST:
                self.flush()
        else:
            waiting.append((transport, octets))
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what waits, now."""
        waiting, self._waiting = self._waiting, []
        for transport, octets in waiting:
            if not transport.is_closing():
                transport.write(octets)
