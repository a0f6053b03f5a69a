"""Which fields an answer has, in which order: GitLab's answers come in a few shapes, and each is looked at once.

Whoever must know where the ``ETag`` stands, or which fields pass, works it out for the first answer of a shape and leaves
it in the shape's memo; for every later one it is a place in a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from .messages import Field, Fields, ResponseHead, lower

_SHAPES_BOUND = 512
_REMEMBERED_BYTES = 2048
"""Of all names together; what has more is no shape of GitLab's."""

_name = itemgetter(0)

Pick = Callable[[Fields], Fields]
"""Some of the fields, in their order."""


class Shape:
    """The names of one answer's fields.

    ``memo`` is for whoever has something to remember of all answers of this shape, under a key of its own; what depends
    on a configuration is kept under the object that holds it.
    """

    __slots__ = ("_spelt", "memo", "names", "place", "repeated")

    def __init__(self, spelt: Sequence[bytes]) -> None:
        self.names = tuple([lower(name) for name in spelt])
        """In lower case, in wire order."""
        self.place: dict[bytes, int] = {}
        """Of the first line of each name."""
        self.repeated = False
        """Some name stands there twice."""
        for place, name in enumerate(self.names):
            self.repeated = self.repeated or name in self.place
            self.place.setdefault(name, place)
        self.memo: dict[object, Any] = {}
        self._spelt = tuple(spelt)

    def first(self, fields: Fields, name: bytes) -> bytes | None:
        """As ``messages.first``, of fields of this shape."""
        place = self.place.get(name)
        return None if place is None else fields[place][1]

    def joined(self, fields: Fields, name: bytes) -> bytes | None:
        """As ``messages.joined``, of fields of this shape."""
        place = self.place.get(name)
        if place is None:
            return None
        if not self.repeated:
            return fields[place][1]
        return b", ".join([field[1] for field, other in zip(fields, self.names, strict=True) if other == name])

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Whether one of ``names`` is there."""
        known: bool | None = self.memo.get(names)
        if known is None:
            known = self.memo[names] = not names.isdisjoint(self.names)
        return known

    def plus(self, *spelt: bytes) -> Shape:
        """Of an answer with fields of these names behind its own."""
        found: Shape | None = self.memo.get(spelt)
        if found is None:
            found = self.memo[spelt] = _known(self._spelt + spelt)
        return found

    def picked(self, places: Sequence[int]) -> Shape:
        """Of an answer with only the fields at ``places``."""
        return _known(tuple([self._spelt[place] for place in places]))

    def without(self, names: frozenset[bytes]) -> Pick:
        """All fields but those of ``names``."""
        key = (b"without", names)
        pick: Pick | None = self.memo.get(key)
        if pick is None:
            pick = self.memo[key] = picking([at for at, name in enumerate(self.names) if name not in names])
        return pick


_SHAPES: dict[tuple[bytes, ...], Shape] = {}


def shape_of(fields: Sequence[Field]) -> Shape:
    """The one object of all answers with these names, as they are spelt, in this order."""
    return _known(tuple(map(_name, fields)))


def shaped(head: ResponseHead) -> Shape:
    """The shape of a head's fields."""
    shape = head.shape
    return _known(tuple(map(_name, head.fields))) if shape is None else shape


def _known(spelt: tuple[bytes, ...]) -> Shape:
    shape = _SHAPES.get(spelt)
    if shape is None:
        shape = Shape(spelt)
        if sum(map(len, spelt)) <= _REMEMBERED_BYTES:
            if len(_SHAPES) >= _SHAPES_BOUND:
                _SHAPES.clear()
            _SHAPES[spelt] = shape
    return shape


def picking(places: Sequence[int]) -> Pick:
    """The fields at ``places``, taken in one step."""
    if not places:
        return lambda _fields: ()
    if len(places) == 1:
        only = places[0]
        return lambda fields: (fields[only],)
    return itemgetter(*places)
