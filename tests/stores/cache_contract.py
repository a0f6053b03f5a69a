"""What every CacheStore does, whichever it is."""

from __future__ import annotations

import asyncio

import msgspec
from hypothesis import strategies as st

from gateway.core.cache_entry import Entry
from gateway.ports import CacheStore, Lookup
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_redis import RedisCacheStore

ENTRY = Entry(
    status=200,
    reason=b"OK",
    fields=((b"ETag", b'"a"'), (b"Content-Length", b"4")),
    body=b"body",
    received_at=1_800_000_000.25,
    initial_age_s=0.0,
    lifetime_s=60.0,
    etag=b'"a"',
    selecting=((b"origin", b"\x00"),),
)


def saying(text: bytes) -> Entry:
    return msgspec.structs.replace(ENTRY, body=text)


class CacheContract:
    """Subclasses provide the fixture ``store``: an empty one."""

    async def test_what_was_put_comes_back_whole(self, store: CacheStore) -> None:
        assert (await store.get(b"k", (b"t",))).entries == ()
        assert await store.put(
            b"k", (ENTRY, saying(b"\x00" * 5000)), 60.0, (b"t",), (await store.get(b"k", (b"t",), anew=True)).stamp
        )
        lookup = await store.get(b"k", (b"t",))
        assert lookup.available
        assert lookup.entries == (ENTRY, saying(b"\x00" * 5000))

    async def test_keys_are_kept_apart(self, store: CacheStore) -> None:
        stamp = (await store.get(b"a", (), anew=True)).stamp
        await store.put(b"a", (saying(b"a"),), 60.0, (), stamp)
        await store.put(b"b", (saying(b"b"),), 60.0, (), stamp)
        assert (await store.get(b"a", ())).entries[0].body == b"a"
        assert (await store.get(b"c", ())).entries == ()

    async def test_the_last_put_stands(self, store: CacheStore) -> None:
        stamp = (await store.get(b"k", (), anew=True)).stamp
        await store.put(b"k", (saying(b"1"),), 60.0, (), stamp)
        await store.put(b"k", (saying(b"2"),), 60.0, (), stamp)
        assert (await store.get(b"k", ())).entries[0].body == b"2"

    async def test_nothing_without_a_lifetime_is_kept(self, store: CacheStore) -> None:
        assert not await store.put(b"k", (ENTRY,), 0.0, (), 0)
        assert (await store.get(b"k", ())).entries == ()

    async def test_deleting(self, store: CacheStore) -> None:
        stamp = (await store.get(b"k", (), anew=True)).stamp
        await store.put(b"k", (ENTRY,), 60.0, (), stamp)
        await store.delete(b"k")
        await store.delete(b"k")
        assert (await store.get(b"k", ())).entries == ()

    async def test_a_purge_takes_what_carries_one_of_its_tags(self, store: CacheStore) -> None:
        for key, tags in ((b"1", (b"a", b"b")), (b"2", (b"b",)), (b"3", (b"c",))):
            stamp = (await store.get(key, tags, anew=True)).stamp
            await store.put(key, (ENTRY,), 60.0, tags, stamp)
        assert await store.purge((b"a", b"x"))
        assert (await store.get(b"1", (b"a", b"b"))).entries == ()
        assert (await store.get(b"2", (b"b",))).entries == (ENTRY,)
        assert (await store.get(b"3", (b"c",))).entries == (ENTRY,)

    async def test_an_answer_asked_for_before_a_purge_is_never_seen_after_it(self, store: CacheStore) -> None:
        before = await store.get(b"k", (b"t",), anew=True)
        await store.purge((b"t",))
        await store.put(b"k", (saying(b"old"),), 60.0, (b"t",), before.stamp)
        after = await store.get(b"k", (b"t",), anew=True)
        assert after.entries == ()
        assert after.version != before.version
        assert await store.put(b"k", (saying(b"new"),), 60.0, (b"t",), after.stamp)
        assert (await store.get(b"k", (b"t",))).entries[0].body == b"new"

    async def test_what_is_asked_for_while_a_purge_holds_is_not_seen_again(self, store: CacheStore) -> None:
        """GitLab's read replicas may be behind the event."""
        await store.purge((b"t",), 3600.0)
        held = await store.get(b"k", (b"t",), anew=True)
        assert held.version > held.stamp
        await store.put(b"k", (ENTRY,), 60.0, (b"t",), held.stamp)
        assert (await store.get(b"k", (b"t",))).entries == ()
        await store.purge((b"t",))  # a later purge does not shorten it
        still = await store.get(b"k", (b"t",), anew=True)
        assert still.version > still.stamp
        other = await store.get(b"k", (b"u",), anew=True)
        assert other.version <= other.stamp


HISTORIES = st.lists(
    st.tuples(st.sampled_from(["put", "late", "purge", "delete"]), st.integers(0, 3), st.integers(0, 2)), max_size=14
)


async def follow(store: CacheStore, history: list[tuple[str, int, int]]) -> None:
    """Any history ends as a plain dict would. ``late``: a put that was asked for before a purge."""
    tags_of = {key: tuple(b"%d" % tag for tag in range(3) if (key >> tag) & 1) for key in range(4)}
    expected: dict[int, bytes] = {}

    async def purge(tag: int) -> None:
        await store.purge((b"%d" % tag,))
        for other in [other for other in expected if b"%d" % tag in tags_of[other]]:
            del expected[other]

    for key in range(4):
        await store.delete(b"%d" % key)
    for number, (what, key, tag) in enumerate(history):
        name, tags, body = b"%d" % key, tags_of[key], b"%d" % number
        if what == "put":
            await store.put(name, (saying(body),), 3600.0, tags, (await store.get(name, tags, anew=True)).stamp)
            expected[key] = body
        elif what == "late":
            stamp = (await store.get(name, tags, anew=True)).stamp
            await purge(tag)
            stored = await store.put(name, (saying(body),), 3600.0, tags, stamp)
            if b"%d" % tag not in tags:
                assert stored
                expected[key] = body
        elif what == "purge":
            await purge(tag)
        else:
            await store.delete(name)
            expected.pop(key, None)
        for other in range(4):
            found = (await store.get(b"%d" % other, tags_of[other])).entries
            assert [entry.body for entry in found] == ([expected[other]] if other in expected else [])


class Later:
    """An entry that is made when it is asked for."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self.size_bytes = entry.size_bytes
        self.makings = 0

    def materialise(self) -> Entry:
        self.makings += 1
        return self._entry


class InCallbacks:
    """A store as the forward lane sees it, asked as any other; ``get`` where there is no other way."""

    def __init__(self, store: RedisCacheStore | TwoLevelCacheStore) -> None:
        self._store = store
        self.close, self.purge = store.close, store.purge
        self.looked = 0

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        heard: asyncio.Future[Lookup] = asyncio.get_running_loop().create_future()
        if self._store.get_soon(key, tags, heard.set_result) is None:
            return await self._store.get(key, tags, anew=anew)
        self.looked += 1
        return await heard

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        if len(entries) != 1:
            return await self._store.put(key, entries, ttl_s, tags, stamp)
        return self._store.put_now(key, Later(entries[0]), ttl_s, tags, stamp)

    async def delete(self, key: bytes) -> None:
        self._store.delete_now(key)
