from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from gateway.ports import Lookup
from gateway.stores import cache_redis, redis_link
from gateway.stores.cache_redis import RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink

from .cache_contract import ENTRY, HISTORIES, CacheContract, InCallbacks, follow, saying
from .patience import LONG_S, waits

KEY = b"k" * 32


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="cache-test")
    yield link
    await link.close()


class TestRedisCacheStore(CacheContract):
    @pytest.fixture
    def store(self, link: RedisLink) -> RedisCacheStore:
        return RedisCacheStore(link, Codec(KEY))


class TestRedisCacheStoreInCallbacks(CacheContract):
    @pytest.fixture
    def store(self, link: RedisLink) -> InCallbacks:
        return InCallbacks(RedisCacheStore(link, Codec(KEY)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HISTORIES)
async def test_any_history_ends_as_a_plain_dict_would(redis_url: str, history: list[tuple[str, int, int]]) -> None:
    store = RedisCacheStore(RedisLink.from_url(redis_url, timeout_s=60.0, name="history"), Codec(KEY))
    await follow(store, history)
    await follow(InCallbacks(store), history)
    await store.close()


async def test_in_callbacks_redis_is_asked_without_a_coroutine(link: RedisLink) -> None:
    store = InCallbacks(RedisCacheStore(link, Codec(KEY)))
    assert await store.put(b"k", (ENTRY,), 60.0, (), (await store.get(b"k", ())).stamp)
    assert (await store.get(b"k", ())).entries == (ENTRY,)
    assert store.looked == 2


@pytest.mark.parametrize("foreign", [("SET", b"abc"), ("LPUSH", b"x"), ("SET", b"9" * 30)])
async def test_what_others_wrote_keeps_no_purge_from_counting(link: RedisLink, foreign: tuple[str, bytes]) -> None:
    store = RedisCacheStore(link, Codec(KEY))
    assert await store.put(b"k", (ENTRY,), 60.0, (b"t",), (await store.get(b"k", (b"t",))).stamp)
    await link.execute(foreign[0], store.tag_names((b"t",))[0], foreign[1])
    assert await store.purge((b"t",))
    lookup = await store.get(b"k", (b"t",))
    assert (lookup.available, lookup.entries) == (True, ())


@pytest.mark.parametrize("how", ["put", "put_now"])
async def test_when_an_answer_came_is_told_between_clocks(link: RedisLink, how: str) -> None:
    """Redis's is the one that all gateways know."""

    def late() -> float:
        return time.time() - 7200

    here, there = RedisCacheStore(link, Codec(KEY), wall=late), RedisCacheStore(link, Codec(KEY))
    store = here if how == "put" else InCallbacks(here)
    came = msgspec.structs.replace(ENTRY, received_at=late())
    assert await store.put(b"k", (came,), 60.0, (), (await store.get(b"k", ())).stamp)
    assert (await store.get(b"k", ())).entries[0].received_at == pytest.approx(came.received_at, abs=2)
    assert (await there.get(b"k", ())).entries[0].received_at == pytest.approx(came.received_at + 7200, abs=2)


@pytest.mark.parametrize("how", ["get", "get_soon"])
async def test_a_gateway_that_is_stopped_while_it_asks_takes_nothing_for_younger(
    link: RedisLink, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As where its machine is moved: what Redis said was said before."""
    stood_s = 0.0
    here = RedisCacheStore(link, Codec(KEY), wall=lambda: time.time() + stood_s)
    store = here if how == "get" else InCallbacks(here)
    came = msgspec.structs.replace(ENTRY, received_at=time.time())
    assert await store.put(b"k", (came,), 60.0, (), (await store.get(b"k", ())).stamp)
    read = here._parse_lookup

    def stopped(*arguments: Any) -> Lookup:
        nonlocal stood_s
        stood_s = 600.0
        return read(*arguments)

    monkeypatch.setattr(here, "_parse_lookup", stopped)
    assert (await store.get(b"k", ())).entries[0].received_at == pytest.approx(came.received_at, abs=2)
    # Redis stood as long, or somebody set the clock.
    assert (await store.get(b"k", ())).entries[0].received_at == pytest.approx(came.received_at + 600, abs=2)


@pytest.mark.parametrize("how", ["put_now", "delete_now"])
async def test_what_is_written_leaves_at_once(link: RedisLink, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Before any answer does: its client may ask another gateway the next moment."""
    store = RedisCacheStore(link, Codec(KEY))
    stamp = (await store.get(b"k", ())).stamp
    written: list[bytes] = []
    assert link._wire is not None
    monkeypatch.setattr(link._wire, "write", written.append)
    if how == "put_now":
        assert store.put_now(b"k", ENTRY, 60.0, (), stamp)
    else:
        store.delete_now(b"k")
    assert len(written) == 1
    assert store.value_name(b"k") in written[0]


async def test_who_stopped_waiting_for_a_look_hears_nothing(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY))
    heard: list[Lookup] = []
    asked = store.get_soon(b"k", (b"t",), heard.append)
    assert asked is not None
    asked.cancel()
    assert (await store.get(b"k", (b"t",))).available
    assert heard == []


async def test_nothing_is_looked_at_while_a_drop_is_unconfirmed(redis_url: str, start_redis: Callable[..., Any]) -> None:
    """It would be seen once more."""
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    store = RedisCacheStore(link, Codec(KEY))
    await stored(store)
    waits(link, 0.1)
    server.process.send_signal(signal.SIGSTOP)
    store.delete_now(b"k")
    assert store.get_soon(b"k", (b"t",), pytest.fail) is None
    assert not (await store.get(b"k", (b"t",))).available
    server.process.send_signal(signal.SIGCONT)
    link._timeout_s = LONG_S
    async with asyncio.timeout(30):
        while not (lookup := await store.get(b"k", (b"t",))).available:
            await asyncio.sleep(0.01)
    assert lookup.entries == ()
    assert store.outages > 0
    await store.close()


async def test_what_is_too_large_is_not_on_its_way_and_takes_what_was_there_along(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY), largest_bytes=2000)
    await stored(store)
    large = msgspec.structs.replace(ENTRY, body=random.Random(1).randbytes(3000))
    assert not store.put_now(b"k", large, 60.0, (b"t",), 1)
    assert (await store.get(b"k", (b"t",))).entries == ()
    assert not store.put_now(b"k", ENTRY, 0.0, (b"t",), 1)


