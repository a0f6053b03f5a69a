"""One lookup in flight per key, and bounded memory of what was found."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


LATELY_S = 600.0
"""How long a credential that was good is no stranger's: it is looked up again, but not in strangers' queue, nor under their
limits. Whether a memory of that age also stands in for an answer that does not come is another matter."""


class Recall(enum.Enum):
    """What memory answers when it has no fresh principal."""

    REFUSED = "bad"
    """Looked up a moment ago, and refused."""
    UNKNOWN = "ask"
    """Not known: it must be looked up."""
    STALE = "refresh"
    """Good a while ago: it must be looked up again, and need not queue behind strangers."""


class Lookups(Generic[_Key, _Value]):
    """Callers that ask for the same key at the same time share one lookup and its outcome.

    The lookup is a task of its own, so a caller that goes away neither ends it for the others nor has to hand it over;
    it bounds its own time. A lookup that every caller has left runs to its end: what it learns is remembered.
    """

    def __init__(self) -> None:
        self._flights: dict[_Key, asyncio.Task[_Value]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def share(self, key: _Key, look_up: Callable[[], Coroutine[Any, Any, _Value]]) -> _Value:
        """The outcome of the lookup under way for ``key``, or of a new one. Raises what it raised, to every caller."""
        return await asyncio.shield(self.start(key, look_up))

    def start(self, key: _Key, look_up: Callable[[], Coroutine[Any, Any, _Value]]) -> asyncio.Task[_Value]:
        """The lookup under way for ``key``, or a new one, without waiting for it. Never cancel what this returns."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(look_up())
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._land(key, done))
        return flight

    async def close(self) -> None:
        """End the lookups in flight; callers that still wait are cancelled."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _land(self, key: _Key, flight: asyncio.Task[_Value]) -> None:
        # Runs before the waiters wake: callbacks run in the order they were added, and this one came first.
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # retrieved, even if every caller has left


class Memo(Generic[_Key, _Value]):
    """A memory of at most ``bound`` values; the one least recently written goes first."""

    __slots__ = ("_bound", "_values", "get")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._values: dict[_Key, _Value] = {}
        self.get: Callable[[_Key], _Value | None] = self._values.get

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: _Key, value: _Value) -> None:
        self._values.pop(key, None)
        self._values[key] = value
        if len(self._values) > self._bound:
            del self._values[next(iter(self._values))]

    def drop(self, key: _Key) -> None:
        self._values.pop(key, None)

    def drop_where(self, unwanted: Callable[[_Value], bool]) -> int:
        """Drop all ``unwanted`` values, and return how many they were. Walks everything: for rare administrative acts."""
        gone = [key for key, value in self._values.items() if unwanted(value)]
        for key in gone:
            del self._values[key]
        return len(gone)
