"""Notes of changes in a real Redis."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from gateway.ports import StoreUnavailable
from gateway.stores.changes_redis import RedisChanges
from gateway.stores.redis_link import RedisLink


async def test_every_gateway_reads_what_one_wrote(start_redis: Any) -> None:
    server = start_redis()
    links = [RedisLink.from_url(server.url, timeout_s=60.0, name=f"test-{number}") for number in range(2)]
    one, two = (RedisChanges(link) for link in links)
    try:
        assert await one.read() == {}
        await one.put("{gw}:b:caller:ü", b"\x00note")
        await one.put("b", b"old")
        await two.put("b", b"new")
        assert await one.read() == await two.read() == {"{gw}:b:caller:ü": b"\x00note", "b": b"new"}
        with redis.Redis(port=server.port) as client:
            assert 7 * 86_400 < client.ttl("{gw}:changes") <= 8 * 86_400
        await two.drop([])
        await two.drop(["b", "never there"])
        assert await one.read() == {"{gw}:b:caller:ü": b"\x00note"}
    finally:
        for link in links:
            await link.close()


async def test_an_outage_and_a_key_of_another_kind_are_said(start_redis: Any) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="test")
    notes = RedisChanges(link)
    try:
        with redis.Redis(port=server.port) as client:
            client.rpush("{gw}:changes", "other")
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await notes.read()
        await notes.put("a", b"b")
        assert await notes.read() == {"a": b"b"}, "made anew by the first note"
        server.stop()
        for call in (notes.read(), notes.put("a", b"b")):
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await call
    finally:
        await link.close()
