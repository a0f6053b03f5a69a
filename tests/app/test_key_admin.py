"""Keys changed by people: each change is one line of audit, and none of what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.app.key_admin import Actor, AuditFull, KeyAdmin, Unconfirmed, state_of
from gateway.core.gateway_key import new_key
from gateway.core.key_record import KeyRecord, Replacement
from gateway.identity.key_issuer import KeyIssuer, KeyTerms, NoSuchKey, TermsRefused
from gateway.ports import KeyRefused, NotDone, StoreUnavailable
from gateway.stores.keys_memory import MemoryKeys
from gateway.telemetry.audit import AuditLog
from gateway.telemetry.audit_writer import AuditWriter
from tests.fakes.sink import MemorySink

T = 1_800_000_000.0
OPS = Actor("admin:0123456789ab", "admin", "192.0.2.9", "POST")


class Audited:
    def __init__(self) -> None:
        self.lines = MemorySink()
        self.audit = AuditLog(AuditWriter(self.lines))
        self.forgotten: list[str] = []
        issuer = KeyIssuer(MemoryKeys(), pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
        self.key_admin = KeyAdmin(issuer, ["bot", "reader"], self.audit, changed=self.forgotten.append)

    async def written(self) -> list[dict[str, Any]]:
        self.audit.close()
        return [json.loads(line) for line in self.lines.octets.splitlines()]


def _key_of(line: dict[str, Any]) -> str:
    return str(line["target"]).removeprefix("/-/keys/").partition("?")[0]


@pytest.fixture
async def audited() -> AsyncIterator[Audited]:
    fresh = Audited()
    yield fresh
    fresh.audit.close()


async def test_every_change_is_a_line_that_says_who_what_and_whose(audited: Audited) -> None:
    key, first = await audited.key_admin.issue(OPS, "bot", KeyTerms(expires_at=T + 90, cidr=("192.0.2.0/24",)))
    made = new_key(secrets.token_bytes(32)).reveal()
    hashed = hashlib.sha256(made.encode()).hexdigest()
    taken = await audited.key_admin.import_key(OPS, "reader", hashed)
    newer, second = await audited.key_admin.rotate(OPS, first.id, 30.0)
    await audited.key_admin.revoke(OPS, taken.id)
    lines = await audited.written()
    assert [(line["operation"], line["identity"], _key_of(line)) for line in lines] == [
        ("key issued", "bot", first.id),
        ("key imported", "reader", taken.id),
        ("key rotated", "bot", second.id),
        ("key revoked", "reader", taken.id),
    ]
    assert {(line["principal"], line["principal_kind"], line["peer"]) for line in lines} == {
        ("admin:0123456789ab", "admin", "192.0.2.9")
    }
    assert lines[0]["target"] == f"/-/keys/{first.id}?origin=issued&expires_at={T + 90:.0f}&cidr=192.0.2.0/24"
    assert f"&replaces={first.id}&overlap_s=30" in lines[2]["target"]
    for secret in (key.reveal(), newer.reveal(), made, hashed, first.digest.hex()):
        assert secret not in audited.lines.octets.decode()


async def test_what_is_refused_is_no_change(audited: Audited) -> None:
    for refused in (
        audited.key_admin.issue(OPS, "ghost"),
        audited.key_admin.issue(OPS, "bot", KeyTerms(expires_at=T)),
        audited.key_admin.import_key(OPS, "bot", "xyz"),
        audited.key_admin.import_key(OPS, "bot", "00"),
        audited.key_admin.import_key(OPS, "ghost", "00" * 32),
        audited.key_admin.rotate(OPS, "key_none", 1.0),
        audited.key_admin.revoke(OPS, "key_none"),
    ):
        with pytest.raises(KeyRefused):
            await refused
    assert audited.forgotten == []
    assert await audited.written() == []


async def test_before_a_change_is_made_its_line_is_durable_where_so_configured() -> None:
    lines = MemorySink()
    audit = AuditLog(AuditWriter(lines), before_write=True)
    issuer = KeyIssuer(MemoryKeys(), pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    await KeyAdmin(issuer, ["bot"], audit).issue(OPS, "bot")
    audit.close()
    before, after = [json.loads(line) for line in lines.octets.splitlines()]
    assert before["request_id"] == after["request_id"]
    assert (before["operation"], "status" in before, after["status"]) == ("key issued", False, 200)


async def test_this_process_forgets_what_ended(audited: Audited) -> None:
    _, first = await audited.key_admin.issue(OPS, "bot")
    _, second = await audited.key_admin.rotate(OPS, first.id, 0.0)
    await audited.key_admin.revoke(OPS, second.id)
    await audited.key_admin.revoke(OPS, second.id)
    assert audited.forgotten == [first.id, second.id, second.id]


async def test_only_identities_with_issued_keys_get_one_and_the_refusal_names_them(audited: Audited) -> None:
    with pytest.raises(TermsRefused, match="there are bot, reader"):
        await audited.key_admin.issue(OPS, "people")
    with pytest.raises(NoSuchKey):
        await audited.key_admin.get("key_none")


async def test_a_key_of_an_identity_that_is_no_more_is_not_replaced_by_one_that_nobody_could_use(audited: Audited) -> None:
    store = MemoryKeys()
    issuer = KeyIssuer(store, pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    _, gone = await issuer.issue("renamed")
    _, exchanged = await issuer.issue_exchanged("ci", KeyTerms(expires_at=T + 900))
    key_admin = KeyAdmin(issuer, ["bot"], audited.audit)
    with pytest.raises(TermsRefused, match="`renamed` is not an identity with `key: issued`; there are bot"):
        await key_admin.rotate(OPS, gone.id, 0.0)
    with pytest.raises(KeyRefused, match="exchange another"):
        await key_admin.rotate(OPS, exchanged.id, 0.0)
    assert sorted(await store.list(), key=lambda one: one.identity, reverse=True) == [gone, exchanged]
    assert (await key_admin.revoke(OPS, gone.id)).revoked_at == T


class Mute(MemoryKeys):
    """Does what it is asked, and is not heard to say so."""

    mute: BaseException | None = None

    async def put(self, record: KeyRecord, replacing: Replacement | None = None) -> None:
        await super().put(record, replacing)
        if self.mute is not None:
            raise self.mute

    async def revoke(self, key_id: str, at: float) -> bool:
        done = await super().revoke(key_id, at)
        if self.mute is not None:
            raise self.mute
        return done


@pytest.mark.parametrize("mute", [StoreUnavailable("silent"), asyncio.CancelledError()], ids=["silence", "cancelled"])
async def test_what_the_store_may_have_done_is_a_line(mute: BaseException) -> None:
    lines, store = MemorySink(), Mute()
    audit = AuditLog(AuditWriter(lines))
    issuer = KeyIssuer(store, pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    key_admin = KeyAdmin(issuer, ["bot", "reader"], audit)
    _, first = await issuer.issue("bot")
    store.mute = mute
    for change in (
        key_admin.issue(OPS, "bot"),
        key_admin.import_key(OPS, "reader", "00" * 32),
        key_admin.rotate(OPS, first.id, 0.0),
        key_admin.revoke(OPS, first.id),
    ):
        with pytest.raises(BaseException) as unsure:
            await change
        if isinstance(mute, StoreUnavailable):
            assert isinstance(unsure.value, Unconfirmed)
            assert "key_" in str(unsure.value)
    audit.close()
    audited_lines = [json.loads(line) for line in lines.octets.splitlines()]
    assert [(line["operation"], line["status"], line["code"]) for line in audited_lines] == [
        (f"key {done}", 503, "identity_unavailable") for done in ("issued", "imported", "rotated", "revoked")
    ]
    assert f"&replaces={first.id}" in audited_lines[2]["target"]
    assert {_key_of(line) for line in audited_lines} == {record.id for record in await store.list()}


async def test_a_store_that_was_never_asked_has_changed_nothing(audited: Audited) -> None:
    class Away(MemoryKeys):
        async def get(self, key_id: str) -> KeyRecord | None:
            raise StoreUnavailable("away")

    issuer = KeyIssuer(Away(), pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    key_admin = KeyAdmin(issuer, ["bot"], audited.audit)
    for change in (key_admin.rotate(OPS, "key_0", 0.0), key_admin.revoke(OPS, "key_0")):
        with pytest.raises(StoreUnavailable, match="away"):
            await change
    assert await audited.written() == []


async def test_what_the_store_says_that_it_did_not_do_is_reported_with_its_words_and_is_no_line() -> None:
    class Full(MemoryKeys):
        async def put(self, record: KeyRecord, replacing: Replacement | None = None) -> None:
            raise NotDone("the disk is full")

        async def revoke(self, key_id: str, at: float) -> bool:
            raise NotDone("the disk is full")

    lines, store = MemorySink(), Full()
    audit = AuditLog(AuditWriter(lines))
    first = KeyRecord(id="key_1", identity="bot", digest=bytes(32), created_at=T)
    await MemoryKeys.put(store, first)
    issuer = KeyIssuer(store, pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    key_admin = KeyAdmin(issuer, ["bot"], audit)
    for change in (key_admin.issue(OPS, "bot"), key_admin.rotate(OPS, first.id, 0.0), key_admin.revoke(OPS, first.id)):
        with pytest.raises(NotDone, match=r"^the disk is full$"):
            await change
    audit.close()
    assert not lines.octets
    assert await store.list() == [first]


async def test_a_key_that_ended_is_a_line_though_nobody_could_look_at_it_any_more() -> None:
    class Gone(MemoryKeys):
        gone = False

        async def revoke(self, key_id: str, at: float) -> bool:
            self.gone = await super().revoke(key_id, at)
            return self.gone

        async def get(self, key_id: str) -> KeyRecord | None:
            if self.gone:
                raise NotDone("away")
            return await super().get(key_id)

    lines, store = MemorySink(), Gone()
    audit = AuditLog(AuditWriter(lines))
    issuer = KeyIssuer(store, pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    _, key = await issuer.issue("bot")
    with pytest.raises(Unconfirmed, match=f"away: to see whether this was done, look for {key.id} in `keys list`"):
        await KeyAdmin(issuer, ["bot"], audit).revoke(OPS, key.id)
    audit.close()
    assert json.loads(lines.octets)["operation"] == "key revoked"


class Failing(MemorySink):
    def write(self, lines: bytes) -> int:
        raise OSError(28, "No space left on device")


async def test_what_cannot_be_written_down_is_not_done_but_a_key_that_must_end_ends() -> None:
    store, audit = MemoryKeys(), AuditLog(AuditWriter(Failing()), before_write=True)
    issuer = KeyIssuer(store, pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    key_admin = KeyAdmin(issuer, ["bot"], audit)
    _, record = await issuer.issue("bot")
    for refused in (
        key_admin.issue(OPS, "bot"),
        key_admin.import_key(OPS, "bot", "00" * 32),
        key_admin.rotate(OPS, record.id, 5.0),
    ):
        with pytest.raises(AuditFull):
            await refused
    assert await store.list() == [record]
    assert (await key_admin.revoke(OPS, record.id)).revoked_at == T
    audit.close()


async def test_without_an_audit_nothing_is_written(audited: Audited) -> None:
    issuer = KeyIssuer(MemoryKeys(), pepper=b"pepper", wall=lambda: T, random=secrets.token_bytes)
    key_admin = KeyAdmin(issuer, ["bot"], None)
    _, record = await key_admin.issue(OPS, "bot")
    assert await key_admin.list("bot") == [record]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "live"),
        ({"not_before": T + 1}, "pending"),
        ({"expires_at": T}, "expired"),
        ({"revoked_at": T, "expires_at": T}, "revoked"),
    ],
    ids=str,
)
def test_states(changes: dict[str, float], state: str) -> None:
    assert state_of(KeyRecord(id="k", identity="bot", digest=bytes(32), created_at=T, **changes), T) == state
