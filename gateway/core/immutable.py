"""Answers that can never change, because a full commit SHA names what they show.

GitLab refuses branches that are called like a SHA, and Git takes forty (or sixty-four) hex digits for an object before any
tag of that name. Only answers made of Git objects alone count: a commit's page shows its pipeline, a raw file is no JSON.
"""

from __future__ import annotations

import re

from .query import query_parameters

KEEP_S = 7 * 86_400.0
"""For how long their bodies are kept."""

_SHA = re.compile(rb"[0-9a-f]{40}|[0-9a-f]{64}", re.IGNORECASE)
_BELOW = "GET /api/v4/projects/:id/repository"
# By operation: query parameters that must all be SHAs.
_BY_QUERY = {
    f"{_BELOW}/tree": ("ref",),
    f"{_BELOW}/files/:file_path": ("ref",),
    f"{_BELOW}/files/:file_path/blame": ("ref",),
    f"{_BELOW}/compare": ("from", "to"),
}
# By operation: the place of the SHA, counted from the end of the path.
_BY_SEGMENT = {f"{_BELOW}/blobs/:sha": -1, f"{_BELOW}/commits/:sha/diff": -2}


def is_immutable(operation: str, target: bytes) -> bool:
    """Does a full SHA name what this GET shows?

    Args:
        operation: The catalogue's name.
        target: Raw.
    """
    at = _BY_SEGMENT.get(operation)
    if at is not None:
        segments = target.partition(b"?")[0].split(b"/")
        return _SHA.fullmatch(segments[at].removesuffix(b".json")) is not None
    wanted = _BY_QUERY.get(operation)
    if wanted is None:
        return False
    return all(_is_sha(target, name) for name in wanted)


def _is_sha(target: bytes, name: str) -> bool:
    """``name`` is given once, plainly, and is a SHA; otherwise Rack's choice would have to be guessed."""
    found = [given for given in query_parameters(target.partition(b"?")[2]) if given.name == name]
    return len(found) == 1 and found[0].plain and _SHA.fullmatch(found[0].value) is not None
