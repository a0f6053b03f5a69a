from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ports import StoreUnavailable
from gateway.stores.credentials_sqlite import SqliteCredentials

from .sealed_contract import SealedContract, records, sealed

NOW = 1_800_000_000.0


class TestSqliteCredentials(SealedContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SqliteCredentials]:
        store = SqliteCredentials(tmp_path / "credentials.db", wall=lambda: NOW)
        yield store
        await store.close()


async def test_records_and_leaders_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    clock = [NOW]
    first = SqliteCredentials(tmp_path / "credentials.db", wall=lambda: clock[0])
    fence = await first.lead("one", 30.0)
    assert await first.put(sealed(), 0, fence)
    await first.close()
    second = SqliteCredentials(tmp_path / "credentials.db", wall=lambda: clock[0])
    assert await records(second) == [sealed()]
    assert await second.lead("two", 30.0) is None
    clock[0] += 30.0
    assert fence is not None
    assert await second.lead("two", 30.0) == fence + 1
    await second.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await second.read("two")


async def test_a_lease_that_is_kept_does_not_end(tmp_path: Path) -> None:
    clock = [NOW]
    store = SqliteCredentials(tmp_path / "credentials.db", wall=lambda: clock[0])
    fence = await store.lead("one", 30.0)
    clock[0] += 29.0
    assert await store.lead("one", 30.0) == fence
    clock[0] += 29.0
    assert await store.lead("two", 30.0) is None
    clock[0] += 2.0
    assert await store.lead("one", 30.0) != fence  # it may have been another's meanwhile
    await store.close()


async def test_a_clock_that_is_set_back_does_not_keep_a_lease_alive(tmp_path: Path) -> None:
    clock = [NOW]
    store = SqliteCredentials(tmp_path / "credentials.db", wall=lambda: clock[0])
    assert await store.lead("one", 30.0) is not None
    clock[0] -= 29.0
    assert await store.lead("two", 30.0) is None
    clock[0] -= 3600.0
    assert await store.lead("two", 30.0) is not None
    await store.close()
