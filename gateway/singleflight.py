"""One request in flight per key: others wait for what it brings, for a bounded time.

The key is a full cache key (with its partition), never a URL. A leader that fails or is cancelled takes nobody with it: one
of its waiters leads next. An entry leaves the table *before* its waiters wake, so nobody can join a flight that has landed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from .core.access import Priority

T = TypeVar("T")


class Flight(msgspec.Struct, Generic[T], eq=False):
    """One leader's promise."""

    _table: dict[bytes, Flight[T]]
    _key: bytes
    waiters: list[asyncio.Future[tuple[bool, T | None]]] = []
    """Those who wait for it at the moment."""
    landed: bool = False
    on_end: Callable[[], None] | None = None
    """Called once, when the flight has landed or was abandoned."""
    gives_way: Callable[[Priority], bool] | None = None
    """Whether at present one of this priority should rather ask itself than wait for the leader; None: it should not."""
    overtakes: bool = False
    """Whether it is led beside another that gave way. That one goes on, for those who wait for it already."""
    overtaken: bool = False

    __repr__ = object.__repr__

    def abandon(self) -> None:
        """The leader is gone: whoever asks next leads. Harmless after ``land``."""
        self.land(None, settled=False)

    def land(self, result: T | None, *, settled: bool = True) -> None:
        """Give ``result`` to all who wait; None: there is none to share, each goes on alone. ``settled``: see ``wait``."""
        if self.landed:
            return
        self.landed = True
        if not self.overtaken:
            del self._table[self._key]  # nobody else takes it out
        if self.waiters:
            waiters, self.waiters = self.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result((settled, result))
        if self.on_end is not None:
            self.on_end()

    async def wait(self, timeout_s: float) -> tuple[bool, T | None]:
        """(settled, result). Not settled: the leader is gone, or the time is up."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[tuple[bool, T | None]] = loop.create_future()
        self.waiters.append(waiter)
        timer = loop.call_later(timeout_s, _expire, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            if waiter in self.waiters:
                self.waiters.remove(waiter)


def _expire(waiter: asyncio.Future[tuple[bool, T | None]]) -> None:
    if not waiter.done():
        waiter.set_result((False, None))


class Flights(Generic[T]):
    """The table of what is in flight."""

    __slots__ = ("_table",)

    def __init__(self) -> None:
        self._table: dict[bytes, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._table)

    def join(
        self, key: bytes, priority: Priority = Priority.INTERACTIVE, gives_way: Callable[[Priority], bool] | None = None
    ) -> tuple[bool, Flight[T]]:
        """(leads, flight). The leader must ``land`` or ``abandon`` it on every path.

        Args:
            key: What is asked.
            priority: With which it is asked.
            gives_way: See ``Flight``, where the caller leads.
        """
        other = self._table.get(key)
        if other is not None:
            if other.gives_way is None or not other.gives_way(priority):
                return False, other
            other.overtaken = True
        flight = self._table[key] = Flight(self._table, key, gives_way=gives_way, overtakes=other is not None)
        return True, flight

    def lead(self, key: bytes) -> Flight[T] | None:
        """As ``join``, for a caller that can't wait: the flight that it leads; None: somebody else leads it."""
        if key in self._table:
            return None
        flight = self._table[key] = Flight(self._table, key)
        return flight
