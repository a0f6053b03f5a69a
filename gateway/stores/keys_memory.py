"""Gateway keys in a dict: the reference that the other key stores are compared with. Nothing outlives the process."""

from __future__ import annotations

import msgspec

from ..core.key_record import LIVE_KEYS, MOST_EXCHANGED, KeyRecord, Replacement
from ..ports import KeyRefused


class MemoryKeys:
    """A KeyStore and KeyRegister. No method suspends, so each is one step."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, KeyRecord] = {}
        self._revision = 0

    async def revision(self) -> int:
        return self._revision

    async def find(self, digest: bytes) -> KeyRecord | None:
        return self._by_digest.get(digest)

    async def touch(self, key_id: str, at: float) -> None:
        record = self._by_id(key_id)
        if record is not None and (record.last_used_at is None or record.last_used_at < at):
            self._by_digest[record.digest] = msgspec.structs.replace(record, last_used_at=at)

    async def put(self, record: KeyRecord, replacing: Replacement | None = None) -> None:
        now = record.created_at
        if record.digest in self._by_digest or self._by_id(record.id) is not None:
            raise KeyRefused(duplicate_message(record))
        ended = None
        if replacing is not None:
            older = self._by_id(replacing.id)
            refused = replacing.refusal_reason(older, record)
            if older is None or refused is not None:
                raise KeyRefused(refused)
            ended = older.replaced(record.id, replacing.until, now)
        if record.counted:
            theirs = [one for one in self._by_digest.values() if one.counted and one.identity == record.identity]
            after = [ended if ended is not None and one.id == ended.id else one for one in theirs]
            if sum(one.is_live(now) for one in after) >= LIVE_KEYS:
                raise KeyRefused(too_many_message(record))
        else:
            theirs = [one for one in self._by_digest.values() if not one.counted]
            if sum(not one.is_forgettable(now) for one in theirs) >= MOST_EXCHANGED:
                raise KeyRefused(too_many_exchanged_message())
        for one in theirs:
            if one.is_forgettable(now):
                del self._by_digest[one.digest]
        if ended is not None:
            self._by_digest[ended.digest] = ended
            self._revision += 1
        self._by_digest[record.digest] = record

    async def get(self, key_id: str) -> KeyRecord | None:
        return self._by_id(key_id)

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        found = [record for record in self._by_digest.values() if identity is None or record.identity == identity]
        return sorted(found, key=lambda record: (record.created_at, record.id))

    async def revoke(self, key_id: str, at: float) -> bool:
        record = self._by_id(key_id)
        if record is None:
            return False
        if record.revoked_at is None:
            self._by_digest[record.digest] = msgspec.structs.replace(record, revoked_at=at)
            self._revision += 1
        return True

    async def close(self) -> None:
        self._by_digest.clear()

    def _by_id(self, key_id: str) -> KeyRecord | None:
        return next((record for record in self._by_digest.values() if record.id == key_id), None)


def duplicate_message(record: KeyRecord) -> str:
    """The message for a second key of the same id or digest."""
    return f"a key {record.id} or one with the same digest exists already"


def too_many_message(record: KeyRecord) -> str:
    """The message for one key too many."""
    return (
        f"{record.identity} has {LIVE_KEYS} live keys already, the most that are allowed during a rotation: "
        f"revoke one of them first (gitlab-gateway keys list {record.identity})"
    )


def too_many_exchanged_message() -> str:
    """The message for one exchanged credential too many."""
    return f"there are {MOST_EXCHANGED} exchanged credentials already: none is issued until some expire"
