"""What a request asks for, where only its body tells: the document of GraphQL, the operation of an LFS batch.

Whatever could be read in two ways, or is too large to be read at all, counts as a write.
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
"""A body up to this size is cheaper to read than the limits are to ask."""
MOST_TOGETHER = 100
"""The most requests in a batch that is read; what can't be counted counts as this many."""
_MAX_NESTS = 20_000
"""The most objects and lists in a body that is read: they are its most expensive octets, since each object is checked for
duplicate members."""

_DECIDED_BY_BODY = ("/api/graphql", "/api/glql", "/info/lfs/objects/batch")


class RequestIntent(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for."""

    access: Access = Access.WRITE
    operations: int = 1
    """How many operations it holds, in a batch; each is work of its own."""


class ParsingDeferred(Exception):  # noqa: N818 — no fault
    """The body must be parsed, which costs as much as hundreds of other requests: the caller's limits are asked first."""

    def __init__(self, operations: int = 1) -> None:
        super().__init__(operations)
        self.operations = operations
        """How many requests the body counts as, so far as that is known."""


UNKNOWN = RequestIntent()
UNCOUNTED = RequestIntent(operations=MOST_TOGETHER)


def is_decided_by_body(operation: Operation) -> bool:
    """Whether the body decides what the operation does. (GLQL's own controller is GraphQL's with another limit.)"""
    return operation.name.endswith(_DECIDED_BY_BODY)


def possible_operations(operation: Operation) -> tuple[Operation, ...]:
    """What the operation may turn out to be, where only its body tells whether the request reads or writes."""
    if operation.access is Access.READ or not is_decided_by_body(operation):
        return (operation,)
    return (msgspec.structs.replace(operation, access=Access.READ), operation)


def is_plain_json(head: RequestHead, types: frozenset[str]) -> bool:
    """Whether GitLab takes the body for JSON, by one of these types, with nothing about it that readers may differ on."""
    content_type = first(head.fields, b"content-type")
    coding = first(head.fields, b"content-encoding") or b"identity"
    return (
        content_type is not None
        and media_type(content_type) in types
        and keeps_ascii(content_type)
        and coding.strip().lower() == b"identity"
    )


def parse_json(body: bytes) -> object:
    """Parse a body that all JSON readers understand alike. Raises ValueError for any other."""
    if _nests(body) > _MAX_NESTS and _nests(_outside_strings(body)) > _MAX_NESTS:
        raise ValueError("too many objects and lists")
    try:
        # A duplicate member may mean one thing here and another to GitLab. Only this JSON reader reports it.
        return json.loads(body.decode("utf-8"), object_pairs_hook=_members)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _nests(octets: bytes) -> int:
    """How many objects and lists begin in ``octets``, counting what looks like one inside strings."""
    return octets.count(b"{") + octets.count(b"[")


def _outside_strings(body: bytes) -> bytes:
    """JSON without its strings: a string may hold a whole file of braces that is being committed."""
    return b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member twice")
    return found
