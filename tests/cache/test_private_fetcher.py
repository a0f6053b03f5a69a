"""Asked once for all who want to know: at this gateway, and at others that share its store.

Leases in Redis: ``test_together.py``, and beside their store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from gateway.cache import CacheOutcome, CacheRequest, PrivateCache
from gateway.cache.private_fetcher import judge_lookup
from gateway.core.access import Priority
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.errors import Rejection
from gateway.core.messages import Fields, first
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import Lookup
from gateway.reply import Reply
from gateway.stores.cache_memory import MemoryCacheStore
from tests.stores.cache_contract import ENTRY

from .origin import NEW_ISSUE, Clock, Origin, drain, get, json, streamed, whole
from .private_room import DOWN, ETAG, KEPT, OTHER, Room

# Streams

LARGE = [b"x" * 200_000, b"y" * 200_000]
JSON = (b"Content-Type", b"application/json")


async def test_a_streamed_answer_is_kept_when_its_last_octet_came() -> None:
    room = Room()
    origin = Origin(streamed(200, JSON, (b"ETag", ETAG), chunks=list(LARGE)))
    room.store = MemoryCacheStore(1 << 30, room.clock)
    room.cache = PrivateCache(room.store, KEPT)
    reply, outcome = await room.cache.fetch(get(), origin, room.clock)
    assert reply.chunks is not None
    seen = []
    async for chunk in reply.chunks:
        assert len(room.store) == 0, "half an answer is never visible"
        seen.append(chunk)
    assert len(room.store) == 1
    reply.release()
    assert outcome.stored is Stored.STORED
    _, fields, body, outcome = await room.fetch(get(), Origin())
    assert (body, outcome.status) == (b"".join(LARGE), CacheStatus.HIT)
    assert first(fields, b"content-length") == b"400000"


async def test_a_client_that_leaves_half_way_stores_nothing_and_drops_what_was_there() -> None:
    room = Room()
    origin = Origin(json(ETAG), streamed(200, JSON, (b"ETag", OTHER), chunks=list(LARGE)), json(ETAG))
    await room.fetch(get(), origin)
    reply, outcome = await room.cache.fetch(get(), origin, room.clock)
    assert reply.chunks is not None
    await anext(reply.chunks)
    reply.release()
    assert (outcome.stored, origin.held) == (Stored.INCOMPLETE, 0)
    await reply.chunks.aclose()  # type: ignore[attr-defined]
    await room.fetch(get(), origin)
    assert origin.condition() is None


async def test_an_upstream_that_dies_in_a_small_body_is_a_refusal_not_half_an_answer() -> None:
    room = Room(KEPT)
    origin = Origin(streamed(200, JSON, (b"ETag", ETAG), (b"Content-Length", b"9"), chunks=[b"[", DOWN]), json(ETAG))
    with pytest.raises(Rejection):
        await room.fetch(get(), origin)
    assert origin.held == 0
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.MISS


async def test_a_body_too_large_streams_past() -> None:
    room = Room(PrivatePolicy(ttl_s=30.0, max_entry_bytes=300_000))
    origin = Origin(streamed(200, JSON, (b"ETag", ETAG), chunks=list(LARGE)), json(ETAG))
    *_, body, outcome = await room.fetch(get(), origin)
    assert (len(body), outcome.stored) == (400_000, Stored.TOO_LARGE)
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.MISS


# Collapsing


class Gate:
    """An origin that answers when it is let."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.replies = list(replies)
        self.open = asyncio.Event()
        self.asked = 0

    async def __call__(self, given: Fields) -> Reply:
        self.asked += 1
        answer = self.replies.pop(0)
        await self.open.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def together(
    room: Room, gate: Callable[[Fields], Awaitable[Reply]], requests: list[CacheRequest]
) -> list[asyncio.Task[tuple[Reply, CacheOutcome]]]:
    tasks = [asyncio.ensure_future(room.cache.fetch(request, gate, room.clock)) for request in requests]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_identical_requests_in_flight_become_one() -> None:
    room, gate = Room(), Gate(json(ETAG, body=b"[1]"))
    tasks = await together(room, gate, [get()] * 20)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert gate.asked == 1
    assert {body for _, body, _ in results} == {b"[1]"}
    assert [outcome.status for *_, outcome in results] == [CacheStatus.MISS] + [CacheStatus.COLLAPSED] * 19
    assert first(results[1][0].fields, b"cache-status") == b"gateway; fwd=uri-miss; fwd-status=200; collapsed; ttl=0"


