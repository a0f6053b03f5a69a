"""Two levels: copies that cost no round trip, and are gone everywhere as soon as somebody says so."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings

from gateway.ports import Lookup
from gateway.stores.cache_levels import TRUST_S, TwoLevelCacheStore
from gateway.stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_address import parse_address
from gateway.stores.redis_endpoint import RedisEndpoint
from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber
from tests.fakes.line import TcpRelay

from .cache_contract import ENTRY, HISTORIES, CacheContract, InCallbacks, follow, saying
from .patience import comes_unread

KEY = b"k" * 32
TAGS = (b"t", b"u")


class Gateway:
    """One gateway's store, with its wires at hand."""

    def __init__(self, url: str, subscriber_url: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.link = RedisLink.from_url(url, timeout_s=60.0, name="levels-test")
        self.far = RedisCacheStore(self.link, Codec(KEY))
        self.subscriber = RedisSubscriber(
            RedisEndpoint(parse_address(subscriber_url or url)),
            channel=GONE_CHANNEL,
            name="levels-test-subscriber",
            clock=clock,
        )
        self.store = TwoLevelCacheStore(self.far, self.subscriber, max_bytes=1 << 20, clock=clock)

    async def listening(self) -> Gateway:
        self.store.start()
        await until(lambda: self.store.trusted)
        return self

    async def asked(self) -> int:
        """How many commands Redis has run for anybody."""
        info = await self.link.execute("INFO", "commandstats")
        assert isinstance(info, bytes)
        return sum(
            int(line.split(b"calls=")[1].split(b",")[0]) for line in info.split() if line.startswith(b"cmdstat_mget:")
        )

    async def holds(self) -> bool:
        """Store ``k``, and read it so often that a copy is made; is there one?"""
        assert await self.store.put(b"k", (ENTRY,), 60.0, TAGS, (await self.store.get(b"k", TAGS, anew=True)).stamp)
        return bool(await self.copy())

    async def copy(self) -> Lookup:
        """What the copy says. A sign of life that waits to be read sends a lookup to Redis: then once more."""
        async with asyncio.timeout(30):
            while not (lookup := await self.store.get(b"k", TAGS)).near:
                await asyncio.sleep(0)
        return lookup


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


async def gone(gateway: Gateway, key: bytes = b"k") -> None:
    """Until the message has come: Redis has sent it, nobody has to be asked."""
    await until(lambda: gateway.far.value_name(key) not in gateway.store.near._slots or bool(gateway.store.near._purges))


Pair = tuple[Gateway, Gateway]


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[Pair]:
    here, there = await Gateway(redis_url).listening(), await Gateway(redis_url).listening()
    yield here, there
    await here.store.close()
    await there.store.close()


class TestTwoLevelCacheStore(CacheContract):
    @pytest.fixture
    async def store(self, redis_url: str) -> AsyncIterator[TwoLevelCacheStore]:
        gateway = await Gateway(redis_url).listening()
        yield gateway.store
        await gateway.store.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HISTORIES)
async def test_any_history_ends_as_a_plain_dict_would(redis_url: str, history: list[tuple[str, int, int]]) -> None:
    gateway = await Gateway(redis_url).listening()
    await follow(gateway.store, history)
    await follow(InCallbacks(gateway.store), history)
    await gateway.store.close()


class TestTwoLevelCacheStoreInCallbacks(CacheContract):
    @pytest.fixture
    async def store(self, redis_url: str) -> AsyncIterator[InCallbacks]:
        gateway = await Gateway(redis_url).listening()
        yield InCallbacks(gateway.store)
        await gateway.store.close()


async def test_no_copy_is_used_while_redis_refuses_writes_though_nobody_writes_here(
    start_redis: Callable[..., Any],
) -> None:
    """A purge that it refuses is not told to anybody."""
    server = start_redis()
    here, there = await Gateway(server.url).listening(), await Gateway(server.url).listening()
    assert await there.holds()
    with redis.Redis(port=server.port) as admin:
        admin.config_set("maxmemory", 1)
        assert not await here.store.purge(TAGS)
        look = there.store.finder_for(b"k", TAGS)
        await until(lambda: look() is None and not there.store.trusted and there.far.refuses)
        assert not (await there.store.get(b"k", TAGS)).available
        admin.config_set("maxmemory", 0)
    await until(lambda: there.store.trusted)
    lookup = await there.store.get(b"k", TAGS)
    assert (lookup.entries, lookup.available) == ((), True)
    await here.store.close()
    await there.store.close()


