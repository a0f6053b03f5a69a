"""Which fields an answer has, and in which order: GitLab's answers come in few shapes, and each is looked at only once.

Code that must know where the ``ETag`` is, or which fields pass, works it out for the first answer of a shape and leaves the
result in the shape's memo; for every later answer it is an index into a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from .messages import Field, Fields, ResponseHead, lower

_SHAPES_BOUND = 512
_REMEMBERED_BYTES = 2048
"""The longest shape remembered, in octets of all names together; no answer of GitLab's has more."""

_name = itemgetter(0)

Pick = Callable[[Fields], Fields]
"""Some of the fields, in their order."""


class Shape:
    """The names of an answer's fields.

    ``memo`` holds what other code remembers about all answers of this shape, each under a key of its own; what depends on a
    configuration is kept under the object that holds the configuration.
    """

    __slots__ = ("_spelt", "memo", "names", "place", "repeated")

    def __init__(self, spelt: Sequence[bytes]) -> None:
        self.names = tuple([lower(name) for name in spelt])
        """The names in lower case, in wire order."""
        self.place: dict[bytes, int] = {}
        """Index of each name's first line."""
        self.repeated = False
        """Whether some name occurs more than once."""
        for place, name in enumerate(self.names):
            self.repeated = self.repeated or name in self.place
            self.place.setdefault(name, place)
        self.memo: dict[object, Any] = {}
        self._spelt = tuple(spelt)

    def first(self, fields: Fields, name: bytes) -> bytes | None:
        """The same as ``messages.first``, for fields of this shape."""
        place = self.place.get(name)
        return None if place is None else fields[place][1]

    def joined(self, fields: Fields, name: bytes) -> bytes | None:
        """The same as ``messages.joined``, for fields of this shape."""
        place = self.place.get(name)
        if place is None:
            return None
        if not self.repeated:
            return fields[place][1]
        return b", ".join([field[1] for field, other in zip(fields, self.names, strict=True) if other == name])

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Whether any of ``names`` occurs."""
        known: bool | None = self.memo.get(names)
        if known is None:
            known = self.memo[names] = not names.isdisjoint(self.names)
        return known

    def with_names(self, *spelt: bytes) -> Shape:
        """The shape of an answer with fields of these names after its own."""
        found: Shape | None = self.memo.get(spelt)
        if found is None:
            found = self.memo[spelt] = _known(self._spelt + spelt)
        return found

    def picked(self, places: Sequence[int]) -> Shape:
        """The shape of an answer with only the fields at ``places``."""
        return _known(tuple([self._spelt[place] for place in places]))

    def without(self, names: frozenset[bytes]) -> Pick:
        """A pick of all fields except those called ``names``."""
        key = (b"without", names)
        pick: Pick | None = self.memo.get(key)
        if pick is None:
            pick = self.memo[key] = make_picker([at for at, name in enumerate(self.names) if name not in names])
        return pick


_SHAPES: dict[tuple[bytes, ...], Shape] = {}


def shape_of(fields: Sequence[Field]) -> Shape:
    """The one shape of all answers with these names, spelt like this, in this order."""
    return _known(tuple(map(_name, fields)))


def shape_of_head(head: ResponseHead) -> Shape:
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


def make_picker(places: Sequence[int]) -> Pick:
    """A pick of the fields at ``places``, taken in one step."""
    if not places:
        return lambda _fields: ()
    if len(places) == 1:
        only = places[0]
        return lambda fields: (fields[only],)
    return itemgetter(*places)
