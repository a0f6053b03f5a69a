"""The part of the configuration about the admin port. As in ``model``, a field's docstring is its description."""

from __future__ import annotations

from ..core.admin_permission import Permission
from .section import Section
from .vocabulary import Id, Sha256


class AdminKey(Section, frozen=True):
    """One operator's key to the admin port."""

    id: Id
    """Name of the operator to whom the key belongs."""
    sha256: Sha256
    """SHA-256 of the key, in hex; `gitlab-gateway keys admin` makes the key and this hash."""
    may: tuple[Permission, ...] = tuple(Permission)
    """What the key may do on the admin port; if absent, everything."""
    identities: tuple[Id, ...] | None = None
    """Whose gateway keys it may list, issue, rotate and revoke; if absent, every identity's."""


class Admin(Section, frozen=True):
    """Who may use the admin port for more than probes and metrics."""

    keys: tuple[AdminKey, ...] = ()
    """Operators' keys. Without any, `/-/config` and the other endpoints that need one do not exist."""
