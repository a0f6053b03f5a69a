"""Every credential carrier GitLab reads; one credential or a refusal."""

from __future__ import annotations

import enum

import msgspec

from .secret import Secret


class Kind(enum.StrEnum):
    """What sort of credential was presented (by its carrier, not by its text: prefixes are configurable in GitLab)."""

    NONE = "none"
    TOKEN = "token"  # noqa: S105 — PRIVATE-TOKEN, Bearer, or their parameters
    JOB_TOKEN = "job_token"  # noqa: S105
    DEPLOY_TOKEN = "deploy_token"  # noqa: S105
    BASIC = "basic"
    SESSION = "session"
    OPAQUE = "opaque"
    """GitLab alone can judge it: an ``Authorization`` of another scheme, a runner, SCIM, feed or trigger token."""


class Carrier(enum.StrEnum):
    """Where it stood."""

    PRIVATE_TOKEN = "private-token"  # noqa: S105
    BEARER = "bearer"
    BASIC = "basic"
    AUTHORIZATION = "authorization"
    JOB_TOKEN = "job-token"  # noqa: S105
    DEPLOY_TOKEN = "deploy-token"  # noqa: S105
    QUERY = "query"
    BODY = "body"
    COOKIE = "cookie"


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The one credential a request presents, not yet believed."""

    kind: Kind
    secret: Secret
    carrier: Carrier | None = None
    parameter: str = ""
    """For QUERY and BODY: which one (``private_token``, ``access_token``, ``bearer_token``, ``job_token``)."""
    username: str = ""
    """For BASIC."""
    sudo: str | None = None
    """The user named by ``Sudo`` or ``sudo``; a capability, not a credential."""
    target: bytes = b""
    """The raw target less credential (and sudo) parameters: what is forwarded, logged and keyed."""
