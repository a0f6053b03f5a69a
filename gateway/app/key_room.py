"""Gateway keys and what belongs to them, wired: the store, who is recognised by it, who changes it."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..config import Config
from ..core.client_address import TrustedPeers
from ..edge.token_endpoint import TokenEndpoint
from ..identity.authenticator import PrincipalAuthenticator
from ..identity.exchanging import TokenExchange
from ..identity.issuing import KeyIssuer
from ..identity.keys import GatewayKeys
from ..identity.settings import IdentitySettings
from ..pipeline import Gateway
from ..ports import Downstream, KeyRegister, KeyStore
from ..state_dir import open_state_dir
from ..stores.keys_memory import MemoryKeys
from ..stores.keys_redis import RedisKeys
from ..stores.keys_sqlite import SqliteKeys
from ..stores.redis_link import RedisLink
from ..telemetry.audit import AuditLog
from .key_office import KeyOffice

log = logging.getLogger("gateway.app")

Handle = Callable[[Downstream], Awaitable[None]]


def key_store(config: Config, link: RedisLink | None, *, make: bool = True) -> tuple[KeyStore, KeyRegister]:
    """Both faces of the configured key store; ``make``: a file that is missing is begun."""
    keys = config.stores.keys
    if keys is None or keys.scheme == "memory":
        memory = MemoryKeys()
        return memory, memory
    if link is not None:
        redis = RedisKeys(link)
        return redis, redis
    sqlite = SqliteKeys(Path(keys.url.reveal().removeprefix("sqlite://")), make=make)
    return sqlite, sqlite


def pepper_is_missing(config: Config) -> bool:
    """It is to be in ``state_dir``, and is not."""
    return config.secrets.pepper is None and not os.path.lexists(Path(config.state_dir) / "pepper")


async def live_keys(register: KeyRegister) -> int:
    """How many keys somebody may hold. Raises StoreUnavailable."""
    now = time.time()
    return sum(record.is_live(now) for record in await register.list())


class KeyRoom:
    """One gateway's; only where somebody has keys or is given credentials in exchange.

    Args:
        config: Its configuration.
        settings: Who may call.
        pepper: Asked for once.
        link: To the shared store; None: SQLite.
    """

    def __init__(
        self, config: Config, settings: IdentitySettings, pepper: Callable[[], bytes], link: RedisLink | None
    ) -> None:
        if link is None:
            open_state_dir(Path(config.state_dir))
        self.store, register = key_store(config, link)
        self._register = register
        self._pepper_was_missing = pepper_is_missing(config)
        self._pepper = pepper()
        self._settings = settings
        self.issuer = KeyIssuer(register, pepper=self._pepper, wall=time.time, random=secrets.token_bytes)

    async def look(self) -> None:
        """Raises StoreUnavailable where keys are in a file that can't be used. A Redis may come later."""
        if isinstance(self.store, SqliteKeys):
            await self.store.find(b"")
            if self._pepper_was_missing and (dead := await live_keys(self._register)):
                log.error(
                    "the pepper was missing from state_dir, and a new one is made: no key that was issued before works "
                    "(%d live). Put the old one back from a backup and restart, or issue keys anew",
                    dead,
                )

    def gateway_keys(self, fingerprint_key: bytes) -> GatewayKeys:
        """What judges them."""
        return GatewayKeys(
            self.store,
            (*self._settings.keys, *self._settings.workloads),
            pepper=self._pepper,
            fingerprint_key=fingerprint_key,
            wall=time.time,
            monotonic=time.monotonic,
            stale_s=self._settings.keys_stale_s,
        )

    def office(self, audit: AuditLog | None, changed: Callable[[str], None]) -> KeyOffice:
        """What changes them; ``changed`` is told of each key that ended."""
        return KeyOffice(self.issuer, [identity.id for identity in self._settings.keys], audit, changed=changed)

    def exchange(self, authenticator: PrincipalAuthenticator) -> TokenExchange | None:
        """What gives credentials for workloads' tokens, where there are workloads."""
        if not self._settings.workloads:
            return None
        workloads = self._settings.workloads
        return TokenExchange(authenticator, self.issuer, workloads, wall=time.time, monotonic=time.monotonic)


def receiving_tokens(
    exchange: TokenExchange | None, gateway: Gateway, peers: TrustedPeers, hosts: frozenset[bytes]
) -> Handle:
    """The gateway's ``handle``, with token exchange before it where there is one."""
    if exchange is None:
        return gateway.handle
    admit = gateway.road.record.admit
    return TokenEndpoint(exchange, peers, hosts, admit=admit, ledger=gateway, handle=gateway.handle).handle


def no_keys(keyring_key: bytes, fingerprint_key: bytes) -> GatewayKeys:
    """Where nobody has any: every one is unknown."""
    return GatewayKeys(
        MemoryKeys(), (), pepper=keyring_key, fingerprint_key=fingerprint_key, wall=time.time, monotonic=time.monotonic
    )
