"""Limits as the pipeline sees them: which buckets a request takes from, and what the caller is told."""

from __future__ import annotations

from .access import Principal
from .answer_shape import shape_of_head
from .catalogue import Operation
from .limit_headers import LIMIT_FIELDS, LimitHeaders, merge_limit_fields, replace_limit_fields
from .limit_plan import Limits
from .limits import Decision, Takes
from .messages import Fields, ResponseHead
from .target import Target

_NOTHING = Takes()


class LimitDialect:
    """The configured limits and their two header dialects."""

    def __init__(self, limits: Limits, headers: LimitHeaders) -> None:
        self._limits = limits
        self._headers = headers
        self._nominal_lines = b"".join([b"%b: %b\r\n" % field for field in headers.nominal()])

    def takes_for(self, principal: Principal, operation: Operation, target: Target, method: str, peer: str) -> Takes:
        """See ``core.limit_plan.Limits.takes_for``."""
        return self._limits.takes_for(principal, operation, target, method, peer)

    def own_fields(self, decision: Decision | None, principal: Principal | None) -> Fields:
        """The limit fields of an answer that the gateway makes itself: the decision's numbers, or without a decision the
        nominal quota."""
        if decision is None or principal is None:
            return self._headers.nominal()
        return self._headers.fields_for(decision, principal.id)

    def lines(self, decision: Decision | None, principal: Principal) -> bytes:
        """The same as ``own_fields``, ready for the wire."""
        if decision is None:
            return self._nominal_lines
        return self._headers.lines_for(decision, principal.id)

    def merged(
        self,
        decision: Decision | None,
        principal: Principal,
        status: int,
        fields: Fields,
        now: float,
        *,
        stored: bool = False,
    ) -> Fields:
        """An answer's fields with the limit fields that the caller gets. Brokered callers always see the gateway's numbers:
        GitLab's describe a credential shared with others.

        ``stored``: GitLab was not asked, and no stored answer keeps GitLab's limit fields.
        """
        ours = self.own_fields(decision, principal)
        if stored:
            return fields + ours
        merge = replace_limit_fields if principal.brokered else merge_limit_fields
        return merge(ours, fields, status=status, now=now)

    def merged_parts(
        self, decision: Decision | None, principal: Principal, head: ResponseHead
    ) -> tuple[Fields, bytes] | None:
        """The same as ``merged``, in two parts: the answer's own fields that stay, and the lines to add. None where
        GitLab's numbers have to be weighed against the gateway's."""
        fields = head.fields
        if head.status == 429:
            return None
        shape = head.shape or shape_of_head(head)
        if shape.has_any(LIMIT_FIELDS):
            if not principal.brokered:
                return None
            fields = shape.without(LIMIT_FIELDS)(fields)
        return fields, self.lines(decision, principal)


class NoDialect:
    """No limits, and no mention of any: for a plain shared cache."""

    def takes_for(self, principal: Principal, operation: Operation, target: Target, method: str, peer: str) -> Takes:
        del principal, operation, target, method, peer
        return _NOTHING

    def own_fields(self, decision: Decision | None, principal: Principal | None) -> Fields:
        del decision, principal
        return ()

    def lines(self, decision: Decision | None, principal: Principal) -> bytes:
        del decision, principal
        return b""

    def merged(
        self,
        decision: Decision | None,
        principal: Principal,
        status: int,
        fields: Fields,
        now: float,
        *,
        stored: bool = False,
    ) -> Fields:
        del decision, principal, status, now, stored
        return fields

    def merged_parts(
        self, decision: Decision | None, principal: Principal, head: ResponseHead
    ) -> tuple[Fields, bytes] | None:
        del decision, principal
        return head.fields, b""