async def test_what_has_a_copy_is_not_looked_for(pair: Pair) -> None:
    here, there = pair
    assert await here.holds()
    await until(lambda: here.store.trusted)
    assert here.store.get_soon(b"k", TAGS, pytest.fail) is None
    heard: asyncio.Future[Lookup] = asyncio.get_running_loop().create_future()
    await until(lambda: there.store.trusted)
    assert there.store.get_soon(b"k", TAGS, heard.set_result) is not None
    assert (await heard).entries == (ENTRY,)
    assert len(there.store.near) == 0, "no copy is made of it"


async def test_nothing_is_looked_for_by_who_has_not_heard_all(redis_url: str) -> None:
    gateway = Gateway(redis_url)
    assert gateway.store.get_soon(b"k", TAGS, pytest.fail) is None
    await gateway.store.close()


@pytest.mark.parametrize("how", ["put_now", "delete_now"])
async def test_what_is_told_ends_the_copy_and_its_reading(pair: Pair, how: str) -> None:
    here, _ = pair
    assert await here.holds()
    stamp = (await here.store.get(b"k", TAGS, anew=True)).stamp
    reading = asyncio.ensure_future(here.store.get(b"k", TAGS, anew=True))
    await asyncio.sleep(0)
    if how == "put_now":
        assert here.store.put_now(b"k", saying(b"new"), 60.0, TAGS, stamp)
    else:
        here.store.delete_now(b"k")
    assert len(here.store.near) == 0
    assert (await reading).entries == (ENTRY,), "it was asked before"
    assert len(here.store.near) == 0
    now = (await here.store.get(b"k", TAGS, anew=True)).entries
    assert now == ((saying(b"new"),) if how == "put_now" else ())


async def test_a_copy_costs_no_round_trip(pair: Pair) -> None:
    here, _ = pair
    assert await here.holds()
    before, hits = await here.asked(), here.store.hits
    lookups = [await here.store.get(b"k", TAGS) for _ in range(20)]
    assert [lookup.entries for lookup in lookups] == [(ENTRY,)] * 20
    near = sum(lookup.near for lookup in lookups)
    assert near > 0
    assert here.store.hits - hits == near
    assert await here.asked() - before == (20 - near) * (len(TAGS) + 1), "as many as went to Redis"


async def test_who_looks_anew_asks_redis_and_renews_the_copy(pair: Pair) -> None:
    here, there = pair
    assert await here.holds()
    stamp = (await there.store.get(b"k", TAGS, anew=True)).stamp
    assert await there.store.put(b"k", (saying(b"new"),), 60.0, TAGS, stamp)
    assert (await here.copy()).entries == (ENTRY,), "a later answer is no purge"
    lookup = await here.store.get(b"k", TAGS, anew=True)
    assert (lookup.entries, lookup.near, lookup.stamp > 0) == ((saying(b"new"),), False, True)
    assert (await here.copy()).entries == (saying(b"new"),)


async def test_where_everything_is_asked_for_no_copy_is_made(pair: Pair) -> None:
    here, _ = pair
    await here.store.put(b"k", (ENTRY,), 60.0, TAGS, (await here.store.get(b"k", TAGS, anew=True)).stamp)
    assert (await here.store.get(b"k", TAGS, anew=True)).entries
    assert len(here.store.near) == 0


GONE: dict[str, Callable[[TwoLevelCacheStore], Awaitable[object]]] = {
    "purge": lambda store: store.purge((b"u",)),
    "delete": lambda store: store.delete(b"k"),
}


@pytest.mark.parametrize("how", GONE)
async def test_what_is_gone_at_one_gateway_is_gone_at_all(pair: Pair, how: str) -> None:
    here, there = pair
    assert await here.holds()
    assert await there.holds()
    await GONE[how](there.store)
    assert not (await there.store.get(b"k", TAGS)).entries, "here at once"
    await gone(here)
    lookup = await here.store.get(b"k", TAGS)
    assert (lookup.entries, lookup.available) == ((), True)


