"""Sealed upstream tokens in Redis, shared by every gateway that reads it: a SealedStore.

One slot holds the records, their readers, the leader, and the number of leaders so far. Redis's clock is the only clock.
Redis must not evict these keys, and must persist them: ``maxmemory-policy noeviction`` and an append-only file.
"""

from __future__ import annotations

from importlib import resources

from ..ports import StoreUnavailable
from .credential_vault import SealedRecord, SealedSnapshot
from .redis_durability import durability_warning
from .redis_link import RedisError, RedisLink, RedisUnavailable

_RECORDS = "ggw:{credentials}:records"
_READERS = "ggw:{credentials}:readers"
_LEADER = "ggw:{credentials}:leader"
_FENCE = "ggw:{credentials}:fence"

_SILENT_MS = 600_000
"""A gateway that has not read for this long is no longer listed."""


class RedisCredentials:
    """A SealedStore. The link belongs to whoever made it: closing the store leaves it open."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        lua = resources.files(__package__) / "lua"
        self._read_script = (lua / "credentials_read.lua").read_text()
        self._put_script = (lua / "credentials_put.lua").read_text()
        self._lead_script = (lua / "credentials_lead.lua").read_text()
        self._resign_script = (lua / "credentials_resign.lua").read_text()

    async def read(self, reader: str) -> SealedSnapshot:
        answer = await self._eval(self._read_script, (_RECORDS, _READERS), reader, str(_SILENT_MS))
        if not isinstance(answer, list) or len(answer) != 3 or not isinstance(answer[0], int):
            raise StoreUnavailable("the credential store in Redis gave an unexpected reply")
        records = tuple(_parse_sealed(name, value) for name, value in sorted(_pairs(answer[1])))
        readers = {name.decode("utf-8", "replace"): _parse_int(at) / 1000 for name, at in _pairs(answer[2])}
        return SealedSnapshot(records, answer[0] / 1000, readers)

    async def put(self, record: SealedRecord, expect: int, fence: int | None) -> bool:
        value = b"%d:%b" % (record.version, record.octets)
        shown = "" if fence is None else str(fence)
        answer = await self._eval(self._put_script, (_RECORDS, _FENCE), record.id, str(expect), value, shown)
        return answer == 1

    async def lead(self, holder: str, lease_s: float) -> int | None:
        answer = await self._eval(self._lead_script, (_LEADER, _FENCE), holder, str(max(1, round(lease_s * 1000))))
        return answer if isinstance(answer, int) and answer > 0 else None

    async def resign(self, holder: str) -> None:
        await self._eval(self._resign_script, (_LEADER,), holder)

    async def durability_warning(self) -> str:
        try:
            return await durability_warning(self._link, "a rotated token")
        except RedisUnavailable as error:
            raise self._unavailable(error) from error

    async def close(self) -> None:
        """Does nothing: the link is shared."""

    async def _eval(self, script: str, keys: tuple[str, ...], *arguments: str | bytes) -> object:
        try:
            return await self._link.execute("EVAL", script, str(len(keys)), *keys, *arguments)
        except RedisError as error:
            raise StoreUnavailable(f"the credential store in Redis refuses: {error.kind}") from error
        except RedisUnavailable as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: RedisUnavailable) -> StoreUnavailable:
        return StoreUnavailable(f"the credential store in Redis did not answer ({self._link.trouble or error})")


def _parse_sealed(name: bytes, value: bytes) -> SealedRecord:
    # A value without a version gets version 0, under which nothing was ever sealed: it is reported as broken.
    version, _, octets = value.partition(b":")
    return SealedRecord(name.decode("utf-8", "replace"), _parse_int(version), octets)


def _parse_int(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 19 else 0


def _pairs(answer: object) -> list[tuple[bytes, bytes]]:
    """HGETALL's answer under RESP2."""
    flat = [item for item in answer if isinstance(item, bytes)] if isinstance(answer, list) else []
    return list(zip(flat[::2], flat[1::2], strict=False))
