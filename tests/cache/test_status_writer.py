"""What the cache says of itself."""

from __future__ import annotations

from gateway.cache import CacheOutcome
from gateway.cache.status_writer import CacheStatusWriter
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.errors import Code
from gateway.core.messages import first, values

from .origin import whole

WRITER = CacheStatusWriter("gateway")


def outcome(
    status: CacheStatus, reason: CacheReason, upstream_status: int = 0, stored: Stored = Stored.NOT_ASKED
) -> CacheOutcome:
    made = CacheOutcome(status, reason)
    made.upstream_status, made.stored = upstream_status, stored
    return made


def test_an_answer_that_came_is_labelled_behind_what_others_said() -> None:
    said = outcome(CacheStatus.MISS, CacheReason.URI_MISS, 200, Stored.STORED)
    reply = WRITER.upstream_answer(whole(200, (b"Cache-Status", b"cdn; hit")), said, 30.9)
    member = b"gateway; fwd=uri-miss; fwd-status=200; stored; ttl=30"
    assert values(reply.head.fields, b"cache-status") == [b"cdn; hit, " + member]


def test_a_lifetime_is_told_only_of_what_is_stored() -> None:
    said = outcome(CacheStatus.MISS, CacheReason.URI_MISS, 200, Stored.TOO_LARGE)
    reply = WRITER.upstream_answer(whole(200), said, 30.0)
    assert first(reply.head.fields, b"cache-status") == b"gateway; fwd=uri-miss; fwd-status=200"


def test_a_stored_answer_tells_how_it_came_about() -> None:
    said = outcome(CacheStatus.COLLAPSED, CacheReason.URI_MISS, 200)
    assert WRITER.stored_answer(said, -2.5) == b"gateway; fwd=uri-miss; fwd-status=200; collapsed; ttl=-2"


def test_who_wants_a_stored_answer_or_none_gets_none() -> None:
    refused = WRITER.only_if_cached(CacheReason.URI_MISS)
    assert (refused.code, refused.status) == (Code.ONLY_IF_CACHED, 504)
    assert refused.headers == ((b"Cache-Status", b"gateway; detail=uri-miss"),), "nothing was forwarded"
