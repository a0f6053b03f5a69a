"""Limits and keys on real Redis Cluster nodes, which refuse whatever crosses slots or is another node's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.core.limits import Limit, Scope, Take
from gateway.core.pacing import PaceReport
from gateway.ports import StoreUnavailable
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.changes_redis import RedisChanges
from gateway.stores.keys_redis import RedisKeys
from gateway.stores.paces_redis import RedisPaces
from gateway.stores.redis_link import RedisError, RedisLink, RedisUnavailable
from tests.fakes.redis_cluster import slot, start_divided_cluster

from .bucket_contract import NARROW, PLACES, WIDE, BucketContract
from .key_contract import KeyContract, T, record

LIMITS = slot("{gw}")


def linked(port: int, database: str = "") -> RedisLink:
    return RedisLink.from_url(f"redis://127.0.0.1:{port}{database}", timeout_s=60.0, name="cluster-test")


@pytest.fixture
async def link(cluster: Any) -> AsyncIterator[RedisLink]:
    link = linked(cluster.port)
    yield link
    await link.close()


class TestBuckets(BucketContract):
    @pytest.fixture
    async def store(self, cluster: Any) -> AsyncIterator[RedisBuckets]:
        store = RedisBuckets(linked(cluster.port))
        yield store
        assert not store.degraded
        await store.close()


class TestKeys(KeyContract):
    @pytest.fixture
    async def keys(self, link: RedisLink) -> RedisKeys:
        return RedisKeys(link)


async def test_this_node_refuses_what_crosses_slots(link: RedisLink) -> None:
    """Else nothing here would prove anything."""
    with pytest.raises(RedisError) as refused:
        await link.execute("MGET", "a", "b")
    assert refused.value.kind == "CROSSSLOT"
    assert not link.healthy


async def test_all_that_limits_write_is_in_one_slot(link: RedisLink, cluster: Any) -> None:
    store = RedisBuckets(link)
    everything = [Take("{gw}:b:w:x", WIDE), Take("{gw}:b:n:y", NARROW), Take("{gw}:b:p:z", PLACES)]
    assert not (await store.take(everything, b"lease")).degraded
    store.settle(everything[:1])
    assert (await store.look(everything)).states
    assert not (await store.take([Take("{gw}:p:sa", Limit("upstream", Scope.ORGANISATION, 1.0, 1.0))])).degraded
    await RedisChanges(link).put("{gw}:b:w:x", b"note")
    await RedisChanges(link).drop(["{gw}:b:w:x", "{gw}:b:n:y"])
    await RedisChanges(link).put("{gw}:b:n:y", b"note")
    await RedisPaces(link).put({"sa": PaceReport(3.0), "sb": PaceReport(4.0)})
    assert set(await RedisPaces(link).read(["sa", "sb"])) == {"sa", "sb"}
    with redis.Redis(port=cluster.port) as client:
        names = list(client.scan_iter("*"))
        assert len(names) == 8  # three buckets, a pace's, two notes of paces, the changes, the gateways
        assert {client.execute_command("CLUSTER", "KEYSLOT", name) for name in names} == {LIMITS}
        assert all(len(name) <= 200 and client.pttl(name) > 0 for name in names)
    assert link.failures == 0


async def test_all_that_keys_write_is_in_one_slot(link: RedisLink, cluster: Any) -> None:
    keys = RedisKeys(link)
    await keys.put(record())
    await keys.touch(record().id, T)
    await keys.revoke(record().id, T)
    await keys.list()
    with redis.Redis(port=cluster.port) as client:
        names = list(client.scan_iter("*"))
        assert len({client.execute_command("CLUSTER", "KEYSLOT", name) for name in names}) == 1
    assert link.failures == 0


async def test_the_node_that_owns_the_slot_serves_and_another_is_an_outage(start_redis: Callable[..., Any]) -> None:
    """Redirections are not followed: whoever is pointed at the wrong node is told so, and limits go by their policy."""
    owner, other = start_divided_cluster(start_redis, "{gw}")
    takes = [Take("{gw}:b:n:y", NARROW)]
    for server, degraded, trouble in ((owner, False, ""), (other, True, "MOVED")):
        link = linked(server.port)
        store = RedisBuckets(link)
        decisions = [await store.take(takes) for _ in range(5)]
        assert [decision.degraded for decision in decisions] == [degraded] * 5
        assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
        assert (link.healthy, link.trouble) == (not degraded, trouble)
        assert bool((await store.look(takes)).states) is not degraded
        if degraded:
            with pytest.raises(StoreUnavailable):
                await RedisPaces(link).put({"sa": PaceReport(3.0)})
            with pytest.raises(StoreUnavailable):
                await RedisChanges(link).read()
        await store.close()


async def test_a_cluster_has_one_database(cluster: Any) -> None:
    link = linked(cluster.port, "/1")
    with pytest.raises(RedisUnavailable):
        await link.execute("PING")
    assert link.trouble == "no such database"
    await link.close()


def test_the_page_tells_the_slots() -> None:
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text("utf-8")
    documented = dict(re.findall(r"`(\{[a-z:]+\})` \((?:slot )?(\d+)\)", page))
    assert {name: slot(name) for name in ("{gw}", "{keys}", "{credentials}", "{ggw:cache}")} == {
        name: int(number) for name, number in documented.items()
    }
