"""How many requests GitLab can do with at one time, learned from how long its answers take.

The algorithm is Gradient2 of Netflix's concurrency-limits library (after TCP Vegas: Brakmo, O'Malley, Peterson 1994): a
short-term latency against a long-term average. While they agree the limit grows by a small queue; when answers take longer
than ``tolerance`` times the average it shrinks by the ratio, smoothed. A request that GitLab dropped shrinks it by a tenth
at once (multiplicative decrease, the library's AIMD ratio). Latencies are averaged over a window, because GitLab's
operations differ more from each other than from themselves an hour ago. A GitLab that stays slow becomes the new average
within ``memory`` windows: the limit protects it from a change, ``most`` from what it never could.

No clock here: ``now`` is an argument, in seconds of one that never goes back.
"""

from __future__ import annotations

import math

import msgspec

from .access import Priority

_DROP = 0.9
_DRIFT = 0.95
_STEEPEST = 0.5

SHARES = {Priority.CRITICAL: 1.0, Priority.INTERACTIVE: 0.9, Priority.BACKGROUND: 0.7}
"""Of the limit, the part that a class may fill: a tenth is kept for the critical, and background work stops first."""


class AdaptiveSettings(msgspec.Struct, frozen=True):
    """Defaults are the library's, but for the start: at the most, since a gateway is put before a GitLab that works."""

    most: int = 200
    least: int = 10
    tolerance: float = 1.5
    smoothing: float = 0.2
    queue: float = 4.0
    window_s: float = 1.0
    samples: int = 10
    """A window goes on until it has so many."""
    memory: int = 600
    """Windows in the long-term average."""


class AdaptiveLimit:
    """One upstream's limit."""

    def __init__(self, settings: AdaptiveSettings) -> None:
        self._settings = settings
        self.rooms: dict[Priority, int] = {}
        """How many requests at one time there is room for, by the class of one more."""
        self._settle(float(settings.most))
        self._long_s = 0.0
        self._windows = 0
        self._since = -math.inf
        self._sum_s = 0.0
        self._count = 0
        self._busiest = 0
        self._dropped_at = -math.inf

    @property
    def limit(self) -> int:
        """Requests at one time."""
        return int(self._estimate)

    def has_room(self, priority: Priority, in_flight: int) -> bool:
        """Whether one more of this class may go up beside ``in_flight``."""
        return in_flight < self.rooms[priority]

    def observe(self, latency_s: float, in_flight: int, now: float) -> None:
        """GitLab answered after ``latency_s``; ``in_flight`` were there when the request was sent."""
        if not self._count:
            self._since = now
        self._sum_s += latency_s
        self._count += 1
        if in_flight > self._busiest:  # noqa: PLR1730 — a call of `max` costs more than all the rest of the line
            self._busiest = in_flight
        if now - self._since >= self._settings.window_s and self._count >= self._settings.samples:
            short_s, busiest = self._sum_s / self._count, self._busiest
            self._sum_s, self._count, self._busiest = 0.0, 0, 0
            self._turn(short_s, busiest)

    def dropped(self, now: float) -> None:
        """GitLab did not answer in time, or broke off. Counted once a window: they come in crowds."""
        if now - self._dropped_at >= self._settings.window_s:
            self._dropped_at = now
            self._settle(max(float(self._settings.least), self._estimate * _DROP))

    def _turn(self, short_s: float, busiest: int) -> None:
        settings = self._settings
        self._windows = min(settings.memory, self._windows + 1)
        # The plain mean first, then an exponential one.
        self._long_s += (short_s - self._long_s) / self._windows
        if self._long_s > 2 * short_s:
            self._long_s *= _DRIFT  # GitLab recovered: its bad hour is forgotten faster
        if busiest < self._estimate / 2:
            return  # nobody tried the limit
        gradient = 1.0
        if short_s > 0:
            gradient = max(_STEEPEST, min(1.0, settings.tolerance * self._long_s / short_s))
        wanted = self._estimate * gradient + settings.queue
        smoothed = self._estimate * (1 - settings.smoothing) + wanted * settings.smoothing
        self._settle(max(float(settings.least), min(float(settings.most), smoothed)))

    def _settle(self, estimate: float) -> None:
        self._estimate = estimate
        self.rooms = {priority: math.ceil(int(estimate) * share - 1e-9) for priority, share in SHARES.items()}
