from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.stores import cache_redis
from gateway.stores.cache_redis import RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink

from .cache_contract import ENTRY, HISTORIES, CacheContract, follow, saying

KEY = b"k" * 32


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=2.0, name="cache-test")
    yield link
    await link.close()


class TestRedisCacheStore(CacheContract):
    @pytest.fixture
    def store(self, link: RedisLink) -> RedisCacheStore:
        return RedisCacheStore(link, Codec(KEY))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HISTORIES)
async def test_any_history_ends_as_a_plain_dict_would(redis_url: str, history: list[tuple[str, int, int]]) -> None:
    store = RedisCacheStore(RedisLink.from_url(redis_url, timeout_s=2.0, name="history"), Codec(KEY))
    await follow(store, history)
    await store.close()


async def stored(store: RedisCacheStore, key: bytes = b"k", tags: tuple[bytes, ...] = (b"t",)) -> None:
    assert await store.put(key, (ENTRY,), 60.0, tags, (await store.get(key, tags)).stamp)


async def test_everything_has_a_ttl_and_tells_nothing(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY))
    await stored(store, b"private\n/api/v4/projects/42", (b"projects:42",))
    await store.purge((b"projects:42",))
    names = await link.execute("KEYS", "*")
    assert isinstance(names, list)
    assert len(names) == 2
    for name in names:
        assert isinstance(name, bytes)
        ttl = await link.execute("PTTL", name)
        assert isinstance(ttl, int)
        assert ttl > 0
        value = await link.execute("GET", name)
        assert isinstance(value, bytes)
        assert b"projects" not in name + value
        assert b"body" not in value


async def test_a_purge_reaches_every_gateway(link: RedisLink, redis_url: str) -> None:
    here = RedisCacheStore(link, Codec(KEY))
    there = RedisCacheStore(RedisLink.from_url(redis_url, timeout_s=2.0, name="other"), Codec(KEY))
    await stored(here)
    assert (await there.get(b"k", (b"t",))).entries == (ENTRY,)
    await there.purge((b"t",))
    assert (await here.get(b"k", (b"t",))).entries == ()
    await there.close()


async def test_what_somebody_else_left_there_is_a_miss(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY))
    await stored(store)
    (name,) = await link.execute("KEYS", "{ggw:cache}:value:*")  # type: ignore[misc]
    for command in (("SET", name, b"garbage"), ("DEL", name), ("HSET", name, "a", "b")):
        await link.execute(*command)  # type: ignore[arg-type]
        lookup = await store.get(b"k", (b"t",))
        assert (lookup.available, lookup.entries) == (True, ())


async def test_a_purge_stays_in_the_past_order_when_the_clock_steps_back(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY))
    before = (await store.get(b"k", (b"t",))).stamp
    await store.purge((b"t",))
    (name,) = await link.execute("KEYS", "{ggw:cache}:purged:*")  # type: ignore[misc]
    await link.execute("SET", name, str(before + 10**12))  # type: ignore[arg-type]
    await store.purge((b"t",))
    assert (await store.get(b"k", (b"t",))).version == before + 10**12 + 1


async def test_what_is_too_large_is_not_sent_and_takes_its_predecessor_with_it(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY), largest_bytes=500)
    await stored(store)
    big = saying(random.Random(1).randbytes(2000))  # nothing to compress
    assert not await store.put(b"k", (big,), 60.0, (b"t",), 0)
    assert not (await store.get(b"k", (b"t",))).entries


async def test_an_outage_is_a_bypass_and_what_was_owed_is_paid_first(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    store = RedisCacheStore(RedisLink.from_url(server.url, timeout_s=0.5, name="outage"), Codec(KEY))
    await stored(store)
    await stored(store, b"2", ())
    server.stop()
    assert not (await store.get(b"k", (b"t",))).available
    assert not await store.put(b"k", (ENTRY,), 60.0, (b"t",), 1)
    assert not await store.purge((b"t",))
    await store.delete(b"2")
    assert store.outages >= 4
    assert len(store._owed) == 2
    server.start()
    while not (lookup := await store.get(b"k", (b"t",))).available:  # the link reconnects by itself
        await asyncio.sleep(0.01)
    assert lookup.version > 0, "the purge went up before the answer was read"
    assert not store._owed
    await store.close()


async def test_a_replica_that_takes_no_writes_serves_nothing_while_a_purge_is_owed(
    start_redis: Callable[..., Any],
) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=2.0, name="replica")
    store = RedisCacheStore(link, Codec(KEY))
    await stored(store)
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    assert not await store.put(b"k", (ENTRY,), 60.0, (b"t",), 1)
    assert (await store.get(b"k", (b"t",))).entries, "reading goes on"
    assert not await store.purge((b"t",))
    assert not (await store.get(b"k", (b"t",))).available
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "0")
    assert (await store.get(b"k", (b"t",))).entries == ()
    await store.close()


async def test_more_owed_than_can_be_remembered_means_nothing_old_is_believed(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=2.0, name="owing")
    store = RedisCacheStore(link, Codec(KEY))
    await stored(store)
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    await store.purge(tuple(b"%d" % number for number in range(cache_redis._MOST_OWED + 1)))
    lookup = await store.get(b"k", (b"t",))
    assert (lookup.available, lookup.entries) == (True, ())
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "0")
    await stored(store)
    assert (await store.get(b"k", (b"t",))).entries == (ENTRY,)
    await store.close()
