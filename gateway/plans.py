"""What the road found out about a request, kept for the next of its kind: the same fields, the same path, another page.

A client that pages through a list, or asks again for what went stale, sends the same each time but for parameters that no
stage reads. Route, claim, permit and forwarded fields are then what they were; what may change is asked each time:

    proof ──── memory still knows the credential as the same principal       otherwise the whole road
    buckets, credential, pace, cache, GitLab ── as on the whole road
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import msgspec

from .core.catalogue import Surface
from .core.correlation import record_ids
from .core.credentials import CredentialKind
from .core.exchange import Exchange
from .core.generation_cache import GenerationCache
from .core.messages import Fields, RequestHead
from .core.request_validation import AdmittedRequest
from .upstream_call import AuthorisedRequest

MOST_PLANS = 8192
_REST = Surface.REST

# Parameters that choose among the items of a list, or order them: no rule, route, tag, limit or credential depends on any
# of them. A value must be a word, a number or an instant; with any other the parameter is not one of these.
_LIST_PARAMETERS = re.compile(
    rb"(?:(?:page|per_page|cursor|order_by|sort|state|id_after|id_before|since|until|(?:created|updated)_(?:after|before))"
    rb"=[0-9A-Za-z_.:+-]*(?:&(?!$)|$))+"
)


class Plan(msgspec.Struct, gc=False):
    """What the stages up to the permit came to."""

    fields: Fields
    proof: Callable[[], object]
    example: AuthorisedRequest
    """The request that it was learnt from."""
    facts: Exchange

    # Not the struct's own, which would show what leads to a caller's credential.
    __repr__ = object.__repr__

    def authorised(self, head: RequestHead) -> AuthorisedRequest:
        """What ``head`` comes to."""
        example = self.example
        return AuthorisedRequest(
            example.admitted,
            example.operation,
            example.claim,
            example.principal,
            example.permit,
            head.target,
            shared_memo=example.shared_memo,
        )

    def facts_for(self, head: RequestHead, request_id: str, started_at: float) -> Exchange:
        """What is known about ``head`` before the buckets are asked."""
        # As copy.copy would, less its look-ups.
        x: Exchange = self.facts.__copy__()  # type: ignore[attr-defined]
        x.request_id, x.started_at, x.target = request_id, started_at, head.target
        if head.correlation:
            record_ids(x, head, trusted=self.example.admitted.trusted_peer)
        return x


class Plans:
    """The plans of one road, in bounded number."""

    def __init__(self, most: int = MOST_PLANS) -> None:
        self._plans: GenerationCache[tuple[object, ...], Plan] = GenerationCache(most)
        self._siblings: GenerationCache[tuple[object, ...], Plan] = GenerationCache(most)
        """As ``_plans``, but by the operation, or by none, instead of the path."""

    def __len__(self) -> int:
        return len(self._plans)

    def find(self, head: RequestHead) -> Plan | None:
        """The plan for ``head``, if its caller is still who it was."""
        plan = self._plans.get(_plan_key(head))
        if plan is None or plan.fields is not head.fields or plan.proof() is not plan.example.principal:
            return None
        return plan

    def sibling_plan(self, head: RequestHead, operation: str = "") -> Plan | None:
        """A plan for the same fields from the same peer, whatever its path; with ``operation``, one for that operation."""
        plan = self._siblings.get((operation, id(head.fields), head.method, head.peer, head.tls))
        return None if plan is None or plan.fields is not head.fields else plan

    def learn(
        self, head: RequestHead, proof: Callable[[], object], authorised: AuthorisedRequest, x: Exchange
    ) -> Plan | None:
        """Remember that ``head`` came to ``authorised``, as its like would: nothing of that depends on a body, a session or
        a parameter. None: something does."""
        if not (
            authorised.body is None
            and head.method == "GET"
            and authorised.operation.surface is _REST
            and authorised.claim.kind is not CredentialKind.SESSION
            and authorised.target == head.target  # no parameter of it is a credential
            and authorised.permit.narrowing is None
            and not authorised.admitted.websocket
        ):
            return None
        plan = Plan(head.fields, proof, authorised, copy.copy(x))
        key = _plan_key(head)
        self._plans.put(key, plan)
        for operation in ("", authorised.operation.name):
            self._siblings.put((operation, *key[1:]), plan)
        return plan


def admitted_for(head: RequestHead, admitted: AdmittedRequest) -> AdmittedRequest:
    """``admitted``, made from a request of the same kind, as the entry would make it from ``head``."""
    _, mark, query = head.target.partition(b"?")
    target = msgspec.structs.replace(admitted.target, raw=head.target, query=query if mark else None)
    claim = msgspec.structs.replace(admitted.claim, target=head.target)
    return msgspec.structs.replace(admitted, target=target, claim=claim)


def _plan_key(head: RequestHead) -> tuple[object, ...]:
    # By the identity of its fields, which the edge keeps as one object while a connection repeats them: comparing them
    # would cost as much as reading them. The plan keeps them alive, so that no others can take their place.
    path, _, query = head.target.partition(b"?")
    if query and not _LIST_PARAMETERS.fullmatch(query):
        path = head.target
    return (path, id(head.fields), head.method, head.peer, head.tls)
