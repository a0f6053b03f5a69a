from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.cache import CacheOutcome, CacheRequest, SharedCache, SharedPolicy
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.errors import Rejection
from gateway.core.messages import Fields, first
from gateway.ports import Lookup
from gateway.reply import Reply

from .origin import Clock, Origin, drain, streamed, whole
from .shared_room import CAPABILITY, DOWN, FRESH, Room, ask

ONLY_IF_CACHED = (b"Cache-Control", b"only-if-cached")


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
    asked = ask(ONLY_IF_CACHED)
    with pytest.raises(Rejection) as refused:
        await room.fetch(asked, origin)
    assert refused.value.status == 504
    assert refused.value.headers == ((b"Cache-Status", b"gateway; detail=uri-miss"),)
    await room.fetch(ask(), origin)
    assert (await room.fetch(asked, origin))[3].status is CacheStatus.HIT


@pytest.mark.parametrize(
    "asked",
    [
        ask(ONLY_IF_CACHED, body=True),
        ask(ONLY_IF_CACHED, (b"If-Match", b"*")),
        ask(ONLY_IF_CACHED, method="OPTIONS"),
        ask(ONLY_IF_CACHED, method="HEAD"),
    ],
)
async def test_only_if_cached_where_the_cache_has_no_part(asked: CacheRequest) -> None:
    with pytest.raises(Rejection) as refused:
        await Room().fetch(asked, Origin())
    assert refused.value.status == 504
    with pytest.raises(Rejection) as refused:
        await SharedCache(Away(), SharedPolicy()).fetch(asked, Origin(), Clock())
    assert refused.value.status == 504


async def test_a_post_goes_up_whatever_it_says_of_the_cache() -> None:
    """RFC 9111 §4: a cache must write unsafe requests through."""
    assert (await Room().fetch(ask(ONLY_IF_CACHED, method="POST"), Origin(whole(201))))[0] == 201


@pytest.mark.parametrize("own", [(b"Range", b"bytes=0-1"), (b"If-None-Match", b'"a"')])
async def test_what_is_asked_in_the_background_is_asked_for_all(own: tuple[bytes, bytes]) -> None:
    said = (b"Cache-Control", b"max-age=60, stale-while-revalidate=30")
    room, origin = Room(), Origin(whole(200, said, body=b"0123"), whole(200, said, body=b"4567"))
    await room.fetch(ask(), origin)
    room.clock.now += 61
    assert (await room.fetch(ask(own), origin))[3].status is CacheStatus.STALE
    await asyncio.gather(*room.cache._refreshes.values())
    assert origin.asked[-1] == (CAPABILITY,)
    *_, body, outcome = await room.fetch(ask(), origin)
    assert (body, outcome.status) == (b"4567", CacheStatus.HIT)


async def test_a_stale_piece_is_asked_for_as_a_piece() -> None:
    said = (b"Cache-Control", b"max-age=60, stale-while-revalidate=30")
    room, piece = Room(), (b"Range", b"bytes=0-1")
    origin = Origin(*[whole(206, said, (b"Content-Range", b"bytes 0-1/9"), body=octets) for octets in (b"01", b"ab")])
    await room.fetch(ask(piece), origin)
    room.clock.now += 61
    assert (await room.fetch(ask(piece), origin))[2] == b"01"
    await asyncio.gather(*room.cache._refreshes.values())
    assert origin.asked[-1] == (piece, CAPABILITY)
    assert (await room.fetch(ask(piece), origin))[2] == b"ab"


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


@pytest.mark.parametrize("said", [b"no-cache", b"max-age=0"])
async def test_who_wants_it_afresh_gets_nothing_that_was_asked_for_before(said: bytes) -> None:
    gate, room = asyncio.Event(), Room()
    origin = gated(gate, whole(200, FRESH, body=b"1"), whole(200, FRESH, body=b"2"))
    requests = (ask(), ask((b"Cache-Control", said)))
    tasks = [asyncio.ensure_future(room.cache.fetch(request, origin, room.clock)) for request in requests]
    while len(origin.asked) < 2:
        await asyncio.sleep(0)
    gate.set()
    assert [(await drain(await task))[1] for task in tasks] == [b"1", b"2"]


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
