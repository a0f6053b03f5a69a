"""The part of the configuration about what GitLab sees. As in ``model``, a field's docstring is its description."""

from __future__ import annotations

import enum

from ..core.secret import Secret
from .section import Section
from .vocabulary import Duration, FieldName, Id, OptionalId, Project


class Pick(enum.StrEnum):
    """How the pool member for a request is chosen."""

    MOST_REMAINING = "most_remaining"


class PoolMember(Section, frozen=True):
    """One token of a pool."""

    token: Secret
    """A GitLab token, by reference. Members are named by the pool's id and their place in it: `readers/1`."""


class Rotate(Section, frozen=True):
    """How a token is replaced before it expires."""

    before: Duration = 14 * 86_400.0
    """How long before its expiry a token is replaced."""
    manager: OptionalId = ""
    """Id of a credential that may make and revoke tokens for the token's user; if absent, the token replaces itself, with
    one window in which a crash loses it."""
    group: Project | None = None
    """The group to which the service account belongs; the manager must be an owner of it. If absent, the manager must be an
    administrator."""
    lifetime: Duration = 90 * 86_400.0
    """How long a new token is valid; GitLab rounds this to days."""
    overlap: Duration = 120.0
    """How long the old token goes on working beside the new one, for requests in progress; with a `manager` only."""


class Credential(Section, frozen=True):
    """What GitLab sees instead of a gateway key or a workload's token: one `token`, or a `pool`."""

    id: Id
    """Name of the credential in rules."""
    token: Secret | None = None
    """A GitLab token, by reference: `${env:NAME}` or `${file:/path}`."""
    pool: tuple[PoolMember, ...] = ()
    """Several tokens of several users, whose quotas add up; instead of `token`."""
    pick: Pick = Pick.MOST_REMAINING
    """Which member of the pool a request uses: the one with the most requests left, as GitLab last said."""
    same_view: bool = False
    """All members of the pool see the same, so they share one cache partition. The gateway cannot check this: what only one
    member sees may be shown to the callers of the others."""
    sudo: bool = False
    """Must be true for a token with the scope `sudo` or `admin_mode`; such a token is otherwise refused."""
    rotate: Rotate | None = None
    """Replace tokens before they expire, and keep the new ones in `stores.credentials`; if absent, their expiry is only
    watched."""


class Attribution(Section, frozen=True):
    """How GitLab's own logs learn which caller made a request, even behind a shared credential."""

    header: FieldName | None = None
    """Name of a header field that carries the caller's name, `backstage` or `user:42`; it must begin with `X-`, and is
    removed when a client sends it."""
    user_agent: bool = False
    """Append the caller's name to the client's User-Agent: `… gitlab-gateway (backstage)`."""