async def test_revalidations_collapse_too() -> None:
    room = Room()
    await room.fetch(get(), Origin(json(ETAG, body=b"[1]")))
    gate = Gate(whole(304))
    tasks = await together(room, gate, [get()] * 5)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert gate.asked == 1
    assert {body for _, body, _ in results} == {b"[1]"}
    assert results[-1][2].upstream_status == 304


@pytest.mark.parametrize("said", [b"no-cache", b"max-age=0"])
@pytest.mark.parametrize("stored", [False, True])
async def test_who_wants_it_afresh_gets_nothing_that_was_asked_for_before(stored: bool, said: bytes) -> None:
    """It may be of before what its client has just done elsewhere."""
    room = Room()
    if stored:
        await room.fetch(get(), Origin(json(ETAG, body=b"[1]")))
    gate = Gate(whole(304) if stored else json(ETAG, body=b"[1]"), json(OTHER, body=b"[2]"))
    tasks = await together(room, gate, [get(), get(b"/api/v4/projects/42", (b"Cache-Control", said))])
    gate.open.set()
    assert [(await drain(await task))[1] for task in tasks] == [b"[1]", b"[2]"]


async def test_who_wants_it_afresh_gets_nothing_stale_with_the_others() -> None:
    room = Room(PrivatePolicy(stale_if_error_s=60.0))
    await room.fetch(get(), Origin(json(ETAG, body=b"[1]")))
    gate = Gate(whole(503), whole(503))
    tasks = await together(room, gate, [get(), get(b"/api/v4/projects/42", (b"Cache-Control", b"no-cache"))])
    gate.open.set()
    assert [(await drain(await task))[0].status for task in tasks] == [200, 503]


async def test_partitions_never_collapse_into_one() -> None:
    room, gate = Room(), Gate(json(ETAG, body=b"[p]"), json(ETAG, body=b"[q]"))
    tasks = await together(room, gate, [get(partition=b"p"), get(partition=b"q")])
    assert gate.asked == 2
    gate.open.set()
    assert [(await drain(await task))[1] for task in tasks] == [b"[p]", b"[q]"]


async def test_a_failing_leader_fails_nobody_else() -> None:
    room, gate = Room(KEPT), Gate(DOWN, json(ETAG, body=b"[1]"))
    tasks = await together(room, gate, [get()] * 3)
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], Rejection)
    assert gate.asked == 2
    for result in results[1:]:
        assert isinstance(result, tuple)
        assert (await drain(result))[1] == b"[1]"


async def test_nobody_shares_a_variant_that_is_not_his() -> None:
    room, gate = Room(), Gate(*[json(ETAG, (b"Vary", b"User-Agent"), body=body) for body in (b"[a]", b"[b]")])
    tasks = await together(room, gate, [get(b"/x", (b"User-Agent", agent)) for agent in (b"a", b"b")])
    gate.open.set()
    assert [(await drain(await task))[1] for task in tasks] == [b"[a]", b"[b]"]


async def test_a_cancelled_leader_hands_over() -> None:
    room, gate = Room(), Gate(json(ETAG), json(ETAG, body=b"[2]"))
    tasks = await together(room, gate, [get()] * 3)
    tasks[0].cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert gate.asked == 2
    gate.open.set()
    assert [(await drain(await task))[1] for task in tasks[1:]] == [b"[2]"] * 2


async def test_an_answer_that_cannot_be_shared_sends_everybody_up_at_once() -> None:
    room, gate = Room(), Gate(*[json(ETAG, (b"Set-Cookie", b"%d" % number)) for number in range(4)])
    tasks = await together(room, gate, [get()] * 4)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert gate.asked == 4
    assert len({first(head.fields, b"set-cookie") for head, *_ in results}) == 4


async def test_nobody_waits_for_a_stream_that_its_client_reads_slowly() -> None:
    room, gate = Room(), Gate(*[streamed(200, JSON, (b"ETag", ETAG), chunks=list(LARGE)) for _ in range(2)])
    tasks = await together(room, gate, [get()] * 2)
    gate.open.set()
    replies = [await task for task in tasks]
    assert gate.asked == 2
    for answered in replies:
        assert len((await drain(answered))[1]) == 400_000


