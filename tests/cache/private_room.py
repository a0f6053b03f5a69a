"""One private cache, and what GitLab answers it."""

from __future__ import annotations

from gateway.cache import CacheOutcome, CacheRequest, PrivateCache
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields
from gateway.core.private_caching import PrivatePolicy
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import Clock, Origin, drain

ETAG = b'W/"0123456789abcdef0123456789abcdef"'
OTHER = b'W/"ffffffffffffffffffffffffffffffff"'
DOWN = Rejection(Code.UPSTREAM_TIMEOUT, 504, "504 Gateway Timeout", source=Source.UPSTREAM)
AWAY = Rejection(Code.UPSTREAM_BREAKER_OPEN, 503, "503 Service Unavailable", source=Source.UPSTREAM)
KEPT = PrivatePolicy(ttl_s=30.0)


class Room:
    """One cache with its clock."""

    def __init__(self, policy: PrivatePolicy = PrivatePolicy()) -> None:  # noqa: B008
        self.clock = Clock()
        self.store = MemoryCacheStore(1 << 20, self.clock)
        self.cache = PrivateCache(self.store, policy)

    async def fetch(self, request: CacheRequest, origin: Origin) -> tuple[int, Fields, bytes, CacheOutcome]:
        head, body, outcome = await drain(await self.cache.fetch(request, origin, self.clock))
        assert origin.held == 0, "every reply is given back"
        return head.status, head.fields, body, outcome
