"""Checks of ``credentials`` that need more than one value. Called by ``checks``."""

from __future__ import annotations

from collections.abc import Iterator
from posixpath import normpath

from .credential_model import Credential, Rotate
from .model import Config
from .problems import Finding, Path, error, warning

_DAY_S = 86_400.0
_LONGEST_S = 365 * _DAY_S
_LARGEST_POOL = 64


def credential_findings(config: Config) -> Iterator[Finding]:
    """Every contradiction in ``credentials``, in the order of the file."""
    by_id = {credential.id: credential for credential in config.credentials}
    for index, credential in enumerate(config.credentials):
        path: Path = ("credentials", index)
        if (credential.token is None) is (not credential.pool):
            has = "has both `token` and `pool`" if credential.pool else "has neither `token` nor `pool`"
            yield error(path, f"{has}: it needs one of them")
        if len(credential.pool) > _LARGEST_POOL:
            yield error((*path, "pool"), f"has more than {_LARGEST_POOL} members")
        first: dict[str, int] = {}
        for place, member in enumerate(credential.pool):
            value = member.token.reveal()
            if value and value in first:
                yield error(
                    (*path, "pool", place, "token"),
                    f"is the token of item {first[value]} too: its quota would be counted twice",
                )
            first.setdefault(value, place)
        if credential.same_view and not credential.pool:
            yield warning((*path, "same_view"), "has no effect: there is no `pool`")
        if credential.rotate is not None:
            yield from _rotate(credential, credential.rotate, by_id, (*path, "rotate"))
    keys, kept = config.stores.keys, config.stores.credentials
    rotated = any(credential.rotate is not None for credential in config.credentials)
    if rotated and keys is not None and kept is not None and kept.path and normpath(kept.path) == normpath(keys.path):
        yield error(("stores", "credentials"), "is the file of `stores.keys`: each needs one of its own")


def managers(config: Config) -> set[str]:
    """The ids of credentials that rotate others: they are in use, although no rule names them."""
    return {credential.rotate.manager for credential in config.credentials if credential.rotate is not None}


def _rotate(credential: Credential, rotate: Rotate, by_id: dict[str, Credential], path: Path) -> Iterator[Finding]:
    if rotate.manager:
        manager = by_id.get(rotate.manager)
        if manager is None:
            yield error((*path, "manager"), f"names no credential: `{rotate.manager}`")
        elif manager is credential:
            yield error((*path, "manager"), "is the credential itself: leave it out, and the token rotates itself")
        elif manager.pool:
            yield error((*path, "manager"), "is a pool: a manager is one token")
    elif rotate.group is not None:
        yield error((*path, "group"), "is given without `manager`: only an owner of the group can make tokens there")
    if rotate.before <= 0:
        yield error((*path, "before"), "must be more than 0: an expired token can't rotate itself")
    if rotate.lifetime < rotate.before + _DAY_S:
        yield error((*path, "lifetime"), "is less than a day above `before`: new tokens would be due at once")
    elif rotate.lifetime > _LONGEST_S:
        yield error((*path, "lifetime"), "is above 365d, GitLab's longest")
    if rotate.overlap > _DAY_S:
        yield error((*path, "overlap"), "is above 1d: the old token should end soon")
