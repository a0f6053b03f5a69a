"""Who sends the most requests at the moment: a bounded count of frequent names.

Space-Saving (Metwally, Agrawal, El Abbadi 2005) over two windows: a name that makes up more than one request in ``size``
is certain to be in the list, and its count is too high by at most the lowest count there. ``now`` is in seconds of any
clock.
"""

from __future__ import annotations

import msgspec


class Talker(msgspec.Struct, frozen=True):
    """One name and its requests."""

    name: str
    asked: int
    refused: int


class _Counts(msgspec.Struct, gc=False):
    asked: int = 0
    refused: int = 0


class TopTalkers:
    """Counts of the current window and the one before it."""

    def __init__(self, *, size: int = 128, window_s: float = 30.0) -> None:
        self._size = size
        self._window_s = window_s
        self._since = 0.0
        self._until = window_s
        self._now: dict[str, _Counts] = {}
        self._before: dict[str, _Counts] = {}

    def note(self, name: str, refused: bool, now: float) -> None:
        """Count one request of ``name``."""
        if now >= self._until:
            self._start_window(now)
        counts = self._now.get(name)
        if counts is None:
            if len(self._now) < self._size:
                counts = self._now[name] = _Counts()
            else:
                least = min(self._now, key=self._asked)
                counts = self._now[name] = _Counts(self._now.pop(least).asked)
        counts.asked += 1
        if refused:
            counts.refused += 1

    def top(self, count: int, now: float) -> list[Talker]:
        """The ``count`` most frequent names of the last one to two windows, most frequent first."""
        if now >= self._until:
            self._start_window(now)
        sums = {name: _Counts(counts.asked, counts.refused) for name, counts in self._before.items()}
        for name, counts in self._now.items():
            both = sums.setdefault(name, _Counts())
            both.asked += counts.asked
            both.refused += counts.refused
        ranked = sorted(sums.items(), key=lambda item: (-item[1].asked, item[0]))
        return [Talker(name, counts.asked, counts.refused) for name, counts in ranked[:count]]

    def _start_window(self, now: float) -> None:
        # After a whole window without requests, none of the earlier counts is current any more.
        self._before = self._now if now - self._since < 2 * self._window_s else {}
        self._now = {}
        self._since, self._until = now, now + self._window_s

    def _asked(self, name: str) -> int:
        return self._now[name].asked
