"""Which credentials only GitLab can judge, and where: a table, and nothing that acts on it."""

from __future__ import annotations

from ..core.catalogue import Access, Operation, Surface
from ..core.credentials import CredentialKind
from .settings import Passthrough

_OPAQUE = frozenset({CredentialKind.OPAQUE})
_BASIC = frozenset(
    {CredentialKind.BASIC, CredentialKind.OPAQUE, CredentialKind.DEPLOY_TOKEN}
)  # OPAQUE: Negotiate, LFS's own schemes
_BEARER = frozenset({CredentialKind.TOKEN, CredentialKind.OPAQUE})

_TABLE: dict[Surface, tuple[Passthrough, frozenset[CredentialKind]]] = {
    Surface.RUNNER: (Passthrough.RUNNER, frozenset({CredentialKind.OPAQUE, CredentialKind.JOB_TOKEN})),
    Surface.SCIM: (Passthrough.SCIM, _BEARER),
    # `docker login` starts with a bare GET /v2/ to learn where tokens are made; without one, the registry serves nobody.
    Surface.REGISTRY: (
        Passthrough.REGISTRY,
        frozenset({*_BASIC, CredentialKind.TOKEN, CredentialKind.JOB_TOKEN, CredentialKind.NONE}),
    ),
    Surface.LFS: (Passthrough.LFS, _BASIC),
    Surface.GIT: (Passthrough.GIT, _BASIC),
    Surface.PACKAGES: (
        Passthrough.DEPLOY,
        frozenset({CredentialKind.BASIC, CredentialKind.OPAQUE, CredentialKind.DEPLOY_TOKEN}),
    ),
    Surface.WEB_TOKEN: (Passthrough.FEED, _OPAQUE),
    Surface.WEB: (Passthrough.FEED, _OPAQUE),  # a feed of the dashboard, a raw file by static-object token
    # Client credentials are in the form; discovery and keys are public by design.
    Surface.OAUTH: (
        Passthrough.OAUTH,
        frozenset({CredentialKind.NONE, CredentialKind.BASIC, CredentialKind.OPAQUE, CredentialKind.TOKEN}),
    ),
    Surface.KAS: (Passthrough.AGENT, _BEARER),
    Surface.UNLEASH: (Passthrough.UNLEASH, frozenset({CredentialKind.OPAQUE, CredentialKind.NONE})),
    Surface.GEO: (Passthrough.GEO, _OPAQUE),
    Surface.OBSERVABILITY: (Passthrough.OBSERVABILITY, _OPAQUE),
}

_NO_SESSION = frozenset(
    {
        *(Surface.RUNNER, Surface.SCIM, Surface.REGISTRY, Surface.LFS, Surface.GIT, Surface.GEO),
        *(Surface.UNLEASH, Surface.INTERNAL, Surface.HEALTH),
    }
)
_SESSION, _NONE = CredentialKind.SESSION, CredentialKind.NONE
_TRIGGER = "trigger/pipeline"
_TOKEN_SERVICE = "/jwt/auth"  # noqa: S105 — a path


def passthrough_for(kind: CredentialKind, operation: Operation) -> Passthrough | None:
    """The passthrough by which a credential of this kind reaches this operation; None: it means nothing there."""
    surface = operation.surface
    if kind is _SESSION:
        return None if surface in _NO_SESSION else Passthrough.SESSION
    if operation.name.endswith(_TRIGGER):
        # The trigger token is a parameter, often in a body that nobody reads here.
        return Passthrough.TRIGGER if kind is CredentialKind.OPAQUE or kind is CredentialKind.NONE else None
    if kind is _NONE:
        if surface is Surface.RUNNER:
            # Runners put their token into the body.
            return Passthrough.RUNNER if operation.access is Access.WRITE else None
        if operation.name.endswith(_TOKEN_SERVICE):
            return None
    row = _TABLE.get(surface)
    if row is not None and kind in row[1]:
        return row[0]
    if operation.deploy_token and kind is CredentialKind.DEPLOY_TOKEN:
        return Passthrough.DEPLOY
    return None


def all_passthroughs(operation: Operation) -> frozenset[Passthrough]:
    """Every passthrough by which a credential of some kind reaches this operation."""
    return frozenset([found for kind in CredentialKind if (found := passthrough_for(kind, operation)) is not None])


def fallback_passthrough(kind: CredentialKind, operation: Operation) -> Passthrough | None:
    """The passthrough left to a token that GitLab did not recognise as a person's: package routes take deploy tokens as
    Bearer."""
    if kind is CredentialKind.TOKEN and (operation.deploy_token or operation.surface is Surface.PACKAGES):
        return Passthrough.DEPLOY
    return None
