"""A pace for one upstream credential, learnt from GitLab's own rate-limit fields, before GitLab starts refusing.

Many callers share a brokered credential, and GitLab limits it as one user. While more than half of what its window allows
is left, nothing is slowed. Below that the rest, less a reserve, is spread over the time until the window ends, so that it
lasts for everybody. When GitLab's throttle refuses, no request is sent before the time that it named. GitLab's limits on
single endpoints, and its 503, send ``Retry-After`` without ``RateLimit-*``: they hold for the operation alone, or one
caller who overdoes exports would take the credential from everybody. ``RateLimit-Reset`` is in Unix seconds,
``Retry-After`` in seconds.

Every ``now`` is by a clock that never goes back: a wait that ended by the wall clock would grow by as much as that is set
back, and other gateways would be told of it.
"""

from __future__ import annotations

import math

import msgspec

from .answer_shape import shape_of_head
from .limits import Limit, Scope
from .messages import ResponseHead

SLOW_BELOW = 0.5
"""The share of the window's requests that is left when pacing begins."""
SPEND = 0.9
"""The share of what is left that is spent: the rest is for those who use the credential without the gateway."""
LONGEST_S = 3600.0
PATIENCE_S = 5.0
"""How long a request waits for its turn before its caller is told to come back."""

_WORTH_TELLING_S = 0.5
"""Shorter differences are no news: a wait that has grown by less, or a window's end that has moved by less."""
_FASTEST = 1e6
_OPERATIONS = 256
_REFUSED = frozenset({429, 503})
PACE_FIELDS = frozenset({b"ratelimit-observed", b"ratelimit-remaining", b"ratelimit-reset", b"retry-after"})
"""The fields of an answer that may say something about the limit."""


class PaceReport(msgspec.Struct, frozen=True, gc=False):
    """What one gateway has learnt about a credential, for the others. Times are relative, since clocks differ."""

    blocked_s: float = 0.0
    """For how much longer GitLab does not want to be asked."""
    rate: float = 0.0
    """Requests per second that are left for all callers together; 0: there are plenty."""
    window_s: float = 0.0
    """For how much longer that rate holds."""
    age_s: float = math.inf
    """How long ago the rate was learnt; infinite: nothing is known about it."""


