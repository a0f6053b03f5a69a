from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.cache import CacheOutcome, CacheRequest, SharedCache, SharedPolicy
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.errors import Code, Rejection, Source
from gateway.core.http_date import format_date
from gateway.core.messages import Field, Fields, first
from gateway.ports import Lookup, Reply
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import NOW, WEB, Clock, Origin, drain, streamed, whole

DOWN = Rejection(Code.UPSTREAM_RESET, 502, "502 Bad Gateway", source=Source.UPSTREAM)
FRESH = (b"Cache-Control", b"max-age=60")
CAPABILITY = (b"Surrogate-Capability", b'gateway="Surrogate/1.0"')


def ask(
    *fields: Field, method: str = "GET", target: bytes = b"/a", authorized: bool = False, body: bool = False
) -> CacheRequest:
    given = (*fields, (b"Authorization", b"Basic eA==")) if authorized else fields
    return CacheRequest(method, target, given, WEB, b"", body, reached_as=b"http://host")


class Room:
    def __init__(self, policy: SharedPolicy = SharedPolicy(), wait_s: float = 10.0) -> None:  # noqa: B008
        self.clock = Clock()
        self.store = MemoryCacheStore(8 << 20, self.clock)
        self.cache = SharedCache(self.store, policy, wait_s=wait_s)

    async def fetch(self, request: CacheRequest, origin: Origin) -> tuple[int, Fields, bytes, CacheOutcome]:
        head, body, outcome = await drain(await self.cache.fetch(request, origin, self.clock))
        assert origin.held == 0
        return head.status, head.fields, body, outcome


async def test_a_fresh_answer_is_reused_for_everybody() -> None:
    room, origin = Room(), Origin(whole(200, FRESH, (b"A", b"1"), body=b"x"))
    _, fields, _, outcome = await room.fetch(ask(), origin)
    assert (outcome.status, outcome.stored) == (CacheStatus.MISS, Stored.STORED)
    assert first(fields, b"cache-status") == b"gateway; fwd=uri-miss; fwd-status=200; stored; ttl=60"
    assert origin.asked == [(CAPABILITY,)]
    room.clock.now += 10
    _, fields, body, outcome = await room.fetch(ask(), origin)
    assert (body, outcome.status) == (b"x", CacheStatus.HIT)
    assert first(fields, b"age") == b"10"
    assert first(fields, b"cache-status") == b"gateway; hit; ttl=50"
    *_, body, outcome = await room.fetch(ask(method="HEAD"), origin)
    assert (body, outcome.status) == (b"", CacheStatus.HIT)


async def test_a_stale_answer_is_validated_and_freshened() -> None:
    room = Room()
    origin = Origin(
        whole(200, FRESH, (b"ETag", b'"a"'), (b"Last-Modified", format_date(NOW - 5)), body=b"x"),
        whole(304, (b"Cache-Control", b"max-age=600"), (b"A", b"2")),
    )
    await room.fetch(ask(), origin)
    room.clock.now += 61
    status, fields, body, outcome = await room.fetch(ask((b"If-None-Match", b'"mine"')), origin)
    assert (status, body, outcome.status, outcome.stored) == (200, b"x", CacheStatus.REVALIDATED, Stored.FRESHENED)
    assert origin.condition() == b'"a"'
    assert first(origin.asked[-1], b"if-modified-since") == format_date(NOW - 5)
    assert first(fields, b"a") == b"2"
    room.clock.now += 500
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.HIT


async def test_the_client_gets_304_for_what_it_already_has() -> None:
    room = Room()
    origin = Origin(
        whole(200, FRESH, (b"ETag", b'"a"'), body=b"x"), whole(304), whole(200, FRESH, (b"ETag", b'"b"'), body=b"y")
    )
    await room.fetch(ask(), origin)
    assert (await room.fetch(ask((b"If-None-Match", b'"a"')), origin))[0] == 304
    room.clock.now += 61
    assert (await room.fetch(ask((b"If-None-Match", b'"a"')), origin))[0] == 304
    room.clock.now += 61
    status, *_, outcome = await room.fetch(ask((b"If-None-Match", b'"b"')), origin)
    assert (status, outcome.status) == (304, CacheStatus.UPDATED), "the new one is what the client holds"


