"""The circuit breaker's arithmetic: a sliding window of outcomes, three states, one probe.

Pure: ``now`` is the caller's monotonic clock in seconds. What counts as a failure is the caller's business.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import msgspec

REFUSED = -1
"""What :meth:`Breaker.admit` returns instead of a ticket."""

# The window slides in steps of a tenth: exact enough for an operator's "30s", constant in memory and in time.
_SLOTS = 10
_SURE = 0.99
"""The share of a slot within which the rounding of its end does not matter."""


class BreakerSettings(msgspec.Struct, frozen=True):
    """``upstream.breaker``: opens once ``min_requests`` have ended within the window and ``error_ratio`` of them failed."""

    window_s: float = 30.0
    min_requests: int = 20
    error_ratio: float = 0.5
    open_for_s: float = 10.0


class BreakerState(enum.StrEnum):
    """Closed lets all through, open none, half-open one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# Read for every request, and an enum class looks its members up anew each time.
_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Breaker:
    """Admits requests and learns from their outcomes.

    Each state change starts a new epoch, and a ticket is the epoch in which it was issued. Outcomes of requests that were
    admitted before the change arrive late and say nothing about the new state, so they are dropped.
    """

    __slots__ = (
        "_counts",
        "_failures",
        "_on_change",
        "_opened_at",
        "_probe_at",
        "_settings",
        "_slot",
        "_slots",
        "_step_s",
        "_succeeded",
        "_sure_until",
        "_total",
        "epoch",
        "state",
    )

    def __init__(self, settings: BreakerSettings, on_change: Callable[[BreakerState], None] = lambda _: None) -> None:
        """``on_change`` is told each state that is entered."""
        self._settings = settings
        self._on_change = on_change
        self._step_s = settings.window_s / _SLOTS
        self.state = _CLOSED
        self.epoch = 0
        """The current epoch: the ticket of every request admitted in it."""
        self._opened_at = 0.0
        self._probe_at: float | None = None
        self._slot = 0
        self._sure_until = -math.inf
        """While the breaker is closed: a request that ends before this instant belongs to the current slot."""
        self._clear()

    def admit(self, now: float) -> int:
        """A ticket to hand to :meth:`record` or :meth:`forget`, or ``REFUSED``."""
        if self.state is _CLOSED:
            return self.epoch
        if self.state is _OPEN:
            if now - self._opened_at < self._settings.open_for_s:  # computed as in `retry_after_s`, to the last bit
                return REFUSED
            self._enter(_HALF_OPEN)
        # A probe may be a long poll: once it has lasted `open_for_s`, it no longer keeps other requests out.
        if self._probe_at is not None and now - self._probe_at < self._settings.open_for_s:
            return REFUSED
        self._probe_at = now
        return self.epoch

    def is_refusing(self, now: float) -> bool:
        """Whether :meth:`admit` would refuse; changes nothing."""
        if self.state is _CLOSED:
            return False
        return self.retry_after_s(now) > 0.0

    def record(self, ticket: int, ok: bool, now: float) -> None:
        """Record the outcome of an admitted request."""
        if ticket != self.epoch:
            return
        if ok and now < self._sure_until:  # nearly always
            self._succeeded += 1
            return
        if self.state is _HALF_OPEN:
            self._enter(_CLOSED if ok else _OPEN, now)
            return
        if self.state is _OPEN:
            return
        self._slide(now)
        counts = self._counts
        counts[0] += 1
        self._total += 1
        if ok:
            return
        counts[1] += 1
        self._failures += 1
        settings = self._settings
        if self._total >= settings.min_requests and self._failures >= settings.error_ratio * self._total:
            self._enter(_OPEN, now)

    def forget(self, ticket: int) -> None:
        """Record that an admitted request ended without saying anything about the upstream (its client left)."""
        if ticket == self.epoch:
            self._probe_at = None

    def retry_after_s(self, now: float) -> float:
        """Seconds until a request may be admitted again; 0 if it may be now."""
        if self.state is _OPEN:
            since = self._opened_at
        elif self._probe_at is not None:
            since = self._probe_at
        else:
            return 0.0
        # Elapsed time first: adding to a large clock reading rounds, and the wait could exceed what was configured.
        return max(0.0, self._settings.open_for_s - (now - since))

    def _enter(self, state: BreakerState, now: float = 0.0) -> None:
        self.state = state
        self.epoch += 1
        self._sure_until = -math.inf
        self._opened_at = now
        self._probe_at = None
        self._clear()
        self._on_change(state)

    def _clear(self) -> None:
        self._slots = [[0, 0] for _ in range(_SLOTS)]
        self._counts = self._slots[self._slot % _SLOTS]
        """The current slot's requests and failures."""
        self._succeeded = 0
        """Successes in the current slot that are not yet in its counts, nor in the total."""
        self._total = 0
        self._failures = 0

    def _slide(self, now: float) -> None:
        self._counts[0] += self._succeeded
        self._total += self._succeeded
        self._succeeded = 0
        slot = int(now / self._step_s)
        passed = slot - self._slot
        if passed > 0:  # otherwise it is the same slot, or the clock stood still
            self._advance(slot, passed)
        self._sure_until = (self._slot + _SURE) * self._step_s

    def _advance(self, slot: int, passed: int) -> None:
        self._slot = slot
        if passed >= _SLOTS:
            self._clear()
            return
        for gone in range(slot - passed + 1, slot + 1):
            counts = self._slots[gone % _SLOTS]
            self._total -= counts[0]
            self._failures -= counts[1]
            counts[0] = counts[1] = 0
        self._counts = self._slots[slot % _SLOTS]