class Pace:
    """The pace of one credential."""

    __slots__ = ("_blocked_until", "_learnt_at", "_limit", "_operations", "_remaining", "_reset", "_until", "holds_until")

    def __init__(self) -> None:
        self._limit: Limit | None = None
        self._until = 0.0
        self._blocked_until = 0.0
        self._learnt_at = float("-inf")
        self._remaining = 0.0
        self._reset = 0.0
        self._operations: dict[str, float] = {}
        """Operation → the instant until which GitLab does not want to be asked for it."""
        self.holds_until = 0.0
        """The instant until which, at the latest, a request may have to wait."""

    def blocked_s(self, now: float, operation: str = "") -> float:
        """For how long GitLab does not want to be asked; 0 if it may be asked now."""
        until = self._blocked_until
        if self._operations:
            until = max(until, self._operations.get(operation, 0.0))
        return max(0.0, until - now)

    def limit(self, now: float) -> Limit | None:
        """The limit of the bucket to take from before asking GitLab; None while there are plenty of requests left."""
        return self._limit if now < self._until else None

    def remaining(self, now: float) -> float:
        """How many requests are left in GitLab's window, as it said: infinity if it hasn't, -1 while it refuses."""
        if now < self._blocked_until:
            return -1.0
        return self._remaining if now < self._reset else math.inf

    def learn(self, head: ResponseHead, now: float, operation: str = "", *, unix_ahead_s: float = 0.0) -> bool:
        """Learn from GitLab's answer to ``operation``; if that is empty, a refusal counts for all operations. Fields that
        are missing, malformed or sent twice say nothing. ``unix_ahead_s``: how far Unix time is ahead of ``now``.

        Returns:
            Whether the other gateways should be told.
        """
        numbers = _numbers(head)
        if not numbers:
            return False
        status = head.status
        if b"ratelimit-reset" in numbers:
            numbers[b"ratelimit-reset"] -= unix_ahead_s
        blocked_until, limit = self._blocked_until, self.limit(now)
        if status in _REFUSED:
            self._refused(status, numbers, now, operation)
        observed, remaining = numbers.get(b"ratelimit-observed"), numbers.get(b"ratelimit-remaining")
        reset = numbers.get(b"ratelimit-reset")
        if observed is not None and remaining is not None and reset is not None and now < reset <= now + LONGEST_S:
            self._learnt_at = now
            self._remaining, self._reset = remaining, reset
            if remaining > SLOW_BELOW * (observed + remaining):
                self._limit = None
            else:
                self._slow(max(SPEND * remaining, 0.5) / (reset - now), reset)
        return self._blocked_until >= blocked_until + _WORTH_TELLING_S or self.limit(now) is not limit

    def merge(self, report: PaceReport, now: float) -> None:
        """Learn what another gateway has learnt. A wait counts as if learnt here; of several rates the latest counts."""
        self._block(report.blocked_s, now)
        learnt_at = now - max(0.0, report.age_s)
        if not learnt_at > self._learnt_at:
            return
        self._learnt_at = learnt_at
        if 0 < report.rate < _FASTEST and report.window_s > 0:
            until = now + min(LONGEST_S, report.window_s)
            self._remaining, self._reset = report.rate * report.window_s / SPEND, until
            self._slow(report.rate, until)
        else:
            self._limit = None

    def report(self, now: float) -> PaceReport:
        """What the other gateways should be told."""
        limit = self.limit(now)
        age_s = max(0.0, now - self._learnt_at)
        if limit is None:
            return PaceReport(self.blocked_s(now), age_s=age_s)
        return PaceReport(self.blocked_s(now), limit.rate, self._until - now, age_s)

    def _refused(self, status: int, numbers: dict[bytes, float], now: float, operation: str) -> None:
        # A refusal by one endpoint's limit may carry the throttle's fields, too, but then something is left.
        throttle = status == 429 and b"ratelimit-reset" in numbers and not numbers.get(b"ratelimit-remaining")
        wait_s = numbers.get(b"retry-after")
        if wait_s is None and throttle:
            wait_s = numbers[b"ratelimit-reset"] - now
        if wait_s is None:
            return
        if throttle or not operation:
            self._block(wait_s, now)
            return
        if operation not in self._operations and len(self._operations) >= _OPERATIONS:
            self._operations.clear()
        until = now + min(LONGEST_S, max(0.0, wait_s))
        self._operations[operation] = max(self._operations.get(operation, 0.0), until)
        self.holds_until = max(self.holds_until, until)

    def _block(self, wait_s: float, now: float) -> None:
        # Never shortened: an older answer may arrive later.
        self._blocked_until = max(self._blocked_until, now + min(LONGEST_S, max(0.0, wait_s)))
        self.holds_until = max(self.holds_until, self._blocked_until)

    def _slow(self, rate: float, until: float) -> None:
        if abs(until - self._until) < _WORTH_TELLING_S:
            until = self._until  # the same window, told with a little jitter, keeps its bucket
        if self._limit is None or until != self._until or not 0.8 < rate / self._limit.rate < 1.25:
            # Small changes of the rate are not worth a new limit.
            self._limit = Limit("upstream", Scope.ORGANISATION, rate, 1.0, absorb_s=PATIENCE_S)
        self._until = until
        self.holds_until = max(self.holds_until, until)


def _numbers(head: ResponseHead) -> dict[bytes, float]:
    fields, shape = head.fields, shape_of_head(head)
    if not shape.has_any(PACE_FIELDS):
        return {}
    places: list[tuple[bytes, int]] | None = shape.memo.get(_numbers)
    if places is None:
        places = shape.memo[_numbers] = [
            (name, place) for name, place in shape.place.items() if name in PACE_FIELDS and shape.names.count(name) == 1
        ]
    found: dict[bytes, float] = {}
    for name, place in places:
        text = fields[place][1].strip()
        if text.isdigit() and len(text) <= 15:
            found[name] = float(text)
    return found