async def test_a_redis_that_refuses_or_is_away_is_an_outage_not_a_fault(start_redis: Callable[..., Any]) -> None:
    server = start_redis("--maxmemory", "1")
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="test")
    store = RedisCacheStore(link, Codec(KEY))
    await link.execute("PING")
    assert store.put_now(b"k", ENTRY, 60.0, (), 1), "as far as is known"
    await link.execute("PING")
    assert store.outages == 1
    assert not store.put_now(b"k", ENTRY, 60.0, (), 1), "it has just refused"
    await link.close()
    assert not store.put_now(b"k", ENTRY, 60.0, (), 1)
    assert store.get_soon(b"k", (), pytest.fail) is None
    store.delete_now(b"k")


async def test_a_purge_that_no_gateway_wrote_keeps_nobody_waiting(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY))
    await link.execute("SET", store.tag_names((b"t",))[0], b"9" * 5000)
    await stored(store)
    heard: asyncio.Future[Lookup] = asyncio.get_running_loop().create_future()
    assert store.get_soon(b"k", (b"t",), heard.set_result) is not None
    assert (await heard).entries == (ENTRY,)


async def test_a_fault_in_reading_a_value_is_told_as_an_outage(
    link: RedisLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked would wait for ever."""
    codec = Codec(KEY)
    store = RedisCacheStore(link, codec)
    await stored(store)
    monkeypatch.setattr(codec, "decode", lambda *_: 1 / 0)
    heard: asyncio.Future[Lookup] = asyncio.get_running_loop().create_future()
    assert store.get_soon(b"k", (b"t",), heard.set_result) is not None
    assert not (await heard).available
    assert "fault in the cache's store" in caplog.text


async def test_names_are_remembered_within_bounds(link: RedisLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_redis, "_NAMES_KEPT", 8)
    monkeypatch.setattr(cache_redis, "_TAG_NAMES_KEPT", 8)
    monkeypatch.setattr(cache_redis, "_TAG_SETS_KEPT", 8)
    store, other = RedisCacheStore(link, Codec(KEY)), RedisCacheStore(link, Codec(KEY))
    keys = [b"%d" % number for number in range(50)] + [b"x" * 2000]
    for key in keys * 2:
        assert store.value_name(key) == store.value_name(key) == other.value_name(key)
        assert store.tag_names((key, b"t")) == other.tag_names((key, b"t"))
    assert len(store._names) <= 8
    assert len(store._tag_names) <= 8
    assert len(store._tag_sets) <= 8
    assert keys[-1] not in [*store._names._current, *store._tag_names._current], "too long to be kept"
    assert len({store.value_name(key) for key in keys}) == len(keys)


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
    there = RedisCacheStore(RedisLink.from_url(redis_url, timeout_s=60.0, name="other"), Codec(KEY))
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


async def test_what_was_stored_before_the_clock_was_set_back_is_not_used(link: RedisLink) -> None:
    """It would look new for an hour, and a purge within that hour would seem older than it."""
    store = RedisCacheStore(link, Codec(KEY))
    stamp = (await store.get(b"k", (b"t",))).stamp
    ahead = msgspec.structs.replace(ENTRY, received_at=time.time() + 3600)
    assert await store.put(b"k", (ahead,), 60.0, (b"t",), stamp + 3_600_000_000)
    lookup = await store.get(b"k", (b"t",))
    assert (lookup.available, lookup.entries) == (True, ())
    assert await store.put(b"k", (ENTRY,), 60.0, (b"t",), lookup.stamp)
    assert (await store.get(b"k", (b"t",))).entries == (ENTRY,)


async def test_what_is_too_large_is_not_sent_and_takes_its_predecessor_with_it(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY), largest_bytes=500)
    await stored(store)
    big = saying(random.Random(1).randbytes(2000))  # nothing to compress
    assert not await store.put(b"k", (big,), 60.0, (b"t",), 0)
    assert not (await store.get(b"k", (b"t",))).entries


async def test_an_outage_is_a_bypass_and_what_is_unconfirmed_goes_first(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    store = RedisCacheStore(RedisLink.from_url(server.url, timeout_s=LONG_S, name="outage"), Codec(KEY))
    await stored(store)
    await stored(store, b"2", ())
    server.stop()
    assert not (await store.get(b"k", (b"t",))).available
    assert not await store.put(b"k", (ENTRY,), 60.0, (b"t",), 1)
    assert not await store.purge((b"t",))
    await store.delete(b"2")
    assert store.outages >= 4
    assert len(store._unconfirmed) == 2
    server.start()
    while not (lookup := await store.get(b"k", (b"t",))).available:  # the link reconnects by itself
        await asyncio.sleep(0.01)
    assert lookup.version > 0, "the purge went up before the answer was read"
    assert not store._unconfirmed
    await store.close()


async def confirmed(store: RedisCacheStore) -> None:
    """Until nothing is unconfirmed; reads nothing."""
    async with asyncio.timeout(30):
        while store._unconfirmed:
            await asyncio.sleep(0.01)


async def test_what_an_outage_left_unconfirmed_is_sent_when_redis_is_back_though_nobody_reads_here(
    start_redis: Callable[..., Any],
) -> None:
    server = start_redis("--appendonly", "yes")
    here, there = (
        RedisCacheStore(RedisLink.from_url(server.url, timeout_s=LONG_S, name=name), Codec(KEY))
        for name in ("here", "there")
    )
    await stored(here)
    assert (await there.get(b"k", (b"t",))).entries == (ENTRY,)
    server.stop()
    assert not await here.purge((b"t",))
    server.start()
    await confirmed(here)
    while not (lookup := await there.get(b"k", (b"t",))).available:
        await asyncio.sleep(0.01)
    assert lookup.entries == ()
    assert lookup.version > 0, "the value is still there: it was purged"
    await here.close()
    await there.close()


async def test_what_is_refused_is_sent_again_until_it_is_taken_and_no_longer(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    store = RedisCacheStore(RedisLink.from_url(server.url, timeout_s=60.0, name="refused"), Codec(KEY))
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="admin")
    await stored(store)
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    tags = tuple(b"%d" % number for number in range(cache_redis._RESEND_BATCH + 1))
    assert not await store.purge(tags)
    store.delete_now(b"k")
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "0")
    await confirmed(store)
    assert await link.execute("EXISTS", store.value_name(b"k"), *store.tag_names(tags)) == len(tags)
    async with asyncio.timeout(30):
        while store._resend_timer is not None:
            await asyncio.sleep(0.01)
    await store.close()
    await link.close()


async def test_closing_ends_what_is_sent_again(start_redis: Callable[..., Any]) -> None:
    server = start_redis("--maxmemory", "1")
    store = RedisCacheStore(RedisLink.from_url(server.url, timeout_s=60.0, name="full"), Codec(KEY))
    assert not await store.purge((b"t",))
    assert store._resend_timer is not None
    await store.close()
    assert store._resend_timer.cancelled()
    assert not await store.purge((b"u",))
    assert store._resend_timer.cancelled()


async def test_a_late_confirmation_is_of_what_was_sent_alone(link: RedisLink) -> None:
    store = RedisCacheStore(link, Codec(KEY))
    await store.get(b"k", ())
    purging = asyncio.ensure_future(store.purge((b"t",)))
    await asyncio.sleep(0)
    (name,) = store._unconfirmed
    newer = {name: ("EVAL", cache_redis._PURGE, 1, name, 1000, 7)}
    store._add_unconfirmed(newer)  # type: ignore[arg-type]
    assert await purging
    assert store._unconfirmed == newer
    await confirmed(store)
    await store.close()


async def test_a_replica_that_takes_no_writes_serves_nothing(
    start_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="replica")
    store = RedisCacheStore(link, Codec(KEY))
    await stored(store)
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    assert not await store.put(b"k", (ENTRY,), 60.0, (b"t",), 1)
    assert not (await store.get(b"k", (b"t",))).available, "purges of others may be missing"
    assert store.get_soon(b"k", (b"t",), pytest.fail) is None
    assert not await store.purge((b"t",))
    monkeypatch.setattr(redis_link, "_REMEMBERED_S", 0.0)
    assert not (await store.get(b"k", (b"t",))).available, "one is unconfirmed"
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "0")
    assert (await store.get(b"k", (b"t",))).entries == ()
    await store.close()


@pytest.mark.parametrize("asked", ["get_soon", "get"])
async def test_a_gateway_that_only_reads_notices_that_redis_takes_no_writes(
    start_redis: Callable[..., Any], asked: str
) -> None:
    """Before the first answer of a Redis that it has not read from for a while."""
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="admin")
    here, there = (
        RedisCacheStore(RedisLink.from_url(server.url, timeout_s=60.0, name=name), Codec(KEY)) for name in ("here", "there")
    )
    await stored(here)
    reading = InCallbacks(there) if asked == "get_soon" else there
    assert (await reading.get(b"k", (b"t",))).entries == (ENTRY,)
    there._probed_at -= cache_redis._PROBE_EVERY_S
    await link.execute("CONFIG", "SET", "maxmemory", "1")
    assert not await here.purge((b"t",))
    ends_at = asyncio.get_running_loop().time() + redis_link._REMEMBERED_S + 2 * cache_redis._PROBE_EVERY_S
    while asyncio.get_running_loop().time() < ends_at:
        assert not (await reading.get(b"k", (b"t",))).available
        await asyncio.sleep(0.02)
    await link.execute("CONFIG", "SET", "maxmemory", "0")
    async with asyncio.timeout(30):
        while not (lookup := await reading.get(b"k", (b"t",))).available:
            await asyncio.sleep(0.02)
    assert lookup.entries == (), "the purge was sent before"
    assert lookup.version > 0
    for store in (here, there, link):
        await store.close()


@pytest.mark.parametrize("forbidden", ["-eval", "-set", "-unlink", "%R~{ggw:cache}:purged:*"])
async def test_a_gateway_that_only_reads_notices_what_an_acl_forbids_to_purge(
    start_redis: Callable[..., Any], forbidden: str
) -> None:
    keys = ("~{ggw:cache}:value:*", forbidden) if "~" in forbidden else ("~*",)
    server = start_redis("--user", "gw", "on", "nopass", *keys, "&*", "+@all", *({forbidden} - {*keys}))
    store = RedisCacheStore(
        RedisLink.from_url(server.url.replace("redis://", "redis://gw@"), timeout_s=60.0, name="forbidden"), Codec(KEY)
    )
    assert not (await store.get(b"k", (b"t",))).available
    assert store._link.trouble == "NOPERM"
    await store.close()


async def test_a_redis_that_takes_no_scripts_takes_no_purges(scriptless: str) -> None:
    store = RedisCacheStore(RedisLink.from_url(scriptless, timeout_s=60.0, name="scriptless"), Codec(KEY))
    assert not (await store.get(b"k", (b"t",))).available
    assert store.refuses
    await store.close()


async def test_a_new_connection_is_asked_anew_whether_it_takes_writes(start_redis: Callable[..., Any]) -> None:
    server = start_redis("--appendonly", "yes")
    store = RedisCacheStore(RedisLink.from_url(server.url, timeout_s=60.0, name="test"), Codec(KEY))
    await stored(store)
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="admin")
    await link.execute("CONFIG", "SET", "maxmemory", "1")
    await link.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    while store._link.connected:
        await asyncio.sleep(0)
    while not store._link.connected:
        await asyncio.sleep(0.01)
    assert not (await store.get(b"k", (b"t",))).available
    await store.close()
    await link.close()


async def test_more_unconfirmed_than_can_be_remembered_means_nothing_old_is_believed(
    start_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "_REMEMBERED_S", 0.0)
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="owing")
    store = RedisCacheStore(link, Codec(KEY))
    await stored(store)
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    await store.purge(tuple(b"%d" % number for number in range(cache_redis._MAX_UNCONFIRMED + 1)))
    lookup = await store.get(b"k", (b"t",))
    assert (lookup.available, lookup.entries) == (True, ())
    await link.execute("CONFIG", "SET", "min-replicas-to-write", "0")
    await stored(store)
    assert (await store.get(b"k", (b"t",))).entries == (ENTRY,)
    await store.close()