async def test_without_a_validator_of_ours_the_clients_304_passes_and_changes_nothing() -> None:
    room, origin = Room(), Origin(whole(200, FRESH, body=b"x"), whole(304, (b"ETag", b'"a"')))
    await room.fetch(ask(), origin)
    room.clock.now += 61
    status, *_, outcome = await room.fetch(ask((b"If-None-Match", b'"a"')), origin)
    assert (status, outcome.stored, origin.condition()) == (304, Stored.STATUS, b'"a"')


async def test_variants_live_side_by_side() -> None:
    room = Room()
    vary = (b"Vary", b"Foo")
    origin = Origin(whole(200, FRESH, vary, body=b"1"), whole(200, FRESH, vary, body=b"2"))
    for value in (b"1", b"2", b"1", b"2"):
        assert (await room.fetch(ask((b"Foo", value)), origin))[2] == value
    assert len(origin.asked) == 2


async def test_the_origin_may_know_a_variant_to_be_another_requests_too() -> None:
    room = Room()
    vary = (b"Vary", b"Foo")
    origin = Origin(
        whole(200, FRESH, vary, (b"ETag", b'"1"'), body=b"1"),
        whole(200, FRESH, vary, (b"ETag", b'"2"'), body=b"2"),
        whole(304, vary, (b"ETag", b'"1"')),
        whole(304, vary, (b"ETag", b'"unknown"')),
        whole(200, FRESH, vary, (b"ETag", b'"4"'), body=b"4"),
    )
    await room.fetch(ask((b"Foo", b"1")), origin)
    await room.fetch(ask((b"Foo", b"2")), origin)
    *_, body, outcome = await room.fetch(ask((b"Foo", b"3")), origin)
    assert (body, outcome.status, outcome.reason) == (b"1", CacheStatus.REVALIDATED, CacheReason.VARY_MISS)
    assert set((origin.condition() or b"").split(b", ")) == {b'"1"', b'"2"'}
    assert (await room.fetch(ask((b"Foo", b"3")), origin))[3].status is CacheStatus.HIT
    assert (await room.fetch(ask((b"Foo", b"4")), origin))[2] == b"4"
    assert origin.asked[-1] == (CAPABILITY,)


async def test_a_304_that_turns_to_vary_on_everything_takes_the_entry() -> None:
    room = Room()
    origin = Origin(whole(200, FRESH, (b"ETag", b'"a"'), body=b"x"), whole(304, (b"Vary", b"*")), whole(200))
    await room.fetch(ask(), origin)
    room.clock.now += 61
    *_, body, outcome = await room.fetch(ask(), origin)
    assert (body, outcome.stored) == (b"x", Stored.NO_STORE)
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.MISS


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ask(body=True), CacheReason.BODY),
        (ask((b"If-Match", b"*")), CacheReason.CONDITIONAL),
        (ask(method="OPTIONS"), CacheReason.METHOD),
    ],
)
async def test_past_the_cache(request_: CacheRequest, reason: CacheReason) -> None:
    room, origin = Room(), Origin(whole(200, FRESH), whole(200, FRESH))
    for _ in range(2):
        *_, outcome = await room.fetch(request_, origin)
        assert (outcome.status, outcome.reason) == (CacheStatus.BYPASS, reason)


class Away:
    """A store that answers so many times, and then no more."""

    def __init__(self, answers: int = 0) -> None:
        self.answers = answers

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        self.answers -= 1
        return Lookup(available=self.answers >= 0)

    async def put(self, *_: object) -> bool:
        return False

    async def delete(self, key: bytes) -> None:
        return None

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        return False

    async def close(self) -> None:
        return None


