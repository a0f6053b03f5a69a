"""What an operator may ask of one bucket, and what the limit then becomes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..core.limits import MOST_BURST, MOST_RATE, Limit

LONGEST_S = 7 * 86_400.0
_MOST = 1000.0


class LimitChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator asks for: exactly one of ``factor``, ``pause`` and ``reset``."""

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
    """A wish that holds for a time, as the board holds it."""

    wish: LimitChange
    until: float
    """Unix seconds, by the clock of the gateway that was asked."""


def limit_to_change(wish: LimitChange, limits: Sequence[Limit]) -> Limit:
    """The limit that a valid wish is about. Raises ValueError with a message for the operator."""
    limit = next((limit for limit in limits if limit.id == wish.limit), None)
    if limit is None:
        known = ", ".join(limit.id for limit in limits)
        raise ValueError(
            f"limit: is not one of those configured with a rate or `concurrent` ({known}): no other has buckets"
        )
    if (wish.factor is not None) + wish.pause + wish.reset != 1:
        raise ValueError("give exactly one of factor, pause and reset")
    if wish.factor is not None and not 1 / _MOST <= wish.factor <= _MOST:
        raise ValueError("factor: must be from 0.001 to 1000")
    if not 1 <= wish.seconds <= LONGEST_S:
        raise ValueError("seconds: must be from 1 to 604800, a week")
    if not 1 <= len(wish.subject) <= 256 or not wish.subject.isprintable():
        raise ValueError("subject: must be 1 to 256 printable characters")
    return limit


def decode_change(octets: bytes, limits: Sequence[Limit]) -> tuple[Limit, StoredChange]:
    """Decode a note from the board, with the limit that it is about. Raises ValueError for one that fits none of them."""
    try:
        note = msgspec.json.decode(octets, type=StoredChange)
    except (msgspec.MsgspecError, RecursionError):
        raise ValueError("no note") from None
    return limit_to_change(note.wish, limits), note


def changed_limit(limit: Limit, wish: LimitChange) -> Limit | None:
    """The limit while the wish holds; None: it does not apply."""
    if wish.pause:
        return None
    factor = wish.factor or 1.0
    burst = max(1.0, limit.burst * factor)
    return msgspec.structs.replace(limit, rate=min(MOST_RATE, limit.rate * factor), burst=min(MOST_BURST, burst))
