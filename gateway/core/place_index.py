"""Which of many rules can matter to a request about certain places: most of them name other places."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class PlaceIndex(Generic[_T]):
    """An index of things, each with the only places that it is about; None: it may be about any place.

    Places are compared as spelt: the caller must make sure that different spellings mean different places.
    """

    def __init__(self, things: Sequence[tuple[_T, Collection[str] | None]]) -> None:
        self.all = tuple(thing for thing, _ in things)
        self._anywhere = [at for at, (_, places) in enumerate(things) if places is None]
        self._by_place: dict[str, list[int]] = {}
        for at, (_, places) in enumerate(things):
            for place in frozenset(places or ()):
                self._by_place.setdefault(place, []).append(at)
        self._elsewhere = tuple(self.all[at] for at in self._anywhere)

    def candidates(self, places: Iterable[str]) -> tuple[_T, ...]:
        """The things that may be about any of ``places``, in their original order."""
        named = [at for place in places for at in self._by_place.get(place, ())]
        if not named:
            return self._elsewhere
        return tuple(self.all[at] for at in sorted({*self._anywhere, *named}))
