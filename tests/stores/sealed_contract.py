"""What every store of sealed records does. A backend's test file subclasses this and gives ``store``."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.stores.credential_vault import SealedRecord


def sealed(name: str = "sa/1", version: int = 1, octets: bytes = b"\x01octets\xff\x00:") -> SealedRecord:
    return SealedRecord(name, version, octets)


async def records(store: Any) -> list[SealedRecord]:
    return list((await store.read("test")).records)


class SealedContract:
    @pytest.fixture
    async def store(self) -> Any:
        raise NotImplementedError("the backend's test file gives its own")

    async def test_an_empty_store_has_no_records(self, store: Any) -> None:
        snapshot = await store.read("one")
        assert snapshot.records == ()
        assert snapshot.readers == {"one": snapshot.now}

    async def test_what_is_put_is_read_whole_in_order(self, store: Any) -> None:
        for record in (sealed("b/é"), sealed("a"), sealed("c", 7, bytes(range(256)))):
            assert await store.put(record, 0, None)
        assert await records(store) == [sealed("a"), sealed("b/é"), sealed("c", 7, bytes(range(256)))]

    async def test_a_version_replaces_the_one_it_was_made_from_and_no_other(self, store: Any) -> None:
        assert await store.put(sealed(), 0, None)
        assert not await store.put(sealed(octets=b"other"), 0, None)
        assert not await store.put(sealed(version=9, octets=b"other"), 5, None)
        assert await records(store) == [sealed()]
        assert await store.put(sealed(version=2), 1, None)
        assert not await store.put(sealed(version=3, octets=b"late"), 1, None)
        assert await records(store) == [sealed(version=2)]

    async def test_of_many_puts_on_one_version_one_succeeds(self, store: Any) -> None:
        await store.put(sealed(), 0, None)
        done = await asyncio.gather(*(store.put(sealed(version=2, octets=b"%d" % n), 1, None) for n in range(8)))
        assert sum(done) == 1
        assert await records(store) == [sealed(version=2, octets=b"%d" % done.index(True))]

    async def test_one_leads_and_stays_leader(self, store: Any) -> None:
        fence = await store.lead("one", 30.0)
        assert fence is not None
        assert await store.lead("two", 30.0) is None
        assert await store.lead("one", 30.0) == fence

    async def test_of_many_who_want_to_lead_one_does(self, store: Any) -> None:
        fences = await asyncio.gather(*(store.lead(f"gateway-{number}", 30.0) for number in range(8)))
        assert len([fence for fence in fences if fence is not None]) == 1

    async def test_a_leader_that_resigns_makes_room_and_a_stranger_cannot(self, store: Any) -> None:
        first = await store.lead("one", 30.0)
        await store.resign("two")
        assert await store.lead("two", 30.0) is None
        await store.resign("one")
        second = await store.lead("two", 30.0)
        assert first is not None
        assert second is not None
        assert second > first

    async def test_a_leader_of_old_writes_nothing_any_more(self, store: Any) -> None:
        first = await store.lead("one", 30.0)
        assert await store.put(sealed(), 0, first)
        await store.resign("one")
        second = await store.lead("two", 30.0)
        assert not await store.put(sealed(version=2), 1, first)
        assert await records(store) == [sealed()]
        assert await store.put(sealed(version=2), 1, second)
        assert await store.put(sealed(version=3), 2, None)

    async def test_who_reads_is_told_to_the_others(self, store: Any) -> None:
        first = await store.read("one")
        second = await store.read("two")
        assert set(second.readers) == {"one", "two"}
        assert second.readers["one"] == first.now <= second.now == second.readers["two"]

    async def test_it_forgets_nothing(self, store: Any) -> None:
        assert await store.durability_warning() == ""

    async def test_a_cancelled_call_leaves_the_store_usable(self, store: Any) -> None:
        await store.put(sealed(), 0, None)
        for call in (
            lambda: store.read("one"),
            lambda: store.put(sealed(version=2), 1, None),
            lambda: store.lead("one", 30.0),
            lambda: store.resign("one"),
        ):
            for turns in range(3):
                task = asyncio.ensure_future(call())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await store.resign("one")
        assert await store.lead("two", 30.0) is not None
        assert [record.id for record in await records(store)] == ["sa/1"]
