"""The changes that an operator may make to one bucket, and what its limit then becomes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..core.limits import MOST_BURST, MOST_RATE, Limit

LONGEST_S = 7 * 86_400.0
_MOST = 1000.0


class LimitChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator asks for one bucket: exactly one of ``factor``, ``pause`` and ``reset``."""

    limit: str
    subject: str
    """As ``top`` names it: a principal, a team, an address, a project; ``all`` for the organisation's bucket."""
    factor: float | None = None
    """Multiplies the configured rate and burst."""
    pause: bool = False
    """Whether the limit shall not apply."""
    reset: bool = False
    """Whether the bucket shall be full again, and its limit as configured."""
    seconds: float = 3600.0


class StoredChange(msgspec.Struct, frozen=True):
    """A change that holds for a time, as the shared store holds it."""

    change: LimitChange = msgspec.field(name="wish")
    until: float
    """Unix seconds, by the clock of the gateway that was asked."""


def limit_to_change(change: LimitChange, limits: Sequence[Limit]) -> Limit:
    """The limit that a valid change is about. Raises ValueError with a message for the operator."""
    limit = next((limit for limit in limits if limit.id == change.limit), None)
    if limit is None:
        known = ", ".join(limit.id for limit in limits)
        raise ValueError(
            f"limit: is not one of those configured with a rate or `concurrent` ({known}): no other has buckets"
        )
    if (change.factor is not None) + change.pause + change.reset != 1:
        raise ValueError("give exactly one of factor, pause and reset")
    if change.factor is not None and not 1 / _MOST <= change.factor <= _MOST:
        raise ValueError("factor: must be from 0.001 to 1000")
    if not 1 <= change.seconds <= LONGEST_S:
        raise ValueError("seconds: must be from 1 to 604800, a week")
    if not 1 <= len(change.subject) <= 256 or not change.subject.isprintable():
        raise ValueError("subject: must be 1 to 256 printable characters")
    return limit


def decode_change(octets: bytes, limits: Sequence[Limit]) -> tuple[Limit, StoredChange]:
    """Decode a stored change, with the limit that it is about. Raises ValueError for one that fits none of them."""
    try:
        stored = msgspec.json.decode(octets, type=StoredChange)
    except (msgspec.MsgspecError, RecursionError):
        raise ValueError("no note") from None
    return limit_to_change(stored.change, limits), stored


def changed_limit(limit: Limit, change: LimitChange) -> Limit | None:
    """The limit while the change holds; None: it does not apply."""
    if change.pause:
        return None
    factor = change.factor or 1.0
    burst = max(1.0, limit.burst * factor)
    return msgspec.structs.replace(limit, rate=min(MOST_RATE, limit.rate * factor), burst=min(MOST_BURST, burst))
