"""What came after the public suite's packaged state, from the RFCs: targeted fields (9213), the window of
stale-while-revalidate (5861), must-understand (9111 §5.2.2.3), large ages (§1.2.2), renewed dates (§4.3.4)."""

from __future__ import annotations

import pytest

from gateway.cache import CacheRequest, SharedCache, SharedPolicy
from gateway.core.cache_status import CacheStatus
from gateway.core.messages import Field, first
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import WEB, Clock, Origin, drain, whole

HIT, MISS, REVALIDATED, STALE, UPDATED = (
    CacheStatus.HIT,
    CacheStatus.MISS,
    CacheStatus.REVALIDATED,
    CacheStatus.STALE,
    CacheStatus.UPDATED,
)


async def second(*fields: Field, after_s: float = 1.0, status: int = 200) -> CacheStatus:
    """What becomes of the second request, so long after the first was answered with these fields."""
    clock = Clock()
    cache = SharedCache(MemoryCacheStore(1 << 20, clock), SharedPolicy())
    origin = Origin(*(whole(status, *fields, body=b"x") for _ in range(3)))
    request = CacheRequest("GET", b"/a", (), WEB, reached_as=b"http://host")
    await drain(await cache.fetch(request, origin, clock))
    clock.now += after_s
    *_, outcome = await drain(await cache.fetch(request, origin, clock))
    await cache.close()
    return outcome.status


def cdn(value: bytes) -> Field:
    return (b"CDN-Cache-Control", value)


def plain(value: bytes) -> Field:
    return (b"Cache-Control", value)


@pytest.mark.parametrize(
    ("fields", "after_s", "found"),
    [
        pytest.param((cdn(b"max-age=60"),), 1, HIT, id="alone"),
        pytest.param((cdn(b"max-age=60"),), 61, UPDATED, id="ends"),
        pytest.param((cdn(b"max-age=60"), plain(b"max-age=1")), 30, HIT, id="over-a-shorter-one"),
        pytest.param((cdn(b"max-age=1"), plain(b"max-age=60")), 30, UPDATED, id="over-a-longer-one"),
        pytest.param((cdn(b"max-age=60"), plain(b"no-store")), 1, HIT, id="over-no-store"),
        pytest.param((cdn(b"max-age=60"), plain(b"private")), 1, HIT, id="over-private"),
        pytest.param((cdn(b"max-age=60"), (b"Expires", b"0")), 1, HIT, id="over-expires"),
        pytest.param((cdn(b"no-store"), plain(b"max-age=60")), 1, MISS, id="no-store"),
        pytest.param((cdn(b"private"), plain(b"max-age=60")), 1, MISS, id="private"),
        pytest.param((cdn(b"no-cache"), plain(b"max-age=60"), (b"ETag", b'"a"')), 1, UPDATED, id="no-cache"),
        pytest.param((cdn(b"max-age=0"), plain(b"max-age=60"), (b"ETag", b'"a"')), 1, UPDATED, id="nothing"),
        pytest.param((cdn(b"max-age=0, s-maxage=60"),), 1, HIT, id="s-maxage"),
        pytest.param((cdn(b"max-age=60, foo;bar=1"),), 1, HIT, id="unknown-directive"),
        pytest.param((cdn(b"max-age=60;foo=1"),), 1, HIT, id="parameter"),
        pytest.param((cdn(b"max-age=60 , "), plain(b"no-store")), 1, MISS, id="invalid-trailing-comma"),
        pytest.param((cdn(b"max-age=60 60"), plain(b"no-store")), 1, MISS, id="invalid-blank"),
        pytest.param((cdn(b"max-age=60="), plain(b"no-store")), 1, MISS, id="invalid-member"),
        pytest.param((cdn(b"max-age= 60"), plain(b"max-age=60")), 1, HIT, id="invalid-falls-back"),
        pytest.param((cdn(b""), plain(b"max-age=60")), 1, HIT, id="empty-falls-back"),
        pytest.param((cdn(b"MAX-AGE=60"), plain(b"no-store")), 1, MISS, id="keys-are-lower-case"),
        pytest.param((cdn(b"max-age=0"), cdn(b"max-age=60")), 1, HIT, id="the-last-of-two-lines"),
        pytest.param((cdn(b"max-age=60"), (b"Age", b"59")), 0.5, HIT, id="age-counts-before"),
        pytest.param((cdn(b"max-age=60"), (b"Age", b"60")), 0.5, UPDATED, id="age-counts-at"),
        pytest.param(((b"CDN-Cache-Controls", b"max-age=60"), plain(b"no-store")), 1, MISS, id="another-name"),
    ],
)
async def test_a_targeted_field_speaks_before_all_others(
    fields: tuple[Field, ...], after_s: float, found: CacheStatus
) -> None:
    assert await second(*fields, after_s=after_s) is found


