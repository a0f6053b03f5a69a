"""Gateway keys in Redis, shared by every gateway that reads it.

Everything is in one slot: digest → record, id → digest, id → last use; the digests of each identity's own keys as a set,
those of exchanged credentials by their ends. The last use is kept apart, so that noting it can never undo a revocation.
Records are JSON with a version; a record of a version that this gateway does not know admits nobody.
Redis must not evict these keys, and must persist them: ``maxmemory-policy noeviction`` and an append-only file.
"""

from __future__ import annotations

import contextlib
import secrets
from importlib import resources

import msgspec

from ..core.key_record import KEEP_DEAD_S, KEEP_EXCHANGED_S, LIVE_KEYS, MOST_EXCHANGED, KeyOrigin, KeyRecord, Replacement
from ..ports import KeyRefused, NotDone, StoreUnavailable
from .keys_memory import duplicate_message, too_many_exchanged_message, too_many_message
from .redis_link import RedisError, RedisLink, RedisUnavailable

_RECORDS = "ggw:{keys}:records"
_IDS = "ggw:{keys}:ids"
_USED = "ggw:{keys}:used"
_BY_IDENTITY = "ggw:{keys}:of:"
_ENDS = "ggw:{keys}:ends"
_REVISION = "ggw:{keys}:revision"

_VERSION = 2
_TRIES = 5
_SCAN_COUNT = 500
_NOT_WRITTEN = frozenset({"LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOREPLICAS", "OOM", "READONLY"})
"""Errors that refuse a script's first write already: nothing was written."""


class _Stored(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename={"version": "v"}):
    """A record as it is stored. The Lua scripts read its members id, expires_at and revoked_at."""

    version: int
    id: str
    identity: str
    created_at: float
    not_before: float | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    note: str = ""
    cidr: tuple[str, ...] = ()
    origin: KeyOrigin = KeyOrigin.ISSUED
    replaced_by: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Stored).decode


