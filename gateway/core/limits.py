"""Token buckets: the arithmetic. Which buckets a request takes from is ``core.limit_plan``'s to say.

A bucket is two numbers: its level in tokens (a double) and the instant of that level in whole microseconds. The Lua script
does the same operations on the same doubles in the same order, so both agree to the last bit; whoever changes one changes
both. An absent bucket is a full one. A refused request takes nothing from any bucket, not even from those that had enough.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from .catalogue import Access, Surface
from .cost import Settlement

MOST_BURST = 1e8
"""Tokens: what a double still counts in millionths. The script knows it, too."""
MOST_RATE = 1e9
"""Tokens a second."""


class Scope(enum.StrEnum):
    """Whose bucket a limit takes from."""

    CALLER = "caller"
    IDENTITY = "identity"
    """Everybody who came in by one configured identity, together."""
    TEAM = "team"
    ADDRESS = "address"
    """Callers whom the gateway can't name: anonymous ones, and credentials that only GitLab can check."""
    ORGANISATION = "organisation"
    """One bucket for all."""
    PROJECT = "project"
    """Everybody's requests for one project, by its number where that is known; requests that name none take nothing."""


class OnOutage(enum.StrEnum):
    """What a bucket store does while it can't reach its buckets."""

    LOCAL = "local"
    """Each gateway enforces its share by itself."""
    OPEN = "open"
    CLOSED = "closed"


class Match(msgspec.Struct, frozen=True, gc=False):
    """Which requests a limit is about: conditions that must all hold; one left out (None) holds."""

    access: Access | None = None
    """Exactly this class: a limit on writes leaves reads alone."""
    surfaces: tuple[Surface, ...] | None = None
    routes: tuple[str, ...] | None = None
    """``/template`` or ``METHOD /template``, as rules write them."""
    methods: tuple[str, ...] | None = None


EVERY = Match()


class Limit(msgspec.Struct, frozen=True, gc=False):
    """One configured limit."""

    id: str
    by: Scope
    rate: float
    """Tokens per second that flow back."""
    burst: float
    """Capacity in tokens."""
    period_s: float = 60.0
    """The period the operator wrote the rate in (``600/min`` → 60): the window told to IETF clients."""
    advertise: bool = False
    """This limit's numbers are the ones sent as ``RateLimit-*``."""
    shadow: bool = False
    """Counted and measured, never refused."""
    match: Match = EVERY
    concurrent: bool = False
    """``burst`` is how many requests may be in progress at one time: leases are held instead of tokens taken. ``rate`` is
    then no more than the guess of how soon a place comes free."""
    on_outage: OnOutage | None = None
    """None: as the store is told."""
    weighted: bool = False
    """A request costs its operation's weight (``core.cost``), not one."""
    settlement: Settlement | None = None
    """What the answer changes about the cost; None: nothing."""
    absorb_s: float = 0.0
    """A request that would be admitted within so many seconds waits instead of being refused."""

    @property
    def per_us(self) -> float:
        """Tokens per microsecond: the one factor that both implementations multiply by."""
        return self.rate / 1_000_000

    @property
    def per_minute(self) -> int:
        """The rate as GitLab writes it: whole requests per minute, at least one."""
        return max(1, math.ceil(self.rate * 60 - 1e-9))


class Take(msgspec.Struct, frozen=True, gc=False):
    """``cost`` tokens wanted from one bucket. The keys of one request differ."""

    key: str
    limit: Limit
    cost: float = 1.0


class Era:
    """How long what was found of a caller's limits holds."""

    __slots__ = ("over",)

    def __init__(self, *, over: bool = False) -> None:
        self.over = over


_ALWAYS = Era()


class Takes(tuple[Take, ...]):
    """The takes of all requests alike of one caller: what is the same for each of them is found once."""

    plain: tuple[tuple[str, Limit, float, float, float], ...]
    """Key, limit, burst, tokens per microsecond and cost of each take; empty where one is of a shadow or concurrent limit,
    or wants what no bucket holds: those go the long way, through ``decide``."""
    keys: tuple[str, ...]
    """Of the plain ones."""
    limits: tuple[Limit, ...]
    owing: bool
    era: Era
    """Once it is over, the same request may take otherwise."""
    told: object
    """Whoever tells these callers of their limits keeps here what stays the same."""
    packed: tuple[bytes, bytes] | None
    """Keys and wishes as a store writes them that asks afar."""

    def __init__(self, takes: Iterable[Take] = (), era: Era = _ALWAYS) -> None:
        del takes  # they are in place by now
        strange = any(
            take.limit.shadow or take.limit.concurrent or not 0.0 <= take.cost <= take.limit.burst for take in self
        )
        self.plain = () if strange else tuple([_plain(take) for take in self])
        self.keys = tuple([one[0] for one in self.plain])
        self.limits = tuple([one[1] for one in self.plain])
        self.owing = any(take.limit.concurrent or take.limit.settlement is not None for take in self)
        self.era = era
        self.told = None
        self.packed = None

    def __new__(cls, takes: Iterable[Take] = (), era: Era = _ALWAYS) -> Self:
        """As a tuple's, which knows of no era."""
        return super().__new__(cls, takes)


