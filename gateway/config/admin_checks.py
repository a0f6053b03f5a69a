"""Checks of what the keys of ``admin`` may do. Called by ``checks``."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.admin_permission import Permission
from ..core.rule_findings import suggestion
from .admin_model import AdminKey
from .model import Config
from .problems import Finding, Path, error


def admin_findings(config: Config) -> Iterator[Finding]:
    """Keys that could do nothing, and a key that stands twice and may do more in one place than in the other."""
    first: dict[str, AdminKey] = {}
    for index, key in enumerate(config.admin.keys):
        path: Path = ("admin", "keys", index)
        if not key.may:
            yield error((*path, "may"), "is empty: the key would open nothing")
        if key.identities is not None:
            yield from _check_identities(config, key.may, key.identities, (*path, "identities"))
        same = first.setdefault(key.sha256, key)
        if _allowed(same) != _allowed(key):
            problem = f"is the key of `{same.id}` too, which may do other things: make one for each"
            yield error((*path, "sha256"), problem)


def _check_identities(config: Config, may: tuple[Permission, ...], names: tuple[str, ...], path: Path) -> Iterator[Finding]:
    keyed = [identity.id for identity in config.identities if identity.key is not None or identity.oidc is not None]
    if not names:
        yield error(path, "is empty: the key would see no gateway key; leave it out for those of every identity")
    if may and Permission.KEYS not in may:
        yield error(path, "is about gateway keys, for which `may` has to list `keys`")
    for index, name in enumerate(names):
        if name not in keyed:
            yield error((*path, index), f"names no identity that has gateway keys: `{name}`{suggestion(name, keyed)}")


def _allowed(key: AdminKey) -> tuple[frozenset[str], frozenset[str] | None]:
    return frozenset(key.may), None if key.identities is None else frozenset(key.identities)
