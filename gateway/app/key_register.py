"""The key store as the commands use it: opened, used, closed."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from ..config import Config
from ..identity.issuing import KeyIssuer
from ..state_dir import open_state_dir
from ..stores.redis_link import RedisLink
from ..telemetry.audit import AuditLog
from .assembly import Keyring
from .key_office import Actor, KeyOffice
from .key_room import key_store
from .record import open_audit

_TIMEOUT_S = 2.0


class Keys(msgspec.Struct, frozen=True):
    """The key store of a configuration, and who uses it."""

    office: KeyOffice
    actor: Actor


@contextlib.asynccontextmanager
async def open_key_store(config: Config, *, reading: bool = False) -> AsyncIterator[Keys]:
    """Open the configured store and, unless ``reading`` alone, the audit: what cannot be written down is not done.

    Raises StateRefused, OSError.
    """
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
        keyring = Keyring(config)
        audit = None if reading else _audit(config, keyring)
        if audit is not None:
            stack.callback(audit.close)
        issuer = KeyIssuer(register, pepper=keyring.pepper, wall=time.time, random=secrets.token_bytes)
        issued = [identity.id for identity in config.identities if identity.key is not None]
        yield Keys(KeyOffice(issuer, issued, audit), Actor(f"command:{_user()}", "command"))


def _audit(config: Config, keyring: Keyring) -> AuditLog:
    # A command's standard output is for the key it makes: a line that would go there goes to standard error.
    where = "stderr" if config.audit.sink == "stdout" else config.audit.sink
    return open_audit(config, lambda: keyring.audit, where=where)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user has no name
        return str(os.getuid())