def _plain(take: Take) -> tuple[str, Limit, float, float, float]:
    limit = take.limit
    return (take.key, limit, limit.burst, limit.per_us, take.cost)


def heavier(takes: Takes, weight: int) -> Takes:
    """What so many requests in one would take; a place among those in progress stays one."""
    return Takes(
        [take if take.limit.concurrent else Take(take.key, take.limit, take.cost * weight) for take in takes], takes.era
    )


def beforehand(takes: Takes, weight: int) -> Takes:
    """What so many requests in one take before it is known whether the caller may have them: nothing of what a project's
    own callers share. Who is none of them must neither hold it nor learn how much is left."""
    wanted = heavier(takes, weight) if weight > 1 else takes
    if any(take.limit.by is Scope.PROJECT for take in wanted):
        return Takes([take for take in wanted if take.limit.by is not Scope.PROJECT], takes.era)
    return wanted


def owes(takes: Sequence[Take]) -> bool:
    """Something must be put in order when the request is over: a place given back, a cost settled. Mostly nothing is."""
    if isinstance(takes, Takes):
        return takes.owing
    for take in takes:  # noqa: SIM110 — half of what `any` with a generator costs
        if take.limit.concurrent or take.limit.settlement is not None:
            return True
    return False


class BucketState(msgspec.Struct, frozen=True, gc=False):
    """One bucket after a decision."""

    limit: Limit
    allowed: bool
    """It had enough. Whether the request was allowed is the decision's to say."""
    remaining: float
    """Tokens left after the decision."""
    retry_after_s: float
    """Until ``cost`` would be available; 0 when allowed."""
    full_in_s: float
    """Until the bucket is full again."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """All buckets of a request, taken together or not at all."""

    allowed: bool
    found: tuple[BucketState, ...]
    """See ``states``."""
    now: float
    """Unix seconds by the store's clock: the only clock that counts."""
    degraded: bool = False
    """The store did not answer; its failure policy decided."""
    unavailable: bool = False
    """Refused because the store is away and fails closed: no limit was exceeded, so this is a 503 and not a 429."""
    takes: Takes | None = None
    """Of plain takes that were all admitted, which most are; then ``lefts``, ``limit`` and ``remaining`` say the rest."""
    lefts: Sequence[float] = ()
    """Tokens left in each bucket."""
    limit: Limit | None = None
    """That of the tightest bucket."""
    remaining: float = 0.0
    """What is left there."""
    asked: Takes | None = None
    """Of plain takes that were refused; then ``short`` is the ``refusal``."""
    short: BucketState | None = None

    @property
    def states(self) -> tuple[BucketState, ...]:
        """Each bucket, in the order of the takes. Computed where few ask."""
        if self.takes is None:
            return self.found
        return tuple([state(take.limit, True, left, 0.0) for take, left in zip(self.takes, self.lefts, strict=True)])

    @property
    def refusal(self) -> BucketState | None:
        """The refusing bucket one has to wait for longest; None when allowed."""
        if self.allowed or self.short is not None:
            return self.short
        longest: BucketState | None = None
        for found in self.found:
            if not (found.allowed or found.limit.shadow) and (
                longest is None or found.retry_after_s > longest.retry_after_s
            ):
                longest = found
        return longest

    @property
    def tightest(self) -> BucketState | None:
        """Of the enforced buckets the one with the least left."""
        if self.limit is not None:
            return state(self.limit, True, self.remaining, 0.0)
        tightest: BucketState | None = None
        for found in self.states:
            if not found.limit.shadow and (tightest is None or found.remaining < tightest.remaining):
                tightest = found
        return tightest

    @property
    def shadowed(self) -> str:
        """Id of the first shadow limit that would have refused; empty when none."""
        if self.takes is not None:
            return ""
        for found in self.found:
            if not found.allowed and found.limit.shadow:
                return found.limit.id
        return ""


def paired(takes: Sequence[Take], decision: Decision) -> list[tuple[Take, BucketState]]:
    """Each take with its bucket, less those that nobody counted: of a store that is away and fails open for them."""
    states = iter(decision.states)
    found: list[tuple[Take, BucketState]] = []
    bucket = next(states, None)
    for take in takes:
        if bucket is not None and bucket.limit is take.limit:
            found.append((take, bucket))
            bucket = next(states, None)
    return found


