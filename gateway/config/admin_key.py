"""Keys to the admin port: the operator holds the key, the configuration only its SHA-256."""

from __future__ import annotations

import hashlib
import secrets

from ..core import gateway_key


def new_admin_key() -> tuple[str, str]:
    """Make a key; return it and its digest in hex. A plain hash is enough, because nobody can guess 256 random bits."""
    key = gateway_key.new_key(secrets.token_bytes(gateway_key.RANDOM_BYTES)).reveal()
    return key, hashlib.sha256(key.encode("ascii")).hexdigest()
