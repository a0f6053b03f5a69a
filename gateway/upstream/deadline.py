"""A timer that is moved far more often than it fires."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_NEVER = math.inf


class Deadline:
    """Calls ``expired`` once, no earlier than the last ``set`` says.

    Moving the deadline to a later time costs one assignment: the loop's timer stays as it is, and is armed again when it
    fires too early. A new timer per request would cost ten times as much.
    """

    __slots__ = ("_at", "_expired", "_loop", "_timer", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._at = self._timer_at = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    def set(self, in_s: float) -> None:
        """Expire ``in_s`` seconds from now, unless moved again."""
        at = self._at = self._loop.time() + in_s
        if at < self._timer_at:
            self._arm(at)

    def clear(self) -> None:
        """Expire no more, until ``set`` is called again. The loop's timer stays."""
        self._at = _NEVER

    def cancel(self) -> None:
        """End it for good: let go of the loop's timer, and so of the object that ``expired`` belongs to."""
        self._at = self._timer_at = _NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._at = at
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        at = self._at
        if at == _NEVER:
            return
        if self._loop.time() < at:
            self._arm(at)
        else:
            self._at = _NEVER
            self._expired()
