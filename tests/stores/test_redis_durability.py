"""What a Redis says about how it keeps things; the credential store asks in test_credentials_redis.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.stores.redis_durability import durability_warning
from gateway.stores.redis_link import RedisLink


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="durability-test")
    yield link
    await link.close()


async def test_a_redis_that_would_forget_says_so(link: RedisLink) -> None:
    assert await durability_warning(link, "this") == (
        "Redis keeps no append-only file: this would be lost at its next restart"
    )
    await link.execute("CONFIG", "SET", "appendonly", "yes", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    assert "evicts any key" in await durability_warning(link, "this")
    await link.execute("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    assert await durability_warning(link, "this") == ""
    await link.execute("CONFIG", "SET", "appendonly", "no", "maxmemory", "0", "maxmemory-policy", "noeviction")


async def test_one_that_may_not_be_asked_is_believed(link: RedisLink, redis_url: str) -> None:
    await link.execute("ACL", "SETUSER", "gw", "on", ">pass", "~*", "+@all", "-info")
    there = RedisLink.from_url(redis_url.replace("redis://", "redis://gw:pass@"), timeout_s=60.0, name="acl")
    assert await durability_warning(there, "this") == ""
    await there.close()
    await link.execute("ACL", "DELUSER", "gw")