async def test_a_store_that_is_away_is_a_bypass_at_every_step() -> None:
    for answers in range(3):
        cache = SharedCache(Away(answers), SharedPolicy())
        _, body, outcome = await drain(await cache.fetch(ask(), Origin(whole(200, FRESH, body=b"x")), Clock()))
        assert body == b"x"
        assert (outcome.reason is CacheReason.STORE_UNAVAILABLE) is (answers == 0)
        post = Origin(whole(200, FRESH, (b"Content-Location", b"/a"), body=b"x"))
        assert (await drain(await cache.fetch(ask(method="POST"), post, Clock())))[1] == b"x"
        await cache.close()


async def test_only_if_cached() -> None:
    room, origin = Room(), Origin(whole(200, FRESH))
    asked = ask((b"Cache-Control", b"only-if-cached"))
    with pytest.raises(Rejection) as refused:
        await room.fetch(asked, origin)
    assert refused.value.status == 504
    assert refused.value.headers == ((b"Cache-Status", b"gateway; fwd=uri-miss"),)
    await room.fetch(ask(), origin)
    assert (await room.fetch(asked, origin))[3].status is CacheStatus.HIT


# Failing origins


@pytest.mark.parametrize("failure", [whole(503), DOWN])
async def test_a_stale_answer_stands_in(failure: Reply | Exception) -> None:
    room = Room(SharedPolicy(stale_if_error_s=600))
    origin = Origin(whole(200, FRESH, body=b"x"), failure)
    await room.fetch(ask(), origin)
    room.clock.now += 105
    status, fields, body, outcome = await room.fetch(ask(), origin)
    assert (status, body, outcome.status) == (200, b"x", CacheStatus.STALE)
    assert first(fields, b"cache-status") == b"gateway; hit; ttl=-45; detail=stale-if-error"


@pytest.mark.parametrize(
    "failure", [DOWN, Rejection(Code.INTERNAL, 500, "500 Internal Server Error", source=Source.INTERNAL)]
)
async def test_not_where_it_must_be_revalidated_nor_for_faults_of_our_own(failure: Exception) -> None:
    room = Room(SharedPolicy(stale_if_error_s=600))
    said = (b"Cache-Control", b"max-age=60, must-revalidate" if failure is DOWN else b"max-age=60")
    origin = Origin(whole(200, said, (b"ETag", b'"a"')), failure)
    await room.fetch(ask(), origin)
    room.clock.now += 61
    with pytest.raises(Rejection):
        await room.fetch(ask(), origin)


async def test_stale_while_revalidate_asks_once_beside_the_answer() -> None:
    room = Room()
    said = (b"Cache-Control", b"max-age=60, stale-while-revalidate=30")
    origin = Origin(
        whole(200, said, body=b"1"),
        streamed(200, said, chunks=[b"x" * 300_000]),
        DOWN,
        whole(200, said, body=b"3"),
    )
    await room.fetch(ask(), origin)
    room.clock.now += 61
    results = [await room.fetch(ask(), origin) for _ in range(3)]
    assert {outcome.status for *_, outcome in results} == {CacheStatus.STALE}
    await asyncio.gather(*room.cache._refreshes.values())
    assert len(origin.asked) == 2
    *_, body, outcome = await room.fetch(ask(), origin)
    assert (len(body), outcome.status) == (300_000, CacheStatus.HIT)
    room.clock.now += 61
    await room.fetch(ask(), origin)
    await asyncio.gather(*room.cache._refreshes.values())
    assert not room.cache._refreshes, "a failed one is tried again"
    await room.fetch(ask(), origin)
    await asyncio.gather(*room.cache._refreshes.values())
    assert (await room.fetch(ask(), origin))[2] == b"3"
    assert origin.held == 0


