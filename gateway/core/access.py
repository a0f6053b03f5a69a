"""Compiled rules: who may do what, with which upstream credential. Default deny; any deny wins over any allow."""

from __future__ import annotations

import enum

import msgspec


class PrincipalKind(enum.StrEnum):
    """How the caller was recognised."""

    KEY = "key"
    OIDC = "oidc"
    GITLAB_TOKEN = "gitlab_token"  # noqa: S105
    PASSTHROUGH = "passthrough"
    ANONYMOUS = "anonymous"


class Principal(msgspec.Struct, frozen=True, gc=False):
    """A person or a bot, believed. Limits `by: caller` and the audit use ``id``."""

    id: str
    """The gateway identity, ``user:42`` for an own token, ``anonymous:ADDR`` or ``passthrough:ADDR``."""
    kind: PrincipalKind
    identity: str
    """The configured identity it came in by, ``passthrough`` where none is needed."""
    fingerprint: str = ""
    """Of the presented credential, ``tok:…``; empty without one."""
    team: str = ""
    token_hash: bytes = b""
    """Keyed hash of an own token: its cache partition."""

    @property
    def brokered(self) -> bool:
        """GitLab sees one of the gateway's credentials, not the caller's."""
        return self.kind is PrincipalKind.KEY or self.kind is PrincipalKind.OIDC


class Permit(msgspec.Struct, frozen=True, gc=False):
    """Leave to forward one request. Nothing is forwarded, looked up or stored without one."""

    rule: str
    """The rule's id; ``own-token``, ``passthrough`` or ``anonymous`` where none is needed."""
    use: str = ""
    """Id of the upstream credential; empty: the caller's own (or none) goes up."""
    sudo: str = ""
    """The GitLab user to act as upstream."""
    digest: bytes = b""
    """Hash of what this permit may see: part of a brokered cache partition."""
