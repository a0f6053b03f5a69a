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
