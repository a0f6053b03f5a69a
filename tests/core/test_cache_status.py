from __future__ import annotations

import pytest

from gateway.core.cache_status import CacheReason, CacheStatus, cache_status_field


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        pytest.param(
            cache_status_field("gateway", CacheStatus.HIT, CacheReason.FRESH, ttl_s=12), b"gateway; hit; ttl=12", id="hit"
        ),
        pytest.param(
            cache_status_field(
                "gateway", CacheStatus.MISS, CacheReason.URI_MISS, upstream_status=200, stored=True, ttl_s=30
            ),
            b"gateway; fwd=uri-miss; fwd-status=200; stored; ttl=30",
            id="miss",
        ),
        pytest.param(
            cache_status_field("gateway", CacheStatus.REVALIDATED, CacheReason.STALE, upstream_status=304, ttl_s=30),
            b"gateway; fwd=stale; fwd-status=304; ttl=30",
            id="revalidated",
        ),
        pytest.param(
            cache_status_field("gateway", CacheStatus.COLLAPSED, CacheReason.URI_MISS, upstream_status=200, collapsed=True),
            b"gateway; fwd=uri-miss; fwd-status=200; collapsed",
            id="collapsed",
        ),
        pytest.param(
            cache_status_field("gateway", CacheStatus.BYPASS, CacheReason.METHOD), b"gateway; fwd=method", id="method"
        ),
        pytest.param(
            cache_status_field("gateway", CacheStatus.BYPASS, CacheReason.SESSION),
            b"gateway; fwd=bypass; detail=session",
            id="bypass",
        ),
        pytest.param(
            cache_status_field("gateway", CacheStatus.STALE, CacheReason.STALE_IF_ERROR, ttl_s=-45),
            b"gateway; hit; ttl=-45; detail=stale-if-error",
            id="stale",
        ),
        pytest.param(
            cache_status_field("two words", CacheStatus.BYPASS, CacheReason.NONE), b'"two words"; fwd=bypass', id="name"
        ),
    ],
)
def test_members(member: bytes, expected: bytes) -> None:
    assert member == expected
