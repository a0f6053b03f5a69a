"""Gateway keys over the admin port: a real server, a real store."""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pytest_aiohttp.plugin import AiohttpClient

from gateway.app.admin_keys import key_endpoints
from gateway.app.key_admin import KeyAdmin
from gateway.core.admin_permission import Permission
from gateway.core.gateway_key import is_well_formed, new_key
from gateway.core.key_record import KeyRecord, Replacement
from gateway.edge.admin import Admin, AdminKey, AdminSettings, Readiness
from gateway.identity.key_issuer import KeyIssuer, KeyTerms
from gateway.ports import NotDone, StoreUnavailable
from gateway.stores.keys_memory import MemoryKeys
from gateway.telemetry.audit import AuditLog
from gateway.telemetry.audit_writer import AuditWriter
from tests.fakes.sink import MemorySink

KEY = "an-admin-key-of-some-length"
HASH = hashlib.sha256(KEY.encode()).digest()
PORTAL = "an-admin-key-of-a-portal"
PORTAL_HASH = hashlib.sha256(PORTAL.encode()).digest()


class Store(MemoryKeys):
    away = False

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        if self.away:
            raise StoreUnavailable("unplugged: redis://:password@example.com")
        return await super().list(identity)

    async def put(self, record: KeyRecord, replacing: Replacement | None = None) -> None:
        if self.away:
            raise NotDone("keys.db: database or disk is full")
        await super().put(record, replacing)


