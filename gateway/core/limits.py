"""Token buckets: the arithmetic. ``core.limit_plan`` says which buckets a request takes from.

A bucket is two numbers: its level in tokens (a double) and the instant of that level in whole microseconds. The Lua script
does the same operations on the same doubles in the same order, so both agree to the last bit; whoever changes one must
change both. An absent bucket is a full one. A refused request takes nothing from any bucket, not even from those that had
enough.
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
"""The largest burst, in tokens: a double still resolves millionths of a token there. The script has the same number."""
MOST_RATE = 1e9
"""The highest rate, in tokens per second."""


class Scope(enum.StrEnum):
    """Whose bucket a limit takes from."""

    CALLER = "caller"
    IDENTITY = "identity"
    """All callers of one configured identity together."""
    TEAM = "team"
    ADDRESS = "address"
    """Callers whom the gateway can't name: anonymous ones, and credentials that only GitLab can check."""
    ORGANISATION = "organisation"
    """One bucket for all."""
    PROJECT = "project"
    """All callers' requests for one project, by its number if that is known; requests that name no project take nothing."""


class OnOutage(enum.StrEnum):
    """What a bucket store does while it can't reach its buckets."""

    LOCAL = "local"
    """Each gateway enforces its own share."""
    OPEN = "open"
    CLOSED = "closed"


class Match(msgspec.Struct, frozen=True, gc=False):
    """Which requests a limit applies to: conditions that must all hold; one that is left out (None) holds."""

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
    """Tokens that flow back per second."""
    burst: float
    """Capacity in tokens."""
    period_s: float = 60.0
    """The period in which the operator wrote the rate (``600/min`` → 60): the window sent in the IETF fields."""
    advertise: bool = False
    """This limit's numbers are the ones sent as ``RateLimit-*``."""
    shadow: bool = False
    """Requests are counted and measured, never refused."""
    match: Match = EVERY
    concurrent: bool = False
    """``burst`` is how many requests may be in progress at one time: leases are held, no tokens are taken. ``rate`` is then
    only a guess of how soon a place becomes free."""
    on_outage: OnOutage | None = None
    """None: what is configured for the whole store."""
    weighted: bool = False
    """A request costs its operation's weight (``core.cost``), not one."""
    settlement: Settlement | None = None
    """How the answer changes the cost; None: not at all."""
    absorb_s: float = 0.0
    """A request that would be admitted within this many seconds waits instead of being refused."""

    @property
    def per_us(self) -> float:
        """Tokens per microsecond: the one factor that both implementations multiply by."""
        return self.rate / 1_000_000

    @property
    def per_minute(self) -> int:
        """The rate as GitLab writes it: whole requests per minute, at least one."""
        return max(1, math.ceil(self.rate * 60 - 1e-9))


class Take(msgspec.Struct, frozen=True, gc=False):
    """``cost`` tokens wanted from one bucket. The takes of one request all have different keys."""

    key: str
    limit: Limit
    cost: float = 1.0


class Validity:
    """The time for which the takes that were worked out for a caller hold."""

    __slots__ = ("over",)

    def __init__(self, *, over: bool = False) -> None:
        self.over = over


_ALWAYS = Validity()


class Takes(tuple[Take, ...]):
    """The takes of a caller's requests of one kind: what is the same for all these requests is worked out once."""

    plain: tuple[tuple[str, Limit, float, float, float], ...]
    """Key, limit, burst, tokens per microsecond and cost of each take. Empty if one of them is of a shadow or concurrent
    limit, or wants more than its bucket can hold: such takes go the long way, through ``decide``."""
    keys: tuple[str, ...]
    """The keys of the plain takes."""
    limits: tuple[Limit, ...]
    settles_later: bool
    validity: Validity
    """Once it is over, the takes of the same request may be different."""
    caller_fields: object
    """Where ``LimitHeaders`` keeps what stays the same in the fields it writes for these takes."""
    packed: tuple[bytes, bytes] | None
    """Keys and wanted tokens in the encoding of a store that asks over the network."""

    def __init__(self, takes: Iterable[Take] = (), validity: Validity = _ALWAYS) -> None:
        del takes  # they are in place by now
        special = any(
            take.limit.shadow or take.limit.concurrent or not 0.0 <= take.cost <= take.limit.burst for take in self
        )
        self.plain = () if special else tuple([_plain(take) for take in self])
        self.keys = tuple([one[0] for one in self.plain])
        self.limits = tuple([one[1] for one in self.plain])
        self.settles_later = any(take.limit.concurrent or take.limit.settlement is not None for take in self)
        self.validity = validity
        self.caller_fields = None
        self.packed = None

    def __new__(cls, takes: Iterable[Take] = (), validity: Validity = _ALWAYS) -> Self:
        """As a tuple's ``__new__``, which takes no validity."""
        return super().__new__(cls, takes)


