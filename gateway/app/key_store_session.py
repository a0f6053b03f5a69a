"""The key store for the commands: opened, used and closed again."""

from __future__ import annotations

import contextlib
import enum
import os
import pwd
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from ..config import Config
from ..identity.key_issuer import KeyIssuer
from ..state_dir import StateRefused, open_state_dir
from ..stores.redis_durability import durability_warning
from ..stores.redis_endpoint import HashTag
from ..stores.redis_link import RedisLink, RedisUnavailable
from ..telemetry.audit import AuditLog
from .audit_assembly import open_audit
from .key_admin import Actor, KeyAdmin
from .key_assembly import key_store, live_keys, pepper_is_missing
from .keyring import Keyring

_TIMEOUT_S = 2.0


class KeyStoreUse(enum.Enum):
    """What a command does with the store, which decides what may be created."""

    READ = enum.auto()
    """Only read: no audit is opened, and nothing is created."""
    REVOKE = enum.auto()
    """End existing keys."""
    ROTATE = enum.auto()
    """Replace existing keys, which takes the pepper that they were made with."""
    ISSUE = enum.auto()
    """Make keys, including the first: whatever is missing is created."""


class KeyStoreSession(msgspec.Struct, frozen=True):
    """The key store of a configuration, and the actor that uses it."""

    key_admin: KeyAdmin
    actor: Actor
    warning: str = ""
    """What endangers new keys in the store, for the operator."""


@contextlib.asynccontextmanager
async def open_key_store(config: Config, use: KeyStoreUse = KeyStoreUse.ISSUE) -> AsyncIterator[KeyStoreSession]:
    """Open the configured store and, unless it is only read, the audit: what cannot be recorded is not done.

    Raises StateRefused, StoreUnavailable, OSError.
    """
    issues = use is KeyStoreUse.ISSUE
    stored = config.stores.keys
    async with contextlib.AsyncExitStack() as stack:
        link = None
        if stored is not None and stored.shared:
            link = RedisLink.from_url(stored.url.reveal(), timeout_s=_TIMEOUT_S, name="keys", tag=HashTag.KEYS)
            stack.push_async_callback(link.close)
        else:
            open_state_dir(Path(config.state_dir), make=issues)
        _, register = key_store(config, link, make=issues)
        stack.push_async_callback(register.close)
        if not issues:
            await register.get("")  # a missing store is reported before anything reaches the audit
        pepper, warning = b"", ""
        if use in {KeyStoreUse.ISSUE, KeyStoreUse.ROTATE}:
            if link is not None:
                with contextlib.suppress(RedisUnavailable):  # the store itself says so
                    warning = await durability_warning(link, "new gateway keys and revocations")
            if pepper_is_missing(config) and (dead := await live_keys(register)):
                # A running gateway uses the pepper that it read at its start: it would not know keys made with a new one.
                raise StateRefused(
                    f"{config.state_dir}/pepper is missing, and keys in the store ({dead} live) need it: put it back from "
                    "a backup, or restart the gateway, which makes a new one and says so"
                )
            pepper = Keyring(config, make=issues).pepper
        audit = None if use is KeyStoreUse.READ else _audit(config, Keyring(config, make=issues))
        if audit is not None:
            stack.callback(audit.close)
        issuer = KeyIssuer(register, pepper=pepper, wall=time.time, random=secrets.token_bytes)
        issued = [identity.id for identity in config.identities if identity.key is not None]
        yield KeyStoreSession(KeyAdmin(issuer, issued, audit), Actor(f"command:{_user()}", "command"), warning)


def _audit(config: Config, keyring: Keyring) -> AuditLog:
    # A command's standard output is for the key that it makes: audit lines meant for it go to standard error.
    where = "stderr" if config.audit.sink == "stdout" else config.audit.sink
    return open_audit(config, lambda: keyring.audit, where=where)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        return str(os.getuid())
