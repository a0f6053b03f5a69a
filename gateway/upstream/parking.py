"""Long polls: while GitLab leaves one unanswered, somebody else has its place.

GitLab answers a runner that asks for a job at once, or lets its Workhorse wait for one (50 s by default), which is no work
to anybody. With a place for each, as many idle runners as there are places would keep everybody else out.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

PARKED_AFTER_S = 1.0
"""Unanswered for so long, a poll waits for a job and not for GitLab."""


class Lot(Protocol):
    """Whoever counts places."""

    def park(self) -> bool:
        """The place of a request may be another's; False: there are too many such requests."""

    def unpark(self) -> None:
        """It is in use again."""


class Parking:
    """One poll's, from when it holds a place until it is answered."""

    __slots__ = ("_lot", "_parked", "_timer")

    def __init__(self, lot: Lot) -> None:
        self._lot = lot
        self._parked = False
        self._timer = asyncio.get_running_loop().call_later(PARKED_AFTER_S, self._park)

    def _park(self) -> None:
        self._parked = self._lot.park()

    def end(self) -> None:
        """It is answered, or nobody waits any more."""
        self._timer.cancel()
        if self._parked:
            self._parked = False
            self._lot.unpark()