def after(takes: Sequence[Take], refused: Decision, kept: Iterable[Take]) -> Decision:
    """``refused``, of ``takes``, as it is once ``kept`` has been taken."""
    gone = {take.key: take.cost for take in kept}
    states = [
        bucket if take.key not in gone or take.limit.shadow else _lower(take, bucket.remaining - gone[take.key])
        for take, bucket in paired(takes, refused)
    ]
    return Decision(False, tuple(states), refused.now, refused.degraded, refused.unavailable)


def _lower(take: Take, tokens: float) -> BucketState:
    return state(take.limit, tokens >= affordable(take.limit, take.cost), tokens, take.cost)


# Arithmetic

Level = tuple[float, int]
"""Tokens, and the microsecond of the Unix epoch at which there were so many."""

Held = tuple[float, int, Limit]
"""A level, and the limit that it was taken under."""

GRAIN = 1e-6
"""The least growth that is written down, in tokens: far above the spacing of doubles at the largest burst."""


def refill(limit: Limit, level: Level | None, now_us: int) -> Level:
    """The level at ``now_us``. A clock that went back gives nothing and is believed from then on: nothing freezes."""
    burst = limit.burst
    if level is None:
        return (burst, now_us)
    tokens, at_us = level
    if not tokens <= burst:  # the limit was lowered; written so that a NaN counts as full too
        tokens = burst
    elif tokens < -burst:
        tokens = -burst
    if now_us <= at_us:
        return (tokens, now_us)
    gain = (now_us - at_us) * (limit.rate / 1_000_000)
    if tokens + gain >= burst:
        return (burst, now_us)
    if gain >= GRAIN:
        return (tokens + gain, now_us)
    # So little would be lost, or rounded up, in the double's last bits: the instant stays until it is worth adding.
    return (tokens, at_us)


def affordable(limit: Limit, cost: float) -> float:
    """A cost beyond the burst asks for the whole bucket: it could never be met otherwise. None is below nothing."""
    if cost > limit.burst:
        return limit.burst
    return max(0.0, cost)


def state(limit: Limit, allowed: bool, tokens: float, cost: float) -> BucketState:
    """What a bucket with ``tokens`` left means for its caller."""
    missing = 0.0 if allowed else (affordable(limit, cost) - tokens) / limit.rate
    return BucketState(limit, allowed, tokens, missing, (limit.burst - tokens) / limit.rate)


def decide(takes: Sequence[Take], levels: Sequence[Level | None], now_us: int) -> tuple[Decision, list[Level | None]]:
    """Take from all buckets or from none.

    Returns:
        The decision, and for each bucket the level to store, None where what is stored stays.
        Shadow buckets that are short neither refuse nor are taken from.
    """
    # Plain loops: this runs for every request, and comprehensions over two buckets cost more than the arithmetic.
    filled: list[tuple[Level, float]] = []
    allowed = True
    for take, level in zip(takes, levels, strict=True):
        limit = take.limit
        cost = take.cost
        if not 0.0 <= cost <= limit.burst:
            cost = affordable(limit, cost)
        now_there = refill(limit, level, now_us)
        filled.append((now_there, cost))
        if now_there[0] < cost and not limit.shadow:
            allowed = False
    states: list[BucketState] = []
    stored: list[Level | None] = []
    for take, before, ((tokens, at_us), cost) in zip(takes, levels, filled, strict=True):
        limit = take.limit
        if tokens < cost:
            states.append(
                BucketState(limit, False, tokens, (cost - tokens) / limit.rate, (limit.burst - tokens) / limit.rate)
            )
        else:
            left = tokens - cost if allowed else tokens
            states.append(BucketState(limit, True, left, 0.0, (limit.burst - left) / limit.rate))
            if allowed:
                stored.append((left, at_us))
                continue
        # Nothing is taken. Only a clock that went back is noted, or the bucket would wait for it to catch up.
        stored.append((tokens, now_us) if before is not None and now_us < before[1] else None)
    return Decision(allowed, tuple(states), now_us / 1_000_000), stored


def settled(limit: Limit, level: Level | None, change: float, now_us: int) -> Level | None:
    """The level to store after ``change`` more tokens turned out to be owed (less than 0: too many were taken).

    A bucket never holds more than its burst, and never owes more than that either. None: nothing is stored, because an
    absent bucket is full already.
    """
    if level is None and change <= 0:
        return None
    tokens, at_us = refill(limit, level, now_us)
    return (min(limit.burst, max(-limit.burst, tokens - change)), at_us)


LEASE_S = 60.0
"""How long a place among a caller's concurrent requests stays taken when its gateway dies; the script knows it too."""
