"""A bounded memory of what was asked for lately."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Young(dict[K, V]):
    """The present generation, and the one before it. What is in this one is found without a call in Python."""

    __slots__ = ("half", "old")

    def __init__(self, half: int) -> None:
        super().__init__()
        self.half = half
        self.old: dict[K, V] = {}

    def put(self, key: K, value: V) -> None:
        if len(self) >= self.half:
            self.old = self.copy()
            self.clear()
        self[key] = value

    def __missing__(self, key: K) -> V | None:
        found = self.old.pop(key, None)
        if found is not None:
            self.put(key, found)
        return found

    # What is remembered may be a request's octets, its credential among them.
    __repr__ = object.__repr__


class Lately(Generic[K, V]):
    """Two generations: what nobody asked for during one is forgotten with the next.

    Args:
        most: Kept, at most.
    """

    def __init__(self, most: int) -> None:
        self._young: _Young[K, V] = _Young(most // 2)
        self.get: Callable[[K], V | None] = self._young.__getitem__
        self.put: Callable[[K, V], None] = self._young.put

    def __len__(self) -> int:
        return len(self._young) + len(self._young.old)
