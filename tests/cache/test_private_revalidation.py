"""What is stored, asked about without a wait: as a fetch would have it, for who asks and for all who wait."""

from __future__ import annotations

import asyncio

import pytest

from gateway.cache.private_revalidation import PrivateRevalidation
from gateway.core.cache_status import CacheStatus
from gateway.core.messages import Field, ResponseHead

from .origin import Origin, get, json
from .private_room import OTHER
from .test_private_miss import TARGET, Lane, answer


@pytest.fixture
async def lane() -> Lane:
    """Something is stored, and stale."""
    one = Lane()
    await one.learn()
    leader = one.lead()
    assert leader is not None
    leader.answered(*answer())
    one.clock.now += 31
    return one


def leading(lane: Lane) -> PrivateRevalidation:
    leader = lane.lead()
    assert isinstance(leader, PrivateRevalidation)
    return leader


def not_modified(*fields: Field) -> ResponseHead:
    return ResponseHead(304, ((b"ETag", OTHER), *fields), b"Not Modified")


async def test_what_gitlab_vouches_for_is_fresh_again(lane: Lane) -> None:
    validated = leading(lane).validated(not_modified((b"X-Total", b"8"), (b"X-Request-Id", b"01HF")))
    assert validated is not None
    reply, outcome = validated
    fields = dict(reply.head.fields)
    assert (reply.head.status, reply.whole, fields[b"X-Total"], fields[b"Age"]) == (200, b"[1]", b"8", b"0")
    assert fields[b"X-Request-Id"] == b"01HF"
    assert fields[b"Cache-Status"] == b"gateway; fwd=stale; fwd-status=304; ttl=30"
    assert (outcome.status, outcome.stored.value) == (CacheStatus.REVALIDATED, "freshened")
    status, stored, body, again = await lane.fetch(get(TARGET), Origin())
    assert (status, body, again.status) == (200, b"[1]", CacheStatus.HIT)
    assert dict(stored)[b"X-Total"] == b"8"
    assert b"X-Request-Id" not in dict(stored)


async def test_who_asks_the_same_meanwhile_waits_for_it(lane: Lane) -> None:
    leader = leading(lane)
    assert lane.lead() is None, "somebody asks"
    waiting = asyncio.ensure_future(lane.fetch(get(TARGET), Origin()))
    await asyncio.sleep(0)
    leader.validated(not_modified())
    assert (await waiting)[3].status is CacheStatus.COLLAPSED


async def test_abandoned_the_next_asks(lane: Lane) -> None:
    leading(lane).abandon()
    origin = Origin(json(OTHER, body=b"[2]"))
    assert (await lane.fetch(get(TARGET), origin))[2] == b"[2]"
    assert origin.condition() == OTHER


async def test_about_something_else_it_says_nothing(lane: Lane) -> None:
    leader = leading(lane)
    assert leader.validated(ResponseHead(304, ((b"ETag", b'"third"'),))) is None
    assert leader.answered(*answer()) is None, "nor does it store another answer"
    assert lane.lead() is None, "it is still the one who asks"


async def test_what_is_not_to_be_kept_is_told_and_dropped(lane: Lane) -> None:
    validated = leading(lane).validated(not_modified((b"Cache-Control", b"no-store")))
    assert validated is not None
    assert (validated[0].whole, validated[1].stored.value) == (b"[1]", "no-store")
    leader = lane.lead()
    assert leader is not None
    assert leader.conditions == (), "nothing is there"


async def test_a_write_that_overtakes_it(lane: Lane) -> None:
    leader = leading(lane)
    assert len(leader.prior_lookup().lookup.entries) == 1
    await lane.store.purge((b"project:42",))
    validated = leader.validated(not_modified())
    assert validated is not None
    assert validated[1].stored.value == "invalidated"
    again = lane.lead()
    assert again is not None
    assert again.conditions == ()


async def test_not_while_a_purge_holds(lane: Lane) -> None:
    await lane.store.purge((b"project:42",), hold_s=5.0)
    assert lane.lead() is None
