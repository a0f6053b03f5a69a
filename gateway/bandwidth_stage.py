"""The bandwidth stage: through each gateway, streamed answers flow to those who share a limit no faster than it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .core.access import Principal
from .core.bandwidth import Pipe, Pipes
from .core.catalogue import Operation
from .core.limit_plan import Limits
from .core.target import Target

_LONGEST_NAP_S = 1.0


class Flow:
    """One answer on its way down, through every pipe that it falls under."""

    __slots__ = ("_pipes", "_stage")

    def __init__(self, stage: BandwidthStage, pipes: list[tuple[str, Pipe]]) -> None:
        self._stage = stage
        self._pipes = pipes

    async def pace(self, octets: int) -> None:
        """Return when so many octets may be sent. When cancelled, it leaves nothing behind but the charge for them."""
        stage = self._stage
        now = started = stage.monotonic()
        due, slowest = now, ""
        for name, pipe in self._pipes:
            stage.octets_total[name] += octets
            free_at = now + pipe.charge(octets, now)
            if free_at > due:
                due, slowest = free_at, name
        if not slowest:
            return
        stage.waiting += 1
        try:
            while now < due:
                await asyncio.sleep(min(_LONGEST_NAP_S, due - now))
                now = stage.monotonic()
        finally:
            stage.waiting -= 1
            stage.waited_s[slowest] += now - started


class BandwidthStage:
    """The pipes of one event loop. ``limits`` are those on octets alone, their rates in octets per second."""

    def __init__(self, limits: Limits, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._pipes = Pipes()
        self.monotonic = monotonic
        self.waiting = 0
        names = [limit.id for limit in limits.limits]
        self.octets_total = dict.fromkeys(names, 0)
        self.waited_s = dict.fromkeys(names, 0.0)

    def flow(self, principal: Principal, operation: Operation, target: Target, method: str, peer: str) -> Flow | None:
        """The flow for a streamed answer; None where no limit applies to it."""
        if not self._limits.limits:
            return None
        takes = self._limits.takes_for(principal, operation, target, method, peer)
        if not takes:
            return None
        now = self.monotonic()
        return Flow(self, [(take.limit.id, self._pipes.pipe(take.key, take.limit, now)) for take in takes])
