"""Places and idle connections: how many requests may be at GitLab at one time, which wait, what is kept for the next.

A *place* is the right to have one request at GitLab. Its holder either frees it or hands it to a connection, which frees it
when its exchange ends; a freed place goes to the request that has waited longest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .connection import Connection
from .errors import Failure, UpstreamFailure


class Pool:
    """Implements ``contract.ConnectionOwner``. It runs in one event loop, between awaits, so there is nothing to lock."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        max_in_flight: int,
        max_parked: int,
        max_waiting: int,
        wait_s: float,
        max_idle: int,
        keepalive_s: float,
        on_break: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._max_in_flight = max_in_flight
        self._max_parked = max_parked
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._max_idle = max_idle
        self._keepalive_s = keepalive_s
        self._on_break = on_break
        self._queue: deque[asyncio.Future[None]] = deque()
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self.tunnels = 0
        self.handshakes = 0
        """The handshakes under way, each of which may become a tunnel."""
        self.in_flight = 0
        """The requests at GitLab, including those that are parked."""
        self.parked = 0

    # Places

    def try_acquire_place(self) -> bool:
        """Take a place if one is free."""
        if self._is_taken() or self._closed:
            return False
        self.in_flight += 1
        return True

    def is_full(self) -> bool:
        """Whether a request that came now would be turned away at once."""
        return self._closed or (self._is_taken() and len(self._queue) >= self._max_waiting)

    async def acquire_place(self) -> None:
        """Wait in line for a place. Raises UpstreamFailure: BUSY if the line or the wait is too long, or CLOSED."""
        if self.is_full():
            raise self._turned_away()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(ready)
        timer = self._loop.call_later(self._wait_s, self._give_up, ready)
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled() and ready.exception() is None:
                self.release_place()  # the place came in the very turn in which its request was cancelled
            else:
                self._unqueue(ready)
            raise
        finally:
            timer.cancel()

    def release_place(self) -> None:
        """Take one place back, or give it straight to the request that has waited longest."""
        queue = self._queue
        # There may be one more request than places: a parked one that ends hands on a place that it did not hold.
        while queue and self.in_flight - self.parked <= self._max_in_flight:
            ready = queue.popleft()
            if not ready.done():
                ready.set_result(None)
                return
        self.in_flight -= 1

    # parking.Lot

    def park(self) -> bool:
        if self.parked >= self._max_parked:
            return False
        self.parked += 1
        self.in_flight += 1
        self.release_place()
        return True

    def unpark(self) -> None:
        self.parked -= 1

    def _is_taken(self) -> bool:
        """Whether every place is taken. Parked requests that return may make them even more for a while."""
        return self.in_flight - self.parked >= self._max_in_flight

    def _give_up(self, ready: asyncio.Future[None]) -> None:
        self._unqueue(ready)
        if not ready.done():
            ready.set_exception(self._turned_away())

    def _unqueue(self, ready: asyncio.Future[None]) -> None:
        if ready in self._queue:
            self._queue.remove(ready)

    def _turned_away(self) -> UpstreamFailure:
        return UpstreamFailure(Failure.CLOSED if self._closed else Failure.BUSY)

    # Connections

    def take_idle(self, now: float) -> Connection | None:
        """The idle connection used last that is young enough and usable: the newest is the likeliest to be alive."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if now - connection.idle_at < self._keepalive_s and connection.is_usable():
                return connection
            connection.close()
        return None

    def try_acquire_connection(self, now: float) -> Connection | None:
        """Take a place and the idle connection used last. None, and neither is taken, if one of them can't be had."""
        idle = self._idle
        if not idle or self.in_flight - self.parked >= self._max_in_flight or self._closed:
            return None
        connection = idle.pop()
        if now - connection.idle_at >= self._keepalive_s or not connection.is_usable():
            connection.close()
            older = self.take_idle(now)
            if older is None:
                return None
            connection = older
        self.in_flight += 1
        return connection

    def opened(self, connection: Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._open.add(connection)

    def returned(self, connection: Connection) -> None:
        if self._closed or len(self._idle) >= self._max_idle:
            connection.close()
        else:
            connection.idle_at = self._loop.time()
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._keepalive_s, self._sweep)
        if self._queue:
            self.release_place()
        else:
            self.in_flight -= 1

    def gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def switched(self) -> None:
        self.tunnels += 1
        self.release_place()

    def tunnel_ended(self) -> None:
        self.tunnels -= 1

    def broke_off(self, connection: Connection) -> None:
        self._on_break(connection.ticket)

    def _sweep(self) -> None:
        """Close the connections that GitLab may close any moment, before it does. They are in the order of their return."""
        self._sweeper = None
        idle = self._idle
        now = self._loop.time()
        fresh = next((at for at, one in enumerate(idle) if now - one.idle_at < self._keepalive_s), len(idle))
        for connection in idle[:fresh]:
            connection.close()  # takes itself off the list
        if idle:
            self._sweeper = self._loop.call_at(idle[0].idle_at + self._keepalive_s, self._sweep)

    # Figures and the end

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def close(self) -> None:
        """Close everything at once: waiting requests fail with CLOSED, answers in progress break off."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._queue:
            self._give_up(self._queue[0])
        for connection in list(self._open):
            connection.fail(Failure.CLOSED)
        await asyncio.sleep(0)  # the transports let go of their sockets in the loop's next turn
