"""How long the gateway waits for a client that sends its body slowly: some time to begin with, and more for every octet."""

from __future__ import annotations

import math

MOST_S = 30.0
"""The seconds that a body starts with, and the most it can have: sending fast for an hour does not allow dripping for
another."""


class BodyTimeout:
    """The timeout of one body. ``rate``: octets per second that it must reach in the long run; 0: no minimum."""

    __slots__ = ("_most_s", "_rate", "left_s")

    def __init__(self, rate: int, most_s: float = MOST_S) -> None:
        self._rate = rate
        self._most_s = most_s
        self.left_s = most_s if rate else math.inf
        """How long to wait for its next octets; 0 or less: no longer."""

    def note(self, waited_s: float, octets: int) -> None:
        """Count octets that came after a wait, without the time in which none were wanted: that is not the client's."""
        if self._rate:
            self.left_s = min(self._most_s, self.left_s - waited_s + octets / self._rate)
