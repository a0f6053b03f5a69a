"""Memory buckets: the contract, and bounded memory."""

from __future__ import annotations

import pytest

from gateway.core.limits import Limit, Scope, Take, Takes
from gateway.stores.bucket_memory import MemoryBuckets

from .bucket_contract import NARROW, WIDE, BucketContract


class Clock:
    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


class TestContract(BucketContract):
    @pytest.fixture
    def store(self) -> MemoryBuckets:
        return MemoryBuckets()


async def test_full_buckets_are_forgotten_first() -> None:
    clock = Clock()
    store = MemoryBuckets(clock=clock, bound=3)
    quick = Limit("quick", Scope.CALLER, 10.0, 50.0)
    await store.take([Take("hot", NARROW, 3.0)])
    await store.take([Take("a", quick)])
    await store.take([Take("b", quick)])
    clock.at += 1
    await store.take([Take("c", quick)])
    assert len(store) == 3
    assert not (await store.take([Take("hot", NARROW)])).allowed


async def test_a_flood_of_new_callers_does_not_free_who_is_over_the_limit() -> None:
    store = MemoryBuckets(clock=Clock(), bound=20)
    await store.take([Take("hot", NARROW, 3.0)])
    for number in range(500):
        await store.take([Take(f"flood-{number}", WIDE)])
        assert len(store) <= 20
    assert not (await store.take([Take("hot", NARROW)])).allowed


@pytest.mark.parametrize("bound", [1, 2, 20])
def test_requests_of_several_new_buckets_stay_within_the_bound(bound: int) -> None:
    store = MemoryBuckets(clock=Clock(), bound=bound)
    for number in range(100):
        assert store.take_now(Takes([Take(f"{name}-{number}", WIDE) for name in "abc"])).allowed
        assert len(store) <= bound


def test_of_buckets_in_use_the_nearest_to_full_goes_and_the_others_stay_as_they_are() -> None:
    clock = Clock()
    store = MemoryBuckets(clock=clock, bound=8)
    for number in range(200):
        for name in ("low", "lower"):
            store.settle([Take(name, WIDE, 50.0)])  # in debt for good
        assert store.take_now(Takes([Take(f"once-{number}", WIDE)])).allowed
        assert len(store) <= 8
    assert not store.take_now(Takes([Take("low", WIDE)])).allowed
    assert not store.take_now(Takes([Take("lower", WIDE)])).allowed


async def test_a_store_that_was_closed_begins_anew() -> None:
    store = MemoryBuckets(clock=Clock(), bound=2)
    for _ in range(2):
        for key in "abc":
            assert store.take_now(Takes([Take(key, NARROW, 3.0)])).allowed
        assert len(store) == 2
        await store.close()
        assert len(store) == 0


async def test_a_bound_of_one_still_works() -> None:
    store = MemoryBuckets(clock=Clock(), bound=1)
    for key in "abc":
        assert (await store.take([Take(key, NARROW)])).allowed
        assert len(store) == 1


def test_a_seed_starts_a_bucket_below_full_and_only_once() -> None:
    store = MemoryBuckets(clock=Clock())
    store.seed("k", NARROW, 1.0)
    store.seed("k", NARROW, 2.0)
    assert store.take_now([Take("k", NARROW)]).states[0].remaining == 0.0
    store.seed("full", NARROW, 3.0)
    assert len(store) == 1


def test_a_clock_that_jumps_back_freezes_nothing() -> None:
    clock = Clock()
    store = MemoryBuckets(clock=clock)
    one = Limit("one", Scope.CALLER, 1.0, 1.0)
    assert store.take_now([Take("k", one)]).allowed
    clock.at -= 3600
    assert not store.take_now([Take("k", one)]).allowed
    clock.at += 1
    assert store.take_now([Take("k", one)]).allowed
    clock.at -= 3600
    assert store.refused_now([Take("k", one)]) is not None
    clock.at += 1
    assert store.refused_now([Take("k", one)]) is None
    assert store.take_now([Take("k", one)]).allowed
