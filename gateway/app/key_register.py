"""The key store as the commands use it: opened, used, closed."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

from ..config import Config
from ..identity.issuing import KeyIssuer
from ..ports import KeyRecord
from ..state_dir import open_state_dir
from ..stores.redis_link import RedisLink
from .assembly import Keyring, key_store

_TIMEOUT_S = 2.0


class Keys:
    """Issue, list, revoke."""

    def __init__(self, issuer: KeyIssuer) -> None:
        self._issuer = issuer

    async def issue(self, identity: str, expires_at: float | None = None) -> str:
        """The new key itself, shown this once. Raises KeyRefused, StoreUnavailable."""
        key, _ = await self._issuer.issue(identity, expires_at)
        return key.reveal()

    async def list(self) -> list[KeyRecord]:
        """Oldest first."""
        return await self._issuer.list()

    async def revoke(self, key_id: str) -> bool:
        """False when there is no such key."""
        return await self._issuer.revoke(key_id)


@contextlib.asynccontextmanager
async def open_key_store(config: Config) -> AsyncIterator[Keys]:
    """Open the configured store. Raises StateRefused, OSError."""
    stored = config.stores.keys
    async with contextlib.AsyncExitStack() as stack:
        link = None
        if stored is not None and stored.shared:
            link = RedisLink.from_url(stored.url.reveal(), timeout_s=_TIMEOUT_S, name="keys")
            stack.push_async_callback(link.close)
        else:
            open_state_dir(Path(config.state_dir))
        _, register = key_store(config, link)
        stack.push_async_callback(register.close)
        yield Keys(KeyIssuer(register, pepper=Keyring(config).pepper, wall=time.time, random=secrets.token_bytes))
