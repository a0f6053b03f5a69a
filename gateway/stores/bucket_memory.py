"""Token buckets in this process: the reference implementation, the embedded default, the stand-in while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from ..core.limits import LEASE_S, Decision, Held, Level, Limit, Take, Takes, bucket_state, decide, refill, settle_level
from ..core.plain_takes import admit, refuse

_BOUND = 100_000
_EVICTION_LOOK = 16
"""How many buckets are examined to make room for one."""
_LEASE_US = int(LEASE_S * 1_000_000)


class MemoryBuckets:
    """A store of at most ``bound`` buckets of tokens, and of as many buckets of places as the requests in progress need.

    A full bucket is equivalent to an absent one, so full buckets are evicted first and nothing is lost. Only if all buckets
    whose turn it is to be examined are still filling, the one nearest to full is evicted: the smallest gift of tokens that
    keeps memory bounded.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, bound: int = _BOUND, leases_end: bool = False) -> None:
        """``clock`` gives Unix seconds; it may jump. ``leases_end``: whether leases expire, as they must where gateways may
        die and leave theirs behind; this process's own end with it."""
        self._clock = clock
        self._bound = bound
        self._leases_end = leases_end
        self._levels: dict[str, Held] = {}
        self._order: deque[str] = deque()
        """The same keys, least recently examined first; apart from the levels, so that no request pays for the order."""
        self._leases: dict[str, dict[bytes, int]] = {}

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
                    self._leases.setdefault(take.key, {})[lease] = now_us + _LEASE_US
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
                tokens = take.limit.burst - self._in_progress(take.key, now_us)
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
        now_us = int(self._clock() * 1_000_000)
        for take in takes:
            self._in_progress(take.key, now_us)
            leases = self._leases.get(take.key)
            if leases is not None:
                leases.pop(lease, None)
                if not leases:
                    del self._leases[take.key]

    def renew(self, takes: Sequence[Take], lease: bytes) -> None:
        """Extend the leases: the places are still in use."""
        now_us = int(self._clock() * 1_000_000)
        for take in takes:
            self._in_progress(take.key, now_us)
            self._leases.setdefault(take.key, {})[lease] = now_us + _LEASE_US

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
                levels.append((take.limit.burst - self._in_progress(take.key, now_us), now_us))
            else:
                known = held.get(take.key)
                levels.append(None if known is None else known[:2])
        return levels

    def _in_progress(self, key: str, now_us: int) -> int:
        """Count the leases of a bucket of places. Expired ones are dropped for good, whatever the clock does next."""
        leases = self._leases.get(key)
        if leases is None:
            return 0
        if self._leases_end:
            for lease in [lease for lease, ends_us in leases.items() if ends_us <= now_us]:
                del leases[lease]
        return len(leases)

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