async def test_closing_ends_what_runs_beside() -> None:
    room = Room()

    async def never(given: Fields) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError("never")

    origin = Origin(whole(200, (b"Cache-Control", b"max-age=60, stale-while-revalidate=30")))
    await room.fetch(ask(), origin)
    room.clock.now += 61
    await drain(await room.cache.fetch(ask(), never, room.clock))
    tasks = list(room.cache._refreshes.values())
    await asyncio.sleep(0)
    await room.cache.close()
    assert [type(result) for result in await asyncio.gather(*tasks, return_exceptions=True)] == [asyncio.CancelledError]


# HEAD


async def test_head_freshens_or_outdates_what_is_stored() -> None:
    room = Room()
    origin = Origin(
        whole(200, FRESH, (b"ETag", b'"a"'), body=b"x"),
        whole(200, FRESH, (b"ETag", b'"a"'), (b"A", b"2")),
        whole(200, (b"ETag", b'"b"')),
        whole(200, FRESH, body=b"y"),
    )
    await room.fetch(ask(), origin)
    room.clock.now += 61
    *_, outcome = await room.fetch(ask(method="HEAD"), origin)
    assert (outcome.status, outcome.stored) == (CacheStatus.MISS, Stored.FRESHENED)
    _, fields, body, outcome = await room.fetch(ask(), origin)
    assert (body, first(fields, b"a"), outcome.status) == (b"x", b"2", CacheStatus.HIT)
    room.clock.now += 61
    assert (await room.fetch(ask(method="HEAD"), origin))[3].stored is Stored.DROPPED
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.MISS


async def test_a_head_about_nothing_stored_just_passes() -> None:
    room, origin = Room(), Origin(whole(200, FRESH))
    assert (await room.fetch(ask(method="HEAD"), origin))[3].stored is Stored.NOT_ASKED


# Ranges


async def test_a_stored_whole_serves_ranges() -> None:
    room, origin = Room(), Origin(whole(200, FRESH, body=b"0123456789"))
    await room.fetch(ask(), origin)
    status, fields, body, _ = await room.fetch(ask((b"Range", b"bytes=2-4")), origin)
    assert (status, body, first(fields, b"content-range")) == (206, b"234", b"bytes 2-4/10")


