"""Token buckets: pure arithmetic, which limits apply to a request, and the header dialects that tell the caller."""

from __future__ import annotations

import enum

import msgspec


class Scope(enum.StrEnum):
    """Whose bucket a limit takes from."""

    CALLER = "caller"
    TEAM = "team"
    ADDRESS = "address"
    ORGANISATION = "organisation"


class Limit(msgspec.Struct, frozen=True, gc=False):
    """One configured limit."""

    id: str
    by: Scope
    rate: float
    """Tokens per second that flow back."""
    burst: float
    """Capacity in tokens."""
    period_s: float = 60.0
    """The period the operator wrote the rate in (``600/min`` → 60): the window told to IETF clients."""
    advertise: bool = False
    """This limit's numbers are the ones sent as ``RateLimit-*``."""
    shadow: bool = False
    """Counted and measured, never refused."""


class Take(msgspec.Struct, frozen=True, gc=False):
    """``cost`` tokens wanted from one bucket."""

    key: str
    limit: Limit
    cost: float = 1.0


class BucketState(msgspec.Struct, frozen=True, gc=False):
    """One bucket after a decision."""

    limit: Limit
    allowed: bool
    remaining: float
    """Tokens left after the decision."""
    retry_after_s: float
    """Until ``cost`` would be available; 0 when allowed."""
    full_in_s: float
    """Until the bucket is full again."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """All buckets of a request, taken together or not at all."""

    allowed: bool
    states: tuple[BucketState, ...]
    now: float
    """Unix seconds by the store's clock: the only clock that counts."""
    degraded: bool = False
    """The store did not answer; its failure policy decided."""