class Port:
    def __init__(self) -> None:
        self.admin_key = KEY
        self.store, self.lines, self.ended = Store(), MemorySink(), list[str]()
        self.now = datetime.datetime.now(datetime.UTC).timestamp()
        self.issuer = KeyIssuer(self.store, pepper=b"pepper", wall=lambda: self.now, random=secrets.token_bytes)
        self.audit = AuditLog(AuditWriter(self.lines))
        self.key_admin = KeyAdmin(self.issuer, ["bot", "app"], self.audit, changed=self.ended.append)
        self.client: Any = None

    async def __call__(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        fields = {"Authorization": f"Bearer {self.admin_key}"} | (
            {"Content-Type": "application/json"} if body is not None else {}
        )
        data = json.dumps(body).encode() if body is not None else None
        async with self.client.request(method, path, headers=fields, data=data) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    def audited(self) -> list[dict[str, Any]]:
        self.audit.close()
        return [json.loads(line) for line in self.lines.octets.splitlines()]


@pytest.fixture
async def port(aiohttp_client: AiohttpClient) -> AsyncIterator[Port]:
    made = Port()

    async def metrics() -> bytes:
        return b""

    async def readiness() -> Readiness:
        return Readiness(True, {})

    admin = Admin(
        AdminSettings(
            (
                AdminKey("ops", HASH, frozenset(Permission)),
                AdminKey("portal", PORTAL_HASH, frozenset({Permission.KEYS}), frozenset({"bot"})),
            )
        ),
        metrics=metrics,
        metrics_type="text/plain",
        readiness=readiness,
        endpoints=key_endpoints(made.key_admin),
    )
    made.client = await aiohttp_client(admin.application())
    yield made
    made.audit.close()


async def test_a_key_from_making_to_its_end(port: Port) -> None:
    bounds = {"expires_at": "2100-01-01T00:00:00Z", "cidr": ["192.0.2.0/24"], "note": "portal"}
    status, made = await port("POST", "/-/keys", {"identity": "bot", **bounds})
    assert status == 201
    key = made.pop("key")
    assert is_well_formed(key)
    assert {name: made[name] for name in ("identity", "state", "origin", "cidr", "note", "expires_at")} == {
        "identity": "bot",
        "state": "live",
        "origin": "issued",
        "cidr": ["192.0.2.0/24"],
        "note": "portal",
        "expires_at": "2100-01-01T00:00:00.000Z",
    }
    assert await port("GET", f"/-/keys/{made['id']}") == (200, made)
    assert await port("GET", "/-/keys") == (200, {"keys": [made]})
    status, newer = await port("POST", f"/-/keys/{made['id']}/rotate", {"overlap_s": 60})
    assert (status, newer["note"]) == (201, "portal")
    _, older = await port("GET", f"/-/keys/{made['id']}")
    assert (older["replaced_by"], older["state"]) == (newer["id"], "live")
    assert await port("DELETE", f"/-/keys/{made['id']}") == (204, None)
    assert await port("DELETE", f"/-/keys/{made['id']}") == (204, None)
    assert (await port("GET", f"/-/keys/{made['id']}"))[1]["state"] == "revoked"
    assert port.ended == [made["id"]] * 3
    lines = port.audited()
    assert [line["operation"] for line in lines] == ["key issued", "key rotated", "key revoked", "key revoked"]
    assert {(line["principal"], line["method"], line["peer"]) for line in lines} == {
        (f"admin:{HASH.hex()[:12]}", "POST", "127.0.0.1"),
        (f"admin:{HASH.hex()[:12]}", "DELETE", "127.0.0.1"),
    }
    assert key not in port.lines.octets.decode()


async def test_a_key_is_imported_by_its_hash(port: Port) -> None:
    key = new_key(secrets.token_bytes(32)).reveal()
    hashed = hashlib.sha256(key.encode()).hexdigest()
    status, made = await port("POST", "/-/keys/import", {"identity": "app", "sha256": hashed})
    assert (status, made["origin"], "key" in made) == (201, "imported", False)
    status, answer = await port("POST", "/-/keys/import", {"identity": "app", "sha256": hashed})
    assert (status, "exists already" in answer["message"]) == (409, True)


async def test_the_list_is_by_identity_and_state_and_in_pages(port: Port) -> None:
    for _ in range(2):
        await port.issuer.issue("bot", KeyTerms(not_before=port.now + 3600))
        port.now += 1
    _, record = await port.issuer.issue("app")
    status, answer = await port("GET", "/-/keys?per_page=2")
    assert (status, [one["identity"] for one in answer["keys"]], answer["next_page"]) == (200, ["bot", "bot"], 2)
    assert [one["id"] for one in (await port("GET", "/-/keys?per_page=2&page=2"))[1]["keys"]] == [record.id]
    assert (await port("GET", "/-/keys?page=9"))[1] == {"keys": []}
    assert len((await port("GET", "/-/keys?state=pending"))[1]["keys"]) == 2
    assert [one["id"] for one in (await port("GET", "/-/keys?identity=app&state=live"))[1]["keys"]] == [record.id]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/-/keys/key_none", None, 404, "no key has the id"),
        ("DELETE", "/-/keys/key_none", None, 404, "no key has the id"),
        ("POST", "/-/keys/key_none/rotate", {}, 404, "no key has the id"),
        ("GET", "/-/keys?page=0", None, 400, "page: must be a number"),
        ("GET", "/-/keys?per_page=101", None, 400, "per_page: must be a number from 1 to 100"),
        ("GET", "/-/keys?state=dead", None, 400, "state: must be one of"),
        ("GET", "/-/keys?sort=id", None, 400, "known parameters, each at most once"),
        ("POST", "/-/keys", {}, 400, "missing required field `identity`"),
        ("POST", "/-/keys", {"identity": "ghost"}, 400, "not an identity with `key: issued`"),
        ("POST", "/-/keys", {"identity": "bot", "expires": "1d"}, 400, "unknown field"),
        ("POST", "/-/keys", {"identity": "bot", "expires_at": "2100-01-01T00:00:00"}, 400, "timezone"),
        ("POST", "/-/keys", {"identity": "bot", "expires_at": "2001-01-01T00:00:00Z"}, 400, "must not expire before"),
        ("POST", "/-/keys", {"identity": "bot", "expires_at": "9999-12-31T23:59:59-14:00"}, 400, "years 1 to 9999"),
        ("POST", "/-/keys", {"identity": "bot", "not_before": "0001-01-01T00:00:00+14:00"}, 400, "years 1 to 9999"),
        ("POST", "/-/keys", {"identity": "bot", "cidr": ["everywhere"]}, 400, "a network is written like"),
        ("POST", "/-/keys", {"identity": "bot", "note": "a\nb"}, 400, "printable"),
        ("POST", "/-/keys/import", {"identity": "bot", "sha256": "zz"}, 400, "64 hex digits"),
        ("POST", "/-/keys/import", {"identity": "bot", "sha256": "00"}, 400, "32 octets"),
        ("POST", "/-/keys/import", {"identity": "bot"}, 400, "missing required field `sha256`"),
    ],
)
async def test_what_cannot_be_done_is_said_and_changes_nothing(
    port: Port, method: str, path: str, body: object, status: int, words: str
) -> None:
    got, answer = await port(method, path, body)
    assert (got, words in answer["message"]) == (status, True), answer
    assert await port.key_admin.list() == []
    assert port.audited() == []