def _plain(take: Take) -> tuple[str, Limit, float, float, float]:
    limit = take.limit
    return (take.key, limit, limit.burst, limit.per_us, take.cost)


def scale_takes(takes: Takes, weight: int) -> Takes:
    """The takes of ``weight`` requests sent as one; it still holds only one place among those in progress."""
    return Takes(
        [take if take.limit.concurrent else Take(take.key, take.limit, take.cost * weight) for take in takes],
        takes.validity,
    )


def preliminary_takes(takes: Takes, weight: int) -> Takes:
    """The takes of ``weight`` requests sent as one, before it is known whether the caller may make them: nothing is taken
    from a bucket that a project's callers share. A caller without access must neither use it up nor learn what is left."""
    wanted = scale_takes(takes, weight) if weight > 1 else takes
    if any(take.limit.by is Scope.PROJECT for take in wanted):
        return Takes([take for take in wanted if take.limit.by is not Scope.PROJECT], takes.validity)
    return wanted


def needs_settling(takes: Sequence[Take]) -> bool:
    """Whether something is left to do when the request is over: give back a place, settle a cost. Mostly nothing is."""
    if isinstance(takes, Takes):
        return takes.settles_later
    for take in takes:  # noqa: SIM110 — half of what `any` with a generator costs
        if take.limit.concurrent or take.limit.settlement is not None:
            return True
    return False


class BucketState(msgspec.Struct, frozen=True, gc=False):
    """One bucket after a decision."""

    limit: Limit
    allowed: bool
    """Whether this bucket had enough. The decision says whether the request was allowed."""
    remaining: float
    """Tokens left after the decision."""
    retry_after_s: float
    """Seconds until the cost would be available; 0 if allowed."""
    full_in_s: float
    """Seconds until the bucket is full again."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The outcome for all buckets of a request, which are taken from together or not at all."""

    allowed: bool
    given_states: tuple[BucketState, ...]
    """The ``states``, unless they follow from ``takes``."""
    now: float
    """Unix seconds by the store's clock: the only clock that counts."""
    degraded: bool = False
    """The store did not answer; its failure policy decided."""
    unavailable: bool = False
    """Refused because the store is away and fails closed: no limit was exceeded, so this is a 503 and not a 429."""
    takes: Takes | None = None
    """The takes, if they are plain and were admitted, as most are; ``lefts``, ``limit`` and ``remaining`` say the rest."""
    lefts: Sequence[float] = ()
    """With ``takes``: the tokens left in each bucket."""
    limit: Limit | None = None
    """With ``takes``: the limit of the tightest bucket."""
    remaining: float = 0.0
    """With ``takes``: the tokens left in the tightest bucket."""
    asked: Takes | None = None
    """The takes, if they are plain and were refused; ``short`` is then the ``refusal``."""
    short: BucketState | None = None

    @property
    def states(self) -> tuple[BucketState, ...]:
        """Each bucket, in the order of the takes. For plain takes they are computed when asked for, which is rare."""
        if self.takes is None:
            return self.given_states
        return tuple([bucket_state(take.limit, True, left, 0.0) for take, left in zip(self.takes, self.lefts, strict=True)])

    @property
    def refusal(self) -> BucketState | None:
        """The refusing bucket with the longest wait; None if the request was allowed."""
        if self.allowed or self.short is not None:
            return self.short
        longest: BucketState | None = None
        for state in self.given_states:
            if not (state.allowed or state.limit.shadow) and (
                longest is None or state.retry_after_s > longest.retry_after_s
            ):
                longest = state
        return longest

    @property
    def tightest(self) -> BucketState | None:
        """The enforced bucket with the least left."""
        if self.limit is not None:
            return bucket_state(self.limit, True, self.remaining, 0.0)
        tightest: BucketState | None = None
        for state in self.states:
            if not state.limit.shadow and (tightest is None or state.remaining < tightest.remaining):
                tightest = state
        return tightest

    @property
    def shadowed(self) -> str:
        """The id of the first shadow limit that would have refused; empty if there is none."""
        if self.takes is not None:
            return ""
        for state in self.given_states:
            if not state.allowed and state.limit.shadow:
                return state.limit.id
        return ""


