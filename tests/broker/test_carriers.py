from __future__ import annotations

import base64

import pytest

from gateway.broker.carriers import Carrier, carrier_for, field
from gateway.core.catalogue import Access, Operation, Surface


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
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/pypi/simple"), Carrier.BASIC),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/nuget/index"), Carrier.BASIC),
        (on(Surface.PACKAGES, "GET /api/v4/projects/:id/packages/terraform/modules/x"), Carrier.BEARER),
    ],
    ids=lambda value: value.name,
)
def test_each_surface_reads_its_own_field(operation: Operation, carrier: Carrier) -> None:
    assert carrier_for(operation) is carrier


def test_the_fields() -> None:
    assert field(Carrier.PRIVATE_TOKEN, "glpat-x") == (b"PRIVATE-TOKEN", b"glpat-x")
    assert field(Carrier.BEARER, "glpat-x") == (b"Authorization", b"Bearer glpat-x")
    name, value = field(Carrier.BASIC, "glpat-" + "x" * 300)
    assert name == b"Authorization"
    assert base64.b64decode(value.removeprefix(b"Basic ")) == b"oauth2:glpat-" + b"x" * 300
    assert b"\n" not in value
