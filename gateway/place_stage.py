"""What GitLab calls the places of a request otherwise, where the rules can't tell by their spelling."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

from .core.access import Permit, Principal
from .core.catalogue import Access, Operation, Surface
from .core.errors import Code, Rejection, Source
from .core.rule_match import Place, Question
from .road import Road

# On the REST surface, whatever the request is.
_LIMITED = frozenset({Code.RATE_LIMITED, Code.LIMITER_UNAVAILABLE})
ASKING = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)


async def resolve(
    road: Road, questions: Sequence[Question], principal: Principal, room: Callable[[], Awaitable[None]] | None = None
) -> dict[Question, Place]:
    """What GitLab knows of ``questions``, asked with the credentials of this identity's own rules, each for what is left.

    Raises:
        Rejection: Of the first that failed, while a question is open; at once what ``room`` raises, before GitLab is asked.
            GitLab's own limit on one credential leaves it to the others.
    """
    resolved: dict[Question, Place] = {}
    failure: Rejection | None = None
    for use in road.access.credentials_of(principal.identity):
        asking = Permit("", use)
        left = [question for question in questions if question not in resolved]
        try:
            # The one at hand is a pool's offer: the request itself goes up with that member, in its turn.
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
    """At GitLab's pace for this credential."""
    if not road.pacing.is_free(credential):
        await road.pacing.go(credential, principal, "", ASKING.name)
