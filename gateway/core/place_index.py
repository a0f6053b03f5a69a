"""Of many rules, those that can matter to a request for certain places: most of them speak of other places by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class PlaceIndex(Generic[_T]):
    """Things, each with the only places that it is about; None: it may be about any.

    The places are compared as they are spelt: whoever asks must know that another spelling means another place.
    """

    def __init__(self, things: Sequence[tuple[_T, Collection[str] | None]]) -> None:
        self.all = tuple(thing for thing, _ in things)
        self._anywhere = [at for at, (_, places) in enumerate(things) if places is None]
        self._by_place: dict[str, list[int]] = {}
        for at, (_, places) in enumerate(things):
            for place in frozenset(places or ()):
                self._by_place.setdefault(place, []).append(at)
        self._elsewhere = tuple(self.all[at] for at in self._anywhere)

    def about(self, places: Iterable[str]) -> tuple[_T, ...]:
        """Those that may be about any of ``places``, in the order given."""
        named = [at for place in places for at in self._by_place.get(place, ())]
        if not named:
            return self._elsewhere
        return tuple(self.all[at] for at in sorted({*self._anywhere, *named}))
