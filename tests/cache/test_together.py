"""Several gateways on one Redis: what one hears, all know."""

from __future__ import annotations

import asyncio
import json as json_module
import time
from collections.abc import AsyncIterator

import pytest

from gateway.cache import CacheRequest, PrivateCache, SharedCache, SharedPolicy
from gateway.cache.hook_watch import HookWatch
from gateway.core.cache_status import CacheStatus
from gateway.core.hook_events import read_event
from gateway.core.messages import Fields
from gateway.core.private_caching import PrivatePolicy
from gateway.core.project_names import ProjectNames
from gateway.reply import Reply
from gateway.stores.cache_leases import RedisLeases
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber

from .origin import NEW_ISSUE, WEB, Clock, Origin, drain, get, json, whole

ETAG = b'W/"0123456789abcdef0123456789abcdef"'
MERGED = json_module.dumps(
    {"object_kind": "merge_request", "project": {"id": 42, "path_with_namespace": "g/p"}, "object_attributes": {"iid": 7}}
).encode()


class Gateway:
    """One of several on a Redis, with copies of its own."""

    def __init__(self, url: str, clock: Clock, ttl_s: float = 60.0) -> None:
        self.clock = clock
        self.names = ProjectNames()
        link = RedisLink.from_url(url, timeout_s=60.0, name="together")
        subscriber = RedisSubscriber(link.endpoint, channel=GONE_CHANNEL, name="together-subscriber", clock=time.monotonic)
        codec = Codec(b"k" * 32)
        self.redis = RedisCacheStore(link, codec)
        self.leases = RedisLeases(link, codec, lambda: subscriber.listening, wait_s=20.0)
        self.store = TwoLevelCacheStore(self.redis, subscriber, max_bytes=1 << 20, clock=time.monotonic, leases=self.leases)
        self.watch = HookWatch(self.store, clock, 900.0)
        self.cache = PrivateCache(
            self.store, PrivatePolicy(ttl_s=ttl_s), names=self.names, hooks=self.watch, leases=self.leases
        )
        self.shared = SharedCache(self.store, SharedPolicy())

    async def listening(self) -> Gateway:
        self.store.start()
        async with asyncio.timeout(30):
            while not self.store.trusted:
                await asyncio.sleep(0.005)
        return self

    async def ask(self, target: bytes, *fields: tuple[bytes, bytes], origin: Origin | None = None) -> CacheStatus:
        origin = origin or Origin(json(ETAG, body=b"[]"), json(ETAG, body=b"[]"))
        *_, outcome = await drain(await self.cache.fetch(get(target, *fields), origin, self.clock))
        return outcome.status

    async def hits_here(self, target: bytes) -> None:
        """Ask until the answer comes from a copy in this process."""
        before = self.store.hits
        async with asyncio.timeout(30):
            while self.store.hits == before:
                assert await self.ask(target) is CacheStatus.HIT

    async def caught_up(self) -> None:
        """Until a message sent now has come: messages come in order."""
        before = len(self.store.near._purges)
        await self.redis.purge((b"told%d" % before,))
        async with asyncio.timeout(30):
            while len(self.store.near._purges) == before:
                await asyncio.sleep(0.001)


Pair = tuple[Gateway, Gateway]


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[Pair]:
    clock = Clock()
    here, there = await Gateway(redis_url, clock).listening(), await Gateway(redis_url, clock).listening()
    yield here, there
    await here.cache.close()
    await there.cache.close()


async def test_a_hook_at_one_gateway_purges_for_all(pair: Pair) -> None:
    here, there = pair
    await there.watch.record_hook()
    mine, other = b"/api/v4/projects/g%2Fp/merge_requests/7", b"/api/v4/projects/42/merge_requests/8"
    for target in (mine, other):
        assert await here.ask(target) is CacheStatus.MISS
        await here.hits_here(target)
    await there.store.purge(read_event(MERGED, there.names).tags)
    await there.watch.record_hook()
    await here.caught_up()
    assert await here.ask(mine) is CacheStatus.MISS
    assert await here.ask(other) is CacheStatus.HIT


async def test_a_write_through_one_gateway_is_seen_through_all(pair: Pair) -> None:
    here, there = pair
    await there.watch.record_hook()
    target = b"/api/v4/projects/42/issues/7"
    assert await here.ask(target) is CacheStatus.MISS
    await here.hits_here(target)
    write = CacheRequest("PUT", target, (), NEW_ISSUE, b"somebody else")
    await drain(await there.cache.fetch(write, Origin(whole(200)), there.clock))
    await here.caught_up()
    assert await here.ask(target) is CacheStatus.MISS


@pytest.mark.parametrize("status", [403, 404])
async def test_who_lost_access_loses_it_at_every_gateway(pair: Pair, status: int) -> None:
    here, there = pair
    await there.watch.record_hook()
    target = b"/api/v4/projects/42"
    assert await here.ask(target) is CacheStatus.MISS
    await here.hits_here(target)
    await there.ask(target, (b"Cache-Control", b"no-cache"), origin=Origin(whole(status)))
    await here.caught_up()
    assert await here.ask(target, origin=Origin(whole(status))) is CacheStatus.MISS


