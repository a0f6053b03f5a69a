"""Several gateways on one Redis: what one hears, all know."""

from __future__ import annotations

import json as json_module

from gateway.cache import PrivateCache
from gateway.cache.hook_watch import HookWatch
from gateway.core.cache_status import CacheStatus
from gateway.core.hook_events import read_event
from gateway.core.private_caching import PrivatePolicy
from gateway.core.project_names import ProjectNames
from gateway.stores.cache_redis import RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink

from .origin import Clock, Origin, drain, get, json

ETAG = b'W/"0123456789abcdef0123456789abcdef"'
MERGED = json_module.dumps(
    {"object_kind": "merge_request", "project": {"id": 42, "path_with_namespace": "g/p"}, "object_attributes": {"iid": 7}}
).encode()


class Gateway:
    def __init__(self, url: str, clock: Clock) -> None:
        self.clock = clock
        self.names = ProjectNames()
        self.store = RedisCacheStore(RedisLink.from_url(url, timeout_s=2.0, name="together"), Codec(b"k" * 32))
        self.watch = HookWatch(self.store, clock, 900.0)
        self.cache = PrivateCache(self.store, PrivatePolicy(ttl_s=60.0), names=self.names, hooks=self.watch)

    async def ask(self, target: bytes) -> CacheStatus:
        origin = Origin(json(ETAG, body=b"[]"), json(ETAG, body=b"[]"))
        *_, outcome = await drain(await self.cache.fetch(get(target), origin, self.clock))
        return outcome.status


async def test_a_hook_at_one_gateway_purges_for_all(redis_url: str) -> None:
    clock = Clock()
    here, there = Gateway(redis_url, clock), Gateway(redis_url, clock)
    try:
        await there.watch.heard()
        mine, other = b"/api/v4/projects/g%2Fp/merge_requests/7", b"/api/v4/projects/42/merge_requests/8"
        for target in (mine, other):
            assert await here.ask(target) is CacheStatus.MISS
            assert await here.ask(target) is CacheStatus.HIT
        await there.store.purge(read_event(MERGED, there.names).tags)
        await there.watch.heard()
        assert await here.ask(mine) is CacheStatus.MISS
        assert await here.ask(other) is CacheStatus.HIT
    finally:
        await here.cache.close()
        await there.cache.close()
