from __future__ import annotations

import secrets

import pytest

from gateway.core.gateway_key import digest, is_well_formed
from gateway.identity.issuing import KeyIssuer
from gateway.ports import KeyRefused
from gateway.stores.keys_memory import MemoryKeys

T = 1_800_000_000.0


@pytest.fixture
def store() -> MemoryKeys:
    return MemoryKeys()


@pytest.fixture
def issuer(store: MemoryKeys) -> KeyIssuer:
    return KeyIssuer(store, pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)


async def test_an_issued_key_is_found_by_its_digest_and_is_itself_nowhere(issuer: KeyIssuer, store: MemoryKeys) -> None:
    key, record = await issuer.issue("backstage", T + 90, note="for the portal")
    assert is_well_formed(key.reveal())
    assert await store.find(digest(b"pepper", key)) == record
    assert (record.identity, record.created_at, record.expires_at, record.note) == (
        "backstage",
        T,
        T + 90,
        "for the portal",
    )
    assert key.reveal() not in repr(record)
    assert key.reveal()[4:] not in f"{[getattr(record, name) for name in record.__struct_fields__]}"


async def test_each_key_is_another(issuer: KeyIssuer) -> None:
    one, first = await issuer.issue("backstage")
    other, second = await issuer.issue("backstage")
    assert one != other
    assert first.id != second.id


async def test_a_third_live_key_is_refused_until_one_is_revoked(issuer: KeyIssuer) -> None:
    _, first = await issuer.issue("backstage")
    await issuer.issue("backstage")
    with pytest.raises(KeyRefused, match="2 live keys"):
        await issuer.issue("backstage")
    assert await issuer.revoke(first.id)
    await issuer.issue("backstage")
    assert [record.is_live(T) for record in await issuer.list("backstage")].count(True) == 2


async def test_revoking_nothing_says_so(issuer: KeyIssuer) -> None:
    assert not await issuer.revoke("key_none")


@pytest.mark.parametrize(
    "times",
    [
        {"expires_at": T},
        {"expires_at": T - 1},
        {"expires_at": T + 5, "not_before": T + 5},
        {"expires_at": float("nan")},
        {"expires_at": float("inf")},
        {"not_before": float("-inf")},
    ],
    ids=str,
)
async def test_a_key_that_could_never_be_used_is_refused(issuer: KeyIssuer, times: dict[str, float]) -> None:
    with pytest.raises(KeyRefused):
        await issuer.issue("backstage", **times)
    assert await issuer.list() == []