@pytest.mark.parametrize(
    ("fields", "after_s", "found"),
    [
        ((plain(b"max-age=1, stale-while-revalidate=9"),), 5, STALE),
        ((plain(b"max-age=1, stale-while-revalidate=9"),), 9.9, STALE),
        ((plain(b"max-age=1, stale-while-revalidate=9"),), 10.1, UPDATED),
        ((plain(b"max-age=1, stale-while-revalidate=9, must-revalidate"),), 5, UPDATED),
        ((plain(b"max-age=1, stale-while-revalidate=x"),), 2, UPDATED),
    ],
)
async def test_the_window_of_stale_while_revalidate(fields: tuple[Field, ...], after_s: float, found: CacheStatus) -> None:
    assert await second(*fields, after_s=after_s) is found


@pytest.mark.parametrize(
    ("value", "status", "found"),
    [
        (b"max-age=60, must-understand, no-store", 200, HIT),
        (b"max-age=60, must-understand", 200, HIT),
        (b"max-age=60, must-understand", 599, MISS),
        (b"max-age=60, must-understand, no-store", 599, MISS),
        (b"max-age=60, no-store", 200, MISS),
        (b"max-age=60", 599, HIT),
    ],
)
async def test_must_understand(value: bytes, status: int, found: CacheStatus) -> None:
    assert await second(plain(value), status=status) is found


@pytest.mark.parametrize("age", [b"2147483647", b"2147483648", b"99999999999", b"9" * 40])
async def test_a_large_age_is_old_and_never_overflows(age: bytes) -> None:
    assert await second(plain(b"max-age=3600"), (b"Age", age)) in {MISS, UPDATED}


@pytest.mark.parametrize("seconds", [b"2147483648", b"99999999999", b"9" * 40])
async def test_a_large_lifetime_is_long(seconds: bytes) -> None:
    assert await second(plain(b"max-age=" + seconds), after_s=86_400 * 365) is HIT


async def test_validation_renews_the_date() -> None:
    clock = Clock()
    cache = SharedCache(MemoryCacheStore(1 << 20, clock), SharedPolicy())
    old, new = b"Fri, 15 Jan 2027 08:00:00 GMT", b"Fri, 15 Jan 2027 08:01:40 GMT"
    origin = Origin(
        whole(200, (b"Date", old), (b"ETag", b'"a"'), plain(b"max-age=60"), body=b"x"), whole(304, (b"Date", new))
    )
    request = CacheRequest("GET", b"/a", (), WEB, reached_as=b"http://host")
    await drain(await cache.fetch(request, origin, clock))
    clock.now += 100
    head, _, outcome = await drain(await cache.fetch(request, origin, clock))
    assert (outcome.status, first(head.fields, b"date")) == (REVALIDATED, new)
    head, _, outcome = await drain(await cache.fetch(request, origin, clock))
    assert (outcome.status, first(head.fields, b"date"), first(head.fields, b"age")) == (HIT, new, b"0")
    await cache.close()