async def test_a_dead_credential_is_dead_at_every_gateway(pair: Pair) -> None:
    here, there = pair
    await there.watch.record_hook()
    assert await here.ask(b"/api/v4/projects/42") is CacheStatus.MISS
    await here.hits_here(b"/api/v4/projects/42")
    await there.ask(b"/api/v4/user", origin=Origin(whole(401)))
    await here.caught_up()
    assert await here.ask(b"/api/v4/projects/42") is CacheStatus.MISS


async def test_what_another_gateway_revalidated_is_not_asked_for_again(pair: Pair) -> None:
    """A copy that is too old is looked up in Redis before GitLab is asked."""
    here, there = pair
    await there.watch.record_hook()
    target = b"/api/v4/projects/42"
    assert await here.ask(target) is CacheStatus.MISS
    await here.hits_here(target)
    here.clock.now += 61.0
    await there.watch.record_hook()
    await here.watch.record_hook()
    assert await there.ask(target, origin=Origin(whole(304, (b"ETag", ETAG)))) is CacheStatus.REVALIDATED
    assert await here.ask(target, origin=Origin()) is CacheStatus.HIT
    await here.hits_here(target)


async def test_copies_serve_no_longer_than_access_may_go_unasked(pair: Pair) -> None:
    here, there = pair
    await there.watch.record_hook()
    target = b"/api/v4/projects/42"
    assert await here.ask(target) is CacheStatus.MISS
    await here.hits_here(target)
    here.clock.now += 59.9
    await here.watch.record_hook()
    assert await here.ask(target) is CacheStatus.HIT
    here.clock.now += 0.1
    assert await here.ask(target) is CacheStatus.UPDATED


async def test_without_hooks_copies_serve_nobody(redis_url: str) -> None:
    clock = Clock()
    here = await Gateway(redis_url, clock).listening()
    target = b"/api/v4/projects/42"
    await here.watch.record_hook()
    assert await here.ask(target) is CacheStatus.MISS
    await here.hits_here(target)
    clock.now += 900.0
    assert await here.ask(target) is CacheStatus.UPDATED
    await here.cache.close()


class Slow:
    """GitLab, when it answers as late as the test says."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def __call__(self, given: Fields) -> Reply:
        self.asked.set()
        await self.answer.wait()
        return json(ETAG, body=self._body)


async def test_gateways_ask_once_between_them(pair: Pair) -> None:
    here, there = pair
    await there.watch.record_hook()
    slow = Slow(b"[]")
    target = b"/api/v4/projects/42"

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        leader = tasks.create_task(here.ask(target, origin=Origin(slow)))
        await slow.asked.wait()
        following = [tasks.create_task(there.ask(target, origin=Origin())) for _ in range(3)]
        while not there.leases.followed:
            await asyncio.sleep(0.005)
        slow.answer.set()
    assert leader.result() is CacheStatus.MISS
    assert [task.result() for task in following] == [CacheStatus.COLLAPSED] * 3
    assert there.leases.followed == 1, "one of them waited for all"


async def test_a_purge_while_another_gateway_asks_is_not_waited_past(pair: Pair) -> None:
    """Who asks after a write must not get what was asked before it."""
    here, there = pair
    await there.watch.record_hook()
    slow = Slow(b"[old]")
    target = b"/api/v4/projects/42"

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        leader = tasks.create_task(here.ask(target, origin=Origin(slow)))
        await slow.asked.wait()
        await there.store.purge((b"project:42",))
        assert await there.ask(target, origin=Origin(json(ETAG, body=b"[new]"))) is CacheStatus.MISS
        slow.answer.set()
    assert leader.result() is CacheStatus.MISS
    _, body, _ = await drain(await here.cache.fetch(get(target), Origin(json(ETAG, body=b"[new]")), here.clock))
    assert body == b"[new]"


async def test_a_shared_cache_has_copies_too(pair: Pair) -> None:
    here, there = pair
    fields = ((b"Cache-Control", b"max-age=60"),)

    async def ask(gateway: Gateway, *answers: bytes, method: str = "GET") -> tuple[bytes, CacheStatus]:
        origin = Origin(*[whole(200, *fields, (b"Content-Length", b"%d" % len(body)), body=body) for body in answers])
        request = CacheRequest(method, b"/a", (), WEB, reached_as=b"http://host")
        _, body, outcome = await drain(await gateway.shared.fetch(request, origin, gateway.clock))
        return body, outcome.status

    assert await ask(here, b"one") == (b"one", CacheStatus.MISS)
    while not here.store.hits:
        assert await ask(here) == (b"one", CacheStatus.HIT)
    await ask(there, b"", method="PUT")
    await here.caught_up()
    assert await ask(here, b"two") == (b"two", CacheStatus.MISS)
    assert await ask(there) == (b"two", CacheStatus.HIT)
    for _ in range(2):
        assert await ask(here) == (b"two", CacheStatus.HIT)
    here.clock.now += 61.0
    assert await ask(there, b"three") == (b"three", CacheStatus.UPDATED)
    assert await ask(here) == (b"three", CacheStatus.HIT), "a copy that is too old is looked up in Redis first"
