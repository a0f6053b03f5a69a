"""A pace for one upstream credential, learned from GitLab's own rate-limit fields, before GitLab starts refusing.

Many callers share a brokered credential, and GitLab limits it as one user. While more than half of its window is left
nothing is slowed. Below that the rest is spread over the time until the window ends, less a reserve, so that it lasts for
everybody; when GitLab refuses, nobody asks before it said one may. Fields: gitlab.md-verified forms of GitLab 19
(``RateLimit-Reset`` in Unix seconds, ``Retry-After`` in seconds).
"""

from __future__ import annotations

import math

from .limits import Limit, Scope
from .messages import Fields, lower

SLOW_BELOW = 0.5
"""Of the window: what is left when pacing begins."""
SPEND = 0.9
"""Of what is left: the rest is for those who use the credential beside this gateway."""
LONGEST_S = 3600.0
PATIENCE_S = 5.0
"""How long a request waits for the pace before its caller is told to come back."""

_REFUSED = frozenset({429, 503})
_FIELDS = {b"ratelimit-observed", b"ratelimit-remaining", b"ratelimit-reset", b"retry-after"}


class Pace:
    """One credential's."""

    __slots__ = ("_blocked_until", "_limit", "_remaining", "_reset", "_until")

    def __init__(self) -> None:
        self._limit: Limit | None = None
        self._until = 0.0
        self._blocked_until = 0.0
        self._remaining = 0.0
        self._reset = 0.0

    def blocked_s(self, now: float) -> float:
        """How long GitLab does not want to be asked; 0 when it may be. ``now`` in Unix seconds."""
        return max(0.0, self._blocked_until - now)

    def limit(self, now: float) -> Limit | None:
        """The bucket to take from before asking; None while there is plenty."""
        return self._limit if now < self._until else None

    def remaining(self, now: float) -> float:
        """How many requests GitLab said are left in its window: infinity where it has not said, -1 while it refuses."""
        if now < self._blocked_until:
            return -1.0
        return self._remaining if now < self._reset else math.inf

    def learn(self, status: int, fields: Fields, now: float) -> None:
        """An answer of GitLab's. Fields that are missing, broken or sent twice say nothing."""
        numbers = _numbers(fields)
        if status in _REFUSED:
            wait_s = numbers.get(b"retry-after")
            if wait_s is None and status == 429 and b"ratelimit-reset" in numbers:
                wait_s = numbers[b"ratelimit-reset"] - now
            if wait_s is not None:
                # Never shortened: an older answer may come later.
                self._blocked_until = max(self._blocked_until, now + min(LONGEST_S, max(0.0, wait_s)))
        observed, remaining = numbers.get(b"ratelimit-observed"), numbers.get(b"ratelimit-remaining")
        reset = numbers.get(b"ratelimit-reset")
        if observed is None or remaining is None or reset is None or not now < reset <= now + LONGEST_S:
            return
        self._remaining, self._reset = remaining, reset
        if remaining > SLOW_BELOW * (observed + remaining):
            self._limit = None
            return
        rate = max(SPEND * remaining, 0.5) / (reset - now)
        if self._limit is None or reset != self._until or not 0.8 < rate / self._limit.rate < 1.25:
            # Small changes are not worth a new bucket's arithmetic.
            self._limit = Limit("upstream", Scope.ORGANISATION, rate, 1.0, absorb_s=PATIENCE_S)
        self._until = reset


def _numbers(fields: Fields) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    twice: set[bytes] = set()
    for name, value in fields:
        key = lower(name)
        if key in _FIELDS:
            if key in found:
                twice.add(key)
            text = value.strip()
            if text.isdigit() and len(text) <= 15:
                found[key] = float(text)
    return {key: value for key, value in found.items() if key not in twice}
