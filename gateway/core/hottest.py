"""Who asks most at the moment: a bounded count of frequent names.

Space-Saving (Metwally, Agrawal, El Abbadi 2005) over two windows: a name that asks more often than one in ``size`` is in
the list for certain, and its count is too high by at most the least count there. ``now`` is in seconds of any clock.
"""

from __future__ import annotations

import msgspec


class Hot(msgspec.Struct, frozen=True):
    """One name's part."""

    name: str
    asked: int
    refused: int


class Hottest:
    """Counts of the present window and the one before it."""

    def __init__(self, *, size: int = 128, window_s: float = 30.0) -> None:
        self._size = size
        self._window_s = window_s
        self._since = 0.0
        self._now: dict[str, list[int]] = {}
        self._before: dict[str, list[int]] = {}

    def note(self, name: str, refused: bool, now: float) -> None:
        """One request of ``name``."""
        if now - self._since >= self._window_s:
            self._turn(now)
        counts = self._now.get(name)
        if counts is None:
            if len(self._now) < self._size:
                counts = self._now[name] = [0, 0]
            else:
                least = min(self._now, key=self._asked)
                counts = self._now[name] = [self._now.pop(least)[0], 0]
        counts[0] += 1
        if refused:
            counts[1] += 1

    def top(self, count: int, now: float) -> list[Hot]:
        """The most frequent of the last one to two windows, most frequent first."""
        if now - self._since >= self._window_s:
            self._turn(now)
        sums: dict[str, list[int]] = {name: list(counts) for name, counts in self._before.items()}
        for name, (asked, refused) in self._now.items():
            both = sums.setdefault(name, [0, 0])
            both[0] += asked
            both[1] += refused
        ranked = sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))
        return [Hot(name, asked, refused) for name, (asked, refused) in ranked[:count]]

    def _turn(self, now: float) -> None:
        # After a silence of a whole window nothing of before is "now" any more.
        self._before = self._now if now - self._since < 2 * self._window_s else {}
        self._now = {}
        self._since = now

    def _asked(self, name: str) -> int:
        return self._now[name][0]
