from __future__ import annotations

import pytest

from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Kind
from gateway.identity.passthrough import doors_to, falls_back, passthrough_for
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
        (Kind.BASIC, on(Surface.GIT), Door.GIT),
        (Kind.OPAQUE, on(Surface.GIT), Door.GIT),
        (Kind.TOKEN, on(Surface.GIT), None),
        (Kind.NONE, on(Surface.GIT), None),
        (Kind.BASIC, on(Surface.LFS), Door.LFS),
        (Kind.BASIC, JWT_AUTH, Door.REGISTRY),
        (Kind.NONE, JWT_AUTH, None),
        (Kind.NONE, on(Surface.REGISTRY), Door.REGISTRY),
        (Kind.TOKEN, on(Surface.REGISTRY), Door.REGISTRY),
        (Kind.BASIC, on(Surface.PACKAGES), Door.DEPLOY),
        (Kind.OPAQUE, on(Surface.PACKAGES), Door.DEPLOY),
        (Kind.DEPLOY_TOKEN, on(Surface.PACKAGES), Door.DEPLOY),
        (Kind.TOKEN, on(Surface.PACKAGES), None),
        (Kind.DEPLOY_TOKEN, DEPLOYABLE, Door.DEPLOY),
        (Kind.DEPLOY_TOKEN, REST, None),
        (Kind.TOKEN, on(Surface.SCIM), Door.SCIM),
        (Kind.NONE, on(Surface.SCIM), None),
        (Kind.OPAQUE, on(Surface.RUNNER), Door.RUNNER),
        (Kind.JOB_TOKEN, on(Surface.RUNNER), Door.RUNNER),
        (Kind.TOKEN, on(Surface.RUNNER), None),
        (Kind.NONE, on(Surface.RUNNER), None),
        (Kind.NONE, on(Surface.RUNNER, Access.WRITE), Door.RUNNER),
        (Kind.NONE, TRIGGER, Door.TRIGGER),
        (Kind.OPAQUE, TRIGGER_REF, Door.TRIGGER),
        (Kind.TOKEN, TRIGGER, None),
        (Kind.JOB_TOKEN, TRIGGER, None),
        (Kind.OPAQUE, on(Surface.WEB_TOKEN), Door.FEED),
        (Kind.TOKEN, on(Surface.WEB_TOKEN), None),
        (Kind.SESSION, REST, Door.SESSION),
        (Kind.SESSION, on(Surface.GRAPHQL), Door.SESSION),
        (Kind.SESSION, on(Surface.WEB), Door.SESSION),
        (Kind.SESSION, on(Surface.GIT), None),
        (Kind.SESSION, on(Surface.INTERNAL), None),
        (Kind.NONE, on(Surface.OAUTH), Door.OAUTH),
        (Kind.TOKEN, on(Surface.KAS), Door.AGENT),
        (Kind.OPAQUE, on(Surface.UNLEASH), Door.UNLEASH),
        (Kind.OPAQUE, on(Surface.GEO), Door.GEO),
        (Kind.OPAQUE, on(Surface.OBSERVABILITY), Door.OBSERVABILITY),
        (Kind.OPAQUE, on(Surface.WEB), Door.FEED),
        (Kind.OPAQUE, REST, None),
        (Kind.BASIC, REST, None),
        (Kind.JOB_TOKEN, REST, None),
        (Kind.NONE, REST, None),
        (Kind.NONE, on(Surface.WEB), None),
        (Kind.NONE, on(Surface.HEALTH), None),
        (Kind.OPAQUE, on(Surface.INTERNAL), None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_each_credential_has_its_own_door(kind: Kind, operation: Operation, door: Door | None) -> None:
    assert passthrough_for(kind, operation) is door


@pytest.mark.parametrize("surface", [Surface.REST, Surface.GRAPHQL, Surface.MCP, Surface.LEGACY, Surface.INTERNAL])
@pytest.mark.parametrize("kind", [Kind.NONE, Kind.TOKEN, Kind.BASIC, Kind.JOB_TOKEN, Kind.OPAQUE, Kind.DEPLOY_TOKEN])
def test_nothing_passes_where_a_person_is_asked_for(kind: Kind, surface: Surface) -> None:
    assert passthrough_for(kind, on(surface)) is None


def test_only_package_routes_take_an_unrecognised_bearer() -> None:
    assert falls_back(Kind.TOKEN, on(Surface.PACKAGES)) is Door.DEPLOY
    assert falls_back(Kind.TOKEN, DEPLOYABLE) is Door.DEPLOY
    assert falls_back(Kind.TOKEN, REST) is None
    assert falls_back(Kind.JOB_TOKEN, on(Surface.PACKAGES)) is None


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
    assert doors_to(operation) == doors
