from __future__ import annotations

import pytest

from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import CredentialKind
from gateway.identity.passthrough import all_passthroughs, fallback_passthrough, passthrough_for
from gateway.identity.settings import Passthrough as Door

REST = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
TRIGGER = Operation("POST /api/v4/projects/:id/trigger/pipeline", Access.WRITE, Surface.REST)
TRIGGER_REF = Operation("POST /api/v4/projects/:id/(ref/:ref/)trigger/pipeline", Access.WRITE, Surface.REST)
JWT_AUTH = Operation("GET /jwt/auth", Access.READ, Surface.REGISTRY)
DEPLOYABLE = Operation("GET /api/v4/x", Access.READ, Surface.REST, deploy_token=True)


def on(surface: Surface, access: Access = Access.READ) -> Operation:
    return Operation("GET /somewhere", access, surface)


@pytest.mark.parametrize(
    ("kind", "operation", "door"),
    [
        (CredentialKind.BASIC, on(Surface.GIT), Door.GIT),
        (CredentialKind.OPAQUE, on(Surface.GIT), Door.GIT),
        (CredentialKind.TOKEN, on(Surface.GIT), None),
        (CredentialKind.NONE, on(Surface.GIT), None),
        (CredentialKind.BASIC, on(Surface.LFS), Door.LFS),
        (CredentialKind.BASIC, JWT_AUTH, Door.REGISTRY),
        (CredentialKind.NONE, JWT_AUTH, None),
        (CredentialKind.NONE, on(Surface.REGISTRY), Door.REGISTRY),
        (CredentialKind.TOKEN, on(Surface.REGISTRY), Door.REGISTRY),
        (CredentialKind.BASIC, on(Surface.PACKAGES), Door.DEPLOY),
        (CredentialKind.OPAQUE, on(Surface.PACKAGES), Door.DEPLOY),
        (CredentialKind.DEPLOY_TOKEN, on(Surface.PACKAGES), Door.DEPLOY),
        (CredentialKind.TOKEN, on(Surface.PACKAGES), None),
        (CredentialKind.DEPLOY_TOKEN, DEPLOYABLE, Door.DEPLOY),
        (CredentialKind.DEPLOY_TOKEN, REST, None),
        (CredentialKind.TOKEN, on(Surface.SCIM), Door.SCIM),
        (CredentialKind.NONE, on(Surface.SCIM), None),
        (CredentialKind.OPAQUE, on(Surface.RUNNER), Door.RUNNER),
        (CredentialKind.JOB_TOKEN, on(Surface.RUNNER), Door.RUNNER),
        (CredentialKind.TOKEN, on(Surface.RUNNER), None),
        (CredentialKind.NONE, on(Surface.RUNNER), None),
        (CredentialKind.NONE, on(Surface.RUNNER, Access.WRITE), Door.RUNNER),
        (CredentialKind.NONE, TRIGGER, Door.TRIGGER),
        (CredentialKind.OPAQUE, TRIGGER_REF, Door.TRIGGER),
        (CredentialKind.TOKEN, TRIGGER, None),
        (CredentialKind.JOB_TOKEN, TRIGGER, None),
        (CredentialKind.OPAQUE, on(Surface.WEB_TOKEN), Door.FEED),
        (CredentialKind.TOKEN, on(Surface.WEB_TOKEN), None),
        (CredentialKind.SESSION, REST, Door.SESSION),
        (CredentialKind.SESSION, on(Surface.GRAPHQL), Door.SESSION),
        (CredentialKind.SESSION, on(Surface.WEB), Door.SESSION),
        (CredentialKind.SESSION, on(Surface.GIT), None),
        (CredentialKind.SESSION, on(Surface.INTERNAL), None),
        (CredentialKind.NONE, on(Surface.OAUTH), Door.OAUTH),
        (CredentialKind.TOKEN, on(Surface.KAS), Door.AGENT),
        (CredentialKind.OPAQUE, on(Surface.UNLEASH), Door.UNLEASH),
        (CredentialKind.OPAQUE, on(Surface.GEO), Door.GEO),
        (CredentialKind.OPAQUE, on(Surface.OBSERVABILITY), Door.OBSERVABILITY),
        (CredentialKind.OPAQUE, on(Surface.WEB), Door.FEED),
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
def test_each_credential_has_its_own_door(kind: CredentialKind, operation: Operation, door: Door | None) -> None:
    assert passthrough_for(kind, operation) is door


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
    assert fallback_passthrough(CredentialKind.TOKEN, on(Surface.PACKAGES)) is Door.DEPLOY
    assert fallback_passthrough(CredentialKind.TOKEN, DEPLOYABLE) is Door.DEPLOY
    assert fallback_passthrough(CredentialKind.TOKEN, REST) is None
    assert fallback_passthrough(CredentialKind.JOB_TOKEN, on(Surface.PACKAGES)) is None


@pytest.mark.parametrize(
    ("operation", "doors"),
    [
        (REST, {Door.SESSION}),
        (TRIGGER, {Door.SESSION, Door.TRIGGER}),
        (on(Surface.GIT), {Door.GIT}),
        (on(Surface.PACKAGES), {Door.DEPLOY, Door.SESSION}),
        (on(Surface.HEALTH), set()),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_all_doors_to_an_operation(operation: Operation, doors: set[Door]) -> None:
    assert all_passthroughs(operation) == doors
