"""Plain takes, which want no more than a bucket holds and have no shadow or concurrent limits: decided in one loop.

Most requests are of this kind. ``core.limits.decide`` defines what is right; the same operations on the same doubles are
written out here, without making anything that is rarely asked for. A property test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .limits import GRAIN, BucketState, Decision, Held, Takes, refill


def admitted(takes: Takes, lefts: Sequence[float], now: float) -> Decision:
    """The decision on plain takes that were all allowed; ``lefts``: what each bucket then held."""
    least = min(lefts)
    return Decision(True, (), now, False, False, takes, lefts, takes.limits[lefts.index(least)], least)


def admit(takes: Takes, held: dict[str, Held], now_us: int) -> Decision | None:
    """As ``decide`` for one or more plain takes, if every bucket has enough: the tokens are then taken from ``held``. None:
    a bucket has too little, and nothing was taken.
    """
    lefts: list[float] = []
    stored: dict[str, Held] = {}
    for key, limit, burst, per_us, cost in takes.plain:
        known = held.get(key)
        if known is None:
            left, at_us = burst - cost, now_us
        else:
            tokens, at_us, _ = known
            gain = (now_us - at_us) * per_us
            if tokens + gain >= burst:
                left, at_us = burst - cost, now_us
            else:
                if gain >= GRAIN and tokens >= -burst:
                    tokens, at_us = tokens + gain, now_us
                else:  # next to no gain, a clock that went back, or a limit that was lowered
                    tokens, at_us = refill(limit, (tokens, at_us), now_us)
                if tokens < cost:
                    return None
                left = tokens - cost
        lefts.append(left)
        stored[key] = (left, at_us, limit)
    held.update(stored)
    least = min(lefts)
    limit = takes.limits[lefts.index(least)]
    return Decision(True, (), now_us / 1_000_000, False, False, takes, lefts, limit, least)


def refuse(takes: Takes, held: Mapping[str, Held], now_us: int) -> Decision | None:
    """As ``decide`` for plain takes, if a bucket has too little. None: all have enough, or a clock went back, which must be
    recorded."""
    states: list[BucketState] = []
    longest: BucketState | None = None
    for key, limit, burst, per_us, cost in takes.plain:
        tokens = burst
        known = held.get(key)
        if known is not None:
            tokens, at_us, _ = known
            if now_us < at_us:
                return None
            if not tokens <= burst:
                tokens = burst
            elif tokens < -burst:
                tokens = -burst
            gain = (now_us - at_us) * per_us
            if tokens + gain >= burst:
                tokens = burst
            elif gain >= GRAIN:
                tokens += gain
        rate = limit.rate
        if tokens < cost:
            found = BucketState(limit, False, tokens, (cost - tokens) / rate, (burst - tokens) / rate)
            if longest is None or found.retry_after_s > longest.retry_after_s:
                longest = found
        else:
            found = BucketState(limit, True, tokens, 0.0, (burst - tokens) / rate)
        states.append(found)
    if longest is None:
        return None
    return Decision(False, tuple(states), now_us / 1_000_000, asked=takes, short=longest)
