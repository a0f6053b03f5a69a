"""Routes of the cache, of limits and of costs that have no effect: the catalogue lacks them, or they are never stored.

Warnings: a newer GitLab may know them. Of rules, `core.access` speaks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from ..core.catalogue import Catalogue
from ..core.private_caching import refuses_request
from ..core.rule_findings import idle_route
from ..core.rule_match import shapes_of
from .given import Given
from .model import Config
from .problems import Path, Problem, Severity
from .tree import parse_tree

_Finding = tuple[Path, str]


def unknown_routes(config: Config, catalogue: Catalogue, given: Given) -> Iterator[Problem]:
    """Each route that names no operation, with the nearest that does, or one that is never cached; with the lines of what
    the configuration was read from."""
    tree = parse_tree(given.text, given.file, dict(given.overrides))
    for path, message in (*_cached(config, catalogue), *_limited(config, catalogue), *_weighed(config, catalogue)):
        yield tree.problem(path, message, Severity.WARNING)


def _cached(config: Config, catalogue: Catalogue) -> Iterator[_Finding]:
    operations = {operation.name: operation for operation in catalogue.operations()}
    for index, cached in enumerate(config.cache.routes):
        path: Path = ("cache", "routes", index, "match")
        operation = operations.get(cached.match)
        if operation is None:
            yield _unknown(path, cached.match, operations)
            continue
        refused = refuses_request(operation, b"", partition=b"anybody", has_body=False, session=False)
        if refused is not None:
            yield path, f"has no effect: answers of `{cached.match}` are never stored ({refused.value})"


def _limited(config: Config, catalogue: Catalogue) -> Iterator[_Finding]:
    for index, limit in enumerate(config.limits):
        for place, route in enumerate((limit.match.routes if limit.match is not None else None) or ()):
            idle = idle_route(route, catalogue, "`by: project` limits each project")
            if idle:
                yield ("limits", index, "match", "routes", place), idle


def _weighed(config: Config, catalogue: Catalogue) -> Iterator[_Finding]:
    operations = [operation.name for operation in catalogue.operations()]
    known = {(method, shape) for method, shapes in map(shapes_of, operations) for shape in shapes}
    for index, entry in enumerate(config.costs):
        method, shapes = shapes_of(entry.match)
        if not any((method, shape) in known for shape in shapes):
            yield _unknown(("costs", index, "match"), entry.match, operations)


def _unknown(path: Path, route: str, operations: Iterable[str]) -> _Finding:
    near = difflib.get_close_matches(route, operations, 1, 0.75)
    hint = f"did you mean `{near[0]}`?" if near else "`gitlab-gateway routes` lists what there is"
    return path, f"has no effect: the catalogue has no `{route}`; {hint}"
