"""What is known of a request while it is on the road: filled in as the stages pass, read by whatever ends it."""

from __future__ import annotations

from .core.access import Principal
from .core.catalogue import Access, Operation, Surface
from .core.limits import Decision
from .forward_lane import LaneRequest
from .limit_stage import Ticket
from .upstream_call import UpstreamCall

_UNKNOWN_OPERATION = Operation("", Access.WRITE, Surface.REST)


class Progress:
    """What the stages have found out about one request so far, for those after them and for a refusal."""

    __slots__ = ("call", "decision", "handover", "lease", "operation", "preliminary", "principal", "reserved", "ticket")

    def __init__(self, lease: str) -> None:
        self.lease = lease
        """Names the request among those in progress, whatever its id: one from a trusted proxy may not be unique."""
        self.operation = _UNKNOWN_OPERATION
        self.principal: Principal | None = None
        self.decision: Decision | None = None
        self.ticket: Ticket | None = None
        self.preliminary: Ticket | None = None
        """What was taken for the work of finding out what the request takes."""
        self.reserved = 0
        """For how many requests in one that was taken."""
        self.call: UpstreamCall | None = None
        self.handover: LaneRequest | None = None
