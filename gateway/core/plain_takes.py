"""Takes without shadow or concurrent limits, of no more than a bucket holds: decided in one loop, as most requests are.

``core.limits.decide`` says what is right; here the same operations on the same doubles are written out, and nothing is made
that few ask for. A property holds one against the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .limits import GRAIN, BucketState, Decision, Held, Takes, refill


def admitted(takes: Takes, lefts: Sequence[float], now: float) -> Decision:
    """Plain takes that were all allowed; ``lefts``: what each bucket then held."""
    least = min(lefts)
    return Decision(True, (), now, False, False, takes, lefts, takes.limits[lefts.index(least)], least)


def admit(takes: Takes, held: dict[str, Held], now_us: int) -> Decision | None:
    """As ``decide`` for plain takes, of which there is at least one, where every bucket has enough: that much is taken from
    ``held``. None: one has not, and nothing was taken.
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
                else:  # next to nothing, or a clock that went back, a limit that was lowered
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
    """As ``decide`` for plain takes, where a bucket is short; None: all have enough, or a clock went back, which is to be
    written down."""
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
