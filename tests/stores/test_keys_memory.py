"""The reference: it runs the contract, and has nothing else to show."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.stores.keys_memory import MemoryKeys

from .key_contract import KeyContract, record


class TestMemoryKeys(KeyContract):
    @pytest.fixture
    async def keys(self) -> AsyncIterator[MemoryKeys]:
        store = MemoryKeys()
        yield store
        await store.close()


async def test_closing_forgets() -> None:
    store = MemoryKeys()
    await store.put(record())
    await store.close()
    assert await store.list() == []
