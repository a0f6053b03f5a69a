"""Names that the route catalogue lacks. Warnings: a newer GitLab may know them, but a typo in a `deny` is a hole."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ..core.catalogue import Catalogue
from ..core.rule_match import parse_route
from .model import Config
from .problems import Path, Problem, Severity, show_path


def unknown_names(config: Config, catalogue: Catalogue) -> Iterator[Problem]:
    """Permissions and routes of rules, and routes of the cache, that match no operation."""
    operations = [operation.name for operation in catalogue.operations()]
    permissions = {name for operation in catalogue.operations() for name in operation.permissions}
    templates = {name.partition(" ")[2] for name in operations}
    for number, rule in enumerate(config.rules):
        for side, clauses in ("allow", rule.allow), ("deny", rule.deny):
            for position, clause in enumerate(clauses):
                path: Path = ("rules", number, side, position)
                for index, name in enumerate(clause.permissions or ()):
                    if name not in permissions:
                        yield _warning((*path, "permissions", index), "permission", name, list(permissions))
                for index, route in enumerate(clause.routes or ()):
                    method, template = parse_route(route)
                    known = template in templates if method == "ANY" else route in operations
                    if not known and not template.endswith("/**"):
                        yield _warning((*path, "routes", index), "route", route, operations)
    for index, cached in enumerate(config.cache.routes):
        if cached.match not in operations:
            yield _warning(("cache", "routes", index, "match"), "route", cached.match, operations)


def _warning(path: Path, kind: str, name: str, names: list[str]) -> Problem:
    near = difflib.get_close_matches(name, sorted(names), 1, 0.75)
    hint = f"; did you mean `{near[0]}`?" if near else "; `gitlab-gateway routes` lists what there is"
    return Problem(show_path(path), f"is no {kind} of the catalogue: `{name}`{hint}", severity=Severity.WARNING)
