"""Gateway keys in Redis, shared by every gateway that reads it.

Three hashes in one slot: digest → record, id → digest, id → last use. Last use stands apart so that noting it can never
undo a revocation. Records are JSON with a version; one of a version this gateway does not know admits nobody.
Redis must not evict these keys, and must persist them: ``maxmemory-policy noeviction`` and an append-only file.
"""

from __future__ import annotations

from importlib import resources

import msgspec

from ..ports import KEEP_DEAD_S, LIVE_KEYS, KeyRecord, KeyRefused, StoreUnavailable
from .keys_memory import taken, too_many
from .redis_link import RedisError, RedisLink, RedisUnavailable

_RECORDS = "ggw:{keys}:records"
_IDS = "ggw:{keys}:ids"
_USED = "ggw:{keys}:used"

_VERSION = 1
_REVOKE_TRIES = 5


class _Stored(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename={"version": "v"}):
    """A record as it lies there. Members the Lua scripts read: id, identity, expires_at, revoked_at."""

    version: int
    id: str
    identity: str
    created_at: float
    not_before: float | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    note: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Stored).decode


class RedisKeys:
    """A KeyStore and KeyRegister. The link is whoever's made it: closing the store leaves it open."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        lua = resources.files(__package__) / "lua"
        self._put_script = (lua / "keys_put.lua").read_text()
        self._touch_script = (lua / "keys_touch.lua").read_text()
        self._revoke_script = (lua / "keys_revoke.lua").read_text()

    async def find(self, digest: bytes) -> KeyRecord | None:
        found = await self._execute("HGET", _RECORDS, digest.hex())
        return _record(digest, _octets(found)) if found is not None else None

    async def touch(self, key_id: str, at: float) -> None:
        await self._execute("EVAL", self._touch_script, "2", _IDS, _USED, key_id, repr(at))

    async def put(self, record: KeyRecord) -> None:
        answer = await self._execute(
            "EVAL",
            self._put_script,
            "3",
            _RECORDS,
            _IDS,
            _USED,
            record.id,
            record.identity,
            record.digest.hex(),
            _encode(_stored(record)),
            repr(record.created_at),
            str(LIVE_KEYS),
            repr(record.created_at - KEEP_DEAD_S),
        )
        match _octets(answer):
            case b"taken":
                raise KeyRefused(taken(record))
            case b"too_many":
                raise KeyRefused(too_many(record))

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        lines = await self._execute("HGETALL", _RECORDS)
        used = _pairs(await self._execute("HGETALL", _USED))
        records = []
        for digest, text in _pairs(lines).items():
            record = _record(bytes.fromhex(digest.decode("ascii")), text)
            if record is None or (identity is not None and record.identity != identity):
                continue
            at = used.get(record.id.encode("utf-8"))
            records.append(record if at is None else msgspec.structs.replace(record, last_used_at=float(at)))
        return sorted(records, key=lambda record: (record.created_at, record.id))

    async def revoke(self, key_id: str, at: float) -> bool:
        for _ in range(_REVOKE_TRIES):
            digest = await self._execute("HGET", _IDS, key_id)
            if digest is None:
                return False
            text = await self._execute("HGET", _RECORDS, _octets(digest))
            if text is None:
                return False
            stored = _readable(_octets(text))
            if stored is None:
                raise StoreUnavailable(f"key {key_id} was written by another gateway version")
            if stored.revoked_at is not None:
                return True
            revoked = _encode(msgspec.structs.replace(stored, revoked_at=at))
            if (
                await self._execute("EVAL", self._revoke_script, "1", _RECORDS, _octets(digest), _octets(text), revoked)
                == 1
            ):
                return True
        raise StoreUnavailable(f"key {key_id} keeps changing")

    async def close(self) -> None:
        """Nothing: the link is shared."""

    async def _execute(self, *args: str | bytes) -> object:
        try:
            return await self._link.execute(*args)
        except (RedisUnavailable, RedisError) as error:
            raise StoreUnavailable("the key store in Redis did not answer") from error


def _stored(record: KeyRecord) -> _Stored:
    return _Stored(
        version=_VERSION,
        id=record.id,
        identity=record.identity,
        created_at=record.created_at,
        not_before=record.not_before,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        note=record.note,
    )


def _record(digest: bytes, text: bytes) -> KeyRecord | None:
    stored = _readable(text)
    if stored is None:
        return None
    return KeyRecord(
        id=stored.id,
        identity=stored.identity,
        digest=digest,
        created_at=stored.created_at,
        not_before=stored.not_before,
        expires_at=stored.expires_at,
        revoked_at=stored.revoked_at,
        note=stored.note,
    )


def _readable(text: bytes) -> _Stored | None:
    try:
        stored = _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return stored if stored.version == _VERSION else None


def _pairs(answer: object) -> dict[bytes, bytes]:
    """HGETALL's answer under RESP2."""
    if isinstance(answer, list):
        flat = [_octets(item) for item in answer]
        return dict(zip(flat[::2], flat[1::2], strict=True))
    raise StoreUnavailable("the key store in Redis answered nonsense")


def _octets(answer: object) -> bytes:
    if isinstance(answer, bytes):
        return answer
    raise StoreUnavailable("the key store in Redis answered nonsense")
