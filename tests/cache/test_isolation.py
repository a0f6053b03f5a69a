"""Nothing crosses partitions, and nothing is older than it may be: random histories against a model, on every store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cache import CacheRequest, PrivateCache
from gateway.core.messages import Fields, ResponseHead, first
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import CacheStore, Reply
from gateway.stores.cache_memory import MemoryCacheStore
from gateway.stores.cache_redis import RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink

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


class Model:
    """GitLab as the test knows it: each caller sees a body of its own, which changes when told."""

    def __init__(self) -> None:
        self.versions: dict[bytes, int] = {}
        self.revoked: set[bytes] = set()
        self.changed_at: dict[bytes, float] = {}

    def body(self, user: bytes, target: bytes, sudo: str, fields: Fields) -> bytes:
        told = repr((user, target, sudo, [f for f in fields if f[0] != b"User-Agent"], self.versions.get(target, 0)))
        return told.encode()

    def change(self, target: bytes) -> None:
        self.versions[target] = self.versions.get(target, 0) + 1

    def forward(self, request: CacheRequest, user: bytes, stream: bool) -> Callable[[Fields], Awaitable[Reply]]:
        async def answer(given: Fields) -> Reply:
            if user in self.revoked:
                return whole(401)
            body = self.body(user, request.target, request.sudo, request.fields)
            etag = b'W/"' + hashlib.md5(body).hexdigest().encode() + b'"'
            if first(given, b"if-none-match") == etag:
                return whole(304, (b"ETag", etag))
            fields = ((b"Content-Type", b"application/json"), (b"ETag", etag))
            if stream:
                return streamed(200, *fields, chunks=[body[:3], body[3:]])
            return whole(200, *fields, body=body)

        return answer


async def follow(store: CacheStore, steps: list[tuple[object, ...]], ttl_s: float) -> None:
    cache, clock, model = PrivateCache(store, PrivatePolicy(ttl_s=ttl_s)), Clock(), Model()
    seen: dict[tuple[object, ...], list[tuple[float, bytes]]] = {}
    """By key: what upstream would have said, and from when on."""

    def history(user: bytes, target: bytes, sudo: str, fields: Fields) -> list[tuple[float, bytes]]:
        bodies = seen.setdefault((user, target, sudo, fields), [])
        now = model.body(user, target, sudo, fields)
        if not bodies or bodies[-1][1] != now:
            bodies.append((model.changed_at.get(target, 0.0), now))
        return bodies

    for step in steps:
        match step:
            case ("read", bytes() as user, bytes() as target, str() as sudo, tuple() as fields, bool() as stream):
                request = CacheRequest("GET", target, fields, PROJECT, user, sudo=sudo)
                head, body, _ = await drain(await cache.fetch(request, model.forward(request, user, stream), clock))
                bodies = history(user, target, sudo, fields)
                if head.status == 401:
                    assert user in model.revoked
                    continue
                assert body in [said for _, said in bodies], "somebody else's, or never said"
                ended_at = [since for since, _ in bodies[1:]] + [clock.now + 1]
                assert clock.now - ended_at[[said for _, said in bodies].index(body)] < ttl_s or body == bodies[-1][1]
                if user in model.revoked:
                    assert ttl_s > 0
            case ("change", bytes() as target):
                # Everybody's history learns of it when it next reads: note the moment.
                for user, of, sudo, fields in list(seen):
                    if of == target:
                        history(user, of, sudo, fields)  # type: ignore[arg-type]
                model.change(target)
                model.changed_at[target] = clock.now
                for user, of, sudo, fields in list(seen):
                    if of == target:
                        history(user, of, sudo, fields)  # type: ignore[arg-type]
            case ("write", bytes() as user, bytes() as target):
                request = CacheRequest("PUT", target.partition(b"?")[0], (), NEW_ISSUE, user)
                if user in model.revoked:
                    continue

                async def written(given: Fields, target: bytes = target) -> Reply:
                    model.change(target)
                    model.changed_at[target] = clock.now
                    return Reply(ResponseHead(200, ()), b"")

                await drain(await cache.fetch(request, written, clock))
                for key in list(seen):
                    if key[1] == target:
                        seen[key] = [(clock.now, model.body(*key))]  # type: ignore[arg-type]
            case ("revoke", bytes() as user):
                model.revoked.add(user)
                await cache.drop_partition(user)
            case ("wait", int() as seconds):
                clock.now += seconds


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
        made.append(RedisLink.from_url(redis_url, timeout_s=2.0, name="isolation"))
        return made[-1]

    yield make
    for link in made:
        await link.close()


@pytest.mark.parametrize("ttl_s", [0.0, 30.0])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_in_redis(links: Callable[[], RedisLink], steps: list[tuple[object, ...]], ttl_s: float) -> None:
    link = links()
    await link.execute("FLUSHALL")
    await follow(RedisCacheStore(link, Codec(b"k" * 32)), steps, ttl_s)
    await link.close()
