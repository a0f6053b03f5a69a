"""Notes of paces in a real Redis."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from gateway.core.pacing import PaceReport
from gateway.ports import StoreUnavailable
from gateway.stores.paces_redis import RedisPaces, pace_key
from gateway.stores.redis_link import RedisLink


@pytest.fixture
async def paces(redis_url: str) -> AsyncIterator[RedisPaces]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="test")
    yield RedisPaces(link)
    await link.close()


@pytest.fixture
def client(redis_server: Any) -> Any:
    with redis.Redis(port=redis_server.port) as client:
        yield client


async def test_what_one_heard_the_others_read(paces: RedisPaces, client: Any) -> None:
    assert await paces.read([]) == await paces.read(["sa", "other"]) == {}
    await paces.put({"sa": PaceReport(30.0, 1.5, 40.0, 2.0), "refused": PaceReport(17.0)})
    read = await paces.read(["refused", "sa", "other"])
    assert set(read) == {"sa", "refused"}
    sa = read["sa"]
    assert 0 < sa.blocked_s <= 30
    assert sa.rate == 1.5
    assert 0 < sa.window_s <= 40
    assert 2 <= sa.age_s < 30
    refused = read["refused"]
    assert (0 < refused.blocked_s <= 17, refused.rate, refused.window_s, refused.age_s) == (True, 0.0, 0.0, math.inf)
    assert 30 < client.ttl(pace_key("sa")) <= 60
    assert client.strlen(pace_key("sa")) == 32


async def test_a_wait_is_never_shortened_and_of_rates_the_latest_counts(paces: RedisPaces) -> None:
    await paces.put({"sa": PaceReport(30.0, 1.5, 40.0, 5.0)})
    await paces.put({"sa": PaceReport(3.0, 9.0, 20.0, 300.0)})  # heard earlier, told later
    report = (await paces.read(["sa"]))["sa"]
    assert report.blocked_s > 10
    assert report.rate == 1.5
    await paces.put({"sa": PaceReport()})  # heard nothing at all
    assert (await paces.read(["sa"]))["sa"].rate == 1.5
    await paces.put({"sa": PaceReport(age_s=0.0)})  # there is plenty
    report = (await paces.read(["sa"]))["sa"]
    assert (report.rate, report.blocked_s > 10, report.age_s < 60) == (0.0, True, True)


async def test_a_clock_that_went_back_freezes_nothing(paces: RedisPaces, client: Any) -> None:
    seconds, _ = client.time()
    ahead = (seconds + 2 * 86_400) * 1e6
    client.set(pace_key("sa"), struct.pack("<dddd", ahead, 0.1, ahead, ahead))
    assert await paces.read(["sa"]) == {}
    await paces.put({"sa": PaceReport(3.0, 9.0, 20.0, 0.0)})
    report = (await paces.read(["sa"]))["sa"]
    assert report.blocked_s <= 3
    assert report.rate == 9.0


@pytest.mark.parametrize(
    "damage",
    [b"", b"x" * 31, struct.pack("<dddd", math.nan, 1, 1, 1), struct.pack("<dddd", 1, math.nan, 1, 1), b"\xff" * 32],
)
async def test_what_is_no_note_says_nothing_and_is_replaced(paces: RedisPaces, client: Any, damage: bytes) -> None:
    client.set(pace_key("sa"), damage)
    assert await paces.read(["sa"]) == {}
    await paces.put({"sa": PaceReport(9.0)})
    assert 0 < (await paces.read(["sa"]))["sa"].blocked_s <= 9


async def test_a_key_of_another_kind_is_replaced(paces: RedisPaces, client: Any) -> None:
    client.lpush(pace_key("sa"), "x")
    assert await paces.read(["sa"]) == {}
    await paces.put({"sa": PaceReport(9.0)})
    assert "sa" in await paces.read(["sa"])


async def test_an_outage_is_said() -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1/0", timeout_s=0.2, name="test")
    try:
        with pytest.raises(StoreUnavailable):
            await RedisPaces(link).read(["sa"])
        with pytest.raises(StoreUnavailable):
            await RedisPaces(link).put({"sa": PaceReport(1.0)})
    finally:
        await link.close()


@pytest.mark.parametrize("credential", ["sa", "x" * 500, "ü" * 90, "x" * 100])
def test_keys_are_short_and_apart(credential: str) -> None:
    key = pace_key(credential)
    assert len(key.encode()) <= 200
    assert key != pace_key(credential + "y")
