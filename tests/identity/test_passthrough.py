from __future__ import annotations

import pytest

from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import CredentialKind
from gateway.identity.passthrough import all_passthroughs, fallback_passthrough, passthrough_for
from gateway.identity.settings import Passthrough

REST = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
TRIGGER = Operation("POST /api/v4/projects/:id/trigger/pipeline", Access.WRITE, Surface.REST)
TRIGGER_REF = Operation("POST /api/v4/projects/:id/(ref/:ref/)trigger/pipeline", Access.WRITE, Surface.REST)
JWT_AUTH = Operation("GET /jwt/auth", Access.READ, Surface.REGISTRY)
DEPLOYABLE = Operation("GET /api/v4/x", Access.READ, Surface.REST, deploy_token=True)


def on(surface: Surface, access: Access = Access.READ) -> Operation:
    return Operation("GET /somewhere", access, surface)


@pytest.mark.parametrize(
    ("kind", "operation", "passthrough"),
    [
        (CredentialKind.BASIC, on(Surface.GIT), Passthrough.GIT),
        (CredentialKind.OPAQUE, on(Surface.GIT), Passthrough.GIT),
        (CredentialKind.TOKEN, on(Surface.GIT), None),
        (CredentialKind.NONE, on(Surface.GIT), None),
        (CredentialKind.BASIC, on(Surface.LFS), Passthrough.LFS),
        (CredentialKind.BASIC, JWT_AUTH, Passthrough.REGISTRY),
        (CredentialKind.NONE, JWT_AUTH, None),
        (CredentialKind.NONE, on(Surface.REGISTRY), Passthrough.REGISTRY),
        (CredentialKind.TOKEN, on(Surface.REGISTRY), Passthrough.REGISTRY),
        (CredentialKind.BASIC, on(Surface.PACKAGES), Passthrough.DEPLOY),
        (CredentialKind.OPAQUE, on(Surface.PACKAGES), Passthrough.DEPLOY),
        (CredentialKind.DEPLOY_TOKEN, on(Surface.PACKAGES), Passthrough.DEPLOY),
        (CredentialKind.TOKEN, on(Surface.PACKAGES), None),
        (CredentialKind.DEPLOY_TOKEN, DEPLOYABLE, Passthrough.DEPLOY),
        (CredentialKind.DEPLOY_TOKEN, REST, None),
        (CredentialKind.TOKEN, on(Surface.SCIM), Passthrough.SCIM),
        (CredentialKind.NONE, on(Surface.SCIM), None),
        (CredentialKind.OPAQUE, on(Surface.RUNNER), Passthrough.RUNNER),
        (CredentialKind.JOB_TOKEN, on(Surface.RUNNER), Passthrough.RUNNER),
        (CredentialKind.TOKEN, on(Surface.RUNNER), None),
        (CredentialKind.NONE, on(Surface.RUNNER), None),
        (CredentialKind.NONE, on(Surface.RUNNER, Access.WRITE), Passthrough.RUNNER),
        (CredentialKind.NONE, TRIGGER, Passthrough.TRIGGER),
        (CredentialKind.OPAQUE, TRIGGER_REF, Passthrough.TRIGGER),
        (CredentialKind.TOKEN, TRIGGER, None),
        (CredentialKind.JOB_TOKEN, TRIGGER, None),
        (CredentialKind.OPAQUE, on(Surface.WEB_TOKEN), Passthrough.FEED),
        (CredentialKind.TOKEN, on(Surface.WEB_TOKEN), None),
        (CredentialKind.SESSION, REST, Passthrough.SESSION),
        (CredentialKind.SESSION, on(Surface.GRAPHQL), Passthrough.SESSION),
        (CredentialKind.SESSION, on(Surface.WEB), Passthrough.SESSION),
        (CredentialKind.SESSION, on(Surface.GIT), None),
        (CredentialKind.SESSION, on(Surface.INTERNAL), None),
        (CredentialKind.NONE, on(Surface.OAUTH), Passthrough.OAUTH),
        (CredentialKind.TOKEN, on(Surface.KAS), Passthrough.AGENT),
        (CredentialKind.OPAQUE, on(Surface.UNLEASH), Passthrough.UNLEASH),
        (CredentialKind.OPAQUE, on(Surface.GEO), Passthrough.GEO),
        (CredentialKind.OPAQUE, on(Surface.OBSERVABILITY), Passthrough.OBSERVABILITY),
        (CredentialKind.OPAQUE, on(Surface.WEB), Passthrough.FEED),
        (CredentialKind.OPAQUE, REST, None),
        (CredentialKind.BASIC, REST, None),
        (CredentialKind.JOB_TOKEN, REST, None),
        (CredentialKind.NONE, REST, None),
        (CredentialKind.NONE, on(Surface.WEB), None),
        (CredentialKind.NONE, on(Surface.HEALTH), None),
        (CredentialKind.OPAQUE, on(Surface.INTERNAL), None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_each_credential_has_its_own_passthrough(
    kind: CredentialKind, operation: Operation, passthrough: Passthrough | None
) -> None:
    assert passthrough_for(kind, operation) is passthrough


@pytest.mark.parametrize("surface", [Surface.REST, Surface.GRAPHQL, Surface.MCP, Surface.LEGACY, Surface.INTERNAL])
@pytest.mark.parametrize(
    "kind",
    [
        CredentialKind.NONE,
        CredentialKind.TOKEN,
        CredentialKind.BASIC,
        CredentialKind.JOB_TOKEN,
        CredentialKind.OPAQUE,
        CredentialKind.DEPLOY_TOKEN,
    ],
)
def test_nothing_passes_where_a_person_is_asked_for(kind: CredentialKind, surface: Surface) -> None:
    assert passthrough_for(kind, on(surface)) is None


def test_only_package_routes_take_an_unrecognised_bearer() -> None:
    assert fallback_passthrough(CredentialKind.TOKEN, on(Surface.PACKAGES)) is Passthrough.DEPLOY
    assert fallback_passthrough(CredentialKind.TOKEN, DEPLOYABLE) is Passthrough.DEPLOY
    assert fallback_passthrough(CredentialKind.TOKEN, REST) is None
    assert fallback_passthrough(CredentialKind.JOB_TOKEN, on(Surface.PACKAGES)) is None


@pytest.mark.parametrize(
    ("operation", "passthroughs"),
    [
        (REST, {Passthrough.SESSION}),
        (TRIGGER, {Passthrough.SESSION, Passthrough.TRIGGER}),
        (on(Surface.GIT), {Passthrough.GIT}),
        (on(Surface.PACKAGES), {Passthrough.DEPLOY, Passthrough.SESSION}),
        (on(Surface.HEALTH), set()),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_all_passthroughs_to_an_operation(operation: Operation, passthroughs: set[Passthrough]) -> None:
    assert all_passthroughs(operation) == passthroughs
