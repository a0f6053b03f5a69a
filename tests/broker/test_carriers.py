from __future__ import annotations

import base64

import pytest

from gateway.broker.carriers import Carrier, carrier_for, credential_field
from gateway.core.catalogue import OTHER, Access, Operation, Surface


def on(surface: Surface, name: str = "GET /somewhere") -> Operation:
    return Operation(name, Access.READ, surface)


@pytest.mark.parametrize(
    ("operation", "carrier"),
    [
        (on(Surface.REST), Carrier.PRIVATE_TOKEN),
        (on(Surface.GRAPHQL), Carrier.PRIVATE_TOKEN),
        (on(Surface.WEB_TOKEN), Carrier.PRIVATE_TOKEN),
        (on(Surface.GIT), Carrier.BASIC),
        (on(Surface.LFS), Carrier.BASIC),
        (on(Surface.REGISTRY), Carrier.BASIC),
        (on(Surface.MLFLOW), Carrier.BEARER),
        (on(Surface.MCP), Carrier.BEARER),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/generic/:package_name/*v"), Carrier.PRIVATE_TOKEN),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/maven/*path/:file_name"), Carrier.PRIVATE_TOKEN),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/npm/*package_name"), Carrier.BEARER),
        (on(Surface.PACKAGES, "PUT /api/v4/projects/:id/packages/ml_models/:model_version_id/files/x"), Carrier.BEARER),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/pypi/simple"), Carrier.BASIC),
        (on(Surface.PACKAGES, "POST /api/v4/projects/:id/packages/pypi"), Carrier.BASIC),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/nuget/index"), Carrier.BASIC_AS_USER),
        (on(Surface.PACKAGES, "PUT /api/v4/projects/:id/packages/nuget"), Carrier.BASIC_AS_USER),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/rpm/repodata/*file_name"), Carrier.BASIC_AS_USER),
        (on(Surface.PACKAGES, "PUT /api/v4/projects/:id/packages/debian/:file_name"), Carrier.BASIC_AS_USER),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/debian_distributions"), Carrier.PRIVATE_TOKEN),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/rubygems/gems/:file_name"), Carrier.RAW_AUTHORIZATION),
        (on(Surface.PACKAGES, "GET /api/v4/packages/terraform/modules/v1/:module_namespace/x"), Carrier.BEARER),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/terraform/modules/x"), Carrier.BASIC_AS_USER),
        (on(Surface.PACKAGES, "PUT /api/v4/projects/:id/packages/terraform/modules/x/file"), Carrier.PRIVATE_TOKEN),
    ],
    ids=lambda value: value.name,
)
def test_each_surface_reads_its_own_field(operation: Operation, carrier: Carrier) -> None:
    assert carrier_for(operation) is carrier


@pytest.mark.parametrize(
    ("registry", "carrier"),
    [
        ("PUT /api/v4/projects/:id/packages/cargo/*", Carrier.BEARER),
        ("GET /api/v4/virtual_registries/packages/npm/*", Carrier.BEARER),
        ("GET /api/v4/virtual_registries/packages/maven/*", Carrier.PRIVATE_TOKEN),
        ("DELETE /api/v4/projects/:id/packages/pypi/*", Carrier.BASIC),
        ("GET /api/v4/packages/conan/*", Carrier.BASIC),
        ("", Carrier.PRIVATE_TOKEN),
    ],
)
def test_a_registry_reads_its_formats_field_on_routes_that_no_row_describes_too(registry: str, carrier: Carrier) -> None:
    assert carrier_for(Operation(OTHER, Access.WRITE, Surface.PACKAGES, known=False, registry=registry)) is carrier


def test_the_fields() -> None:
    assert credential_field(Carrier.PRIVATE_TOKEN, "glpat-x") == (b"PRIVATE-TOKEN", b"glpat-x")
    assert credential_field(Carrier.BEARER, "glpat-x") == (b"Authorization", b"Bearer glpat-x")
    name, value = credential_field(Carrier.BASIC, "glpat-" + "x" * 300)
    assert name == b"Authorization"
    assert base64.b64decode(value.removeprefix(b"Basic ")) == b"oauth2:glpat-" + b"x" * 300
    assert b"\n" not in value
    assert credential_field(Carrier.RAW_AUTHORIZATION, "glpat-x") == (b"Authorization", b"glpat-x")
    assert (
        base64.b64decode(credential_field(Carrier.BASIC_AS_USER, "glpat-x", "sa-bot")[1].removeprefix(b"Basic "))
        == b"sa-bot:glpat-x"
    )
