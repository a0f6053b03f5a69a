"""A plan for the first request of its kind: its caller has another plan already, and nobody need be asked to judge it.

A client that goes through many things, one after the other, sends the same fields each time, and another path. What was
found out about these fields and their caller holds; the rest is judged by the stages of the road, in its order, as far as
they can decide at once. What they can't decide, and every refusal, is for the road, which judges from the beginning.
"""

from __future__ import annotations

import copy

from .core.catalogue import Access, Surface
from .core.errors import Rejection
from .core.messages import RequestHead
from .errand import Case, Kept
from .plans import Plan, Plans
from .road import Road

# Read for every request; an enum's class looks up its members anew each time.
_READ, _REST = Access.READ, Surface.REST


class Planner:
    """The planner of one road."""

    def __init__(self, road: Road, plans: Plans) -> None:
        self._road = road
        self._plans = plans

    def plan(self, head: RequestHead) -> Plan | None:
        """The plan that the road would learn from ``head``, which has no body; None: it takes the road. Nobody is asked."""
        kindred = self._plans.kindred(head)
        if kindred is None:
            return None
        road, principal = self._road, kindred.made_of.principal
        try:
            target = road.entry.target(head)
            operation = road.entry.operation(head, target)
            if operation.access is not _READ or operation.surface is not _REST:
                return None
            admitted = road.entry.admit(head, target, operation)
            claim = admitted.claim
            # Whether the caller may come from this address was judged with the other plan: peer and fields are the same.
            proof = road.authenticator.proof(claim, operation, principal)
            if proof is None or proof() is not principal:
                return None
            if road.access.questions(principal, operation, target, head.method, screened=True):
                return None
            permit = road.access.authorise(principal, operation, target, head.method, claim.sudo, screened=True)
        except Rejection:
            return None
        x = copy.copy(kindred.facts)
        x.operation, x.rule, x.permit_use = operation.name, permit.rule, permit.use
        x.sudo, x.rule_shadow = permit.sudo, permit.shadow
        kept = Kept()
        akin = self._plans.kindred(head, operation.name)
        if akin is not None:
            like = akin.made_of
            if like.principal is principal and like.permit == permit and like.claim.sudo == claim.sudo:
                kept.akin = like.kept.upward
        case = Case(admitted, operation, claim, principal, permit, claim.target, kept=kept)
        return self._plans.learn(head, proof, case, x)
