"""Ask GitLab for the other names of a request's projects and groups, where the rules can't decide by their spelling."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

from .core.access import Permit, Principal
from .core.catalogue import Access, Operation, Surface
from .core.errors import Code, Rejection, Source
from .core.rule_match import Place, Question
from .road import Road

_LIMITED = frozenset({Code.RATE_LIMITED, Code.LIMITER_UNAVAILABLE})
# On the REST surface, whatever the surface of the request itself.
ASKING = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)


async def resolve(
    road: Road, questions: Sequence[Question], principal: Principal, room: Callable[[], Awaitable[None]] | None = None
) -> dict[Question, Place]:
    """What GitLab answers to ``questions``. The credentials of this identity's own rules are tried in turn, each with the
    questions that are left.

    Raises:
        Rejection: That of the first credential that failed, if a question stays open. What ``room`` raises, before GitLab
            is asked, is raised at once. GitLab's own limit on one credential leaves the question to the others.
    """
    resolved: dict[Question, Place] = {}
    failure: Rejection | None = None
    for use in road.access.credentials_of(principal.identity):
        asking = Permit("", use)
        left = [question for question in questions if question not in resolved]
        try:
            # Of a pool, the one at hand is only an offer: the request itself still goes up with that member, in its turn.
            credential = road.tokens.credential_now(asking, ASKING)
            credential = credential or await road.tokens.credential(asking, principal, ASKING)
            turn = functools.partial(_turn, road, credential.id, principal)
            resolved |= await road.places.resolve(left, credential, room, turn)
        except Rejection as refused:
            if refused.code in _LIMITED and refused.source is not Source.UPSTREAM:
                raise
            failure = failure or refused
        if len(resolved) == len(questions):
            return resolved
    if failure is not None:
        raise failure
    return resolved


async def _turn(road: Road, credential: str, principal: Principal) -> None:
    """Wait for the pace at which GitLab may be asked with this credential."""
    if not road.pacing.is_free(credential):
        await road.pacing.go(credential, principal, "", ASKING.name)
