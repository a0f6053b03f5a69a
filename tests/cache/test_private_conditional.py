"""A client's own conditions, where nothing is stored: as a fetch would have them, and for that client alone."""

from __future__ import annotations

import pytest

from gateway.cache.private_conditional import PrivateConditional
from gateway.core.cache_status import CacheStatus
from gateway.core.messages import ResponseHead
from gateway.core.private_caching import PrivatePolicy

from .origin import Origin, get, json
from .private_room import ETAG, OTHER
from .test_private_miss import TARGET, Lane, answer

CONDITION = (b"If-None-Match", OTHER)


@pytest.fixture
async def lane() -> Lane:
    """Nothing is stored, and nothing reused without asking."""
    one = Lane(PrivatePolicy())
    await one.learn(get(b"/api/v4/projects/42", CONDITION))
    return one


def leading(lane: Lane) -> PrivateConditional:
    leader = lane.lead()
    assert isinstance(leader, PrivateConditional)
    return leader


async def test_it_goes_up_as_it_is_and_a_304_comes_down_as_it_is(lane: Lane) -> None:
    leader = leading(lane)
    assert leader.conditions == (CONDITION,)
    reply, outcome = leader.validated(ResponseHead(304, ((b"ETag", OTHER),), b"Not Modified"))
    member = b"gateway; fwd=uri-miss; fwd-status=304"
    assert (reply.head.status, reply.whole) == (304, b"")
    assert reply.head.fields == ((b"ETag", OTHER), (b"Cache-Status", member))
    assert (outcome.status, outcome.stored.value, outcome.upstream_status) == (CacheStatus.MISS, "status", 304)


async def test_nobody_waits_for_it(lane: Lane) -> None:
    first, second = leading(lane), leading(lane)
    first.abandon()
    assert second.prior_lookup().lookup.entries == ()


async def test_all_else_is_for_a_fetch(lane: Lane) -> None:
    leader = leading(lane)
    head, body = answer()
    assert leader.answered(head, body) is None
    assert (leader.prior_lookup().lookup.entries, leader.prior_lookup().version) == ((), lane.profile.version)


async def test_what_is_stored_is_asked_about_instead(lane: Lane) -> None:
    await lane.fetch(get(TARGET), Origin(json(ETAG)))
    assert not isinstance(lane.lead(), PrivateConditional)
