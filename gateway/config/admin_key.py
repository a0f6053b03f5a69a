"""Keys to the admin port: the operator holds the key, the configuration its SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from ..core import gateway_key
from ..core.secret import Secret
from .model import AdminKey


def new_admin_key() -> tuple[str, str]:
    """A fresh key and its digest. A plain hash is enough: there is nothing to guess in 256 random bits."""
    key = gateway_key.new_key(secrets.token_bytes(gateway_key.RANDOM_BYTES)).reveal()
    return key, _digest(key)


def find_admin(keys: tuple[AdminKey, ...], presented: Secret) -> str | None:
    """The id of the key that was presented, or None. Every key is compared, in constant time."""
    digest = _digest(presented.reveal())
    found: str | None = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key.id
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