async def test_who_waited_too_long_goes_alone() -> None:
    room = Room()
    room.cache = PrivateCache(room.store, PrivatePolicy(), wait_s=0.0)
    gate = Gate(json(ETAG), json(ETAG))
    tasks = await together(room, gate, [get()] * 2)
    assert gate.asked == 2
    gate.open.set()
    for task in tasks:
        await drain(await task)


async def test_a_stand_in_is_shared_as_one() -> None:
    room = Room(PrivatePolicy(stale_if_error_s=600.0))
    await room.fetch(get(), Origin(json(ETAG, body=b"[1]")))
    room.clock.now += 1
    gate = Gate(whole(503))
    tasks = await together(room, gate, [get()] * 3)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert [outcome.status for *_, outcome in results] == [CacheStatus.STALE] * 3


async def test_who_asks_after_a_write_does_not_get_what_was_asked_before_it() -> None:
    room, gate = Room(), Gate(json(ETAG, body=b"[old]"), json(OTHER, body=b"[new]"))
    before = await together(room, gate, [get()])
    await room.fetch(CacheRequest("PUT", b"/api/v4/projects/42", (), NEW_ISSUE, b"p"), Origin(whole(200)))
    after = await together(room, gate, [get()])
    assert gate.asked == 2
    gate.open.set()
    assert (await drain(await after[0]))[1] == b"[new]"
    assert (await drain(await before[0]))[1] == b"[old]"


# Among gateways


class Table:
    """Leases among caches of one process."""

    def __init__(self) -> None:
        self.taken: dict[bytes, asyncio.Event] = {}
        self.followers = 0

    async def lead(self, flight_key: bytes) -> Callable[[], None] | None:
        held = self.taken.get(flight_key)
        if held is None:
            over = self.taken[flight_key] = asyncio.Event()

            def done() -> None:
                over.set()
                del self.taken[flight_key]

            return done
        self.followers += 1
        await held.wait()
        return None


class World:
    """Several gateways on one store."""

    def __init__(self, ttl_s: float = 30.0) -> None:
        self.clock = Clock()
        self.table = Table()
        self.store = MemoryCacheStore(8 << 20, self.clock)
        policy = PrivatePolicy(ttl_s=ttl_s, stale_if_error_s=600.0)
        self.gateways = [PrivateCache(self.store, policy, leases=self.table) for _ in range(3)]
        self.open = asyncio.Event()
        self.asked = 0
        self.answers: list[Reply | Exception] = []

    async def origin(self, given: Fields) -> Reply:
        self.asked += 1
        answer = self.answers.pop(0)
        await self.open.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def all_ask(
        self, *answers: Reply | Exception, request: CacheRequest | None = None
    ) -> list[asyncio.Task[tuple[Reply, CacheOutcome]]]:
        """Every gateway asks the same, the first one first; all wait."""
        self.answers = list(answers)
        tasks = []
        for cache in self.gateways:
            tasks.append(asyncio.ensure_future(cache.fetch(request or get(), self.origin, self.clock)))
            for _ in range(5):
                await asyncio.sleep(0)
        return tasks


async def test_several_gateways_ask_once() -> None:
    world = World()
    tasks = await world.all_ask(json(ETAG, body=b"[1]"))
    assert (world.asked, world.table.followers) == (1, 2)
    world.open.set()
    said = [await drain(await task) for task in tasks]
    assert [body for _, body, _ in said] == [b"[1]"] * 3
    assert [outcome.status for *_, outcome in said] == [CacheStatus.MISS, CacheStatus.COLLAPSED, CacheStatus.COLLAPSED]
    assert first(said[1][0].fields, b"cache-status") == b"gateway; fwd=uri-miss; collapsed; ttl=30"
    assert not world.table.taken


async def test_one_that_overtakes_waits_for_no_lease_of_its_own_gateway() -> None:
    world = World()
    del world.gateways[1:]
    waiting = msgspec.structs.replace(get(), gives_way=lambda priority: priority is Priority.CRITICAL)
    tasks = await world.all_ask(json(ETAG), json(ETAG), request=waiting)
    tasks += await world.all_ask(json(ETAG), request=msgspec.structs.replace(get(), priority=Priority.CRITICAL))
    assert (world.asked, world.table.followers) == (2, 0)
    world.open.set()
    assert [(await drain(await task))[2].status for task in tasks] == [CacheStatus.MISS] * 2
    assert not world.table.taken


