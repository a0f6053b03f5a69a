"""How old an answer is and how long it stays fresh (RFC 9111 §4.2): arithmetic on seconds; the clock is an argument."""

from __future__ import annotations

import re

from .cache_control import MAX_DELTA_S, ResponseDirectives
from .http_date import parse_date
from .messages import Fields, first, values

HEURISTIC_SHARE = 0.1
"""The guessed lifetime, as a share of the time since the last modification (§4.2.2 names this figure)."""
HEURISTIC_CAP_S = 86_400.0
"""No guessed lifetime is longer than a day."""

# The first member of a list counts, its parameters do not (RFC 9111 §5.1 and RFC 9110 §5.5: be lenient where safe).
_AGE = re.compile(rb"[ \t]*(\d+)[ \t]*(?:[,;].*)?", re.DOTALL)

# Statuses whose definition lets a cache guess (RFC 9110 §15.1).
HEURISTIC_STATUSES = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})


def age_value(fields: Fields) -> float:
    """The ``Age`` that came with an answer; 0 if there is none or it can't be read (§5.1: ignore it)."""
    value = first(fields, b"age")
    match = _AGE.fullmatch(value) if value is not None else None
    if match is None:
        return 0.0
    return MAX_DELTA_S if len(match[1]) > 10 else min(float(match[1]), MAX_DELTA_S)


def year_of(at: float) -> int:
    """The calendar year of Unix seconds, near enough to place a two-digit year."""
    return 1970 + int(at // 31_556_952)


def date_of(fields: Fields, name: bytes, now: float) -> float | None:
    """A date field in Unix seconds, if it occurs exactly once and can be read."""
    found = values(fields, name)
    return parse_date(found[0].strip(), year_of(now)) if len(found) == 1 else None


def corrected_age(date_at: float | None, age_s: float, requested_at: float, received_at: float) -> float:
    """``corrected_initial_age`` (§4.2.3): the more pessimistic of what ``Date`` and ``Age`` say.

    Args:
        date_at: The answer's ``Date`` in Unix seconds, if it has one that can be read.
        age_s: Its ``Age``; 0 if it has none.
        requested_at: When the request went up, Unix seconds.
        received_at: When the head came back.
    """
    apparent = received_at - date_at if date_at is not None else 0.0
    # ``Date`` has whole seconds: an answer that came within its second is not a second old.
    apparent = apparent if apparent >= 1.0 else 0.0
    return max(apparent, age_s + max(0.0, received_at - requested_at))


def lifetime(status: int, fields: Fields, directives: ResponseDirectives, received_at: float) -> float:
    """``freshness_lifetime`` (§4.2.1, §4.2.2) for a shared cache, in seconds; 0 when nothing grants any."""
    if directives.max_age_s is not None:
        return directives.max_age_s
    date_at = date_of(fields, b"date", received_at)
    base = date_at if date_at is not None else received_at
    if not directives.targeted and first(fields, b"expires") is not None:
        expires_at = date_of(fields, b"expires", received_at)
        return max(0.0, expires_at - base) if expires_at is not None else 0.0
    if status in HEURISTIC_STATUSES or directives.public:
        modified_at = date_of(fields, b"last-modified", received_at)
        if modified_at is not None and modified_at < base:
            return min((base - modified_at) * HEURISTIC_SHARE, HEURISTIC_CAP_S)
    return 0.0


def has_explicit_lifetime(fields: Fields, directives: ResponseDirectives) -> bool:
    """Whether the origin itself gave a lifetime (§3: what a cache must see to keep statuses it may not guess about)."""
    return directives.max_age_s is not None or (not directives.targeted and first(fields, b"expires") is not None)