async def test_a_stored_key_whose_times_can_not_be_told_is_listed_still(port: Port) -> None:
    begin, end = -62_200_000_000.0, 260_000_000_000.0
    await port.store.put(
        KeyRecord(id="key_old", identity="bot", digest=bytes(32), created_at=port.now, not_before=begin, expires_at=end)
    )
    status, answer = await port("GET", "/-/keys")
    assert (status, answer["keys"][0]["state"]) == (200, "live")
    assert answer["keys"][0]["not_before"] == "0001-01-01T00:00:00.000Z"
    assert answer["keys"][0]["expires_at"] == "9999-12-31T23:59:59.000Z"
    assert (await port("POST", "/-/keys/key_old/rotate", {}))[0] == 201


async def test_a_third_live_key_is_a_conflict(port: Port) -> None:
    for expected in (201, 201, 409):
        assert (await port("POST", "/-/keys", {"identity": "bot"}))[0] == expected


@pytest.mark.parametrize("overlap_s", [-1, 1e9])
async def test_an_overlap_without_sense_is_refused(port: Port, overlap_s: float) -> None:
    _, record = await port.issuer.issue("bot")
    assert (await port("POST", f"/-/keys/{record.id}/rotate", {"overlap_s": overlap_s}))[0] == 400


async def test_a_key_is_rotated_once(port: Port) -> None:
    _, record = await port.issuer.issue("bot")
    path = f"/-/keys/{record.id}/rotate"
    assert [(await port("POST", path, {}))[0] for _ in range(2)] == [201, 409]


async def test_an_outage_of_the_store_is_reported_without_its_address(port: Port) -> None:
    port.store.away = True
    status, answer = await port("GET", "/-/keys")
    assert (status, "password" in json.dumps(answer)) == (503, False)


async def test_what_the_store_did_not_do_is_reported_in_its_words(port: Port) -> None:
    port.store.away = True
    status, answer = await port("POST", "/-/keys", {"identity": "bot"})
    assert status == 503
    assert "keys.db: database or disk is full: nothing was changed" in json.dumps(answer)
    assert port.audited() == []


# A key for some identities


async def test_a_portal_handles_the_keys_of_its_identities_alone(port: Port) -> None:
    _, theirs = await port("POST", "/-/keys", {"identity": "app"})
    port.admin_key = PORTAL
    status, ours = await port("POST", "/-/keys", {"identity": "bot"})
    assert status == 201
    assert [one["id"] for one in (await port("GET", "/-/keys"))[1]["keys"]] == [ours["id"]]
    assert await port("GET", "/-/keys?identity=app") == (200, {"keys": []})
    assert (await port("GET", f"/-/keys/{ours['id']}"))[0] == 200
    assert (await port("POST", f"/-/keys/{ours['id']}/rotate", {}))[0] == 201
    assert (await port("DELETE", f"/-/keys/{ours['id']}"))[0] == 204
    port.admin_key = KEY
    assert (await port("GET", f"/-/keys/{theirs['id']}"))[1]["state"] == "live"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "", None), ("POST", "/rotate", {}), ("DELETE", "", None)],
    ids=["get", "rotate", "end"],
)
async def test_for_a_portal_the_keys_of_others_do_not_exist(port: Port, method: str, path: str, body: object) -> None:
    _, theirs = await port("POST", "/-/keys", {"identity": "app"})
    port.admin_key = PORTAL
    foreign = await port(method, f"/-/keys/{theirs['id']}{path}", body)
    unknown = await port(method, f"/-/keys/key_0123456789ab{path}", body)
    assert foreign[0] == unknown[0] == 404
    assert foreign[1]["message"].replace(theirs["id"], "key_0123456789ab") == unknown[1]["message"]
    port.admin_key = KEY
    assert (await port("GET", f"/-/keys/{theirs['id']}"))[1] == {name: theirs[name] for name in theirs if name != "key"}


@pytest.mark.parametrize("identity", ["app", "no-such"])
async def test_a_portal_makes_no_keys_of_others(port: Port, identity: str) -> None:
    """Whether there is such an identity is not told either."""
    port.admin_key = PORTAL
    for path, more in (("/-/keys", {}), ("/-/keys/import", {"sha256": "0" * 64})):
        status, answer = await port("POST", path, {"identity": identity, **more})
        assert (status, answer["message"]) == (
            403,
            f"403 Forbidden: the admin key is not for keys of `{identity}` (`admin.keys[].identities`)",
        )
    port.admin_key = KEY
    assert await port("GET", "/-/keys") == (200, {"keys": []})
