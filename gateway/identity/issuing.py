"""Making gateway keys: for the command line and the admin API."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..core.gateway_key import RANDOM_BYTES, digest, new_key
from ..core.secret import Secret
from ..ports import KeyRecord, KeyRefused, KeyRegister

_ID_BYTES = 6


class KeyIssuer:
    """Issues, lists and revokes keys in ``register``. ``random(n)`` gives n unpredictable octets; ``wall`` Unix seconds."""

    def __init__(
        self, register: KeyRegister, *, pepper: bytes, wall: Callable[[], float], random: Callable[[int], bytes]
    ) -> None:
        self._register = register
        self._pepper = pepper
        self._wall = wall
        self._random = random

    async def issue(
        self, identity: str, expires_at: float | None = None, *, not_before: float | None = None, note: str = ""
    ) -> tuple[Secret, KeyRecord]:
        """A new key and its record; the key is shown once, by whoever asked, and is kept nowhere.

        Raises KeyRefused when it could never be used, or when the identity has two live keys already.
        """
        now = self._wall()
        for instant in (expires_at, not_before):
            if instant is not None and not math.isfinite(instant):
                raise KeyRefused("a key's times are finite")
        if expires_at is not None and expires_at <= max(now, not_before or now):
            raise KeyRefused("a key that has expired before it can be used is of no use")
        key = new_key(self._random(RANDOM_BYTES))
        record = KeyRecord(
            id=f"key_{self._random(_ID_BYTES).hex()}",
            identity=identity,
            digest=digest(self._pepper, key),
            created_at=now,
            not_before=not_before,
            expires_at=expires_at,
            note=note,
        )
        await self._register.put(record)
        return key, record

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        """Oldest first, dead ones too for a while."""
        return await self._register.list(identity)

    async def revoke(self, key_id: str) -> bool:
        """At once; False when there is no such key."""
        return await self._register.revoke(key_id, self._wall())
