"""A bounded memory of what was asked for lately."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Young(dict[K, V]):
    """What is there is found without a call in Python; ``missing`` is asked for the rest."""

    def __init__(self, missing: Callable[[K], V | None]) -> None:
        super().__init__()
        self._missing = missing

    def __missing__(self, key: K) -> V | None:
        return self._missing(key)

    # What is remembered may be a request's octets, its credential among them.
    __repr__ = object.__repr__


class Lately(Generic[K, V]):
    """Two generations: what nobody asked for during one is forgotten with the next.

    Args:
        most: Kept, at most.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young = _Young(self._from_old)
        self._old: dict[K, V] = {}
        self.get: Callable[[K], V | None] = self._young.__getitem__

    def put(self, key: K, value: V) -> None:
        young = self._young
        if len(young) >= self._half:
            self._old = young.copy()
            young.clear()
        young[key] = value

    def _from_old(self, key: K) -> V | None:
        found = self._old.pop(key, None)
        if found is not None:
            self.put(key, found)
        return found

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
