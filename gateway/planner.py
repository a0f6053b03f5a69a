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
from .plans import Plan, Plans
from .stages import Stages
from .upstream_call import AuthorisedRequest, SharedMemo

# Read for every request; an enum's class looks up its members anew each time.
_READ, _REST = Access.READ, Surface.REST


class Planner:
    """The planner of one road."""

    def __init__(self, stages: Stages, plans: Plans) -> None:
        self._stages = stages
        self._plans = plans

    def plan(self, head: RequestHead) -> Plan | None:
        """The plan that the road would learn from ``head``, which has no body; None: it takes the road. Nobody is asked."""
        sibling_plan = self._plans.sibling_plan(head)
        if sibling_plan is None:
            return None
        stages, principal = self._stages, sibling_plan.example.principal
        try:
            target = stages.entry.target(head)
            operation = stages.entry.operation(head, target)
            if operation.access is not _READ or operation.surface is not _REST:
                return None
            admitted = stages.entry.admit(head, target, operation)
            claim = admitted.claim
            # Whether the caller may come from this address was judged with the other plan: peer and fields are the same.
            proof = stages.authenticator.proof(claim, operation, principal)
            if proof is None or proof() is not principal:
                return None
            if stages.access.lookups(principal, operation, target, head.method, screened=True):
                return None
            permit = stages.access.authorise(principal, operation, target, head.method, claim.sudo, screened=True)
        except Rejection:
            return None
        x = copy.copy(sibling_plan.facts)
        x.operation, x.rule, x.permit_use = operation.name, permit.rule, permit.use
        x.sudo, x.rule_shadow = permit.sudo, permit.shadow
        shared_memo = SharedMemo()
        sibling = self._plans.sibling_plan(head, operation.name)
        if sibling is not None:
            example = sibling.example
            if example.principal is principal and example.permit == permit and example.claim.sudo == claim.sudo:
                shared_memo.sibling_templates = example.shared_memo.templates
        authorised = AuthorisedRequest(admitted, operation, claim, principal, permit, claim.target, shared_memo=shared_memo)
        return self._plans.learn(head, proof, authorised, x)
