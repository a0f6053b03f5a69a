"""Buckets as ``core.limits`` defines them, without a store; and random histories to hold stores against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from gateway.core.limits import LEASE_S, Decision, Level, Limit, Scope, Take, Takes, decide, settle_level
from gateway.stores.bucket_memory import MemoryBuckets
from gateway.stores.bucket_script import BatchItem, BucketOp, Script

TAKE = Script.named("take.lua")
T0 = 1_800_000_000_000_000
LIMITS = [
    Limit("a", Scope.CALLER, 600 / 60, 20.0),
    Limit("b", Scope.TEAM, 20000 / 3600, 7.0),
    Limit("c", Scope.ORGANISATION, 1 / 7, 3.0),
    Limit("d", Scope.CALLER, 7 / 3, 1.5, shadow=True),
]
# (key, limit) pairs: some limits guard several keys.
BUCKETS = [(f"{{gw}}:{limit.id}{number}", limit) for limit in LIMITS for number in range(2)]
PLACES = [
    Limit("p", Scope.CALLER, 3.0, 3.0, concurrent=True),
    Limit("q", Scope.TEAM, 2.0, 2.0, concurrent=True, shadow=True),
]
EVERY_BUCKET = [*BUCKETS, *[(f"{{gw}}:{limit.id}", limit) for limit in PLACES]]
LEASES = [b"one", b"two", b"three", b"four", b"five"]


def driven(script: Script) -> str:
    """The script under a clock of the test's: its last argument. Only the line that reads Redis's clock is replaced."""
    line = "local now = time[1] * 1000000 + time[2]\n"
    assert script.text.count(line) == 1
    return script.text.replace(line, "local now = tonumber(ARGV[#KEYS + 1])\n")


requests = st.lists(st.sampled_from(range(len(EVERY_BUCKET))), min_size=1, max_size=4, unique=True)
costs = st.sampled_from([1.0, 0.1, 1 / 3, 2.5, 100.0])
changes = st.sampled_from([-0.1, -3.0, -500.0, 1 / 3, 2.5, 9.0, 500.0])
turns = st.tuples(
    st.one_of(st.integers(-5_000_000, 10_000_000), st.sampled_from([0, 0, 1, 100_000, 3_600_000_000, -3_600_000_000])),
    st.lists(
        st.tuples(st.sampled_from(BucketOp), requests, costs, changes, st.sampled_from(LEASES)), min_size=1, max_size=5
    ),
)


class Model:
    """The buckets as ``core.limits`` defines them, without a store."""

    def __init__(self) -> None:
        self.levels: dict[str, Level] = {}
        self.leases: dict[str, dict[bytes, int]] = {}

    def free(self, take: Take, now: int) -> float:
        held = self.leases.get(take.key, {})
        self.leases[take.key] = {lease: ends for lease, ends in held.items() if ends > now}
        return take.limit.burst - len(self.leases[take.key])

    def do(self, item: BatchItem, now: int) -> Decision | None:
        if item.op is BucketOp.SETTLE:
            for take in item.takes:
                level = settle_level(take.limit, self.levels.get(take.key), take.cost, now)
                if level is not None:
                    self.levels[take.key] = level
        elif item.op is BucketOp.RELEASE:
            for take in item.takes:
                self.free(take, now)
                self.leases[take.key].pop(item.lease, None)
        elif item.op is BucketOp.RENEW:
            for take in item.takes:
                self.free(take, now)
                self.leases[take.key][item.lease] = now + int(LEASE_S * 1e6)
        else:
            places = [(self.free(take, now), now) if take.limit.concurrent else None for take in item.takes]
            before = [place or self.levels.get(take.key) for place, take in zip(places, item.takes, strict=True)]
            decision, stored = decide(item.takes, before, now)
            for take, level, found in zip(item.takes, stored, decision.states, strict=True):
                if take.limit.concurrent:
                    if decision.allowed and found.allowed:
                        self.leases[take.key][item.lease] = now + int(LEASE_S * 1e6)
                elif level is not None:
                    self.levels[take.key] = level
            return decision
        return None


def batch_item(op: BucketOp, chosen: list[int], cost: float, change: float, lease: bytes) -> BatchItem:
    """A part of a script call that makes sense: only tokens are settled, only places are released and renewed."""
    takes = [Take(*EVERY_BUCKET[index], change if op is BucketOp.SETTLE else cost) for index in chosen]
    if op is not BucketOp.TAKE:
        takes = [take for take in takes if take.limit.concurrent is (op is not BucketOp.SETTLE)]
    return BatchItem(Takes(takes), lease, op)


def said(decision: Decision | None) -> object:
    """All that a decision says, however it was made; None of what decides nothing."""
    return decision and (decision.allowed, decision.states, decision.now, decision.refusal, decision.tightest)


class LeasedBuckets(MemoryBuckets):
    """Buckets in memory whose leases expire, as Redis's must: there, gateways may die and leave theirs behind."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock=clock)
        self.ends_us: dict[tuple[str, bytes], int] = {}

    def take_now(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
        self._drop_expired(takes)
        decision = super().take_now(takes, lease)
        if decision.allowed:
            states = zip(takes, decision.states, strict=True)
            self._extend([take for take, found in states if take.limit.concurrent and found.allowed], lease)
        return decision

    def release(self, takes: Sequence[Take], lease: bytes) -> None:
        self._drop_expired(takes)
        super().release(takes, lease)

    def renew(self, takes: Sequence[Take], lease: bytes) -> None:
        """Extend the leases: the places are still in use."""
        self._drop_expired(takes)
        self._extend(takes, lease)

    def _extend(self, takes: Sequence[Take], lease: bytes) -> None:
        for take in takes:
            self._leases.setdefault(take.key, set()).add(lease)
            self.ends_us[take.key, lease] = int(self._clock() * 1_000_000) + int(LEASE_S * 1_000_000)

    def _drop_expired(self, takes: Sequence[Take]) -> None:
        """For good, whatever the clock does next."""
        for take in takes:
            for lease in list(self._leases.get(take.key, ())):
                if self.ends_us[take.key, lease] <= int(self._clock() * 1_000_000):
                    self._leases[take.key].discard(lease)


def done(memory: LeasedBuckets, item: BatchItem) -> Decision | None:
    match item.op:
        case BucketOp.TAKE:
            return memory.take_now(item.takes, item.lease)
        case BucketOp.SETTLE:
            memory.settle(item.takes)
        case BucketOp.RELEASE:
            memory.release(item.takes, item.lease)
        case BucketOp.RENEW:
            memory.renew(item.takes, item.lease)
    return None
