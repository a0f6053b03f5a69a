"""What a reload can't change. For a while workers of both configurations serve, and must agree on what they share."""

from __future__ import annotations

from collections.abc import Callable

from .given import Given
from .model import Config

_STANDING: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("listen.address", lambda config: config.listen.address),
    ("listen.admin", lambda config: config.listen.admin),
    # Its files may be others: a client that begins a handshake where there is none would be refused.
    ("listen.tls (there or not)", lambda config: config.listen.tls is None),
    ("state_dir", lambda config: config.state_dir),
    ("secrets.pepper", lambda config: config.secrets.pepper),
    ("secrets.audit_key", lambda config: config.secrets.audit_key),
    ("stores.keys", lambda config: config.stores.keys),
    ("stores.credentials", lambda config: config.stores.credentials),
    # The rest: what a write purges at one worker must be what the other ones have stored.
    ("secrets.encryption_key", lambda config: config.secrets.encryption_key),
    ("stores.shared", lambda config: config.stores.shared),
    ("cache.mode", lambda config: config.cache.mode),
    ("cache.store", lambda config: config.cache.store),
)


def standing(before: Config, after: Config) -> list[str]:
    """The keys that differ and must not."""
    rotated = {credential.id: credential.rotate is not None for credential in before.credentials}
    # Whoever does not know that a token is rotated goes on with the one that the others have ended.
    return [name for name, of in _STANDING if of(before) != of(after)] + [
        f"credentials.{credential.id}.rotate (there or not)"
        for credential in after.credentials
        if rotated.get(credential.id, credential.rotate is not None) is not (credential.rotate is not None)
    ]


def same_files(config: Config, before: Given, after: Given) -> bool:
    """Whether the files that it names hold what they held, those aside that workers read again by themselves."""
    tls = config.listen.tls
    own = {config.upstream.ca_file, *((tls.cert_file, tls.key_file) if tls is not None else ())}
    own -= {identity.oidc.ca_file for identity in config.identities if identity.oidc is not None}
    return {path: text for path, text in before.files.items() if path not in own} == {
        path: text for path, text in after.files.items() if path not in own
    }
