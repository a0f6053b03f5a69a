"""Answers that can never change, because a full commit SHA names what they show.

GitLab refuses branches named like a SHA, and Git takes forty (or sixty-four) hex digits for an object before any tag of
that name. Only answers made of Git objects alone count: the answer about a commit itself shows its pipeline, and a raw file
is not JSON.
"""

from __future__ import annotations

import re

from .query import query_parameters

KEEP_S = 7 * 86_400.0
"""How long the bodies of such answers are kept, in seconds."""

_SHA = re.compile(rb"[0-9a-f]{40}|[0-9a-f]{64}", re.IGNORECASE)
_BELOW = "GET /api/v4/projects/:id/repository"
# Operation → the query parameters that must all be SHAs.
_BY_QUERY = {
    f"{_BELOW}/tree": ("ref",),
    f"{_BELOW}/files/:file_path": ("ref",),
    f"{_BELOW}/files/:file_path/blame": ("ref",),
    f"{_BELOW}/compare": ("from", "to"),
}
# Operation → the position of the SHA, counted from the end of the path.
_BY_SEGMENT = {f"{_BELOW}/blobs/:sha": -1, f"{_BELOW}/commits/:sha/diff": -2}


def is_immutable(operation: str, target: bytes) -> bool:
    """Whether a full SHA names what this GET shows.

    Args:
        operation: The operation's name in the catalogue.
        target: The raw target.
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
    """Whether ``name`` is given once, plainly, and is a SHA; otherwise we would have to guess which one Rack picks."""
    found = [given for given in query_parameters(target.partition(b"?")[2]) if given.name == name]
    return len(found) == 1 and found[0].plain and _SHA.fullmatch(found[0].value) is not None
