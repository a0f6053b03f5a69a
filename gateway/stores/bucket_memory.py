"""Token buckets in this process: the reference, the embedded default, and what stands in while Redis is away."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..core.limits import Decision, Level, Limit, Take, decide, refill

_BOUND = 100_000
_EVICTION_LOOK = 16
"""How many of the longest unused buckets are looked at to make room for one."""


class MemoryBuckets:
    """At most ``bound`` buckets.

    A full bucket equals an absent one, so full ones are forgotten first and nothing is lost by it. Only when the longest
    unused ones are all still filling, the one nearest to full goes: the smallest gift that keeps memory bounded.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, bound: int = _BOUND) -> None:
        """``clock`` gives Unix seconds; it may jump."""
        self._clock = clock
        self._bound = bound
        self._levels: OrderedDict[str, tuple[Level, Limit]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    async def take(self, takes: Sequence[Take]) -> Decision:
        return self.take_now(takes)

    def take_now(self, takes: Sequence[Take]) -> Decision:
        """As :meth:`take`, without a coroutine."""
        now_us = int(self._clock() * 1_000_000)
        held = self._levels
        levels = [held[take.key][0] if take.key in held else None for take in takes]
        decision, stored = decide(takes, levels, now_us)
        for take, level in zip(takes, stored, strict=True):
            if level is not None:
                self._store(take.key, level, take.limit)
        return decision

    def seed(self, key: str, limit: Limit, tokens: float) -> None:
        """Start an unknown bucket at ``tokens`` instead of full."""
        if key not in self._levels and tokens < limit.burst:
            self._store(key, (max(0.0, tokens), int(self._clock() * 1_000_000)), limit)

    async def close(self) -> None:
        self._levels.clear()

    def _store(self, key: str, level: Level, limit: Limit) -> None:
        self._levels[key] = (level, limit)
        self._levels.move_to_end(key)
        if len(self._levels) > self._bound:
            self._evict(level[1])

    def _evict(self, now_us: int) -> None:
        nearest, nearest_wait = "", float("inf")
        for _ in range(min(_EVICTION_LOOK, len(self._levels) - 1)):
            key, (level, limit) = self._levels.popitem(last=False)
            tokens, _ = refill(limit, level, now_us)
            if tokens >= limit.burst:
                return
            wait = (limit.burst - tokens) / limit.rate
            if wait < nearest_wait:
                nearest, nearest_wait = key, wait
            self._levels[key] = (level, limit)
        if nearest:
            del self._levels[nearest]
