"""The gateway's own keys, a key of its own for each purpose."""

from __future__ import annotations

import secrets
from pathlib import Path

from ..config import Config
from ..core.secret import Secret
from ..state_dir import open_state_dir, secret


class Keyring:
    """The gateway's own keys: configured, or made once in ``state_dir``.

    Without ``make`` none is made, and a missing key raises StateRefused.
    """

    def __init__(self, config: Config, process: bytes = b"", *, make: bool = True) -> None:
        self._config = config
        self._make = make
        self.process = process or secrets.token_bytes(32)

    def _named(self, name: str, configured: Secret | None) -> bytes:
        if configured is not None:
            return configured.reveal().encode("utf-8", "surrogateescape")
        return secret(open_state_dir(Path(self._config.state_dir), make=self._make), name, make=self._make)

    @property
    def pepper(self) -> bytes:
        return self._named("pepper", self._config.secrets.pepper)

    @property
    def partition(self) -> bytes:
        """The key for cache partitions: this process's own, unless other gateways share the cache's store."""
        return self.encryption if self._config.cache_is_shared else self.process

    @property
    def encryption(self) -> bytes:
        return self._named("encryption_key", self._config.secrets.encryption_key)

    @property
    def audit(self) -> bytes:
        return self._named("audit_key", self._config.secrets.audit_key)
