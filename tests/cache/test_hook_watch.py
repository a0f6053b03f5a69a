from __future__ import annotations

import pytest

from gateway.cache.hook_watch import HookWatch
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import Clock


async def test_hooks_that_stop_coming_are_noticed() -> None:
    clock = Clock()
    watch = HookWatch(MemoryCacheStore(1 << 16, clock), clock, 900.0)
    assert not await watch.check_alive()
    assert watch.silent
    assert watch.silence_s is None
    await watch.record_hook()
    assert await watch.check_alive()
    clock.now += 899
    assert await watch.check_alive()
    assert watch.silence_s == pytest.approx(899, abs=0.1)
    clock.now += 2
    assert not await watch.check_alive()
    assert watch.silent


async def test_a_hook_at_one_gateway_is_heard_by_all_on_its_store() -> None:
    clock = Clock()
    store = MemoryCacheStore(1 << 16, clock)
    here, there = HookWatch(store, clock, 900.0), HookWatch(store, clock, 900.0)
    assert not await there.check_alive()
    await here.record_hook()
    clock.now += 100
    assert await there.check_alive()
    assert there.silence_s == pytest.approx(100, abs=0.1)


async def test_a_store_that_forgot_purges_has_heard_no_hook() -> None:
    """What it takes for purged, because it can't remember, was purged by nobody."""
    clock = Clock()
    store = MemoryCacheStore(1 << 16, clock)
    watch = HookWatch(store, clock, 900.0)
    store.forget()
    assert not await watch.check_alive()
    assert watch.silence_s is None
    await watch.record_hook()
    clock.now += 901
    store.forget()
    assert not await watch.check_alive()
