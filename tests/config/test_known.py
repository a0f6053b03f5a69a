from __future__ import annotations

from gateway.config import load
from gateway.config.known import unknown_routes
from gateway.core.catalogue import Catalogue
from gateway.routes import read

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


def test_routes_that_have_no_effect_are_pointed_out() -> None:
    config = load(TEXT, ENV, read_file).config
    assert config is not None
    found = [str(problem) for problem in unknown_routes(config, Catalogue.decode(read()))]
    assert found == [
        "warning: cache.routes[1].match: has no effect: the catalogue has no `GET /api/v4/projcts/:id`; "
        "did you mean `GET /api/v4/projects/:id`?",
        "warning: cache.routes[2].match: has no effect: the catalogue has no `GET /nowhere`; "
        "`gitlab-gateway routes` lists what there is",
        "warning: cache.routes[3].match: has no effect: answers of `GET /api/v4/projects/:id/variables` are never stored "
        "(secret-answer)",
        "warning: cache.routes[4].match: has no effect: answers of `GET /api/v4/projects/:id/jobs/:job_id/trace` are never "
        "stored (binary)",
    ]


LIMITS = """
version: 1
upstream: {url: https://gitlab.internal}
limits:
  - {id: plain, by: caller, rate: 1/s}
  - id: routed
    by: caller
    rate: 1/s
    cost: weighted
    match:
      routes:
        - "GET /api/v4/projects/:id/repository/archive"
        - "/api/v4/projects/:project/repository/**"
        - "GET /api/v4/projects/:id/repository/archives"
        - "GET /api/v4/projects/5/repository/archive"
costs:
  - {match: "GET /api/v4/projects/:id/repository/tree", cost: 3}
  - {match: "GET /api/v4/projects/:any/repository/tree", cost: 3}
  - {match: "GET /api/v4/projects/:id/repository/trees", cost: 3}
  - {match: "GET /nowhere/**", cost: 3}
"""


def test_limits_and_costs_that_are_about_nothing_are_pointed_out() -> None:
    config = load(LIMITS, ENV, read_file).config
    assert config is not None
    found = [str(problem) for problem in unknown_routes(config, Catalogue.decode(read()))]
    assert found == [
        "warning: limits[1].match.routes[2]: route `GET /api/v4/projects/:id/repository/archives` is not in the catalogue: "
        "it holds only for a route that GitLab adds",
        "warning: limits[1].match.routes[3]: route `GET /api/v4/projects/5/repository/archive` never holds: the catalogue "
        "calls it `GET /api/v4/projects/:id/repository/archive`; `by: project` limits each project",
        "warning: costs[2].match: has no effect: the catalogue has no `GET /api/v4/projects/:id/repository/trees`; "
        "did you mean `GET /api/v4/projects/:id/repository/tree`?",
        "warning: costs[3].match: has no effect: the catalogue has no `GET /nowhere/**`; "
        "`gitlab-gateway routes` lists what there is",
    ]
