"""Routes of the cache that the catalogue lacks. Warnings: a newer GitLab may know them. Of rules, `core.access` speaks."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ..core.catalogue import Catalogue
from .model import Config
from .problems import Problem, Severity, show_path


def unknown_routes(config: Config, catalogue: Catalogue) -> Iterator[Problem]:
    """Each `cache.routes[].match` that is the name of no operation, with the nearest that is."""
    operations = [operation.name for operation in catalogue.operations()]
    for index, cached in enumerate(config.cache.routes):
        if cached.match not in operations:
            near = difflib.get_close_matches(cached.match, operations, 1, 0.75)
            hint = f"did you mean `{near[0]}`?" if near else "`gitlab-gateway routes` lists what there is"
            path = show_path(("cache", "routes", index, "match"))
            message = f"has no effect: the catalogue has no `{cached.match}`; {hint}"
            yield Problem(path, message, severity=Severity.WARNING)
