"""Wires the gateway keys and what belongs to them: the store, the check of callers' keys, the changes to keys."""

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
from ..identity.key_issuer import KeyIssuer
from ..identity.keys import GatewayKeys
from ..identity.settings import IdentitySettings
from ..identity.token_exchange import TokenExchange
from ..pipeline import Gateway
from ..ports import Downstream, KeyRegister, KeyStore
from ..state_dir import open_state_dir
from ..stores.keys_memory import MemoryKeys
from ..stores.keys_redis import RedisKeys
from ..stores.keys_sqlite import SqliteKeys
from ..stores.redis_link import RedisLink
from ..telemetry.audit import AuditLog
from .key_admin import KeyAdmin

log = logging.getLogger("gateway.app")

Handle = Callable[[Downstream], Awaitable[None]]


def key_store(config: Config, link: RedisLink | None, *, make: bool = True) -> tuple[KeyStore, KeyRegister]:
    """Both interfaces of the configured key store. ``make``: create a file that is missing."""
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
    """Whether the pepper should be in ``state_dir``, and is not."""
    return config.secrets.pepper is None and not os.path.lexists(Path(config.state_dir) / "pepper")


async def live_keys(register: KeyRegister) -> int:
    """How many keys in the store have not ended. Raises StoreUnavailable."""
    now = time.time()
    return sum(record.is_live(now) for record in await register.list())


class KeyAssembly:
    """The keys of one gateway, needed only where identities have keys or get credentials by token exchange.

    Args:
        config: The gateway's configuration.
        settings: The identities that may call.
        pepper: Returns the pepper; called once.
        link: The link to the shared store; None: the keys are in SQLite, or in memory.
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

    async def check_store(self) -> None:
        """Check the store at start. Raises StoreUnavailable for a file that can't be used; a Redis may come up later."""
        if isinstance(self.store, SqliteKeys):
            await self.store.find(b"")
            if self._pepper_was_missing and (dead := await live_keys(self._register)):
                log.error(
                    "the pepper was missing from state_dir, and a new one was made: keys issued before no longer work "
                    "(%d live). Put the old one back from a backup and restart, or issue keys anew",
                    dead,
                )

    def gateway_keys(self, fingerprint_key: bytes) -> GatewayKeys:
        """The check of callers' keys, against the store."""
        return GatewayKeys(
            self.store,
            (*self._settings.keys, *self._settings.workloads),
            pepper=self._pepper,
            fingerprint_key=fingerprint_key,
            wall=time.time,
            monotonic=time.monotonic,
            stale_s=self._settings.keys_stale_s,
        )

    def key_admin(self, audit: AuditLog | None, changed: Callable[[str], None]) -> KeyAdmin:
        """What changes keys; it calls ``changed`` with the id of each key that has ended or will end."""
        return KeyAdmin(self.issuer, [identity.id for identity in self._settings.keys], audit, changed=changed)

    def exchange(self, authenticator: PrincipalAuthenticator) -> TokenExchange | None:
        """The exchange that gives credentials for workloads' tokens; None where no workloads are configured."""
        if not self._settings.workloads:
            return None
        workloads = self._settings.workloads
        return TokenExchange(authenticator, self.issuer, workloads, wall=time.time, monotonic=time.monotonic)


def with_token_endpoint(
    exchange: TokenExchange | None, gateway: Gateway, peers: TrustedPeers, hosts: frozenset[bytes]
) -> Handle:
    """The gateway's ``handle``, behind the token exchange where there is one."""
    if exchange is None:
        return gateway.handle
    admit = gateway.stages.audit.admit
    return TokenEndpoint(exchange, peers, hosts, admit=admit, recorder=gateway, handle=gateway.handle).handle


def no_keys(keyring_key: bytes, fingerprint_key: bytes) -> GatewayKeys:
    """The key check of a configuration without keys: every key is unknown."""
    return GatewayKeys(
        MemoryKeys(), (), pepper=keyring_key, fingerprint_key=fingerprint_key, wall=time.time, monotonic=time.monotonic
    )
