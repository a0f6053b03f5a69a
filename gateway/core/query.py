"""Query and form parameters, read as Rack reads them, and cut out without touching any other octet.

Rack decodes names once (``+`` is a space), takes what precedes the first bracket as the top-level name, and, in version 2,
splits queries on ``;`` as well as ``&``. Where versions differ, every reading counts: :attr:`Parameter.plain` marks the
spelling on which all agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from .target import percent_decode

_SEPARATORS = re.compile(rb"[&;]")
_BRACKET = re.compile(rb"[\[\]]")
BLANKS = b" \t\r\n\0\x0b\x0c"
"""Octets that are ignored around a name."""


class Parameter(msgspec.Struct, frozen=True, gc=False):
    """One ``name=value`` of a query."""

    name: str
    """The top-level name: ``private_token`` for ``private%5Ftoken``, ``private_token[]`` and ``[private_token]``."""
    value: bytes
    """The value, decoded once."""
    start: int
    """Where its raw octets begin in the query."""
    end: int
    plain: bool
    """Written without brackets, blanks or ``;``, so that every parser finds exactly this name and value."""


def form_decode(octets: bytes) -> bytes:
    """The octets of a name or value in a query or form, decoded once."""
    return percent_decode(octets.replace(b"+", b" "))


def top_level_name(decoded: bytes) -> bytes:
    """The parameter that Rack files ``decoded`` under. Brackets nest, leading ones are skipped (Rack 2), blanks ignored."""
    name = decoded.strip(BLANKS).lstrip(b"[]")
    return _BRACKET.split(name, maxsplit=1)[0].strip(BLANKS)


def query_parameters(query: bytes) -> Iterator[Parameter]:
    """Every parameter of ``query`` in order, by any separator; empty pieces are skipped."""
    start = 0
    for piece in query.split(b"&"):
        end = start + len(piece)
        if b";" in piece:
            inner = start
            for sub in piece.split(b";"):
                if sub:
                    yield _parameter(sub, inner, plain=False)
                inner += len(sub) + 1
        elif piece:
            yield _parameter(piece, start, plain=True)
        start = end + 1


def _parameter(piece: bytes, start: int, *, plain: bool) -> Parameter:
    raw_name, _, raw_value = piece.partition(b"=")
    decoded = form_decode(raw_name)
    name = top_level_name(decoded)
    return Parameter(
        name.decode("utf-8", "surrogateescape"),
        form_decode(raw_value),
        start,
        start + len(piece),
        plain and name == decoded,
    )


def cut_parameters(raw: bytes, names: frozenset[str]) -> bytes:
    """``raw``, a target or URL, without the parameters with these top-level names; every other octet stays, in order.

    If no parameter is left, the ``?`` goes too; a fragment (in a ``Link``) stays.
    """
    head, mark, query = raw.partition(b"?")
    if not mark:
        return raw
    query, hash_mark, fragment = query.partition(b"#")
    pieces = query.split(b"&")
    kept = [piece for piece in pieces if not _holds(piece, names)]
    if len(kept) == len(pieces):
        return raw
    if kept:
        head += b"?" + b"&".join(kept)
    return head + hash_mark + fragment


def _holds(piece: bytes, names: frozenset[str]) -> bool:
    for sub in _SEPARATORS.split(piece):
        name = top_level_name(form_decode(sub.partition(b"=")[0]))
        if name.decode("utf-8", "surrogateescape") in names:
            return True
    return False
