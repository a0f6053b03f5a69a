"""Ask GitLab for the other names of a request's projects and groups, where the rules can't decide by their spelling."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

from .core.access import Permit, Principal
from .core.catalogue import Access, Operation, Surface
from .core.errors import Code, Rejection, Source
from .core.rule_match import Place, PlaceLookup
from .stages import Stages

_LIMITED = frozenset({Code.RATE_LIMITED, Code.LIMITER_UNAVAILABLE})
# On the REST surface, whatever the surface of the request itself.
LOOKUP_OPERATION = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)


async def resolve(
    stages: Stages, lookups: Sequence[PlaceLookup], principal: Principal, room: Callable[[], Awaitable[None]] | None = None
) -> dict[PlaceLookup, Place]:
    """What GitLab answers to ``lookups``. The credentials of this identity's own rules are tried in turn, each with the
    lookups that are left.

    Raises:
        Rejection: That of the first credential that failed, if a lookup stays open. What ``room`` raises, before GitLab
            is asked, is raised at once. GitLab's own limit on one credential leaves the lookups to the others.
    """
    resolved: dict[PlaceLookup, Place] = {}
    failure: Rejection | None = None
    for use in stages.access.credentials_of(principal.identity):
        permit = Permit("", use)
        left = [lookup for lookup in lookups if lookup not in resolved]
        try:
            # Of a pool, the one at hand is only an offer: the request itself still goes up with that member, in its turn.
            credential = stages.tokens.credential_now(permit, LOOKUP_OPERATION)
            credential = credential or await stages.tokens.credential(permit, LOOKUP_OPERATION)
            turn = functools.partial(_await_pace, stages, credential.id, principal)
            resolved |= await stages.places.resolve(left, credential, room, turn)
        except Rejection as refused:
            if refused.code in _LIMITED and refused.source is not Source.UPSTREAM:
                raise
            failure = failure or refused
        if len(resolved) == len(lookups):
            return resolved
    if failure is not None:
        raise failure
    return resolved


async def _await_pace(stages: Stages, credential: str, principal: Principal) -> None:
    """Wait for the pace at which GitLab may be asked with this credential."""
    if not stages.pacing.is_free(credential):
        await stages.pacing.await_turn(credential, principal, "", LOOKUP_OPERATION.name)
