"""Gateway keys in a dict: the reference that the other key stores are compared with. Nothing outlives the process."""

from __future__ import annotations

import msgspec

from ..ports import KEEP_DEAD_S, LIVE_KEYS, KeyRecord, KeyRefused


class MemoryKeys:
    """A KeyStore and KeyRegister. No method suspends, so each is one step."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, KeyRecord] = {}

    async def find(self, digest: bytes) -> KeyRecord | None:
        return self._by_digest.get(digest)

    async def touch(self, key_id: str, at: float) -> None:
        record = self._by_id(key_id)
        if record is not None and (record.last_used_at is None or record.last_used_at < at):
            self._by_digest[record.digest] = msgspec.structs.replace(record, last_used_at=at)

    async def put(self, record: KeyRecord) -> None:
        if record.digest in self._by_digest or self._by_id(record.id) is not None:
            raise KeyRefused(taken(record))
        theirs = [other for other in self._by_digest.values() if other.identity == record.identity]
        if sum(other.is_live(record.created_at) for other in theirs) >= LIVE_KEYS:
            raise KeyRefused(too_many(record))
        for other in theirs:
            if is_forgettable(other, record.created_at):
                del self._by_digest[other.digest]
        self._by_digest[record.digest] = record

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        found = [record for record in self._by_digest.values() if identity is None or record.identity == identity]
        return sorted(found, key=lambda record: (record.created_at, record.id))

    async def revoke(self, key_id: str, at: float) -> bool:
        record = self._by_id(key_id)
        if record is None:
            return False
        if record.revoked_at is None:
            self._by_digest[record.digest] = msgspec.structs.replace(record, revoked_at=at)
        return True

    async def close(self) -> None:
        self._by_digest.clear()

    def _by_id(self, key_id: str) -> KeyRecord | None:
        return next((record for record in self._by_digest.values() if record.id == key_id), None)


def is_forgettable(record: KeyRecord, now: float) -> bool:
    """Dead for so long that listing it serves nobody."""
    ends = [instant for instant in (record.revoked_at, record.expires_at) if instant is not None]
    return bool(ends) and min(ends) <= now - KEEP_DEAD_S


def taken(record: KeyRecord) -> str:
    """The message for a second key of the same id or digest."""
    return f"a key {record.id} or one with the same digest exists already"


def too_many(record: KeyRecord) -> str:
    """The message for one key too many."""
    return (
        f"{record.identity} has {LIVE_KEYS} live keys already, the most there may be during a rotation: "
        f"revoke one of them first (gitlab-gateway keys list {record.identity})"
    )
