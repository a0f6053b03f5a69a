"""Token buckets in this process: the reference implementation, the embedded default, the stand-in while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from ..core.limits import Decision, Held, Level, Limit, Take, Takes, bucket_state, decide, refill, settle_level
from ..core.plain_takes import admit, refuse

_BOUND = 100_000
_EVICTION_LOOK = 16
"""How many buckets are examined to make room for one."""


class MemoryBuckets:
    """A store of at most ``bound`` buckets of tokens, and of as many buckets of places as the requests in progress need.

    A full bucket is equivalent to an absent one, so full buckets are evicted first and nothing is lost. Only if all buckets
    whose turn it is to be examined are still filling, the one nearest to full is evicted: the smallest gift of tokens that
    keeps memory bounded.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, bound: int = _BOUND) -> None:
        """``clock`` gives Unix seconds; it may jump."""
        self._clock = clock
        self._bound = bound
        self._levels: dict[str, Held] = {}
        self._order: deque[str] = deque()
        """The same keys, least recently examined first; apart from the levels, so that no request pays for the order."""
        self._leases: dict[str, set[bytes]] = {}
        """The leases of each bucket of places. None expires: a process that dies takes its own along."""

    def __len__(self) -> int:
        return len(self._levels)

    async def take(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
        return self.take_now(takes, lease)

    def take_now(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
        """As :meth:`take`, without a coroutine."""
        now_us = int(self._clock() * 1_000_000)
        held = self._levels
        if isinstance(takes, Takes) and takes.plain:
            found = admit(takes, held, now_us)
            if found is not None:
                if len(held) > len(self._order):
                    self._bind(now_us)
                return found
        decision, stored = decide(takes, self._levels_of(takes, now_us), now_us)
        for place, take in enumerate(takes):
            level = stored[place]
            if take.limit.concurrent:
                if decision.allowed and decision.states[place].allowed:
                    self._leases.setdefault(take.key, set()).add(lease)
            elif level is not None:
                self._store(take.key, level, take.limit)
        return decision

    def take_soon(self, takes: Sequence[Take], then: Callable[[Decision], None]) -> asyncio.Handle:
        return asyncio.get_running_loop().call_soon(then, self.take_now(takes))

    def refused_now(self, takes: Sequence[Take]) -> Decision | None:
        now_us = int(self._clock() * 1_000_000)
        if isinstance(takes, Takes) and takes.plain:
            found = refuse(takes, self._levels, now_us)
            if found is not None:
                return found
        decision, stored = decide(takes, self._levels_of(takes, now_us), now_us)
        if decision.allowed:
            return None
        for take, level in zip(takes, stored, strict=True):
            if level is not None and not take.limit.concurrent:  # the clock went back
                self._store(take.key, level, take.limit)
        return decision

    async def look(self, takes: Sequence[Take]) -> Decision:
        now_us = int(self._clock() * 1_000_000)
        states = []
        for take in takes:
            held = self._levels.get(take.key)
            if take.limit.concurrent:
                tokens = take.limit.burst - len(self._leases.get(take.key, ()))
            else:
                tokens, _ = refill(take.limit, held[:2] if held is not None else None, now_us)
            states.append(bucket_state(take.limit, True, tokens, 0.0))
        return Decision(True, tuple(states), now_us / 1_000_000)

    def settle(self, changes: Sequence[Take]) -> None:
        now_us = int(self._clock() * 1_000_000)
        for change in changes:
            held = self._levels.get(change.key)
            level = settle_level(change.limit, held[:2] if held is not None else None, change.cost, now_us)
            if level is not None:
                self._store(change.key, level, change.limit)

    def release(self, takes: Sequence[Take], lease: bytes) -> None:
        for take in takes:
            leases = self._leases.get(take.key)
            if leases is not None:
                leases.discard(lease)
                if not leases:
                    del self._leases[take.key]

    def seed(self, key: str, limit: Limit, tokens: float) -> None:
        """Start an unknown bucket at ``tokens`` instead of full."""
        if key not in self._levels and tokens < limit.burst:
            self._store(key, (tokens, int(self._clock() * 1_000_000)), limit)

    async def close(self) -> None:
        self._levels.clear()
        self._order.clear()
        self._leases.clear()

    def _levels_of(self, takes: Sequence[Take], now_us: int) -> list[Level | None]:
        held = self._levels
        levels: list[Level | None] = []
        for take in takes:
            if take.limit.concurrent:
                levels.append((take.limit.burst - len(self._leases.get(take.key, ())), now_us))
            else:
                known = held.get(take.key)
                levels.append(None if known is None else known[:2])
        return levels

    def _store(self, key: str, level: Level, limit: Limit) -> None:
        self._levels[key] = (*level, limit)
        if len(self._levels) > len(self._order):
            self._bind(level[1])

    def _bind(self, now_us: int) -> None:
        """Queue new buckets for their turn to be examined, then evict as many buckets as there are too many."""
        held, order = self._levels, self._order
        order.extend(islice(reversed(held), len(held) - len(order)))
        while len(held) > self._bound:
            self._evict(now_us)

    def _evict(self, now_us: int) -> None:
        held, order = self._levels, self._order
        looked: list[str] = []
        gone, nearest_wait = "", float("inf")
        while len(looked) < _EVICTION_LOOK and len(order) > 1:
            key = order.popleft()
            tokens, at_us, limit = held[key]
            tokens, _ = refill(limit, (tokens, at_us), now_us)
            looked.append(key)
            wait = (limit.burst - tokens) / limit.rate
            if wait < nearest_wait:
                gone, nearest_wait = key, wait
                if not wait:
                    break
        looked.remove(gone)
        order.extend(looked)
        del held[gone]
