from __future__ import annotations

import pytest

from gateway import routes
from gateway.config.catalogue_checks import catalogue_warnings
from gateway.config.source import ConfigSource

from .world import ENV, read_file

TEXT = """
version: 1
upstream: {url: https://gitlab.internal}
cache:
  routes:
    - {match: "GET /api/v4/projects/:id", ttl: 1s}
    - {match: "GET /api/v4/projcts/:id", ttl: 1s}
    - {match: "GET /nowhere", ttl: 1s}
    - {match: "GET /api/v4/projects/:id/variables", ttl: 1s}
    - {match: "GET /api/v4/projects/:id/jobs/:job_id/trace", ttl: 1s}
"""


CATALOGUE = routes.catalogue()


def warnings(text: str) -> list[str]:
    source = ConfigSource(text, "g.yaml")
    config = source.load(ENV, read_file).config
    assert config is not None
    return [str(problem) for problem in catalogue_warnings(config, CATALOGUE, source)]


def test_routes_that_have_no_effect_are_pointed_out() -> None:
    assert warnings(TEXT) == [
        "g.yaml:7: warning: cache.routes[1].match: has no effect: the catalogue has no `GET /api/v4/projcts/:id`; "
        "did you mean `GET /api/v4/projects/:id`?",
        "g.yaml:8: warning: cache.routes[2].match: has no effect: the catalogue has no `GET /nowhere`; "
        "`gitlab-gateway routes` lists what there is",
        "g.yaml:9: warning: cache.routes[3].match: has no effect: answers of `GET /api/v4/projects/:id/variables` are "
        "never stored (secret-answer)",
        "g.yaml:10: warning: cache.routes[4].match: has no effect: answers of "
        "`GET /api/v4/projects/:id/jobs/:job_id/trace` are never stored (binary)",
    ]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (
            "GET /api/v4/projekts/:id",
            "is not in the catalogue: it matches only if GitLab adds it; did you mean `GET /api/v4/projects/:id`?",
        ),
        (
            "/api/v4/projects/:id/isues",
            "is not in the catalogue: it matches only if GitLab adds it; did you mean `/api/v4/projects/:id/issues`?",
        ),
        ("/platform/**", "is not in the catalogue: it matches only if GitLab adds it"),
        (
            "GET /api/v4/projects/42/issues",
            "never matches: the catalogue calls it `GET /api/v4/projects/:id/issues`; `by: project` limits each project",
        ),
        ("GET /api/v4/projects/:id", ""),
        ("GET /api/v4/projects/:whatever/issues", ""),
        ("/api/v4/projects/:id/repository/**", ""),
    ],
)
def test_routes_of_limits_are_looked_up(route: str, message: str) -> None:
    found = warnings(
        "version: 1\nupstream: {url: https://gitlab.internal}\nlimits:\n  - {id: all, by: caller, rate: 9/min}\n"
        f"  - {{id: few, by: caller, rate: 1/min, match: {{routes: ['{route}']}}}}\n"
    )
    assert len(found) == bool(message)
    assert all(line == f"g.yaml:5: warning: limits[1].match.routes[0]: route `{route}` {message}" for line in found)


RULES = """
version: 1
upstream: {url: https://gitlab.internal}
identities: [{id: bot, key: issued}]
credentials: [{id: reader, token: "${env:READER_TOKEN}"}]
rules:
  - id: reads
    for: [bot]
    use: reader
    allow:
      - {access: read, routes: ["GET /api/v4/projects/:id/isues"]}
    deny:
      - {methods: [DELETE]}
      - {permissions: [read_varible]}
  - id: again
    for: [bot]
    use: reader
    allow: [{access: read, routes: ["GET /api/v4/projects/:id/isues"]}]
"""


def test_clauses_of_rules_are_named_with_their_lines() -> None:
    route = (
        "route `GET /api/v4/projects/:id/isues` is not in the catalogue: it matches only if GitLab adds it; "
        "did you mean `GET /api/v4/projects/:id/issues`?"
    )
    assert warnings(RULES) == [
        f"g.yaml:11: warning: rules[0].allow[0]: {route}",
        "g.yaml:14: warning: rules[0].deny[1]: permission `read_varible` belongs to no operation of the catalogue; "
        "did you mean `read_variable`?",
        f"g.yaml:18: warning: rules[1].allow[0]: {route}",
    ]


def test_operations_that_weigh_are_looked_up() -> None:
    found = warnings(
        "version: 1\nupstream: {url: https://gitlab.internal}\n"
        "limits: [{id: all, by: caller, rate: 9/min, cost: weighted}]\ncosts:\n"
        "  - {match: GET /api/v4/projects/:id, cost: 2}\n  - {match: GET /api/v4/projects/:project, cost: 2}\n"
        "  - {match: GET /api/v4/projcts/:id, cost: 2}\n"
    )
    assert found == [
        "g.yaml:7: warning: costs[2].match: has no effect: the catalogue has no `GET /api/v4/projcts/:id`; "
        "did you mean `GET /api/v4/projects/:id`?"
    ]
