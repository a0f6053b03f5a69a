"""The vault over the real stores: sealed at rest, bound to name and version, told when broken, never overwritten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.core.secret import Secret
from gateway.core.token_record import Rotation, RotationStep, TokenRecord
from gateway.stores.credential_vault import CredentialVault, SealedRecord
from gateway.stores.credentials_sqlite import SqliteCredentials

KEY, OTHER = b"k" * 32, b"o" * 32
TOKEN = "glpat-hidden-hidden-0001"
NOW = 1_800_000_000.0


def kept(version: int = 1, name: str = "sa/1") -> TokenRecord:
    rotation = Rotation(RotationStep.SETTLING, ("gateway sa 1", "gateway sa 2"), 41, NOW)
    return TokenRecord(name, version, Secret(TOKEN), 42, 7, ("api", "read_user"), NOW + 90.5, rotation)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteCredentials]:
    store = SqliteCredentials(tmp_path / "credentials.db", wall=lambda: NOW)
    yield store
    await store.close()


@pytest.fixture
def vault(store: SqliteCredentials) -> CredentialVault:
    return CredentialVault(store, KEY)


async def test_what_is_put_is_opened_whole(vault: CredentialVault) -> None:
    bare = TokenRecord("sa/2", 5)
    assert await vault.put(kept(), 0, None)
    assert await vault.put(bare, 0, None)
    opened = await vault.read("one")
    assert (opened.tokens, opened.broken) == ({"sa/1": kept(), "sa/2": bare}, ())
    assert (opened.now, opened.readers) == (NOW, {"one": NOW})


async def test_nothing_at_rest_or_on_the_way_shows_the_token(
    vault: CredentialVault, store: SqliteCredentials, tmp_path: Path
) -> None:
    await vault.put(kept(), 0, None)
    sealed, opened = await store.read("one"), await vault.read("one")
    octets = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for hidden in (TOKEN, "gateway sa 1", "read_user"):
        assert hidden.encode() not in octets
        assert hidden not in f"{sealed!r} {opened!r}"


async def test_the_same_record_is_never_sealed_alike(vault: CredentialVault, store: SqliteCredentials) -> None:
    seen = set()
    for version in (1, 2, 3):
        await vault.put(kept(version), version - 1, None)
        seen.add((await store.read("one")).records[0].octets)
    assert len(seen) == 3


async def test_another_key_opens_nothing_and_nothing_is_lost(vault: CredentialVault, store: SqliteCredentials) -> None:
    await vault.put(kept(), 0, None)
    other = CredentialVault(store, OTHER)
    assert ((await other.read("one")).tokens, (await other.read("one")).broken) == ({}, ("sa/1",))
    assert (await vault.read("one")).tokens == {"sa/1": kept()}


async def test_one_key_seals_and_each_of_them_opens(store: SqliteCredentials) -> None:
    third = b"t" * 32
    for name, key in ("sa/1", KEY), ("sa/2", OTHER), ("sa/3", third):
        await CredentialVault(store, key).put(kept(name=name), 0, None)
    several = CredentialVault(store, OTHER, [b"u" * 32, KEY])
    opened = await several.read("one")
    assert opened.tokens == {"sa/1": kept(), "sa/2": kept(name="sa/2")}
    assert (opened.broken, opened.under_other_keys) == (("sa/3",), ("sa/1",))
    await several.put(kept(2), 1, None)
    assert (await several.read("one")).under_other_keys == ()
    assert set((await CredentialVault(store, OTHER).read("one")).tokens) == {"sa/1", "sa/2"}


async def test_with_more_keys_each_octet_still_counts(store: SqliteCredentials) -> None:
    await CredentialVault(store, KEY).put(kept(), 0, None)
    (record,) = (await store.read("one")).records
    for at in range(len(record.octets)):
        changed = bytearray(record.octets)
        changed[at] ^= 1
        await store.put(SealedRecord(f"y/{at}", record.version, bytes(changed)), 0, None)
    await store.put(msgspec.structs.replace(record, id="sa/2"), 0, None)
    opened = await CredentialVault(store, OTHER, [KEY]).read("one")
    assert (opened.tokens, opened.under_other_keys) == ({"sa/1": kept()}, ("sa/1",))
    assert len(opened.broken) == len(record.octets) + 1


async def test_each_octet_counts(vault: CredentialVault, store: SqliteCredentials) -> None:
    await vault.put(kept(), 0, None)
    (record,) = (await store.read("one")).records
    forged: list[SealedRecord] = [
        msgspec.structs.replace(record, id=f"x/{at}", octets=record.octets[:at])
        for at in (0, 1, 12, 13, 14, len(record.octets) - 1)
    ]
    for at in range(len(record.octets)):
        changed = bytearray(record.octets)
        changed[at] ^= 1
        forged.append(SealedRecord(f"y/{at}", record.version, bytes(changed)))
    for one in forged:
        assert await store.put(one, 0, None)
    opened = await vault.read("one")
    assert opened.tokens == {"sa/1": kept()}
    assert len(opened.broken) == len(forged)


async def test_a_value_moved_to_another_name_or_version_does_not_open(
    vault: CredentialVault, store: SqliteCredentials
) -> None:
    await vault.put(kept(), 0, None)
    (record,) = (await store.read("one")).records
    await store.put(msgspec.structs.replace(record, id="sa/2"), 0, None)
    await store.put(msgspec.structs.replace(record, version=2), 1, None)
    opened = await vault.read("one")
    assert opened.broken == ("sa/1", "sa/2")


async def test_versions_only_go_up(vault: CredentialVault) -> None:
    assert await vault.put(kept(3), 0, None)
    for version in (0, 2, 3):
        with pytest.raises(ValueError, match="never goes back"):
            await vault.put(kept(version), 3, None)
    assert await vault.put(kept(4), 3, None)


def test_a_short_key_is_refused(store: SqliteCredentials) -> None:
    with pytest.raises(ValueError, match="16 octets"):
        CredentialVault(store, b"short")
    with pytest.raises(ValueError, match="16 octets"):
        CredentialVault(store, KEY, [b"short"])
