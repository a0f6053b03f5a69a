"""Writes to many connections, done in one go at the end of the event loop's turn.

A write wakes the process that sleeps at the other end: on the same machine, by an interrupt to its core, which costs as
much as the write. If the writes follow directly on each other, the first wakes that process, and it is awake for the rest;
if the work of a request lies between two writes, the second finds it asleep again. So answers and requests wait for each
other, no longer than ``MOST`` of them take.

Where there are few, none waits: there is nothing to share, and they would only come later. How many writes the last turn
brought tells what to expect of this one.

The order of a connection's octets is its user's to keep: before writing past the outbox, or closing, call ``flush``.
"""

from __future__ import annotations

import asyncio
import logging

log = logging.getLogger("gateway.outbox")

MOST = 32
"""As soon as so many wait, they are written, whatever else the turn brings."""
FEW = 2
"""After a turn with no more writes than these, each is written as it comes."""


class Outbox:
    """The outbox of one event loop."""

    __slots__ = ("_batching", "_loop", "_waiting", "_writes_this_turn")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[asyncio.WriteTransport, bytes]] = []
        self._writes_this_turn = 0
        """How many writes this turn has brought so far."""
        self._batching = False

    def put(self, transport: asyncio.WriteTransport, octets: bytes) -> None:
        """Write ``octets``, at the end of the turn at the latest; never, if ``transport`` is closed by then."""
        if not self._writes_this_turn:
            self._loop.call_soon(self._turn)
        self._writes_this_turn += 1
        if self._batching:
            waiting = self._waiting
            waiting.append((transport, octets))
            if len(waiting) == MOST:
                self.flush()
        elif not transport.is_closing():
            transport.write(octets)

    def flush(self) -> None:
        """Write now what waits."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for transport, octets in waiting:
                if not transport.is_closing():
                    try:
                        transport.write(octets)
                    except Exception:  # what waits behind it is for others
                        log.exception("a connection could not be written to")
                        transport.abort()

    def _turn(self) -> None:
        writes, self._writes_this_turn = self._writes_this_turn, 0
        self.flush()
        self._batching = writes > FEW