def paired(takes: Sequence[Take], decision: Decision) -> list[tuple[Take, BucketState]]:
    """Each take with its bucket, without those that were not counted because the store is away and fails open for them."""
    states = iter(decision.states)
    found: list[tuple[Take, BucketState]] = []
    bucket = next(states, None)
    for take in takes:
        if bucket is not None and bucket.limit is take.limit:
            found.append((take, bucket))
            bucket = next(states, None)
    return found


def refusal_after(takes: Sequence[Take], refused: Decision, kept: Iterable[Take]) -> Decision:
    """The refusal ``refused`` of ``takes``, as it stands once ``kept`` has been taken."""
    gone = {take.key: take.cost for take in kept}
    states = [
        bucket if take.key not in gone or take.limit.shadow else _lower(take, bucket.remaining - gone[take.key])
        for take, bucket in paired(takes, refused)
    ]
    return Decision(False, tuple(states), refused.now, refused.degraded, refused.unavailable)


def _lower(take: Take, tokens: float) -> BucketState:
    return bucket_state(take.limit, tokens >= affordable(take.limit, take.cost), tokens, take.cost)


# Arithmetic

Level = tuple[float, int]
"""A number of tokens, and the instant, in microseconds of the Unix epoch, at which there were that many."""

Held = tuple[float, int, Limit]
"""A level, and the limit under which it was stored."""

GRAIN = 1e-6
"""The least growth that is written down, in tokens: well above the spacing of doubles at the largest burst."""


def refill(limit: Limit, level: Level | None, now_us: int) -> Level:
    """The level at ``now_us``. A clock that went back adds nothing and is believed from then on, so no bucket freezes."""
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
    # So small a gain would be lost, or rounded up, in the last bits of the double: the instant stays until there is more.
    return (tokens, at_us)


def affordable(limit: Limit, cost: float) -> float:
    """The cost that is charged. One above the burst takes the whole bucket, or it could never be met; none is below 0."""
    if cost > limit.burst:
        return limit.burst
    return max(0.0, cost)


def bucket_state(limit: Limit, allowed: bool, tokens: float, cost: float) -> BucketState:
    """The state of a bucket with ``tokens`` left."""
    missing = 0.0 if allowed else (affordable(limit, cost) - tokens) / limit.rate
    return BucketState(limit, allowed, tokens, missing, (limit.burst - tokens) / limit.rate)


def decide(takes: Sequence[Take], levels: Sequence[Level | None], now_us: int) -> tuple[Decision, list[Level | None]]:
    """Take from all buckets or from none.

    Returns:
        The decision, and for each bucket the level to store; None where the stored one stays.
        Shadow buckets with too little neither refuse nor are taken from.
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
        # Nothing is taken. Only a clock that went back is recorded, or the bucket would wait for it to catch up.
        stored.append((tokens, now_us) if before is not None and now_us < before[1] else None)
    return Decision(allowed, tuple(states), now_us / 1_000_000), stored


def settle_level(limit: Limit, level: Level | None, change: float, now_us: int) -> Level | None:
    """The level to store after ``change`` more tokens turned out to be owed (below 0: too many were taken).

    A bucket never holds more than its burst, and never owes more than that. None: nothing is stored, because an absent
    bucket is already full.
    """
    if level is None and change <= 0:
        return None
    tokens, at_us = refill(limit, level, now_us)
    return (min(limit.burst, max(-limit.burst, tokens - change)), at_us)


LEASE_S = 60.0
"""How long a place among a caller's concurrent requests stays taken if its gateway dies; the script has the same number."""
