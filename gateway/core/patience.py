"""How long a client that sends its body slowly is waited for: some time to begin with, and more for every octet."""

from __future__ import annotations

import math

MOST_S = 30.0
"""What a body starts with, and the most it can have: who sent fast for an hour may not drip for another."""


class Patience:
    """Of one body. ``rate``: octets a second that it must bring in the long run; 0: any will do."""

    __slots__ = ("_most_s", "_rate", "left_s")

    def __init__(self, rate: int, most_s: float = MOST_S) -> None:
        self._rate = rate
        self._most_s = most_s
        self.left_s = most_s if rate else math.inf
        """How long may be waited for its next octets; 0 or less: no longer."""

    def note(self, waited_s: float, octets: int) -> None:
        """So many octets came after so long a wait. Time in which nobody wanted any is not the client's."""
        if self._rate:
            self.left_s = min(self._most_s, self.left_s - waited_s + octets / self._rate)
