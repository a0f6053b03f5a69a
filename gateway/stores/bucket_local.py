"""One gateway's share of the buckets while the shared ones are out of reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from ..core.limits import Decision, Limit, Take
from .bucket_memory import MemoryBuckets


class LocalBuckets:
    """Memory buckets of ``share`` times the rate and burst, which start from what was last known of the shared ones.

    A bucket holds at least one token, or a small limit's share would admit nobody.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._buckets = MemoryBuckets(clock=clock)
        self._share = 1.0
        self._shares: dict[str, Limit] = {}

    def take(self, takes: Sequence[Take], known: Sequence[float | None], share: float) -> Decision:
        """``known``: the most each shared bucket can hold now; None: nothing is known, it is taken for full."""
        if share != self._share:
            self._share = share
            self._shares.clear()
        shared: list[Take] = []
        for take, tokens in zip(takes, known, strict=True):
            limit = self._shares.get(take.limit.id)
            if limit is None:
                burst = max(1.0, take.limit.burst * share)
                limit = msgspec.structs.replace(take.limit, rate=take.limit.rate * share, burst=burst)
                self._shares[take.limit.id] = limit
            if tokens is not None:
                self._buckets.seed(take.key, limit, tokens * share)
            shared.append(Take(take.key, limit, take.cost))
        decision = self._buckets.take_now(shared)
        # Told in terms of the limit the caller knows.
        states = [
            msgspec.structs.replace(found, limit=take.limit) for found, take in zip(decision.states, takes, strict=True)
        ]
        return Decision(decision.allowed, tuple(states), decision.now, degraded=True)

    def clear(self) -> None:
        """The shared buckets are back; what was taken meanwhile is not charged to them."""
        self._buckets = MemoryBuckets(clock=self._clock)
