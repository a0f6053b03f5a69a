"""The part of the configuration that says what GitLab sees. As in ``model``, a field's docstring is its description."""

from __future__ import annotations

import enum

from ..core.secret import Secret
from .section import Section
from .vocabulary import Duration, FieldName, Id, OptionalId, Project


class Pick(enum.StrEnum):
    """Which member of a pool a request goes up with."""

    MOST_REMAINING = "most_remaining"


class PoolMember(Section, frozen=True):
    """One token of several."""

    token: Secret
    """A GitLab token, by reference. Members are called by the pool's id and their place: `readers/1`."""


class Rotate(Section, frozen=True):
    """How a token is replaced before it ends."""

    before: Duration = 14 * 86_400.0
    """How long before its end."""
    manager: OptionalId = ""
    """A credential that may make and revoke tokens for the token's user; absent: the token rotates itself, with one window
    in which a crash loses it."""
    group: Project | None = None
    """The group whose service account the user is, and the manager an owner of; absent: the manager is an administrator."""
    lifetime: Duration = 90 * 86_400.0
    """How long the new token lives; GitLab rounds to days."""
    overlap: Duration = 120.0
    """For how long the old token goes on working beside the new one, for requests under way; with a `manager`."""


class Credential(Section, frozen=True):
    """What GitLab sees instead of a gateway key: one `token`, or a `pool`."""

    id: Id
    """Named by rules."""
    token: Secret | None = None
    """A GitLab token, by reference: `${env:NAME}` or `${file:/path}`."""
    pool: tuple[PoolMember, ...] = ()
    """Several tokens, of several users: their quotas add up. Instead of `token`."""
    pick: Pick = Pick.MOST_REMAINING
    """Which of a pool: the one with the most requests left, as GitLab last said."""
    same_view: bool = False
    """All members of the pool see the same, so that they share one cache partition. The gateway cannot check it: a member
    that sees more shows it to the callers of the others."""
    sudo: bool = False
    """Must be true for a token with `sudo` or admin scope; such a token is otherwise refused."""
    rotate: Rotate | None = None
    """Replace tokens before they end, and keep the new ones in `stores.credentials`; absent: they are only watched."""


class Attribution(Section, frozen=True):
    """How GitLab's own logs learn who asked, behind a shared credential too."""

    header: FieldName | None = None
    """A field of its own with the caller's name, `backstage` or `user:42`; it begins with `X-`, and is removed when a
    client sends it."""
    user_agent: bool = False
    """The same behind the client's User-Agent: `… gitlab-gateway (backstage)`."""
