"""What a request asks for, where its body alone tells: GraphQL's document, an LFS batch's operation.

Whatever could be read in two ways, or is too large to be read at all, is a write.
"""

from __future__ import annotations

import json

import msgspec

from .body import keeps_ascii, media_type
from .catalogue import Access, Operation
from .messages import RequestHead, first

MAX_BODY_BYTES = 1 << 20
"""Larger bodies are not looked at."""
LIGHT_BYTES = 16 << 10
"""Bodies up to this are cheaper to read than limits are to ask."""
MOST_TOGETHER = 100
"""Requests in a batch that is read; what can't be counted counts as so many."""
_MAX_NESTS = 20_000
"""Objects and lists in a body that is read: of its octets they cost most. Each object is looked at for members that stand
there twice."""

_TOLD_BY_BODY = ("/api/graphql", "/api/glql", "/info/lfs/objects/batch")


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for."""

    access: Access = Access.WRITE
    operations: int = 1
    """A batch's; each is work of its own."""


class Unread(Exception):  # noqa: N818 — no fault
    """It takes parsing, which costs as much as hundreds of other requests: who pays for it is to be asked first."""

    def __init__(self, operations: int = 1) -> None:
        super().__init__(operations)
        self.operations = operations
        """How many requests it counts as, as far as is known."""


UNKNOWN = Asked()
UNCOUNTED = Asked(operations=MOST_TOGETHER)


def is_told_by_body(operation: Operation) -> bool:
    """Its body decides what it does. (GLQL's own controller is GraphQL's with another limit.)"""
    return operation.name.endswith(_TOLD_BY_BODY)


def readings(operation: Operation) -> tuple[Operation, ...]:
    """What it may turn out to be: only its body tells whether such a request reads or writes."""
    if operation.access is Access.READ or not is_told_by_body(operation):
        return (operation,)
    return (msgspec.structs.replace(operation, access=Access.READ), operation)


def is_plain_json(head: RequestHead, types: frozenset[str]) -> bool:
    """Whether the body is JSON to GitLab, by one of these types, with nothing about it that readers may differ on."""
    content_type = first(head.fields, b"content-type")
    coding = first(head.fields, b"content-encoding") or b"identity"
    return (
        content_type is not None
        and media_type(content_type) in types
        and keeps_ascii(content_type)
        and coding.strip().lower() == b"identity"
    )


def parse_json(body: bytes) -> object:
    """A body that all readers of JSON take for the same. Raises ValueError for any other."""
    if _nests(body) > _MAX_NESTS and _nests(_outside_strings(body)) > _MAX_NESTS:
        raise ValueError("too many objects and lists")
    try:
        # A member twice is one thing to us and may be another to GitLab: the one JSON reader that tells.
        return json.loads(body.decode("utf-8"), object_pairs_hook=_members)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _nests(octets: bytes) -> int:
    """Objects and lists that begin there, or in strings what looks like it."""
    return octets.count(b"{") + octets.count(b"[")


def _outside_strings(body: bytes) -> bytes:
    """JSON without its strings: one may hold a whole file of braces, which is committed."""
    return b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member twice")
    return found
