"""Asked once for all gateways: who leads, who waits, and that nobody is worse off for it.

What one gateway does by itself is in ``test_private.py``; leases in Redis: ``test_together.py``, and beside their store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.cache import CacheOutcome, CacheRequest, PrivateCache
from gateway.cache.private_asking import usable
from gateway.core.cache_status import CacheReason, CacheStatus
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields, first
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import Lookup, Reply
from gateway.stores.cache_memory import MemoryCacheStore
from tests.stores.cache_contract import ENTRY

from .origin import Clock, Origin, drain, get, json, streamed, whole

ETAG = b'W/"0123456789abcdef0123456789abcdef"'
DOWN = Rejection(Code.UPSTREAM_RESET, 502, "502 Bad Gateway", source=Source.UPSTREAM)


class Table:
    """Leases among caches of one process."""

    def __init__(self) -> None:
        self.taken: dict[bytes, asyncio.Event] = {}
        self.followers = 0

    async def lead(self, question: bytes) -> Callable[[], None] | None:
        held = self.taken.get(question)
        if held is None:
            over = self.taken[question] = asyncio.Event()

            def done() -> None:
                over.set()
                del self.taken[question]

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
    assert len(world.gateways[1]._asking.flights) == 0
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
    assert usable(lookup, (), None, 60.0, ENTRY.received_at) == (ENTRY, None)
    assert usable(lookup, ((b"Origin", b"https://a"),), None, 60.0, ENTRY.received_at) == (None, CacheReason.VARY_MISS)
    assert usable(Lookup(), (), None, 60.0, ENTRY.received_at) == (None, CacheReason.URI_MISS)
    assert usable(lookup, (), None, 0.0, ENTRY.received_at)[1] is not None