async def test_a_stored_beginning_is_completed_by_its_strong_validator() -> None:
    room = Room()
    etag = (b"ETag", b'"a"')
    origin = Origin(
        whole(206, FRESH, etag, (b"Content-Range", b"bytes 0-4/10"), body=b"01234"),
        whole(206, FRESH, etag, (b"Content-Range", b"bytes 5-9/10"), body=b"56789"),
    )
    await room.fetch(ask((b"Range", b"bytes=0-4")), origin)
    status, fields, body, outcome = await room.fetch(ask(), origin)
    assert (status, body, outcome.reason) == (200, b"0123456789", CacheReason.PARTIAL)
    assert origin.asked[-1][:2] == ((b"Range", b"bytes=5-"), (b"If-Range", b'"a"'))
    assert first(fields, b"content-length") == b"10"
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.HIT
    assert (await room.fetch(ask((b"Range", b"bytes=3-6")), origin))[2] == b"3456"


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(whole(206, (b"ETag", b'"b"'), (b"Content-Range", b"bytes 5-9/10"), body=b"56789"), id="another"),
        pytest.param(whole(206, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 6-9/10"), body=b"6789"), id="gap"),
        pytest.param(whole(206, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), body=b"567"), id="short"),
        pytest.param(whole(206, (b"ETag", b'"a"')), id="unsaid"),
        pytest.param(whole(416), id="416"),
    ],
)
async def test_pieces_that_do_not_fit_are_asked_for_as_one(rest: Reply) -> None:
    room = Room()
    origin = Origin(
        whole(206, FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 0-4/10"), body=b"01234"),
        rest,
        whole(200, body=b"new"),
    )
    await room.fetch(ask((b"Range", b"bytes=0-4")), origin)
    assert (await room.fetch(ask(), origin))[2] == b"new"
    assert origin.asked[-1] == (CAPABILITY,)


async def test_what_would_be_too_large_is_not_joined() -> None:
    room = Room(SharedPolicy(max_entry_bytes=8))
    origin = Origin(
        whole(206, FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 0-4/10"), body=b"01234"),
        whole(206, FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), body=b"56789"),
        whole(200, body=b"0123456789"),
    )
    await room.fetch(ask((b"Range", b"bytes=0-4")), origin)
    assert (await room.fetch(ask(), origin))[2] == b"0123456789"


async def test_several_stored_pieces_and_variants_are_bounded() -> None:
    room = Room()
    origin = Origin(*(whole(200, FRESH, (b"Vary", b"Foo"), body=b"%d" % number) for number in range(40)))
    for number in range(40):
        await room.fetch(ask((b"Foo", b"%d" % number)), origin)
    assert (await room.fetch(ask((b"Foo", b"39")), origin))[3].status is CacheStatus.HIT
    lookup = await room.store.get(b"shared\nhttp://host\n/a", ())
    assert len(lookup.entries) == 16


# Other methods


async def test_a_write_takes_its_target_and_what_it_points_at() -> None:
    room = Room()
    origin = Origin(
        *(whole(200, FRESH) for _ in range(3)), whole(201, (b"Location", b"/b")), *(whole(200) for _ in range(2))
    )
    for target in (b"/a", b"/b", b"/c"):
        await room.fetch(ask(target=target), origin)
    await room.fetch(ask(method="PUT"), origin)
    statuses = [(await room.fetch(ask(target=target), origin))[3].status for target in (b"/a", b"/b", b"/c")]
    assert statuses == [CacheStatus.MISS, CacheStatus.MISS, CacheStatus.HIT]


async def test_a_post_that_names_itself_serves_later_gets() -> None:
    room = Room()
    itself = (b"Content-Location", b"/a")
    origin = Origin(streamed(200, FRESH, itself, chunks=[b"a", b"b"]), whole(200, FRESH, itself, body=b"x" * 20))
    *_, outcome = await room.fetch(ask(method="POST", body=True), origin)
    assert outcome.stored is Stored.STORED
    assert (await room.fetch(ask(), origin))[2] == b"ab"
    room.cache = SharedCache(room.store, SharedPolicy(max_entry_bytes=10))
    assert (await room.fetch(ask(method="POST"), origin))[3].stored is Stored.TOO_LARGE


async def test_a_broken_store_in_the_middle_of_a_write_gives_the_reply_back() -> None:
    class Broken(Away):
        async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
            raise asyncio.CancelledError

    origin = Origin(whole(200))
    with pytest.raises(asyncio.CancelledError):
        await SharedCache(Broken(), SharedPolicy()).fetch(ask(method="PUT"), origin, Clock())
    assert origin.held == 0


async def test_hosts_are_kept_apart_and_a_write_reaches_its_own_by_absolute_url() -> None:
    room = Room()
    there = msgspec.structs.replace(ask(target=b"/b"), reached_as=b"http://other")
    origin = Origin(whole(200, FRESH), whole(200, FRESH), whole(201, (b"Location", b"http://HOST/b")), whole(200))
    await room.fetch(ask(target=b"/b"), origin)
    assert (await room.fetch(there, origin))[3].status is CacheStatus.MISS
    await room.fetch(ask(method="PUT"), origin)
    assert (await room.fetch(ask(target=b"/b"), origin))[3].status is CacheStatus.MISS
    assert (await room.fetch(there, origin))[3].status is CacheStatus.HIT


async def test_authorized_answers_are_shared_only_by_leave() -> None:
    room = Room()
    origin = Origin(whole(200, FRESH), whole(200, (b"Cache-Control", b"max-age=60, public")))
    assert (await room.fetch(ask(authorized=True), origin))[3].stored is Stored.AUTHORIZATION
    assert (await room.fetch(ask(authorized=True), origin))[3].stored is Stored.STORED
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.HIT


# Streams and collapsing


async def test_a_stream_cut_short_is_not_stored() -> None:
    room = Room()
    origin = Origin(streamed(200, FRESH, chunks=[b"x" * 300_000, DOWN]), whole(200, FRESH, body=b"y"))
    reply, outcome = await room.cache.fetch(ask(), origin, room.clock)
    assert reply.chunks is not None
    with pytest.raises(Rejection):
        async for _ in reply.chunks:
            pass
    reply.release()
    assert outcome.stored is Stored.INCOMPLETE
    assert (await room.fetch(ask(), origin))[2] == b"y"


async def test_an_answer_overtaken_by_a_write_is_not_kept() -> None:
    room = Room()

    async def slow(given: Fields) -> Reply:
        await room.fetch(ask(method="DELETE"), Origin(whole(204)))
        return whole(200, FRESH, (b"ETag", b'"a"'), body=b"old")

    assert (await room.fetch(ask(), Origin(slow)))[3].stored is Stored.INVALIDATED
    assert (await room.fetch(ask(), Origin(whole(200))))[3].status is CacheStatus.MISS


async def collapse(room: Room, origin: Origin, gate: asyncio.Event, count: int = 3) -> list[tuple[bytes, CacheOutcome]]:
    tasks = [asyncio.ensure_future(room.cache.fetch(ask(), origin, room.clock)) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    gate.set()
    results = [await drain(await task) for task in tasks]
    assert origin.held == 0
    return [(body, outcome) for _, body, outcome in results]


def gated(gate: asyncio.Event, *answers: Reply) -> Origin:
    left = list(answers)

    async def answer(given: Fields) -> Reply:
        mine = left.pop(0)
        await gate.wait()
        return mine

    return Origin(answer)


async def test_identical_requests_in_flight_become_one() -> None:
    gate = asyncio.Event()
    origin = gated(gate, whole(200, FRESH, body=b"x"))
    results = await collapse(Room(), origin, gate)
    assert [outcome.status for _, outcome in results] == [CacheStatus.MISS, CacheStatus.COLLAPSED, CacheStatus.COLLAPSED]
    assert len(origin.asked) == 1


async def test_revalidations_become_one() -> None:
    gate, room = asyncio.Event(), Room()
    await room.fetch(ask(), Origin(whole(200, FRESH, (b"ETag", b'"a"'), body=b"x")))
    room.clock.now += 61
    origin = gated(gate, whole(304))
    assert [body for body, _ in await collapse(room, origin, gate)] == [b"x"] * 3
    assert len(origin.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: whole(200, body=b"x"), id="not-storable"),
        pytest.param(lambda: whole(200, FRESH, body=b"x" * 20), id="too-large"),
        pytest.param(lambda: streamed(200, FRESH, chunks=[b"x" * 300_000]), id="streamed"),
    ],
)
async def test_what_cannot_be_shared_is_asked_for_by_each(answer: object) -> None:
    assert callable(answer)
    gate = asyncio.Event()
    origin = gated(gate, *(answer() for _ in range(3)))
    await collapse(Room(SharedPolicy(max_entry_bytes=10)), origin, gate)
    assert len(origin.asked) == 3


async def test_who_waited_too_long_goes_alone() -> None:
    gate = asyncio.Event()
    origin = gated(gate, *(whole(200, FRESH, body=b"x") for _ in range(3)))
    await collapse(Room(wait_s=0.0), origin, gate)
    assert len(origin.asked) == 3


async def test_a_shared_cache_has_no_partitions_to_drop() -> None:
    room, origin = Room(), Origin(whole(200, FRESH))
    await room.fetch(ask(), origin)
    await room.cache.drop_partition(b"")
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.HIT