async def test_an_expired_answer_is_revalidated_once() -> None:
    world = World()
    await drain(await world.gateways[0].fetch(get(), Origin(json(ETAG, body=b"[1]")), world.clock))
    world.clock.now += 31
    tasks = await world.all_ask(whole(304, (b"ETag", ETAG)))
    world.open.set()
    said = [await drain(await task) for task in tasks]
    assert world.asked == 1
    assert [outcome.status for *_, outcome in said] == [
        CacheStatus.REVALIDATED,
        CacheStatus.COLLAPSED,
        CacheStatus.COLLAPSED,
    ]


@pytest.mark.parametrize(
    "first_answer",
    [
        pytest.param(DOWN, id="failed"),
        pytest.param(whole(500), id="broken"),
        pytest.param(whole(404), id="not-there"),
        pytest.param(json(ETAG, (b"Cache-Control", b"no-store")), id="not-stored"),
        pytest.param(streamed(200, (b"ETag", ETAG), chunks=[b"x" * 300_000, b"y"]), id="too-long-to-wait-for"),
    ],
)
async def test_what_a_leader_cannot_share_costs_its_followers_nothing(first_answer: Reply | Exception) -> None:
    """They go up at once, not one behind another; who comes last may find what another stored."""
    world = World()
    tasks = await world.all_ask(first_answer, json(ETAG, body=b"[2]"), json(ETAG, body=b"[3]"))
    world.open.set()
    answered = await asyncio.gather(*tasks, return_exceptions=True)
    assert world.asked >= 2
    for reply in answered[1:]:
        assert not isinstance(reply, BaseException)
        assert (await drain(reply))[0].status == 200
    if isinstance(first_answer, Exception):
        assert answered[0] is first_answer
    elif not isinstance(answered[0], BaseException):
        answered[0][0].release()
    assert not world.table.taken


async def test_a_leader_that_leaves_lets_the_others_go_on() -> None:
    world = World()
    tasks = await world.all_ask(json(ETAG), json(ETAG, body=b"[2]"), json(ETAG, body=b"[3]"))
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    world.open.set()
    assert [(await drain(await task))[0].status for task in tasks[1:]] == [200, 200]
    assert not world.table.taken


async def test_a_follower_that_leaves_leaves_no_flight() -> None:
    world = World()
    tasks = await world.all_ask(json(ETAG))
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    assert len(world.gateways[1]._fetcher.flights) == 0
    world.open.set()
    assert (await drain(await tasks[2]))[2].status is CacheStatus.COLLAPSED
    await drain(await tasks[0])


async def test_who_waits_here_waits_for_the_gateway_that_asks() -> None:
    """Two at the same gateway: one follows the other gateway, the other follows the first."""
    world = World()
    world.gateways = [world.gateways[0], world.gateways[1], world.gateways[1]]
    tasks = await world.all_ask(json(ETAG, body=b"[1]"))
    assert (world.asked, world.table.followers) == (1, 1)
    world.open.set()
    assert [(await drain(await task))[1] for task in tasks] == [b"[1]"] * 3


@pytest.mark.parametrize(
    ("ttl_s", "request_"),
    [
        pytest.param(0.0, get(), id="revalidated-anyway"),
        pytest.param(30.0, get(b"/api/v4/projects/42", (b"Cache-Control", b"no-cache")), id="asked-for-afresh"),
    ],
)
async def test_where_nothing_is_reused_nobody_waits_for_another_gateway(ttl_s: float, request_: CacheRequest) -> None:
    world = World(ttl_s)
    await drain(await world.gateways[0].fetch(get(), Origin(json(ETAG)), world.clock))
    tasks = await world.all_ask(json(ETAG), json(ETAG), json(ETAG), request=request_)
    assert (world.asked, world.table.followers) == (3, 0)
    world.open.set()
    for task in tasks:
        await drain(await task)


def test_a_stored_answer_to_another_selection_is_a_miss() -> None:
    lookup = Lookup((ENTRY,), 1, 0)
    assert judge_lookup(lookup, (), None, 60.0, ENTRY.received_at) == (ENTRY, None)
    assert judge_lookup(lookup, ((b"Origin", b"https://a"),), None, 60.0, ENTRY.received_at) == (
        None,
        CacheReason.VARY_MISS,
    )
    assert judge_lookup(Lookup(), (), None, 60.0, ENTRY.received_at) == (None, CacheReason.URI_MISS)
    assert judge_lookup(lookup, (), None, 0.0, ENTRY.received_at)[1] is not None
