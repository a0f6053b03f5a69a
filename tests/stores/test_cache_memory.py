from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.cache_entry import Entry
from gateway.ports import CacheStore, Lookup
from gateway.stores.cache_memory import SMALL_SHARE, MemoryCacheStore

from .cache_contract import ENTRY, HISTORIES, CacheContract, Later, follow, saying


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestMemoryCacheStore(CacheContract):
    @pytest.fixture
    def store(self) -> MemoryCacheStore:
        return MemoryCacheStore(1 << 20, Clock())


class AtOnce:
    """The store as the forward lane sees it, asked as any other."""

    def __init__(self) -> None:
        store = self._store = MemoryCacheStore(1 << 20, Clock())
        self.close, self.purge, self.delete = store.close, store.purge, store.delete

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        del anew
        found = self._store.find(key, tags)  # first: what one of them finds dead is gone for the other
        lookup = self._store.get_now(key, tags)
        assert found is (lookup.entries[0] if lookup.entries else None)
        return lookup

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        if len(entries) != 1:
            return await self._store.put(key, entries, ttl_s, tags, stamp)
        return self._store.put_now(key, Later(entries[0]), ttl_s, tags, stamp)


class TestMemoryCacheStoreAtOnce(CacheContract):
    @pytest.fixture
    def store(self) -> AtOnce:
        return AtOnce()


@settings(max_examples=60, deadline=None)
@given(HISTORIES)
@pytest.mark.parametrize("made", [lambda: MemoryCacheStore(1 << 20, Clock()), AtOnce], ids=["awaited", "at once"])
async def test_any_history_ends_as_a_plain_dict_would(
    made: Callable[[], CacheStore], history: list[tuple[str, int, int]]
) -> None:
    await follow(made(), history)


@pytest.mark.parametrize("asked", ["find", "get_now"])
async def test_an_entry_is_made_when_it_is_first_asked_for_and_once(asked: str) -> None:
    store = MemoryCacheStore(1 << 20, Clock())
    late = Later(ENTRY)
    assert store.put_now(b"k", late, 60.0, (), 0)
    used = store.used_bytes
    assert (used, late.makings) == (len(b"k") + ENTRY.size_bytes, 0)
    found = [getattr(store, asked)(b"k", ()) for _ in range(3)]
    assert found == [ENTRY if asked == "find" else Lookup((ENTRY,), found[0].stamp, 0)] * 3
    assert (store.used_bytes, late.makings) == (used, 1)


async def test_what_is_put_over_a_late_one_stands_and_the_other_way_round() -> None:
    store = MemoryCacheStore(1 << 20, Clock())
    store.put_now(b"k", Later(saying(b"late")), 60.0, (), 0)
    await store.put(b"k", (saying(b"put"),), 60.0, (), 0)
    assert [entry.body for entry in store.get_now(b"k", ()).entries] == [b"put"]
    store.put_now(b"k", Later(saying(b"late")), 60.0, (), 0)
    assert [entry.body for entry in store.get_now(b"k", ()).entries] == [b"late"]


async def test_a_late_one_that_nobody_asks_for_is_evicted_unmade() -> None:
    store = MemoryCacheStore(16_000, Clock())
    late = [Later(saying(b"x" * 1000)) for _ in range(100)]
    for number, one in enumerate(late):
        store.put_now(b"%d" % number, one, 60.0, (), 0)
    assert store.evictions > 80
    assert not any(one.makings for one in late)


def size(key: bytes, body: bytes) -> int:
    return len(key) + saying(body).size_bytes


async def fill(store: MemoryCacheStore, keys: list[bytes], body: bytes = b"x" * 1000) -> None:
    for key in keys:
        await store.put(key, (saying(body),), 60.0, (), 0)


async def test_an_entry_ends_with_its_time() -> None:
    clock = Clock()
    store = MemoryCacheStore(1 << 20, clock)
    await store.put(b"k", (ENTRY,), 60.0, (), 0)
    clock.now += 59.9
    assert (await store.get(b"k", ())).entries
    clock.now += 0.1
    assert not (await store.get(b"k", ())).entries
    assert store.used_bytes == 0


