"""Settings that a reload can't change: workers of both configurations serve for a while, and share what these name."""

from __future__ import annotations

from collections.abc import Callable

from .model import Config
from .source import ConfigSource

_RESTART_ONLY: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("listen.address", lambda config: config.listen.address),
    ("listen.admin", lambda config: config.listen.admin),
    # Other files are fine. But a client that begins a handshake at a worker without TLS would be refused.
    ("listen.tls (present or not)", lambda config: config.listen.tls is None),
    ("state_dir", lambda config: config.state_dir),
    ("secrets.pepper", lambda config: config.secrets.pepper),
    ("secrets.audit_key", lambda config: config.secrets.audit_key),
    ("stores.keys", lambda config: config.stores.keys),
    ("stores.credentials", lambda config: config.stores.credentials),
    # The rest: a purge by a write at one worker must reach what the others have stored.
    ("secrets.encryption_key", lambda config: config.secrets.encryption_key),
    ("stores.shared", lambda config: config.stores.shared),
    ("cache.mode", lambda config: config.cache.mode),
    ("cache.store", lambda config: config.cache.store),
)


def restart_only(before: Config, after: Config) -> list[str]:
    """The keys that differ, but can be changed only by a restart."""
    rotated = {credential.id: credential.rotate is not None for credential in before.credentials}
    # A worker that does not know that a token is rotated would go on using one that the others have revoked.
    return [key for key, value_of in _RESTART_ONLY if value_of(before) != value_of(after)] + [
        f"credentials.{credential.id}.rotate (present or not)"
        for credential in after.credentials
        if rotated.get(credential.id, credential.rotate is not None) is not (credential.rotate is not None)
    ]


def same_files(config: Config, before: ConfigSource, after: ConfigSource) -> bool:
    """Whether the files that ``config`` names hold what they held before; not those that workers reread by themselves."""
    tls = config.listen.tls
    own = {config.upstream.ca_file, *((tls.cert_file, tls.key_file) if tls is not None else ())}
    own -= {identity.oidc.ca_file for identity in config.identities if identity.oidc is not None}
    return {path: text for path, text in before.files.items() if path not in own} == {
        path: text for path, text in after.files.items() if path not in own
    }
