"""Checks of what the keys of ``admin`` may do. Called by ``checks``."""

from __future__ import annotations

from collections.abc import Iterator

from .model import AdminKey, Config
from .problems import Finding, Path, error


def admin_findings(config: Config) -> Iterator[Finding]:
    """Keys that could do nothing, and a key that stands twice and may do more in one place than in the other."""
    first: dict[str, AdminKey] = {}
    for index, key in enumerate(config.admin.keys):
        path: Path = ("admin", "keys", index)
        if not key.may:
            yield error((*path, "may"), "is empty: the key would open nothing")
        same = first.setdefault(key.sha256, key)
        if set(same.may) != set(key.may):
            problem = f"is the key of `{same.id}` too, which may do other things: make one for each"
            yield error((*path, "sha256"), problem)
