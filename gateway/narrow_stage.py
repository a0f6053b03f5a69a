"""A list on its way down to a caller who may see only some of it (``core.narrowing``): read whole, narrowed, sent.

This comes after the cache, which stores GitLab's own answer. Never more than the one page that was asked for is read; what
can't be narrowed for certain is not sent.
"""

from __future__ import annotations

import hashlib

from .cache.fill import read_ahead
from .core.access import Permit
from .core.catalogue import Operation
from .core.conditional import none_match
from .core.errors import Code, Rejection, Source
from .core.json_urls import is_json
from .core.messages import Fields, RequestHead, ResponseHead, first, joined, without
from .core.narrowing import CONDITIONS, ItemKind, item_kind_of, narrow, narrowed_fields
from .core.target import Target
from .reply import Reply

MAX_BYTES = 8 << 20
"""A page of a hundred projects is some 400 KiB."""

_UNTYPED = frozenset({b"content-type"})


def require_list_shape(operation: Operation, target: Target, head: RequestHead) -> ItemKind:
    """What the list's items are. Raises Rejection FORBIDDEN for a list that was not reviewed, or a request with a body."""
    item_kind = None if head.has_body else item_kind_of(operation, target)
    if item_kind is None:
        raise Rejection(
            Code.FORBIDDEN,
            403,
            "403 Forbidden - Not allowed by the gateway's rules",
            proxy_error="http_request_denied",
            detail="a list that cannot be filtered",
        )
    return item_kind


def without_conditions(fields: Fields) -> Fields:
    """The request's fields without its conditions, asking for an answer that can be narrowed."""
    return (*without(fields, CONDITIONS), (b"Accept-Encoding", b"identity"))


async def narrowed(reply: Reply, item_kind: ItemKind, permit: Permit, head: RequestHead) -> Reply:
    """GitLab's answer, or the cache's, as the caller may see it.

    Errors pass as they are, and redirects without their bodies: they list nothing. Raises Rejection UPSTREAM_PROTOCOL for
    any other answer that can't be narrowed.
    """
    answer = reply.head
    if answer.status >= 400:
        return reply
    if answer.status >= 300 and answer.status != 304:
        fields = (*narrowed_fields(answer.fields), (b"Content-Length", b"0"))
        return _with(reply, ResponseHead(answer.status, without(fields, _UNTYPED), answer.reason), b"")
    coded = (first(answer.fields, b"content-encoding") or b"identity").lower() != b"identity"
    if answer.status != 200 or coded or not is_json(first(answer.fields, b"content-type")):
        raise _unreadable("an answer other than a plain list")
    fields = narrowed_fields(answer.fields)
    if head.method == "HEAD":
        return _with(reply, ResponseHead(200, fields, answer.reason), b"")
    reply = await read_ahead(reply, MAX_BYTES)
    assert permit.narrowing is not None
    body = narrow(reply.whole, item_kind, permit.narrowing) if reply.whole is not None else None
    if body is None:
        raise _unreadable("not a list, or one that is too long")
    etag = b'W/"%b"' % hashlib.blake2b(permit.digest + body, digest_size=16).hexdigest().encode("ascii")
    condition = joined(head.fields, b"if-none-match")
    if condition is not None and not none_match(condition, etag):
        return _with(reply, ResponseHead(304, (*without(fields, _UNTYPED), (b"ETag", etag))), b"")
    length = (b"Content-Length", b"%d" % len(body))
    return _with(reply, ResponseHead(200, (*fields, (b"ETag", etag), length), answer.reason), body)


def _with(reply: Reply, head: ResponseHead, body: bytes) -> Reply:
    return Reply(head, body, None, reply.release, reply.connect_s, reply.first_byte_s)


def _unreadable(what: str) -> Rejection:
    return Rejection(
        Code.UPSTREAM_PROTOCOL,
        502,
        "502 Bad Gateway",
        source=Source.UPSTREAM,
        proxy_error="http_protocol_error",
        detail=what,
    )
