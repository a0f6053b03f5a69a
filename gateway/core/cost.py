"""What a request costs a weighted limit: its operation's weight before the answer, and what it really used afterwards.

Sources of the weights. GitLab publishes limits per operation (doc/administration/instance_limits.md, "Rate limits"; the
settings pages of the individual limits) and 2,000 requests per minute for the authenticated API of GitLab.com
(doc/user/gitlab_com, "Rate limits"): an operation that may be used n times less often weighs n times more. GitHub counts
one point for each GET, HEAD or OPTIONS and five for each POST, PATCH, PUT or DELETE ("Rate limits for the REST API",
secondary limits); 304 answers to authorised conditional requests are free there.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import msgspec

from .catalogue import SAFE_METHODS, Operation
from .rule_match import shapes_of

READ_WEIGHT = 1.0
WRITE_WEIGHT = 5.0
MAX_WEIGHT = 50.0
"""The highest default weight: archives and exports (5 or 6 per minute at GitLab) would otherwise cost hundreds, which no
ordinary burst holds."""

_GENERAL = 2000.0
"""Requests per minute: the general limit that the others are compared with."""

PUBLISHED_PER_MINUTE: Mapping[str, float] = {
    "GET /api/v4/projects": 200,
    "GET /api/v4/projects/:id": 400,
    "GET /api/v4/groups": 200,
    "GET /api/v4/groups/:id": 400,
    "GET /api/v4/groups/:id/projects": 600,
    "GET /api/v4/users/:user_id/projects": 300,
    "GET /api/v4/users/:user_id/contributed_projects": 100,
    "GET /api/v4/users/:user_id/starred_projects": 100,
    "GET /api/v4/projects/:id/members/all": 200,
    "GET /api/v4/groups/:id/members/all": 200,
    "DELETE /api/v4/projects/:id/members/:user_id": 60,
    "DELETE /api/v4/groups/:id/members/:user_id": 60,
    "POST /api/v4/projects/:id/issues": 300,
    "POST /api/v4/projects/:id/issues/:noteable_id/notes": 300,
    "POST /api/v4/projects/:id/merge_requests/:noteable_id/notes": 300,
    "GET /api/v4/projects/:id/repository/blobs/:sha/raw": 300,
    "GET /api/v4/projects/:id/repository/files/:file_path/raw": 300,
    "GET /api/v4/projects/:id/jobs": 600,
    "GET /api/v4/projects/:id/repository/archive": 5,
    "POST /api/v4/projects/:id/export": 6,
    "POST /api/v4/projects/import": 6,
    "POST /api/v4/groups/:id/export": 6,
    "POST /api/v4/groups/import": 6,
    "POST /api/v4/projects/:id/hooks/:hook_id/test/:trigger": 5,
}
"""Operation → how many times per minute GitLab lets one user do it, where GitLab says so."""


class Weights:
    """Operation and method → cost. The operator's weight wins over GitLab's published limit, which wins over the method.

    Raises ValueError for a malformed route.
    """

    def __init__(self, configured: Mapping[str, float]) -> None:
        self._table: dict[tuple[str, str], float] = {}
        for name, per_minute in PUBLISHED_PER_MINUTE.items():
            self._add(name, min(MAX_WEIGHT, round(_GENERAL / per_minute)))
        for name, weight in configured.items():
            self._add(name, weight)

    def _add(self, name: str, weight: float) -> None:
        method, shapes = shapes_of(name)
        for shape in shapes:
            self._table[method, shape] = weight

    def of(self, operation: Operation, method: str) -> float:
        """What one request costs before anything is known about its answer."""
        if operation.known:
            listed, shapes = shapes_of(operation.name)
            for shape in shapes:
                weight = self._table.get((listed, shape))
                if weight is not None:
                    return weight
        return READ_WEIGHT if method in SAFE_METHODS else WRITE_WEIGHT


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What a request really used."""

    asked: bool
    """Whether GitLab was asked."""
    not_modified: bool = False
    """Whether GitLab answered 304: to the caller, or to the gateway about a stored answer."""
    runtime_s: float = 0.0
    """GitLab's own ``X-Runtime`` or, without it, the wait for GitLab's first octet."""
    sent_bytes: int = 0
    """Octets of the answer that were sent to the caller."""


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """How the answer changes the cost."""

    cached: float = 1.0
    """The share of the cost that remains if the cache answered and GitLab was not asked."""
    not_modified: float = 1.0
    """The share of the cost that remains if GitLab only answered 304."""
    per_second: float = 0.0
    """Tokens for each second that GitLab worked."""
    per_mebibyte: float = 0.0
    """Tokens for each MiB of the answer."""

    def change(self, cost: float, usage: Usage) -> float:
        """Tokens owed beyond ``cost``, which has been taken already; if negative, tokens to give back."""
        share = self.cached if not usage.asked else self.not_modified if usage.not_modified else 1.0
        used = cost * share + self.per_mebibyte * usage.sent_bytes / (1 << 20)
        if usage.asked and isfinite(usage.runtime_s):
            used += self.per_second * max(0.0, usage.runtime_s)
        return used - cost
