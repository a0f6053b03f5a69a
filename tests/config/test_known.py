from __future__ import annotations

from gateway.config import load
from gateway.config.known import unknown_names
from gateway.core.catalogue import Catalogue
from gateway.routes import read

from .world import ENV, read_file

TEXT = """
version: 1
upstream: {url: https://gitlab.internal}
identities: [{id: people, gitlab_token: true}]
rules:
  - id: r
    for: [people]
    deny:
      - {permissions: [read_variable, read_variabel]}
      - {routes: ["GET /api/v4/projects/:id", "/api/v4/version", "/api/v4/**", "GET /api/v4/project/:id", /nowhere/at/all]}
cache:
  routes: [{match: "GET /api/v4/projects/:id", ttl: 1s}, {match: "GET /api/v4/projcts/:id", ttl: 1s}]
"""


def test_names_outside_the_catalogue_are_pointed_out() -> None:
    config = load(TEXT, ENV, read_file).config
    assert config is not None
    found = [str(problem) for problem in unknown_names(config, Catalogue.decode(read()))]
    assert found == [
        "warning: rules[0].deny[0].permissions[1]: is no permission of the catalogue: `read_variabel`; "
        "did you mean `read_variable`?",
        "warning: rules[0].deny[1].routes[3]: is no route of the catalogue: `GET /api/v4/project/:id`; "
        "did you mean `GET /api/v4/projects/:id`?",
        "warning: rules[0].deny[1].routes[4]: is no route of the catalogue: `/nowhere/at/all`; "
        "`gitlab-gateway routes` lists what there is",
        "warning: cache.routes[1].match: is no route of the catalogue: `GET /api/v4/projcts/:id`; "
        "did you mean `GET /api/v4/projects/:id`?",
    ]