class RedisKeys:
    """A KeyStore and KeyRegister. The link belongs to whoever made it: closing the store leaves it open."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        lua = resources.files(__package__) / "lua"
        self._put_script = (lua / "keys_put.lua").read_text()
        self._exchanged_script = (lua / "keys_put_exchanged.lua").read_text()
        self._touch_script = (lua / "keys_touch.lua").read_text()
        self._revoke_script = (lua / "keys_revoke.lua").read_text()
        self._revision_script = (lua / "keys_revision.lua").read_text()

    async def revision(self) -> bytes:
        return _octets(await self._execute("EVAL", self._revision_script, "1", _REVISION, _new_revision()))

    async def find(self, digest: bytes) -> KeyRecord | None:
        found = await self._execute("HGET", _RECORDS, digest.hex())
        return _parse_record(digest, _octets(found)) if found is not None else None

    async def touch(self, key_id: str, at: float) -> None:
        await self._execute("EVAL", self._touch_script, "2", _IDS, _USED, key_id, repr(at))

    async def put(self, record: KeyRecord, replacing: Replacement | None = None) -> None:
        if not record.counted:
            self._raise_if_refused(await self._put_exchanged(record), record)
            return
        for _ in range(_TRIES):
            ended: tuple[bytes | str, ...] = ("", "", "")
            if replacing is not None:
                text, older = await self._read(replacing.id)
                refused = replacing.refusal_reason(older, record)
                if older is None or refused is not None:
                    raise KeyRefused(refused)
                after = older.replaced(record.id, replacing.until, record.created_at)
                ended = (older.digest.hex(), text, _encode(_to_stored(after)))
            answer = await self._put_counted(record, ended)
            if answer != b"changed":
                self._raise_if_refused(answer, record)
                return
        raise NotDone("the key to replace keeps changing")

    async def _put_counted(self, record: KeyRecord, ended: tuple[bytes | str, ...]) -> bytes:
        return _octets(
            await self._execute(
                "EVAL",
                self._put_script,
                "5",
                _RECORDS,
                _IDS,
                _USED,
                _BY_IDENTITY + record.identity,
                _REVISION,
                record.id,
                record.digest.hex(),
                _encode(_to_stored(record)),
                repr(record.created_at),
                str(LIVE_KEYS),
                repr(record.created_at - KEEP_DEAD_S),
                *ended,
                _new_revision(),
            )
        )

    async def _put_exchanged(self, record: KeyRecord) -> bytes:
        return _octets(
            await self._execute(
                "EVAL",
                self._exchanged_script,
                "4",
                _RECORDS,
                _IDS,
                _USED,
                _ENDS,
                record.id,
                record.digest.hex(),
                _encode(_to_stored(record)),
                repr(record.expires_at or record.created_at),
                repr(record.created_at - KEEP_EXCHANGED_S),
                str(MOST_EXCHANGED),
            )
        )

    def _raise_if_refused(self, answer: bytes, record: KeyRecord) -> None:
        match answer:
            case b"taken":
                raise KeyRefused(duplicate_message(record))
            case b"too_many":
                raise KeyRefused(too_many_message(record) if record.counted else too_many_exchanged_message())

    async def get(self, key_id: str) -> KeyRecord | None:
        _, record = await self._read(key_id)
        if record is None:
            return None
        used = await self._execute("HGET", _USED, key_id)
        return record if used is None else _with_last_use(record, _octets(used))

    async def _read(self, key_id: str) -> tuple[bytes, KeyRecord | None]:
        """A record's text as it is stored, and the record itself."""
        digest = await self._execute("HGET", _IDS, key_id)
        text = await self._execute("HGET", _RECORDS, _octets(digest)) if digest is not None else None
        if text is not None:
            record = _record_by_hex(_octets(digest), _octets(text))
            if record is None:
                raise NotDone(f"key {key_id} was written by another gateway version, or by something else")
            if record.id == key_id:
                return _octets(text), record
        # The id leads nowhere, as where only the ids were lost: the key still admits its bearer, and must be found.
        for name, there in (await self._read_hash(_RECORDS)).items():
            record = _record_by_hex(name, there)
            if record is not None and record.id == key_id:
                return there, record
        return b"", None

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        lines, used = await self._read_hash(_RECORDS), await self._read_hash(_USED)
        records = []
        for digest, text in lines.items():
            record = _record_by_hex(digest, text)
            if record is not None and (identity is None or record.identity == identity):
                at = used.get(record.id.encode("utf-8"))
                records.append(record if at is None else _with_last_use(record, at))
        return sorted(records, key=lambda record: (record.created_at, record.id))

    async def _read_hash(self, name: str) -> dict[bytes, bytes]:
        """Read a hash piece by piece: there may be many exchanged credentials, and others wait for this Redis."""
        found: dict[bytes, bytes] = {}
        cursor = b"0"
        while True:
            match await self._execute("HSCAN", name, cursor, "COUNT", str(_SCAN_COUNT)):
                case [bytes() as cursor, list() as flat]:
                    octets = [_octets(item) for item in flat]
                    found.update(zip(octets[::2], octets[1::2], strict=True))
                case _:
                    raise StoreUnavailable("the key store in Redis gave an unexpected reply")
            if cursor == b"0":
                return found

    async def revoke(self, key_id: str, at: float) -> bool:
        for _ in range(_TRIES):
            text, record = await self._read(key_id)
            if record is None:
                return False
            if record.revoked_at is not None:
                return True
            revoked = _encode(_to_stored(msgspec.structs.replace(record, revoked_at=at)))
            arguments = (self._revoke_script, "2", _RECORDS, _REVISION, record.digest.hex(), text, revoked, _new_revision())
            if await self._execute("EVAL", *arguments) == 1:
                return True
        raise NotDone(f"key {key_id} keeps changing")

    async def close(self) -> None:
        """Does nothing: the link is shared."""

    async def _execute(self, *args: str | bytes) -> object:
        try:
            return await self._link.execute(*args)
        except RedisError as error:
            kind = NotDone if error.kind in _NOT_WRITTEN else StoreUnavailable
            raise kind(f"the key store in Redis refuses: {error.kind}") from error
        except RedisUnavailable as error:
            kind = StoreUnavailable if error.sent else NotDone
            raise kind(f"the key store in Redis did not answer ({self._link.trouble or error})") from error


def _new_revision() -> str:
    return secrets.token_hex(16)


def _to_stored(record: KeyRecord) -> _Stored:
    return _Stored(
        version=_VERSION,
        id=record.id,
        identity=record.identity,
        created_at=record.created_at,
        not_before=record.not_before,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        note=record.note,
        cidr=record.cidr,
        origin=record.origin,
        replaced_by=record.replaced_by,
    )


def _record_by_hex(name: bytes, text: bytes) -> KeyRecord | None:
    """A record, by its digest in hex; None also where that is not hex."""
    try:
        digest = bytes.fromhex(name.decode("ascii"))
    except ValueError:
        return None
    return _parse_record(digest, text)


def _with_last_use(record: KeyRecord, at: bytes) -> KeyRecord:
    """``record`` with its last use; a value that is not an instant is ignored."""
    with contextlib.suppress(ValueError):
        return msgspec.structs.replace(record, last_used_at=float(at))
    return record


def _parse_record(digest: bytes, text: bytes) -> KeyRecord | None:
    stored = _parse_stored(text)
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
        cidr=stored.cidr,
        origin=stored.origin,
        replaced_by=stored.replaced_by,
    )


def _parse_stored(text: bytes) -> _Stored | None:
    try:
        stored = _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return stored if stored.version == _VERSION else None


def _octets(answer: object) -> bytes:
    if isinstance(answer, bytes):
        return answer
    raise StoreUnavailable("the key store in Redis gave an unexpected reply")
