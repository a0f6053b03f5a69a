"""The cache on a real Redis Cluster node, which refuses whatever crosses slots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings

from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisError, RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber
from tests.fakes.redis_cluster import slot

from .cache_contract import ENTRY, HISTORIES, CacheContract, follow

CODEC = Codec(b"k" * 32)


@pytest.fixture
async def link(cluster: Any) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(f"redis://127.0.0.1:{cluster.port}", timeout_s=60.0, name="cluster-test")
    yield link
    await link.close()


async def levels(link: RedisLink) -> TwoLevelCacheStore:
    subscriber = RedisSubscriber(link.endpoint, channel=GONE_CHANNEL, name="cluster-test-subscriber", clock=time.monotonic)
    store = TwoLevelCacheStore(RedisCacheStore(link, CODEC), subscriber, max_bytes=1 << 20, clock=time.monotonic)
    store.start()
    async with asyncio.timeout(30):
        while not store.trusted:
            await asyncio.sleep(0.005)
    return store


class TestOnACluster(CacheContract):
    @pytest.fixture
    def store(self, link: RedisLink) -> RedisCacheStore:
        return RedisCacheStore(link, CODEC)


class TestTwoLevelsOnACluster(CacheContract):
    @pytest.fixture
    async def store(self, link: RedisLink) -> AsyncIterator[TwoLevelCacheStore]:
        store = await levels(link)
        yield store
        await store.close()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HISTORIES)
async def test_any_history_ends_as_a_plain_dict_would(cluster: Any, history: list[tuple[str, int, int]]) -> None:
    link = RedisLink.from_url(f"redis://127.0.0.1:{cluster.port}", timeout_s=60.0, name="cluster-history")
    store = await levels(link)
    await follow(store, history)
    await store.close()


async def test_this_node_refuses_what_crosses_slots(link: RedisLink) -> None:
    """Else nothing here would prove anything."""
    with pytest.raises(RedisError) as refused:
        await link.execute("EVAL", "return redis.call('SET', KEYS[2], '1')", 2, "a", "b")
    assert refused.value.kind == "CROSSSLOT"


async def test_everything_asked_in_one_round_trip_lives_in_one_slot(link: RedisLink, cluster: Any) -> None:
    store = RedisCacheStore(link, CODEC)
    tags = tuple(b"tag %d" % number for number in range(20))
    for number in range(20):
        key = b"key %d" % number
        assert await store.put(key, (ENTRY,), 60.0, tags, (await store.get(key, tags)).stamp)
    await store.purge(tags)
    await store.delete(b"key 0")
    assert not store._unconfirmed
    assert store.outages == 0
    with redis.Redis(port=cluster.port) as client:
        names = list(client.scan_iter("*"))
        assert len(names) == 19 + 20
        slots = {int(client.execute_command("CLUSTER", "KEYSLOT", name)) for name in names}
        assert slots == {slot(name) for name in names}, "our arithmetic is the server's"
    assert len(slots) == 1
