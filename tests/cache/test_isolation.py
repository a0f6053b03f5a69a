"""Nothing crosses partitions, and nothing is older than it may be: random histories against a model, on every store."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cache import CacheRequest, PrivateCache
from gateway.core.messages import Fields, first
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import CacheStore
from gateway.reply import Reply
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_memory import MemoryCacheStore
from gateway.stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber

from .origin import NEW_ISSUE, PROJECT, Clock, drain, streamed, whole

# Few of each, so that histories meet: what differs between two requests is then mostly one thing.
USERS = st.sampled_from([b"ann", b"bob", b"ann\n"])
TARGETS = st.sampled_from(
    [b"/api/v4/projects/g%2Fp", b"/api/v4/projects/g%2fp", b"/api/v4/projects/g%2Fp?page=2", b"/api/v4/projects"]
)
SUDOS = st.sampled_from(["", "", "", "root", "7"])
FIELDS = st.sampled_from(
    [
        (),
        (),
        (),
        ((b"User-Agent", b"bot"),),
        ((b"Accept", b"text/html"),),
        ((b"Origin", b"https://a"),),
        ((b"Accept-Encoding", b"gzip"),),
        ((b"X-Anything", b"1"),),
    ]
)
READS = st.tuples(st.just("read"), USERS, TARGETS, SUDOS, FIELDS, st.booleans())
STEPS = st.lists(
    st.one_of(
        READS,
        READS,
        READS,
        READS,
        st.tuples(st.just("change"), TARGETS),
        st.tuples(st.just("write"), USERS, TARGETS),
        st.tuples(st.just("wait"), st.sampled_from([1, 7, 31])),
        st.tuples(st.just("revoke"), USERS),
    ),
    min_size=10,
    max_size=40,
)


class Version(msgspec.Struct):
    """What a target says from ``since`` on."""

    since: float
    written: bool
    """Through the gateway, which therefore knows."""


class Model:
    """GitLab as the test knows it: each caller sees a body of its own, which changes when told."""

    def __init__(self) -> None:
        self.versions: dict[bytes, list[Version]] = {}
        self.revoked: set[bytes] = set()

    def of(self, target: bytes) -> list[Version]:
        return self.versions.setdefault(target, [Version(0.0, False)])

    def body(self, request: CacheRequest, version: int) -> bytes:
        fields = [field for field in request.fields if field[0] != b"User-Agent"]
        return repr((request.partition, request.target, request.sudo, fields, version)).encode()

    def forward(self, request: CacheRequest, stream: bool) -> Callable[[Fields], Awaitable[Reply]]:
        async def answer(given: Fields) -> Reply:
            if request.partition in self.revoked:
                return whole(401)
            body = self.body(request, len(self.of(request.target)) - 1)
            etag = b'W/"' + hashlib.md5(body).hexdigest().encode() + b'"'
            if first(given, b"if-none-match") == etag:
                return whole(304, (b"ETag", etag))
            fields = ((b"Content-Type", b"application/json"), (b"ETag", etag))
            if stream:
                return streamed(200, *fields, chunks=[body[:3], body[3:]])
            return whole(200, *fields, body=body)

        return answer

    def may_read(self, request: CacheRequest, body: bytes, now: float, ttl_s: float) -> bool:
        """Is this what GitLab says to this very caller now, or said within ``ttl_s``, with no write of ours in between?"""
        versions = self.of(request.target)
        said = [self.body(request, version) for version in range(len(versions))]
        if body not in said:
            return False
        after = versions[said.index(body) + 1 :]
        return not after or (now - after[0].since < ttl_s and not any(version.written for version in after))


async def follow(store: CacheStore, steps: list[tuple[object, ...]], ttl_s: float) -> None:
    cache, clock, model = PrivateCache(store, PrivatePolicy(ttl_s=ttl_s)), Clock(), Model()
    for step in steps:
        match step:
            case ("read", bytes() as user, bytes() as target, str() as sudo, tuple() as fields, bool() as stream):
                request = CacheRequest("GET", target, fields, PROJECT, user, sudo=sudo)
                head, body, _ = await drain(await cache.fetch(request, model.forward(request, stream), clock))
                assert (head.status == 401) is (user in model.revoked)
                assert head.status == 401 or model.may_read(request, body, clock.now, ttl_s)
            case ("change", bytes() as target):
                model.of(target).append(Version(clock.now, False))
            case ("write", bytes() as user, bytes() as target):
                if user in model.revoked:
                    continue
                request = CacheRequest("PUT", target.partition(b"?")[0], (), NEW_ISSUE, user)

                async def written(given: Fields, target: bytes = target) -> Reply:
                    model.of(target).append(Version(clock.now, True))
                    return whole(200)

                await drain(await cache.fetch(request, written, clock))
            case ("revoke", bytes() as user):
                model.revoked.add(user)
                await cache.drop_partition(user)
            case ("wait", int() as seconds):
                clock.now += seconds
            case _:
                raise AssertionError(step)


@pytest.mark.parametrize("ttl_s", [0.0, 30.0])
@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
async def test_in_memory(steps: list[tuple[object, ...]], ttl_s: float) -> None:
    await follow(MemoryCacheStore(1 << 20, Clock()), steps, ttl_s)


@pytest.mark.parametrize("ttl_s", [0.0, 30.0])
@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
async def test_under_constant_eviction(steps: list[tuple[object, ...]], ttl_s: float) -> None:
    await follow(MemoryCacheStore(16_000, Clock()), steps, ttl_s)


@pytest.fixture
async def links(redis_url: str) -> AsyncIterator[Callable[[], RedisLink]]:
    made: list[RedisLink] = []

    def make() -> RedisLink:
        made.append(RedisLink.from_url(redis_url, timeout_s=60.0, name="isolation"))
        return made[-1]

    yield make
    for link in made:
        await link.close()


@pytest.mark.parametrize("ttl_s", [0.0, 30.0])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_in_two_levels(links: Callable[[], RedisLink], steps: list[tuple[object, ...]], ttl_s: float) -> None:
    link = links()
    await link.execute("FLUSHALL")
    subscriber = RedisSubscriber(link.endpoint, channel=GONE_CHANNEL, name="isolation-subscriber", clock=time.monotonic)
    store = TwoLevelCacheStore(RedisCacheStore(link, Codec(b"k" * 32)), subscriber, max_bytes=1 << 20, clock=time.monotonic)
    store.start()
    async with asyncio.timeout(30):
        while not store.trusted:
            await asyncio.sleep(0.001)
    await follow(store, steps, ttl_s)
    await store.close()


@pytest.mark.parametrize("ttl_s", [0.0, 30.0])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_in_redis(links: Callable[[], RedisLink], steps: list[tuple[object, ...]], ttl_s: float) -> None:
    link = links()
    await link.execute("FLUSHALL")
    await follow(RedisCacheStore(link, Codec(b"k" * 32)), steps, ttl_s)
    await link.close()
