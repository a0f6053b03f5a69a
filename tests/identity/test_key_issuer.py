from __future__ import annotations

import hashlib
import secrets
from typing import Any

import pytest

from gateway.core.gateway_key import digest, is_well_formed, new_key
from gateway.core.key_record import LAST_INSTANT, KeyOrigin, KeyRecord
from gateway.identity.key_issuer import KeyIssuer, KeyTerms, NoSuchKey, TermsRefused
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
    key, record = await issuer.issue("backstage", KeyTerms(expires_at=T + 90, note="for the portal"))
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


@pytest.mark.parametrize("name", ["\udce9", "é"])
async def test_what_is_no_id_never_gets_to_the_store(name: str) -> None:
    """The command line makes surrogates of octets that are no UTF-8; no store can spell them."""
    issuer = KeyIssuer(None, pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)  # type: ignore[arg-type]
    assert await issuer.get(name) is None
    assert await issuer.list(name) == []
    assert not await issuer.revoke(name)
    with pytest.raises(NoSuchKey):
        await issuer.rotate(name, 0)


async def test_revoking_nothing_says_so(issuer: KeyIssuer) -> None:
    assert not await issuer.revoke("key_none")


@pytest.mark.parametrize(
    "terms",
    [
        {"expires_at": T},
        {"expires_at": T - 1},
        {"expires_at": T + 5, "not_before": T + 5},
        {"expires_at": float("nan")},
        {"expires_at": float("inf")},
        {"not_before": float("-inf")},
        {"expires_at": LAST_INSTANT.timestamp() + 1},
        {"not_before": -62_135_596_801.0},
        {"note": "x" * 201},
        {"note": "two\nlines"},
        {"cidr": ("192.0.2.1/24",)},
        {"cidr": ("everywhere",)},
        {"cidr": ("fe80::1%a&status=200 b",)},
        {"cidr": ("192.0.2.0/24",) * 33},
    ],
    ids=str,
)
async def test_a_key_that_could_never_be_used_is_refused(issuer: KeyIssuer, terms: dict[str, Any]) -> None:
    with pytest.raises(TermsRefused):
        await issuer.issue("backstage", KeyTerms(**terms))
    with pytest.raises(TermsRefused):
        await issuer.import_key("backstage", bytes(32), KeyTerms(**terms))
    with pytest.raises(TermsRefused):
        await issuer.issue_exchanged("backstage", KeyTerms(**terms))
    assert await issuer.list() == []


async def test_an_imported_key_is_found_by_its_digest(issuer: KeyIssuer, store: MemoryKeys) -> None:
    key = new_key(secrets.token_bytes(32))
    hashed = hashlib.sha256(key.reveal().encode()).digest()
    record = await issuer.import_key("backstage", hashed, KeyTerms(cidr=("192.0.2.1", "2001:DB8::/32")))
    assert await store.find(digest(b"pepper", key)) == record
    assert (record.origin, record.cidr) == (KeyOrigin.IMPORTED, ("192.0.2.1/32", "2001:db8::/32"))
    with pytest.raises(KeyRefused, match="exists already"):
        await issuer.import_key("renovate", hashed)


async def test_a_hash_of_another_length_is_refused(issuer: KeyIssuer) -> None:
    with pytest.raises(TermsRefused):
        await issuer.import_key("backstage", b"x" * 20)


async def test_rotation_keeps_bounds_and_length_of_life(issuer: KeyIssuer, store: MemoryKeys) -> None:
    terms = KeyTerms(not_before=T + 10, expires_at=T + 110, cidr=("192.0.2.0/24",), note="portal")
    _, older = await issuer.issue("backstage", terms)
    key, newer = await issuer.rotate(older.id, 50.0)
    assert is_well_formed(key.reveal())
    assert (newer.identity, newer.cidr, newer.note) == ("backstage", older.cidr, "portal")
    assert (newer.not_before, newer.expires_at) == (T + 10, T + 110)  # not used before its time, either
    ended = await issuer.get(older.id)
    assert ended is not None
    assert (ended.expires_at, ended.replaced_by) == (T + 50, newer.id)


async def test_a_key_whose_time_has_come_is_rotated_to_one_for_at_once(issuer: KeyIssuer, store: MemoryKeys) -> None:
    begun = KeyRecord(
        id="key_old", identity="backstage", digest=bytes(32), created_at=T - 90, not_before=T - 60, expires_at=T + 40
    )
    await store.put(begun)
    newer = (await issuer.rotate("key_old", 0.0))[1]
    assert (newer.not_before, newer.expires_at) == (None, T + 100)


async def test_rotation_may_say_when_the_new_key_ends(issuer: KeyIssuer) -> None:
    _, older = await issuer.issue("backstage")
    assert (await issuer.rotate(older.id, 0.0, expires_at=T + 9))[1].expires_at == T + 9


@pytest.mark.parametrize("end", [LAST_INSTANT.timestamp(), 260_000_000_000.0])
async def test_a_life_to_the_end_of_time_is_inherited_to_the_end_of_time(
    issuer: KeyIssuer, store: MemoryKeys, end: float
) -> None:
    await store.put(KeyRecord(id="key_old", identity="backstage", digest=bytes(32), created_at=T - 5, expires_at=end))
    assert (await issuer.rotate("key_old", 0.0))[1].expires_at == LAST_INSTANT.timestamp()


async def test_rotation_to_beyond_the_end_of_time_is_refused(issuer: KeyIssuer) -> None:
    _, older = await issuer.issue("backstage")
    with pytest.raises(TermsRefused, match="years 1 to 9999"):
        await issuer.rotate(older.id, 0.0, expires_at=LAST_INSTANT.timestamp() + 1)
    assert await issuer.list() == [older]


@pytest.mark.parametrize("overlap_s", [-1.0, 30 * 86_400 + 1.0, float("nan"), float("inf")])
async def test_an_overlap_without_sense_is_refused(issuer: KeyIssuer, overlap_s: float) -> None:
    _, older = await issuer.issue("backstage")
    with pytest.raises(TermsRefused):
        await issuer.rotate(older.id, overlap_s)
    assert await issuer.list() == [older]


async def test_rotating_nothing_says_so(issuer: KeyIssuer) -> None:
    with pytest.raises(NoSuchKey):
        await issuer.rotate("key_none", 1.0)


async def test_an_exchanged_credential_is_a_key_that_is_not_counted(issuer: KeyIssuer, store: MemoryKeys) -> None:
    key, record = await issuer.issue_exchanged("ci", KeyTerms(expires_at=T + 900))
    assert (await store.find(digest(b"pepper", key)), record.counted) == (record, False)
