"""A miss that is led without a wait: one flight with those that wait, and the same in the store."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.cache import CacheProfile, CacheRequest, PrivateCache
from gateway.cache.contract import Leader
from gateway.cache.hook_watch import HookWatch
from gateway.core.answer_shape import shape_of, shape_of_head
from gateway.core.cache_status import CacheStatus
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.messages import Field, ResponseHead
from gateway.core.private_caching import PrivatePolicy

from .origin import ISSUES, Origin, drain, get, json, whole
from .private_room import ETAG, KEPT, OTHER, Room

SECRET = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST, may_hold_secret=True)
TARGET = b"/api/v4/projects/42?page=2"


class Lane(Room):
    """A cache whose store is in this process, and one kind of request that came by before."""

    def __init__(self, policy: PrivatePolicy = KEPT, hooks: HookWatch | None = None) -> None:
        super().__init__(policy)
        self.cache = PrivateCache(self.store, policy, local_store=self.store, hooks=hooks)
        self.profile = CacheProfile()

    async def learn(self, request: CacheRequest | None = None) -> None:
        await self.fetch(msgspec.structs.replace(request or get(), profile=self.profile), Origin(json(ETAG)))

    def lead(self, target: bytes = TARGET) -> Leader | None:
        return self.cache.lead_now(target, self.profile, self.clock)


def answer(*fields: Field, body: bytes = b"[1]") -> tuple[ResponseHead, bytes]:
    head = json(OTHER, *fields, body=body).head
    return msgspec.structs.replace(head, shape=shape_of_head(head)), body


@pytest.fixture
async def lane() -> Lane:
    one = Lane()
    await one.learn()
    return one


async def test_what_it_stores_is_a_hit_for_the_next(lane: Lane) -> None:
    leader = lane.lead()
    assert leader is not None
    outcome = leader.answered(*answer())
    assert outcome is not None
    assert (outcome.status, outcome.reason, outcome.stored) == ("miss", "uri-miss", "stored")
    status, fields, body, outcome = await lane.fetch(get(TARGET), Origin())
    assert (status, body, outcome.status) == (200, b"[1]", CacheStatus.HIT)
    assert dict(fields)[b"ETag"] == OTHER
    assert lane.lead() is None, "it is there"


@pytest.mark.parametrize(("condition", "holds"), [(OTHER, True), (b"*", True), (ETAG, False), (b"no tag", False)])
async def test_who_holds_the_answer_is_for_a_fetch(condition: bytes, holds: bool) -> None:
    lane = Lane()
    await lane.learn(get(b"/api/v4/projects/42", (b"If-None-Match", condition)))
    leader = lane.lead()
    assert leader is not None
    assert leader.form_template({}, answer()[0]) is None, "each has to be looked at"  # type: ignore[arg-type]
    assert (leader.answered(*answer()) is None) is holds


async def test_who_asks_the_same_meanwhile_waits_for_it(lane: Lane) -> None:
    leader = lane.lead()
    assert leader is not None
    assert lane.lead() is None, "somebody asks"
    waiting = asyncio.ensure_future(lane.fetch(get(TARGET), Origin()))
    await asyncio.sleep(0)
    leader.answered(*answer())
    _, _, body, outcome = await waiting
    assert (body, outcome.status) == (b"[1]", CacheStatus.COLLAPSED)


async def test_abandoned_the_next_asks(lane: Lane) -> None:
    leader = lane.lead()
    assert leader is not None
    origin = Origin(json(ETAG))
    waiting = asyncio.ensure_future(lane.fetch(get(TARGET), origin))
    await asyncio.sleep(0)
    leader.abandon()
    leader.abandon()
    _, _, _, outcome = await waiting
    assert (outcome.status, len(origin.asked)) == (CacheStatus.MISS, 1)


async def test_what_is_not_stored_is_not_shared(lane: Lane) -> None:
    leader = lane.lead()
    assert leader is not None
    origin = Origin(json(ETAG))
    waiting = asyncio.ensure_future(lane.fetch(get(TARGET), origin))
    await asyncio.sleep(0)
    outcome = leader.answered(*answer((b"Set-Cookie", b"a=b")))
    assert outcome is not None
    assert outcome.stored == "set-cookie"
    await waiting
    assert len(origin.asked) == 1


async def test_a_write_that_overtakes_it(lane: Lane) -> None:
    leader = lane.lead()
    assert leader is not None
    await lane.store.purge((b"project:42",))
    outcome = leader.answered(*answer())
    assert outcome is not None
    assert outcome.stored == "invalidated"
    assert lane.lead() is not None, "nothing is there"


async def test_who_goes_on_from_it_takes_its_answer_for_no_later_one(lane: Lane) -> None:
    leader = lane.lead()
    assert leader is not None
    lane.clock.now += 1
    await lane.store.purge((b"project:42",))
    prior_lookup = leader.prior_lookup()
    leader.abandon()
    request = msgspec.structs.replace(get(TARGET), profile=lane.profile, prior_lookup=prior_lookup)
    _, _, body, outcome = await lane.fetch(request, Origin(json(ETAG, body=b"[1]")))
    assert (body, outcome.status, outcome.stored.value) == (b"[1]", CacheStatus.MISS, "invalidated")
    assert not prior_lookup.superseded
    assert lane.lead() is not None, "nothing is there"


async def test_what_was_found_of_other_tags_is_looked_up_again(lane: Lane) -> None:
    """Learnt meanwhile: the project has a path, by which a write may have purged it."""
    leader = lane.lead()
    assert leader is not None
    prior_lookup = leader.prior_lookup()
    leader.abandon()
    await lane.store.purge((b"project:42",))
    prior_lookup.version -= 1
    request = msgspec.structs.replace(get(TARGET), profile=lane.profile, prior_lookup=prior_lookup)
    _, _, _, outcome = await lane.fetch(request, Origin(json(ETAG)))
    assert outcome.stored.value == "stored"
    assert prior_lookup.superseded


async def test_who_looked_again_says_so(lane: Lane) -> None:
    """The one it waited for is gone: what it asks now is asked of a later store."""
    leader = lane.lead()
    assert leader is not None
    prior_lookup = leader.prior_lookup()
    request = msgspec.structs.replace(get(TARGET), profile=lane.profile, prior_lookup=prior_lookup)
    waiting = asyncio.ensure_future(lane.fetch(request, Origin(json(ETAG))))
    await asyncio.sleep(0)
    assert not prior_lookup.superseded
    leader.abandon()
    await waiting
    assert prior_lookup.superseded


async def test_too_large_an_answer_is_for_a_fetch() -> None:
    lane = Lane(PrivatePolicy(ttl_s=30.0, max_entry_bytes=2))
    await lane.learn()
    leader = lane.lead()
    assert leader is not None
    assert leader.answered(*answer()) is None
    leader.abandon()


async def test_names_are_learnt_of_it() -> None:
    lane = Lane()
    await lane.learn(msgspec.structs.replace(get(b"/api/v4/projects/a%2Fb/issues"), operation=ISSUES))
    assert not lane.profile.nothing_to_learn
    leader = lane.lead(b"/api/v4/projects/a%2Fb/issues?page=2")
    assert leader is not None
    body = b'[{"project_id":42,"web_url":"https://git.example.com/a/b/-/issues/1"}]'
    leader.answered(*answer(body=body))
    assert lane.cache._tagging.names.others(b"42")
    assert lane.lead(b"/api/v4/projects/a%2Fb/issues?page=3") is None, "what was found out was for fewer names"


async def test_where_its_kind_is_known_new_names_are_found_out_at_once() -> None:
    lane = Lane()
    await lane.learn()
    lane.profile.sample = get()
    lane.cache._tagging.names.learn(b"42", b"g/p")
    assert b"project:g/p" not in lane.profile.tags
    assert lane.lead() is not None
    assert {b"project:42", b"project:g/p"} <= set(lane.profile.tags)
    assert lane.profile.version == lane.cache._tagging.names.version


@pytest.mark.parametrize(
    "request_",
    [
        get(b"/api/v4/projects/42", (b"Cache-Control", b"no-cache")),
        get(b"/api/v4/projects/42", (b"Range", b"bytes=0-1")),
        get(partition=b""),
        msgspec.structs.replace(get(), operation=SECRET),
    ],
)
async def test_what_takes_a_closer_look_is_not_led(request_: CacheRequest) -> None:
    lane = Lane()
    await lane.learn(request_)
    assert lane.lead() is None


async def test_what_is_asked_about_before_each_reuse() -> None:
    """It is stored with its ETag; a fetch asks about it, and whoever asks the same meanwhile waits for it."""
    lane = Lane(PrivatePolicy(ttl_s=0.0))
    await lane.learn()
    leader = lane.lead()
    assert leader is not None
    waiting = asyncio.ensure_future(lane.fetch(get(TARGET), Origin()))
    await asyncio.sleep(0)
    outcome = leader.answered(*answer())
    assert outcome is not None
    assert (outcome.stored, outcome.line) == (
        "stored",
        b"Cache-Status: gateway; fwd=uri-miss; fwd-status=200; stored; ttl=0\r\n",
    )
    assert (await waiting)[3].status is CacheStatus.COLLAPSED
    again = lane.lead()
    assert again is not None
    assert again.conditions == ((b"If-None-Match", OTHER),)
    again.abandon()
    origin = Origin(json(OTHER, body=b"[2]"))
    _, _, body, outcome = await lane.fetch(get(TARGET), origin)
    assert origin.condition() == OTHER
    assert (body, outcome.status) == (b"[2]", CacheStatus.UPDATED)


async def test_without_an_etag_that_is_for_a_fetch() -> None:
    lane = Lane(PrivatePolicy(ttl_s=0.0))
    await lane.learn()
    leader = lane.lead()
    assert leader is not None
    fields = ((b"Content-Type", b"application/json"), (b"Content-Length", b"2"))
    for none in (fields, (*fields, (b"ETag", b"unquoted"))):
        assert leader.answered(ResponseHead(200, none, b"OK", shape_of(none)), b"[]") is None
    one = (*fields, (b"ETag", ETAG))
    outcome = leader.answered(ResponseHead(200, one, b"OK", shape_of(one)), b"[]")
    assert outcome is not None
    assert outcome.stored == "stored", "though the first of its shape had none"
    leader = lane.lead(TARGET + b"3")
    assert leader is not None
    leader.abandon()
    status, _, _, outcome = await lane.fetch(get(TARGET + b"3"), Origin(whole(200, *fields, body=b"[]")))
    assert (status, outcome.stored.value) == (200, "unvalidatable")


async def test_nor_while_a_purge_holds(lane: Lane) -> None:
    await lane.store.purge((b"project:42",), hold_s=5.0)
    assert lane.lead() is None
    lane.clock.now += 6
    assert lane.lead() is not None


async def test_nor_before_its_kind_came_by() -> None:
    assert Lane().lead() is None


async def test_nor_from_a_store_that_is_far(lane: Lane) -> None:
    cache = PrivateCache(lane.store, KEPT)
    profile = CacheProfile()
    await drain(await cache.fetch(msgspec.structs.replace(get(), profile=profile), Origin(json(ETAG)), lane.clock))
    assert profile.may_share
    assert cache.lead_now(TARGET, profile, lane.clock) is None


async def test_nor_while_no_hooks_come() -> None:
    lane = Lane()
    hooks = HookWatch(lane.store, lane.clock, 60.0)
    lane.cache = PrivateCache(lane.store, KEPT, local_store=lane.store, hooks=hooks)
    await lane.learn()
    assert lane.lead() is None
    await hooks.record_hook()
    await lane.learn()
    assert lane.lead() is not None


async def test_what_is_stale_is_asked_about(lane: Lane) -> None:
    leader = lane.lead()
    assert leader is not None
    assert leader.conditions == ()
    assert leader.validated(ResponseHead(304, ())) is None, "nothing is stored that it could be about"
    leader.answered(*answer())
    lane.clock.now += 31
    leader = lane.lead()
    assert leader is not None
    assert leader.conditions == ((b"If-None-Match", OTHER),)
