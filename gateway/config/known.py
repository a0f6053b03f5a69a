"""Routes of the cache that have no effect: the catalogue lacks them, or their answers are never stored.

Warnings: a newer GitLab may know them. Of rules, `core.access` speaks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ..core.catalogue import Catalogue
from ..core.private_caching import refuses_request
from .model import Config
from .problems import Problem, Severity, show_path


def unknown_routes(config: Config, catalogue: Catalogue) -> Iterator[Problem]:
    """Each `cache.routes[].match` that names no operation, with the nearest that does, or one that is never cached."""
    operations = {operation.name: operation for operation in catalogue.operations()}
    for index, cached in enumerate(config.cache.routes):
        path = show_path(("cache", "routes", index, "match"))
        operation = operations.get(cached.match)
        if operation is None:
            near = difflib.get_close_matches(cached.match, operations, 1, 0.75)
            hint = f"did you mean `{near[0]}`?" if near else "`gitlab-gateway routes` lists what there is"
            message = f"has no effect: the catalogue has no `{cached.match}`; {hint}"
            yield Problem(path, message, severity=Severity.WARNING)
            continue
        refused = refuses_request(operation, b"", partition=b"anybody", has_body=False, session=False)
        if refused is not None:
            message = f"has no effect: answers of `{cached.match}` are never stored ({refused.value})"
            yield Problem(path, message, severity=Severity.WARNING)
