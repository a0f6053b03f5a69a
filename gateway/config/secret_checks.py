"""Checks of the gateway's own secrets: missing, weak, or used twice. Called by ``checks``."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.secret import Secret
from .model import Config
from .problems import Finding, Path, error, show_path, warning

_SHORTEST_SECRET = 16
_STRONG_SECRET = 32
_FEWEST_CHARACTERS = 8  # distinct ones; 32 random hex digits practically never have fewer


def secret_findings(config: Config) -> Iterator[Finding]:
    """Every contradiction in the part on secrets, in the order of the file."""
    yield from _missing(config)
    secrets = config.secrets
    seen: dict[str, str] = {}
    for path, secret in _given(config):
        value = secret.reveal()
        if len(value) < _SHORTEST_SECRET:
            yield error(path, "can be guessed: make it with `openssl rand -hex 32`")
        elif len(value) < _STRONG_SECRET or len(set(value)) < _FEWEST_CHARACTERS:
            yield warning(path, "is weak: `openssl rand -hex 32` makes a strong one")
        if "decryption_keys" in path and secret == secrets.encryption_key:
            yield error(
                path, "is `secrets.encryption_key`, which decrypts anyway: the previous or the next one belongs here"
            )
        elif value in seen:
            yield warning(path, f"is the same as `{seen[value]}`: each should have its own")
        seen.setdefault(value, show_path(path))
    if secrets.decryption_keys and not any(credential.rotate is not None for credential in config.credentials):
        message = "has no effect: no credential has `rotate`, and the cache needs no previous key"
        yield warning(("secrets", "decryption_keys"), message)


def _given(config: Config) -> Iterator[tuple[Path, Secret]]:
    secrets = config.secrets
    for name, secret in ("pepper", secrets.pepper), ("encryption_key", secrets.encryption_key):
        if secret:
            yield ("secrets", name), secret
    for index, secret in enumerate(secrets.decryption_keys):
        yield ("secrets", "decryption_keys", index), secret
    if secrets.audit_key:
        yield ("secrets", "audit_key"), secrets.audit_key


def _missing(config: Config) -> Iterator[Finding]:
    stores, secrets = config.stores, config.secrets
    rotated_on_redis = stores.credentials is not None and stores.credentials.shared
    if not (stores.shared.shared or rotated_on_redis or (stores.keys is not None and stores.keys.shared)):
        return
    reason = "is missing: gateways on one Redis need the same one; make it with `openssl rand -hex 32`"
    if secrets.pepper is None:
        yield error(("secrets", "pepper"), reason)
    if secrets.encryption_key is None and (stores.shared.shared or rotated_on_redis):
        yield error(("secrets", "encryption_key"), reason)
    if secrets.audit_key is None:
        message = "is missing: gateways will print different fingerprints of one token"
        yield warning(("secrets", "audit_key"), message)