async def test_what_is_too_large_is_refused_and_takes_its_predecessor_with_it() -> None:
    store = MemoryCacheStore(16_000, Clock())
    await fill(store, [b"k"], b"small")
    assert not await store.put(b"k", (saying(b"x" * 2000),), 60.0, (), 0)
    assert not await store.put(b"new", (saying(b"x" * 2000),), 60.0, (), 0)
    assert not (await store.get(b"k", ())).entries
    assert (len(store), store.used_bytes) == (0, 0)


async def test_a_scan_of_things_asked_for_once_leaves_the_hot_set() -> None:
    store = MemoryCacheStore(100 * size(b"hot00", b"x" * 1000), Clock())
    hot = [b"hot%02d" % number for number in range(50)]
    await fill(store, hot)
    for key in hot:
        await store.get(key, ())
    await fill(store, [b"scan%05d" % number for number in range(2000)])
    assert [key for key in hot if not (await store.get(key, ())).entries] == []
    assert store.evictions > 1800


async def test_what_comes_back_soon_enters_the_main_queue() -> None:
    """A ghost's key is let past the small queue: a second scan can't flush it."""
    store = MemoryCacheStore(20 * size(b"k00", b"x" * 1000), Clock())
    await fill(store, [b"k%02d" % number for number in range(25)])
    assert not (await store.get(b"k00", ())).entries
    await fill(store, [b"k00"])
    await fill(store, [b"s%02d" % number for number in range(15)])
    assert (await store.get(b"k00", ())).entries


async def test_the_main_queue_gives_another_round_to_what_was_hit() -> None:
    store = MemoryCacheStore(10 * size(b"a0", b"x" * 1000), Clock())
    await fill(store, [b"a0"])
    await store.get(b"a0", ())
    await fill(store, [b"s%02d" % number for number in range(20)])
    for number in range(40):
        await store.get(b"a0", ())
        key = b"b%d" % number
        await fill(store, [key])
        await store.get(key, ())
    assert (await store.get(b"a0", ())).entries
    assert store.used_bytes <= 10 * size(b"a0", b"x" * 1000)


async def test_closing_lets_go() -> None:
    store = MemoryCacheStore(1 << 20, Clock())
    await fill(store, [b"k"])
    await store.close()
    assert len(store) == 0


async def test_forgotten_purges_purge_more_not_less() -> None:
    store = MemoryCacheStore(1 << 20, Clock())
    await store.put(b"k", (ENTRY,), 60.0, (b"t",), 0)
    await store.purge((b"t",))
    for number in range(65_536):
        await store.purge((b"%d" % number,))
    assert not (await store.get(b"k", (b"t",))).entries
    assert not await store.put(b"k", (ENTRY,), 60.0, (b"t",), 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "get", "delete", "purge"]), st.integers(0, 12), st.integers(0, 1500)), max_size=80
    )
)
async def test_accounting_is_exact_and_never_past_the_bound(history: list[tuple[str, int, int]]) -> None:
    bound = 14_000
    store = MemoryCacheStore(bound, Clock())
    for what, number, length in history:
        key, tags = b"%d" % number, (b"t%d" % (number % 3),)
        if what == "put":
            lookup = await store.get(key, tags)
            await store.put(key, (saying(b"x" * length),), 60.0, tags, lookup.stamp)
        elif what == "get":
            await store.get(key, tags)
        elif what == "delete":
            await store.delete(key)
        else:
            await store.purge(tags)
        slots = list(store._slots.values())
        assert store.used_bytes == sum(slot.size for slot in slots) <= bound
        assert store._small_bytes == sum(slot.size for slot in slots if not slot.main)
        assert {slot.key for slot in slots if slot.main} == set(store._main)
        assert {slot.key for slot in slots if not slot.main} == set(store._small)
        assert not set(store._ghosts) & set(store._slots)
    assert 0 < SMALL_SHARE < 1
