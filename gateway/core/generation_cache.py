"""A bounded memory of recently used entries."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Generations(dict[K, V]):
    """The current generation, and the one before it. What is in the current one is found without a Python call."""

    __slots__ = ("half", "previous")

    def __init__(self, half: int) -> None:
        super().__init__()
        self.half = half
        self.previous: dict[K, V] = {}

    def put(self, key: K, value: V) -> None:
        if len(self) >= self.half:
            self.age()
        self[key] = value

    def age(self) -> None:
        self.previous = self.copy()
        self.clear()

    def __missing__(self, key: K) -> V | None:
        found = self.previous.pop(key, None)
        if found is not None:
            self.put(key, found)
        return found

    # Entries may hold a request's octets, its credential among them.
    __repr__ = object.__repr__


class GenerationCache(Generic[K, V]):
    """A cache of two generations: an entry that is not used during one generation is forgotten with the next.

    Args:
        most: How many entries are kept at most.
    """

    def __init__(self, most: int) -> None:
        self._current: _Generations[K, V] = _Generations(most // 2)
        self.get: Callable[[K], V | None] = self._current.__getitem__
        self.put: Callable[[K, V], None] = self._current.put
        self.age: Callable[[], None] = self._current.age
        """Begin a generation now, though there is room: what was not used since the last one is forgotten."""

    def __len__(self) -> int:
        return len(self._current) + len(self._current.previous)
