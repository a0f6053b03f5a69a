"""One gateway's share of the buckets while the shared ones are out of reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from ..core.limits import Decision, Limit, Take
from .bucket_memory import MemoryBuckets

_BOUND = 1024


class LocalBuckets:
    """Buckets in memory with ``share`` times each limit's rate and burst, started at the last known shared levels.

    The burst is at least one token: a share of a small limit would otherwise admit nobody.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._buckets = MemoryBuckets(clock=clock)
        self._share = 1.0
        self._shares: dict[Limit, Limit] = {}

    def take(self, takes: Sequence[Take], known: Sequence[float | None], share: float, lease: bytes = b"") -> Decision:
        """Take from this gateway's ``share`` of the buckets.

        ``known``: the most that each shared bucket can hold now; None: nothing is known, and it counts as full.
        """
        if share != self._share:
            self._share = share
            self._shares.clear()
        shared: list[Take] = []
        for take, tokens in zip(takes, known, strict=True):
            limit = self._share_of(take.limit)
            if tokens is not None and not limit.concurrent:
                self._buckets.seed(take.key, limit, tokens * share)
            shared.append(Take(take.key, limit, take.cost))
        decision = self._buckets.take_now(shared, lease)
        # Reported in terms of the limit that the caller knows.
        states = [
            msgspec.structs.replace(found, limit=take.limit) for found, take in zip(decision.states, takes, strict=True)
        ]
        return Decision(decision.allowed, tuple(states), decision.now, degraded=True)

    def settle(self, changes: Sequence[Take]) -> None:
        """As ``BucketStore.settle``: what was taken from the local buckets is settled in them."""
        self._buckets.settle([Take(change.key, self._share_of(change.limit), change.cost) for change in changes])

    def release(self, takes: Sequence[Take], lease: bytes) -> None:
        """As ``BucketStore.release``."""
        self._buckets.release(takes, lease)

    def _share_of(self, limit: Limit) -> Limit:
        known = self._shares.get(limit)
        if known is None:
            burst = max(1.0, limit.burst * self._share)
            if limit.concurrent:
                burst = float(int(burst))
            known = msgspec.structs.replace(limit, rate=limit.rate * self._share, burst=burst)
            if len(self._shares) >= _BOUND:
                self._shares.clear()
            self._shares[limit] = known
        return known

    def clear(self) -> None:
        """Forget the local buckets: the shared ones are back, and are not charged for what was taken meanwhile."""
        self._buckets = MemoryBuckets(clock=self._clock)
