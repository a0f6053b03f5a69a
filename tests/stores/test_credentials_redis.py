from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.ports import StoreUnavailable
from gateway.stores.credentials_redis import RedisCredentials
from gateway.stores.redis_link import RedisLink

from .sealed_contract import SealedContract, records, sealed


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="credentials-test")
    yield link
    await link.close()


class TestRedisCredentials(SealedContract):
    @pytest.fixture
    async def store(self, link: RedisLink) -> AsyncIterator[RedisCredentials]:
        await link.execute("CONFIG", "SET", "appendonly", "yes")
        yield RedisCredentials(link)
        await link.execute("CONFIG", "SET", "appendonly", "no")


async def test_a_redis_that_would_forget_says_so(link: RedisLink) -> None:
    assert "append-only file: a rotated token would be" in await RedisCredentials(link).durability_warning()


async def test_everything_lies_in_one_slot(link: RedisLink) -> None:
    store = RedisCredentials(link)
    fence = await store.lead("one", 30.0)
    await store.put(sealed(), 0, fence)
    await store.read("one")
    await store.close()
    names = await link.execute("KEYS", "*")
    assert isinstance(names, list)
    assert {bytes(name).partition(b"}")[0] for name in names if isinstance(name, bytes)} == {b"ggw:{credentials"}
    assert len(names) == 4


async def test_a_lease_ends_by_itself(link: RedisLink) -> None:
    store = RedisCredentials(link)
    await store.lead("one", 30.0)
    await link.execute("PEXPIRE", "ggw:{credentials}:leader", "0")  # as time would
    assert await store.lead("two", 30.0) == 2


async def test_a_fence_that_is_no_number_is_told_each_time_and_nobody_leads(link: RedisLink) -> None:
    store = RedisCredentials(link)
    await link.execute("SET", "ggw:{credentials}:fence", "x")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="refuses: the stored value is not an integer"):
            await store.lead("one", 30.0)
    await link.execute("DEL", "ggw:{credentials}:fence")
    assert await store.lead("two", 30.0) == 1


@pytest.mark.parametrize("lost", [("DEL", "ggw:{credentials}:fence"), ("SET", "ggw:{credentials}:fence", "0")])
async def test_who_leads_goes_on_where_the_fence_is_lost(link: RedisLink, lost: tuple[str, ...]) -> None:
    store = RedisCredentials(link)
    await store.lead("one", 30.0)
    await link.execute(*lost)
    fence = await store.lead("one", 30.0)
    assert fence == 1
    assert await store.put(sealed(), 0, fence)


async def test_readers_that_fell_silent_are_forgotten(link: RedisLink) -> None:
    store = RedisCredentials(link)
    snapshot = await store.read("one")
    await link.execute("HSET", "ggw:{credentials}:readers", "gone", str(round(snapshot.now * 1000) - 601_000))
    await store.read("one")
    assert set((await store.read("one")).readers) == {"one"}


@pytest.mark.parametrize("value", [b"", b"x", b":", b"-1:x", b"99999999999999999999:x"])
async def test_what_no_gateway_wrote_is_listed_and_never_written_over(link: RedisLink, value: bytes) -> None:
    await link.execute("HSET", "ggw:{credentials}:records", "sa/1", value)
    store = RedisCredentials(link)
    assert [(record.id, record.version) for record in await records(store)] == [("sa/1", 0)]
    assert not await store.put(sealed(), 0, None)
    assert await link.execute("HGET", "ggw:{credentials}:records", "sa/1") == value


async def test_a_wrong_type_and_an_outage_are_said(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="credentials-test")
    store = RedisCredentials(link)
    await link.execute("SET", "ggw:{credentials}:records", "x")
    with pytest.raises(StoreUnavailable):
        await store.read("one")
    server.stop()
    for call in (
        store.read("one"),
        store.put(sealed(), 0, None),
        store.lead("one", 1.0),
        store.resign("one"),
        store.durability_warning(),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    await link.close()
