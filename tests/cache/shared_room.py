"""One shared cache, and requests for it."""

from __future__ import annotations

from gateway.cache import CacheOutcome, CacheRequest, SharedCache, SharedPolicy
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Field, Fields
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import WEB, Clock, Origin, drain

DOWN = Rejection(Code.UPSTREAM_RESET, 502, "502 Bad Gateway", source=Source.UPSTREAM)
FRESH = (b"Cache-Control", b"max-age=60")
CAPABILITY = (b"Surrogate-Capability", b'gateway="Surrogate/1.0"')


def ask(
    *fields: Field, method: str = "GET", target: bytes = b"/a", authorized: bool = False, body: bool = False
) -> CacheRequest:
    given = (*fields, (b"Authorization", b"Basic eA==")) if authorized else fields
    return CacheRequest(method, target, given, WEB, b"", body, reached_as=b"http://host")


class Room:
    def __init__(self, policy: SharedPolicy = SharedPolicy(), wait_s: float = 10.0) -> None:  # noqa: B008
        self.clock = Clock()
        self.store = MemoryCacheStore(8 << 20, self.clock)
        self.cache = SharedCache(self.store, policy, wait_s=wait_s)

    async def fetch(self, request: CacheRequest, origin: Origin) -> tuple[int, Fields, bytes, CacheOutcome]:
        head, body, outcome = await drain(await self.cache.fetch(request, origin, self.clock))
        assert origin.held == 0
        return head.status, head.fields, body, outcome
