"""A client may leave at any await: nothing leaks, nobody hangs, nothing half-done is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.cache import Cache, CacheRequest, PrivateCache, SharedCache, SharedPolicy
from gateway.core.cache_entry import Entry
from gateway.core.messages import Fields
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import CacheStore, Lookup
from gateway.reply import Reply
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import NEW_ISSUE, PROJECT, Clock, Origin, drain, json, streamed, whole

ETAG = b'W/"a"'
LARGE = [b"x" * 200_000, b"y" * 200_000]


class Steps:
    """Counts awaits, and cancels the current task at the chosen one."""

    def __init__(self) -> None:
        self.count = 0
        self.cancel_at = 0

    async def __call__(self) -> None:
        self.count += 1
        if self.count == self.cancel_at:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0)


class SlowStore:
    """A memory store that gives way before and after each answer."""

    def __init__(self, store: CacheStore, step: Steps) -> None:
        self._store = store
        self._step = step

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        await self._step()
        return await self._store.get(key, tags, anew=anew)

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        await self._step()
        stored = await self._store.put(key, entries, ttl_s, tags, stamp)
        await self._step()
        return stored

    async def delete(self, key: bytes) -> None:
        await self._step()
        await self._store.delete(key)

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        await self._step()
        return await self._store.purge(tags, hold_s)

    async def close(self) -> None:
        return None


def private(store: CacheStore) -> Cache:
    return PrivateCache(store, PrivatePolicy())


def flights(cache: Cache) -> int:
    """How many are open."""
    return len(cache._fetcher.flights if isinstance(cache, PrivateCache) else cache._flights)  # type: ignore[attr-defined]


def shared(store: CacheStore) -> Cache:
    return SharedCache(store, SharedPolicy())


TYPE = (b"Content-Type", b"application/json")
FRESH = (b"Cache-Control", b"max-age=60")


@pytest.mark.parametrize("make", [private, shared])
@pytest.mark.parametrize(
    ("method", "answers"),
    [
        pytest.param("GET", lambda: [whole(200, TYPE, FRESH, (b"ETag", ETAG), body=b"[2]")], id="miss"),
        pytest.param("GET", lambda: [whole(304)], id="revalidated"),
        pytest.param("GET", lambda: [streamed(200, TYPE, FRESH, (b"ETag", ETAG), chunks=list(LARGE))], id="streamed"),
        pytest.param("GET", lambda: [whole(404)], id="dropped"),
        pytest.param("GET", lambda: [whole(401)], id="unauthenticated"),
        pytest.param("PUT", lambda: [whole(200)], id="write"),
        pytest.param("HEAD", lambda: [whole(200)], id="head"),
        pytest.param("POST", lambda: [whole(200, FRESH, (b"Content-Location", b"/api/v4/projects/1"))], id="post"),
    ],
)
async def test_leaving_at_any_await(
    make: Callable[[CacheStore], Cache], method: str, answers: Callable[[], list[Reply]]
) -> None:
    for cancel_at in range(1, 40):
        step, clock = Steps(), Clock()
        memory = MemoryCacheStore(8 << 20, clock)
        cache = make(SlowStore(memory, step))
        first = json(ETAG, FRESH, body=b"[1]")
        await drain(await cache.fetch(request("GET"), Origin(first), clock))
        clock.now += 61
        step.count, step.cancel_at = 0, cancel_at
        origin = Origin(*answers())
        forward = stepped(origin, step)

        async def whole_exchange(
            cache: Cache = cache,
            forward: Callable[[Fields], Awaitable[Reply]] = forward,
            clock: Clock = clock,
            step: Steps = step,
        ) -> None:
            reply, _ = await cache.fetch(request(method), forward, clock)
            try:
                if reply.chunks is not None:
                    async for _chunk in reply.chunks:
                        await step()
            finally:
                reply.release()

        task = asyncio.ensure_future(whole_exchange())
        await asyncio.gather(task, return_exceptions=True)
        assert origin.held == 0, f"a reply was kept after await {cancel_at}"
        assert flights(cache) == 0, f"a flight was left open after await {cancel_at}"
        step.cancel_at = 0
        after = Origin(json(ETAG, FRESH, body=b"[3]"))
        _, body, _ = await asyncio.wait_for(drain(await cache.fetch(request("GET"), after, clock)), 30)
        assert body in {b"[1]", b"[2]", b"[3]", b"", b"".join(LARGE)}
        if not task.cancelled():
            break
    else:
        raise AssertionError("more awaits than expected")
    assert cancel_at > 1


def request(method: str) -> CacheRequest:
    operation = PROJECT if method in {"GET", "HEAD"} else NEW_ISSUE
    return CacheRequest(method, b"/api/v4/projects/1", (), operation, b"p")


def stepped(origin: Origin, step: Steps) -> Callable[[Fields], Awaitable[Reply]]:
    async def forward(given: Fields) -> Reply:
        await step()
        return await origin(given)

    return forward
