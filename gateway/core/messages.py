"""Request and response heads as the wire carried them.

Fields stay a list of ``(name, value)`` byte pairs in wire order, with the sender's spelling: what is forwarded is what
was received. Lookups are case-insensitive. Values are parsed in the modules that need them, not here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from .answer_shape import Shape

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """A request's head; the edge has already judged its framing (RFC 9112 §6)."""

    method: str
    target: bytes
    """The request target exactly as received (RFC 9112 §3.2), query included."""
    fields: Fields
    has_body: bool = False
    content_length: int | None = None
    """Octets of the body; ``None`` with ``has_body`` means chunked."""
    http_10: bool = False
    tls: bool = False
    """The client's own connection was TLS (``X-Forwarded-Proto`` is made from this, or taken from a trusted peer)."""
    peer: str = ""
    """The peer's address without port; ``unix:`` for a Unix socket."""
    memo: list[object] | None = None
    """Where a pure stage may keep what it derived from this head: a connection that repeats a request reuses the head."""
    correlation: Fields = ()
    """What marks this single request, left out of ``fields`` where the edge could set it aside (``core.correlation``)."""

    def __repr__(self) -> str:
        return f"RequestHead({self.method})"  # never its fields or target: they may hold a credential


class ResponseHead(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A final response's head. Interim (1xx) responses never become one, except 101."""

    status: int
    fields: Fields
    reason: bytes = b""
    shape: Shape | None = None
    """The shape of ``fields``, if it was known when the head was made (``answer_shape.shape_of_head``)."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResponseHead):
            return NotImplemented
        return (self.status, self.fields, self.reason) == (other.status, other.fields, other.reason)

    def __hash__(self) -> int:
        return hash((self.status, self.fields, self.reason))


# Name as spelt → in lower case, for recently seen names: they repeat, so `bytes.lower()` on each does not pay. Emptied when
# full, as all such memos are: a client that sends made-up names must not keep the real ones out for good.
_LOWER: dict[bytes, bytes] = {}
_LOWER_BOUND = 4096


def lower(name: bytes) -> bytes:
    """``name`` in lower case, memoised with a bound."""
    try:
        return _LOWER[name]
    except KeyError:
        lowered = name.lower()
        if len(name) <= 64:
            if len(_LOWER) >= _LOWER_BOUND:
                _LOWER.clear()
            _LOWER[name] = lowered
        return lowered


def first(fields: Iterable[Field], name: bytes) -> bytes | None:
    """The first value of ``name`` (given in lower case), or None."""
    for key, value in fields:
        if len(key) == len(name) and lower(key) == name:
            return value
    return None


def values(fields: Iterable[Field], name: bytes) -> list[bytes]:
    """Every value of ``name`` (given in lower case), one per field line, in order."""
    return [value for key, value in fields if len(key) == len(name) and lower(key) == name]


def joined(fields: Iterable[Field], name: bytes) -> bytes | None:
    """All lines of a list-valued field as one value (RFC 9110 §5.3), or None."""
    found = values(fields, name)
    return b", ".join(found) if found else None


def without(fields: Iterable[Field], names: frozenset[bytes]) -> Fields:
    """``fields`` without the lines whose lower-cased name is in ``names``."""
    return tuple((key, value) for key, value in fields if lower(key) not in names)
