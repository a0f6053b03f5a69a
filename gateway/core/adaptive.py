"""How many requests GitLab can handle at one time, learned from how long its answers take.

The algorithm is Gradient2 of Netflix's concurrency-limits library (after TCP Vegas: Brakmo, O'Malley, Peterson 1994): it
compares a short-term latency with a long-term average. While they agree, the limit grows by a small queue; when answers
take longer than ``tolerance`` times the average, it shrinks by the ratio, smoothed. A request that GitLab dropped shrinks
it by a tenth at once (multiplicative decrease, the library's AIMD ratio). Latencies are averaged over a window, because
GitLab's operations differ more from each other than from themselves an hour ago. If GitLab stays slow, that becomes the new
average within ``memory`` windows: the learned limit protects GitLab from a change, ``most`` from what it could never bear.

No clock here: ``now`` is an argument, in seconds of a clock that never goes back.
"""

from __future__ import annotations

import math

import msgspec

from .access import Priority

_DROP = 0.9
_DRIFT = 0.95
_STEEPEST = 0.5

SHARES = {Priority.CRITICAL: 1.0, Priority.INTERACTIVE: 0.9, Priority.BACKGROUND: 0.7}
"""The share of the limit that each class may fill: a tenth is kept for critical requests; background work stops first."""


class AdaptiveSettings(msgspec.Struct, frozen=True):
    """The library's defaults, but the limit starts at ``most``, since a gateway is put in front of a GitLab that works."""

    most: int = 200
    least: int = 10
    tolerance: float = 1.5
    smoothing: float = 0.2
    queue: float = 4.0
    window_s: float = 1.0
    samples: int = 10
    """A window lasts until it has at least this many latencies."""
    memory: int = 600
    """How many windows the long-term average spans."""


class AdaptiveLimit:
    """One upstream's limit."""

    def __init__(self, settings: AdaptiveSettings) -> None:
        self._settings = settings
        self.thresholds: dict[Priority, int] = {}
        """For each class, the number of requests in flight below which one more of that class is admitted."""
        self._set_limit(float(settings.most))
        self._long_s = 0.0
        self._windows = 0
        self._since = -math.inf
        self._sum_s = 0.0
        self._count = 0
        self._busiest = 0
        self._dropped_at = -math.inf

    @property
    def limit(self) -> int:
        """How many requests may be in flight at one time."""
        return int(self._estimate)

    def has_room(self, priority: Priority, in_flight: int) -> bool:
        """Whether one more request of this class may go up in addition to ``in_flight`` others."""
        return in_flight < self.thresholds[priority]

    def observe(self, latency_s: float, in_flight: int, now: float) -> None:
        """Record that GitLab answered after ``latency_s``; ``in_flight`` requests were there, this one included."""
        if not self._count:
            self._since = now
        self._sum_s += latency_s
        self._count += 1
        if in_flight > self._busiest:  # noqa: PLR1730 — a call of `max` costs more than all the rest of the line
            self._busiest = in_flight
        if now - self._since >= self._settings.window_s and self._count >= self._settings.samples:
            short_s, busiest = self._sum_s / self._count, self._busiest
            self._sum_s, self._count, self._busiest = 0.0, 0, 0
            self._end_window(short_s, busiest)

    def record_drop(self, now: float) -> None:
        """Record that GitLab did not answer in time, or broke off. Counted once per window, as failures come in crowds."""
        if now - self._dropped_at >= self._settings.window_s:
            self._dropped_at = now
            self._set_limit(max(float(self._settings.least), self._estimate * _DROP))

    def _end_window(self, short_s: float, busiest: int) -> None:
        settings = self._settings
        self._windows = min(settings.memory, self._windows + 1)
        # A plain mean at first, then an exponential one.
        self._long_s += (short_s - self._long_s) / self._windows
        if self._long_s > 2 * short_s:
            self._long_s *= _DRIFT  # GitLab has recovered: forget its bad hour faster
        if busiest < self._estimate / 2:
            return  # the load never came near the limit
        gradient = 1.0
        if short_s > 0:
            gradient = max(_STEEPEST, min(1.0, settings.tolerance * self._long_s / short_s))
        wanted = self._estimate * gradient + settings.queue
        smoothed = self._estimate * (1 - settings.smoothing) + wanted * settings.smoothing
        self._set_limit(max(float(settings.least), min(float(settings.most), smoothed)))

    def _set_limit(self, estimate: float) -> None:
        self._estimate = estimate
        self.thresholds = {priority: math.ceil(int(estimate) * share - 1e-9) for priority, share in SHARES.items()}
