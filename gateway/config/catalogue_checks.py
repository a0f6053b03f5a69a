"""Settings that, by the route catalogue, have no effect or another than it seems: routes of cache, limits, costs and rules.

These are warnings only: a newer GitLab may have routes that the catalogue does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..core.catalogue import Catalogue
from ..core.private_caching import bypass_reason
from ..core.rule_findings import review_rules, suggestion, unmatched_route_message
from ..core.rule_match import shapes_of
from .compile import rules
from .model import Config
from .problems import Path, Problem, Severity
from .source import ConfigSource
from .tree import parse_tree

_Finding = tuple[Path, str]


def catalogue_warnings(config: Config, catalogue: Catalogue, source: ConfigSource) -> Iterator[Problem]:
    """Report each route that names no operation (with the nearest that does) or one that is never cached, and each clause
    of a rule that has no effect or gets in another's way. Lines are those of the text that ``source`` holds."""
    tree = parse_tree(source.text, source.file, dict(source.overrides))
    for check in (_check_rules, _check_limits, _check_costs, _check_cache):
        for path, message in check(config, catalogue):
            yield tree.problem(path, message, Severity.WARNING)


def _check_rules(config: Config, catalogue: Catalogue) -> Iterator[_Finding]:
    for found in review_rules(rules(config), catalogue):
        yield ("rules", found.rule, "deny" if found.deny else "allow", found.clause), found.message


def _check_cache(config: Config, catalogue: Catalogue) -> Iterator[_Finding]:
    operations = {operation.name: operation for operation in catalogue.operations()}
    for index, cached in enumerate(config.cache.routes):
        path: Path = ("cache", "routes", index, "match")
        operation = operations.get(cached.match)
        if operation is None:
            yield _unknown(path, cached.match, operations)
            continue
        refused = bypass_reason(operation, b"", partition=b"anybody", has_body=False, session=False)
        if refused is not None:
            yield path, f"has no effect: answers of `{cached.match}` are never stored ({refused.value})"


def _check_limits(config: Config, catalogue: Catalogue) -> Iterator[_Finding]:
    for index, limit in enumerate(config.limits):
        for place, route in enumerate((limit.match.routes if limit.match is not None else None) or ()):
            idle = unmatched_route_message(route, catalogue, "`by: project` limits each project")
            if idle:
                yield ("limits", index, "match", "routes", place), idle


def _check_costs(config: Config, catalogue: Catalogue) -> Iterator[_Finding]:
    operations = [operation.name for operation in catalogue.operations()]
    known = {(method, shape) for method, shapes in map(shapes_of, operations) for shape in shapes}
    for index, entry in enumerate(config.costs):
        method, shapes = shapes_of(entry.match)
        if not any((method, shape) in known for shape in shapes):
            yield _unknown(("costs", index, "match"), entry.match, operations)


def _unknown(path: Path, route: str, operations: Iterable[str]) -> _Finding:
    hint = suggestion(route, operations, 0.75) or "; `gitlab-gateway routes` lists what there is"
    return path, f"has no effect: the catalogue has no `{route}`{hint}"
