"""Token buckets: the arithmetic, and which buckets a request takes from.

A bucket is two numbers: its level in tokens (a double) and the instant of that level in whole microseconds. The Lua script
does the same operations on the same doubles in the same order, so both agree to the last bit; whoever changes one changes
both. An absent bucket is a full one. A refused request takes nothing from any bucket, not even from those that had enough.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import math
import re
from collections.abc import Iterable, Sequence

import msgspec

from .access import Principal, PrincipalKind
from .catalogue import Operation


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


class OnOutage(enum.StrEnum):
    """What a bucket store does while it can't reach its buckets."""

    LOCAL = "local"
    """Each gateway enforces its share by itself."""
    OPEN = "open"
    CLOSED = "closed"


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
    states: tuple[BucketState, ...]
    now: float
    """Unix seconds by the store's clock: the only clock that counts."""
    degraded: bool = False
    """The store did not answer; its failure policy decided."""
    unavailable: bool = False
    """Refused because the store is away and fails closed: no limit was exceeded, so this is a 503 and not a 429."""

    @property
    def refusal(self) -> BucketState | None:
        """The refusing bucket one has to wait for longest; None when allowed."""
        if self.allowed:
            return None
        short = [state for state in self.states if not state.allowed and not state.limit.shadow]
        return max(short, key=_wait) if short else None

    @property
    def shadowed(self) -> str:
        """Id of the first shadow limit that would have refused; empty when none."""
        return next((state.limit.id for state in self.states if state.limit.shadow and not state.allowed), "")


def _wait(state: BucketState) -> float:
    return state.retry_after_s


# Arithmetic

Level = tuple[float, int]
"""Tokens, and the microsecond of the Unix epoch at which there were so many."""

_GRAIN = 1e-6
"""The least growth that is written down, in tokens: far above the spacing of doubles at the largest burst."""


def refill(limit: Limit, level: Level | None, now_us: int) -> Level:
    """The level at ``now_us``. A clock that went back gives nothing and is believed from then on: nothing freezes."""
    burst = limit.burst
    if level is None:
        return (burst, now_us)
    tokens, at_us = level
    if not tokens <= burst:  # the limit was lowered; written so that a NaN counts as full too
        tokens = burst
    if now_us <= at_us:
        return (tokens, now_us)
    gain = (now_us - at_us) * (limit.rate / 1_000_000)
    if tokens + gain >= burst:
        return (burst, now_us)
    if gain >= _GRAIN:
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
        cost = affordable(limit, take.cost)
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


# Which buckets

KEY_BYTES = 200
"""No bucket's key is longer."""
_PREFIX = "{gw}:b:"
# One hash tag for all buckets: every bucket of a request must live in one slot of a Redis Cluster to be taken in one step,
# and the organisation's bucket is part of every request. Other data of the gateway is free to live elsewhere.
_LIMIT_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN_SUBJECT = re.compile(r"(?!#)[\x21-\x7e]{1,100}")
_MEMO_BOUND = 4096


def address_group(peer: str) -> str:
    """The subject that stands for an unnamed caller: an IPv4 address, or the /64 that one IPv6 customer holds."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer  # a Unix socket
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


class Limits:
    """The configured limits, compiled. ``takes_for`` costs a dictionary look-up for a caller seen lately."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        enforced = [limit for limit in limits if not limit.shadow]
        ranked = sorted(enforced, key=lambda limit: (not limit.advertise, limit.by is not Scope.CALLER))
        self.rank = {limit.id: place for place, limit in enumerate(ranked)}
        """Whose rate is told as a caller's quota, best first: the one that says so, those by caller, the rest in order."""
        self.advertised: Limit | None = ranked[0] if ranked else None
        self._memo: dict[tuple[str, str, str, str], tuple[Take, ...]] = {}

    @classmethod
    def compile(cls, limits: Iterable[Limit]) -> Limits:
        """Raises ValueError for a limit that no bucket can hold."""
        compiled = tuple(limits)
        seen = set[str]()
        for limit in compiled:
            if not _LIMIT_ID.fullmatch(limit.id):
                raise ValueError(f"limit {limit.id[:64]!r}: an id is letters, digits, '_', '.', '-', at most 64")
            if limit.id in seen:
                raise ValueError(f"limit {limit.id}: the id is taken")
            seen.add(limit.id)
            if not (0 < limit.rate <= 1e9 and 1 <= limit.burst <= 1e8 and 0 < limit.period_s < math.inf):
                raise ValueError(f"limit {limit.id}: the rate is above 0 and at most 1e9, the burst from 1 to 1e8")
        return cls(compiled)

    def takes_for(
        self,
        principal: Principal,
        operation: Operation,
        peer: str,
        cost: float = 1.0,
    ) -> tuple[Take, ...]:
        """The takes of one request, in the order configured; empty when no limit applies.

        ``operation`` chooses nothing yet: limits per operation class will look there.
        """
        unnamed = principal.kind is PrincipalKind.ANONYMOUS or principal.kind is PrincipalKind.PASSTHROUGH
        seen = (peer if unnamed else principal.id, principal.kind, principal.team, principal.identity)
        takes = self._memo.get(seen)
        if takes is None:
            takes = self._takes(principal, address_group(peer) if unnamed else "")
            if len(self._memo) >= _MEMO_BOUND:
                self._memo.clear()
            self._memo[seen] = takes
        if cost == 1.0:
            return takes
        return tuple([Take(take.key, take.limit, cost) for take in takes])

    def _takes(self, principal: Principal, address: str) -> tuple[Take, ...]:
        subjects = {
            Scope.CALLER: f"{principal.kind.value}:{address}" if address else principal.id,
            Scope.IDENTITY: principal.identity,
            Scope.TEAM: principal.team,
            Scope.ADDRESS: address,
            Scope.ORGANISATION: "all",
        }
        return tuple([Take(_key(limit.id, subjects[limit.by]), limit) for limit in self.limits if subjects[limit.by]])


def _key(limit_id: str, subject: str) -> str:
    if not _PLAIN_SUBJECT.fullmatch(subject):
        subject = "#" + hashlib.blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{_PREFIX}{limit_id}:{subject}"