async def test_a_message_that_came_is_heeded_before_it_is_read(pair: Pair) -> None:
    """The event loop may come to a request before it comes to the message."""
    here, _ = pair
    assert await here.holds()
    with redis.Redis(port=here.link.endpoint.at[1]) as client:
        client.publish(GONE_CHANNEL, here.far.tag_names((b"u",))[0])
    comes_unread(here.subscriber)
    assert not here.store.near._purges
    assert not (await here.store.get(b"k", TAGS)).near
    await until(lambda: bool(here.store.near._purges))


async def test_an_own_put_takes_the_copy_with_it(pair: Pair) -> None:
    here, _ = pair
    assert await here.holds()
    await here.store.put(b"k", (saying(b"new"),), 60.0, TAGS, (await here.store.get(b"k", TAGS, anew=True)).stamp)
    assert (await here.store.get(b"k", TAGS)).entries == (saying(b"new"),)


async def test_a_purge_counts_here_before_redis_has_heard_of_it(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    line = TcpRelay(server.port)
    await line.open()
    gateway = await Gateway(f"redis://127.0.0.1:{line.port}/0", server.url).listening()
    assert await gateway.holds()
    await line.cut()
    assert await gateway.copy(), "the subscriber still hears: what needs no asking goes on"
    assert not await gateway.store.purge((b"u",))
    assert not (await gateway.store.get(b"k", TAGS)).available
    await line.open()
    async with asyncio.timeout(30):
        while not (lookup := await gateway.store.get(b"k", TAGS)).available:
            await asyncio.sleep(0.01)
    assert lookup.entries == ()
    await gateway.store.close()
    await line.cut()


@pytest.mark.parametrize("how", GONE)
async def test_a_read_under_way_when_the_message_comes_makes_no_copy(redis_server: Any, redis_url: str, how: str) -> None:
    """The worst case: the value was read before the purge, and arrives after it was heard of."""
    line = TcpRelay(redis_server.port)
    await line.open()
    here = await Gateway(f"redis://127.0.0.1:{line.port}/0", redis_url).listening()
    there = await Gateway(redis_url).listening()
    assert await there.holds()
    await here.link.execute("PING")
    before = await there.asked()
    line.hold_answers()
    async with asyncio.TaskGroup() as reading:
        reading.create_task(here.store.get(b"k", TAGS))
        async with asyncio.timeout(30):
            while await there.asked() == before:
                await asyncio.sleep(0.005)
        await GONE[how](there.store)
        await until(lambda: not here.store._reading or bool(here.store.near._purges))
        line.release()
    assert len(here.store.near) == 0
    await here.store.close()
    await there.store.close()
    await line.cut()


async def test_a_lost_subscription_ends_all_trust_at_once(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    line = TcpRelay(server.port)
    await line.open()
    here = await Gateway(server.url, f"redis://127.0.0.1:{line.port}/0").listening()
    there = await Gateway(server.url).listening()
    assert await here.holds()
    await line.cut()
    await until(lambda: not here.store.trusted)
    assert here.store.trouble
    assert not here.subscriber.listening
    await there.store.purge((b"u",))  # nobody here hears of it
    assert not (await here.store.get(b"k", TAGS)).entries
    await line.open()
    await until(lambda: here.store.trusted)
    assert len(here.store.near) == 0, "what was missed is unknown, so nothing is believed"
    assert not (await here.store.get(b"k", TAGS)).entries
    await here.store.close()
    await there.store.close()
    await line.cut()


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


async def test_a_subscription_that_says_nothing_is_trusted_for_a_second(redis_server: Any, redis_url: str) -> None:
    clock = Clock()
    line = TcpRelay(redis_server.port)
    await line.open()
    here = await Gateway(redis_url, f"redis://127.0.0.1:{line.port}/0", clock).listening()
    assert await here.holds()
    line.hold()
    clock.ahead_s += TRUST_S
    lookup = await here.store.get(b"k", TAGS)
    assert (lookup.entries, lookup.near) == ((ENTRY,), False), "Redis was asked"
    line.release()
    await here.store.close()
    await line.cut()


async def test_a_redis_that_died_takes_the_copies_with_it(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    here = await Gateway(server.url).listening()
    assert await here.holds()
    server.stop()
    await until(lambda: not here.store.trusted)
    assert not (await here.store.get(b"k", TAGS)).available
    server.start()
    await until(lambda: here.store.trusted)
    async with asyncio.timeout(30):
        while not (lookup := await here.store.get(b"k", TAGS)).available:
            await asyncio.sleep(0.01)
    assert lookup.entries == ()
    await here.store.close()


async def test_a_copy_is_read_again_at_least_once_a_minute(redis_url: str) -> None:
    clock = Clock()
    here = await Gateway(redis_url, clock=clock).listening()
    assert await here.holds()
    await here.link.execute("FLUSHALL")
    assert await here.copy()
    clock.ahead_s += 60.0
    await until(lambda: here.store.trusted)
    assert not (await here.store.get(b"k", TAGS)).entries
    await here.store.close()


async def test_strange_messages_harm_nothing(pair: Pair) -> None:
    here, _ = pair
    assert await here.holds()
    for strange in (b"", b"\x00" * 1000, b"{ggw:cache}:purged:", b"{ggw:cache}:value:nobody"):
        await here.link.execute("PUBLISH", GONE_CHANNEL, strange)
    await until(lambda: bool(here.store.near._purges))
    assert (await here.store.get(b"k", TAGS)).entries == (ENTRY,)


async def test_who_may_not_publish_may_still_purge(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    admin = RedisLink.from_url(server.url, timeout_s=60.0, name="levels-admin")
    await admin.execute("ACL", "SETUSER", "mute", "on", ">secret", "~*", "resetchannels", "+@all")
    mute = Gateway(server.url.replace("redis://", "redis://mute:secret@"))
    await mute.store.put(b"k", (ENTRY,), 60.0, TAGS, (await mute.store.get(b"k", TAGS)).stamp)
    assert not mute.store.trusted
    assert await mute.store.purge((b"u",))
    assert not (await mute.store.get(b"k", TAGS)).entries
    await mute.store.close()
    await admin.close()


async def test_who_may_listen_and_nobody_publish_has_no_copies(start_redis: Callable[..., Any]) -> None:
    """An ACL that names commands: what runs in scripts alone is easily left out. Redis says nothing of it."""
    server = start_redis("--user", "gw", "on", "nopass", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://gw@")
    here, there = await Gateway(url).listening(), await Gateway(url).listening()
    assert await there.holds()
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "gw", "-publish")
        assert await here.store.purge(TAGS), "whoever asks Redis sees it"
        await until(lambda: there.store.trouble == "PUBLISH is refused")
        assert not there.store.trusted
        assert (await there.store.get(b"k", TAGS)).entries == ()
        assert there.link.healthy
        admin.execute_command("ACL", "SETUSER", "gw", "+publish")
    await until(lambda: there.store.trusted)
    assert there.store.trouble is None
    assert (await there.store.get(b"k", TAGS)).entries == (), "what was purged meanwhile is unknown"
    for gateway in (here, there):
        await gateway.store.close()


async def test_no_reader_anywhere_sees_what_was_purged_before_it_asked(pair: Pair) -> None:
    """Readers at both gateways fill and read while a writer changes things: whoever asks after a purge was answered gets
    nothing older. (Entries and lookups overlap in every way that the event loop and Redis find.)"""
    dice = random.Random(7)
    version = purged = near = 0
    over = False

    async def read(gateway: Gateway) -> None:
        nonlocal near
        while not over:
            oldest = purged
            lookup = await gateway.store.get(b"k", TAGS, anew=dice.random() < 0.2)
            if lookup.entries:
                near += lookup.near
                assert int(lookup.entries[0].body) >= oldest
            elif lookup.available:
                answer = saying(b"%d" % version)  # GitLab's, asked for after the lookup
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                await gateway.store.put(b"k", (answer,), 60.0, TAGS, lookup.stamp)
            for _ in range(dice.randrange(6)):
                await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for gateway in (*pair, *pair, *pair):
            tasks.create_task(read(gateway))
        for _ in range(200):
            version += 1
            await dice.choice(pair).store.purge((dice.choice(TAGS),))
            purged = version
            for _ in range(dice.randrange(60)):
                await asyncio.sleep(0)
        over = True
    assert near > 0
