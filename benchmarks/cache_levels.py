"""Several gateways on one Redis: how much of a lookup a copy in memory saves, and how many requests to GitLab leases save.

``make bench-levels``: needs redis-server, takes three quarters of a minute. The caches of four gateways run in one process,
each with a connection, a subscription and copies of its own, before an origin that answers after 40 ms, then after 400 ms.
Bots poll a hundred targets by Zipf's law through all gateways alike; answers are reused for two seconds, so that popular
ones expire again and again.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.processes import free_port
from gateway.cache import CacheRequest, PrivateCache
from gateway.core.cache_entry import Entry
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.messages import Fields, ResponseHead
from gateway.core.private_caching import PrivatePolicy
from gateway.reply import Reply
from gateway.stores.cache_leases import RedisLeases
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber

GATEWAYS = 4
BOTS = 40
TARGETS = 100
LATENCIES_S = (0.04, 0.4)
TTL_S = 2.0
SECONDS = 8.0
LOOKUPS = 5000
RESULTS = Path(__file__).parent / "results/cache_levels.json"

_READ = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
_HEAD = ResponseHead(200, ((b"Content-Type", b"application/json"), (b"ETag", b'W/"1"')), b"OK")


class Gateway:
    """The cache of one gateway."""

    def __init__(self, url: str, *, leased: bool) -> None:
        self.link = RedisLink.from_url(url, timeout_s=1.0, name="bench")
        subscriber = RedisSubscriber(self.link.endpoint, channel=GONE_CHANNEL, name="bench-ear", clock=time.monotonic)
        codec = Codec(b"k" * 32)
        leases = RedisLeases(self.link, codec, lambda: subscriber.listening)
        self.far = RedisCacheStore(self.link, codec)
        self.store = TwoLevelCacheStore(self.far, subscriber, max_bytes=32 << 20, clock=time.monotonic, leases=leases)
        self.cache = PrivateCache(self.store, PrivatePolicy(ttl_s=TTL_S), leases=leases if leased else None)

    async def subscribed(self) -> None:
        self.store.start()
        while not self.store.trusted:
            await asyncio.sleep(0.01)


class Origin:
    """GitLab, ``latency_s`` away."""

    def __init__(self, latency_s: float) -> None:
        self.requests = 0
        self._latency_s = latency_s

    async def __call__(self, given: Fields) -> Reply:
        self.requests += 1
        await asyncio.sleep(self._latency_s)
        return Reply(_HEAD, b'{"id":1}' * 250)


async def poll(url: str, latency_s: float, *, leased: bool) -> dict[str, object]:
    """Poll, and count the requests and how many of them reached GitLab."""
    gateways = [Gateway(url, leased=leased) for _ in range(GATEWAYS)]
    for gateway in gateways:
        await gateway.link.execute("FLUSHALL")
        await gateway.subscribed()
    origin, requests = Origin(latency_s), 0
    weights = [1 / rank for rank in range(1, TARGETS + 1)]
    ends_at = time.monotonic() + SECONDS

    async def bot(number: int) -> None:
        nonlocal requests
        dice = random.Random(number)
        while time.monotonic() < ends_at:
            (target,) = dice.choices(range(TARGETS), weights)
            request = CacheRequest("GET", b"/api/v4/projects/%d" % target, (), _READ, b"service account")
            reply, _ = await dice.choice(gateways).cache.fetch(request, origin, time.time)
            reply.release()
            requests += 1
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as bots:
        for number in range(BOTS):
            bots.create_task(bot(number))
    for gateway in gateways:
        await gateway.store.close()
    return {"requests": requests, "asked": origin.requests, "asked_per_1000": round(1000 * origin.requests / requests)}


async def lookups(url: str) -> dict[str, float]:
    """Microseconds per lookup with six tags and a 2 KB answer, one lookup after the other."""
    gateway = Gateway(url, leased=False)
    await gateway.subscribed()
    tags = tuple(b"tag:%d" % number for number in range(6))
    entry = Entry(200, b"OK", _HEAD.fields, b'{"id":1}' * 250, time.time(), 0.0, 60.0)
    await gateway.far.put(b"k", (entry,), 60.0, tags, (await gateway.far.get(b"k", tags)).stamp)
    found = {}
    for name, store in (("redis", gateway.far), ("copy", gateway.store)):
        for _ in range(100):
            await store.get(b"k", tags)
        started = time.perf_counter()
        for _ in range(LOOKUPS):
            await store.get(b"k", tags)
        found[name] = round((time.perf_counter() - started) / LOOKUPS * 1e6, 1)
    await gateway.store.close()
    return found


def main() -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gateway-levels-") as directory:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}/0"
            result = {
                "lookup_us": asyncio.run(lookups(url)),
                "polling": [
                    {"latency_ms": round(latency_s * 1000), "leased": leased}
                    | asyncio.run(poll(url, latency_s, leased=leased))
                    for latency_s in LATENCIES_S
                    for leased in (False, True)
                ],
            }
        finally:
            server.terminate()
            server.wait(10)
    text = json.dumps(result, indent=2)
    print(text)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
