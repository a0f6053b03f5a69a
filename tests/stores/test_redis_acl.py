"""The ACL that docs/operations.md tells: enough for everything that the stores do, and nothing beside it."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.core.key_record import KEEP_DEAD_S, KEEP_EXCHANGED_S, KeyOrigin, KeyRecord
from gateway.core.limits import Limit, Scope, Take
from gateway.core.pacing import PaceReport
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.cache_leases import RedisLeases
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from gateway.stores.changes_redis import RedisChanges
from gateway.stores.codec import Codec
from gateway.stores.credential_vault import SealedRecord
from gateway.stores.credentials_redis import RedisCredentials
from gateway.stores.keys_redis import RedisKeys
from gateway.stores.paces_redis import RedisPaces
from gateway.stores.redis_address import parse_address
from gateway.stores.redis_endpoint import RedisEndpoint
from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber

from .cache_contract import ENTRY
from .test_cache_levels import until

DOCS = (Path(__file__).parent.parent.parent / "docs" / "operations.md").read_text("utf-8")
SECTION = DOCS.partition("\n## Redis ACL\n")[2].partition("\n## ")[0]
BARE = {"client|setname", "ping"}
KEY = b"k" * 32


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(url, timeout_s=60.0, name="acl")
    yield link
    await link.close()


async def limits(url: str) -> None:
    plain, places = Limit("plain", Scope.CALLER, 1.0, 5.0), Limit("places", Scope.CALLER, 1.0, 2.0, concurrent=True)
    buckets = RedisBuckets(RedisLink.from_url(url, timeout_s=60.0, name="acl"))
    takes = [Take("{gw}:b:plain", plain), Take("{gw}:b:places", places)]
    assert not (await buckets.take(takes, b"lease")).degraded
    buckets.release(takes, b"lease")
    assert not (await buckets.look(takes)).degraded
    assert not (await buckets.take([Take("{gw}:b:plain", places)], b"another")).degraded, "of another kind: made anew"
    await buckets.close()
    async with linked(url) as link:
        await RedisPaces(link).put({"sa": PaceReport(1.0, 1.0, 1.0, 0.0)})
        assert await RedisPaces(link).read(["sa"])
        await RedisChanges(link).put("one", b"note")
        assert await RedisChanges(link).read()
        await RedisChanges(link).drop(["one"])


async def cache(url: str) -> None:
    link = RedisLink.from_url(url, timeout_s=60.0, name="acl")
    far = RedisCacheStore(link, Codec(KEY))
    subscriber = RedisSubscriber(
        RedisEndpoint(parse_address(url)), channel=GONE_CHANNEL, name="acl-subscriber", clock=time.monotonic
    )
    levels = TwoLevelCacheStore(far, subscriber, max_bytes=1 << 20, clock=time.monotonic)
    leases = RedisLeases(link, Codec(KEY), lambda: True, wait_s=0.0)
    levels.start()
    await until(lambda: levels.trusted)
    assert await levels.put(b"k", (ENTRY,), 60.0, (b"t",), (await levels.get(b"k", (b"t",))).stamp)
    await levels.delete(b"k")
    assert await levels.purge((b"t",))
    ended = await leases.lead(b"q")
    assert ended is not None
    assert await leases.lead(b"q") is None, "another waits"
    ended()
    assert (await levels.get(b"k", (b"t",))).available
    assert far.outages == 0
    await levels.close()


async def gateway_keys(url: str) -> None:
    now = time.time()

    def record(number: int, origin: KeyOrigin, expires_at: float) -> KeyRecord:
        digest = bytes([number]) * 32
        return KeyRecord(f"key_{number:012d}", "bot", digest, created_at=now, expires_at=expires_at, origin=origin)

    async with linked(url) as link:
        keys = RedisKeys(link)
        for number, (origin, kept_s) in enumerate(
            ((KeyOrigin.ISSUED, KEEP_DEAD_S), (KeyOrigin.EXCHANGED, KEEP_EXCHANGED_S))
        ):
            await keys.put(record(2 * number, origin, now - kept_s - 1))
            await keys.put(record(2 * number + 1, origin, now + 60))
        assert await keys.find(bytes([1]) * 32) is not None
        await keys.touch("key_000000000001", now)
        assert await keys.get("key_000000000001") is not None
        assert len(await keys.list()) == 2, "the others were forgotten"
        before = await keys.revision()
        assert await keys.revoke("key_000000000001", now)
        assert await keys.revision() != before


async def rotated_tokens(url: str) -> None:
    async with linked(url) as link:
        tokens = RedisCredentials(link)
        await tokens.read("here")
        fence = await tokens.lead("here", 30.0)
        assert await tokens.lead("here", 30.0) == fence
        assert await tokens.put(SealedRecord("sa", 1, b"octets"), 0, fence)
        assert await tokens.durability_warning()
        await tokens.resign("here")


STORES: dict[str, Callable[[str], Awaitable[None]]] = {
    "limits": limits,
    "the cache": cache,
    "gateway keys": gateway_keys,
    "rotated tokens": rotated_tokens,
}


def row(store: str) -> tuple[list[str], set[str]]:
    """Keys and channels, and commands."""
    found = re.search(rf"^\| {store} \| (.*) \| (.*) \|$", SECTION, re.MULTILINE)
    assert found is not None
    return re.findall(r"`(.+?)`", found[1]), {one.lower() for one in re.findall(r"`(.+?)`", found[2])}


@pytest.mark.parametrize("store", STORES)
async def test_each_store_needs_what_its_row_says_and_nothing_else(start_redis: Callable[..., Any], store: str) -> None:
    places, commands = row(store)
    server = start_redis()
    with redis.Redis(port=server.port) as admin:
        rules = (*places, "-@all", *(f"+{one}" for one in commands | BARE))
        admin.execute_command("ACL", "SETUSER", "gw", "on", "nopass", *rules)
        admin.hset("ggw:{credentials}:readers", "silent for long", "0")
        admin.config_resetstat()
        await STORES[store](server.url.replace("redis://", "redis://gw:x@"))
        assert admin.acl_log() == []
        run = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    assert run - {"config|resetstat", "acl|log", "auth"} == commands | BARE


def test_the_whole_line_is_what_the_rows_say_together() -> None:
    _, *words = re.search(r"^ACL SETUSER gateway on >PASSWORD (.*)$", SECTION, re.MULTILINE)[1].split()  # type: ignore[index]
    places, commands = zip(*map(row, STORES), strict=True)
    wanted = {place for some in places for place in some} | {f"+{one}" for some in commands for one in some}
    assert set(words) == wanted | {f"+{one}" for one in BARE} | {"+select", "resetkeys", "resetchannels"}
    assert len(words) == len(set(words))
