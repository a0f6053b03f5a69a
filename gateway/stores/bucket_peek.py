"""What buckets in Redis hold at the moment. Only reads: no script, nothing written, no expiry extended."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import isnan

from ..core.limits import MOST_BURST, BucketState, Decision, Level, Take, bucket_state, refill
from .redis_link import Command, RedisError, RedisLink, RedisUnavailable
from .redis_wire import server_time_us

_LEVEL = struct.Struct("<dd")
_FAR_US = 1e18
"""Later than any clock shows; an infinite instant could not be converted to a whole number."""


async def peek(link: RedisLink, takes: Sequence[Take]) -> Decision:
    """Return the levels of the buckets by Redis's clock, with nothing taken from them.

    Two round trips, because leases are counted by that clock. A value that is not a bucket counts as a full one, as in the
    script.

    Raises:
        RedisUnavailable: Redis did not answer, refused a command, or gave no clock.
    """
    (clock,) = await link.execute_many([("TIME",)])
    now_us = server_time_us(clock)
    commands: list[Command] = [
        ("ZCOUNT", take.key, f"({now_us}", "+inf") if take.limit.concurrent else ("GET", take.key) for take in takes
    ]
    states: list[BucketState] = []
    for take, held in zip(takes, await link.execute_many(commands), strict=True):
        limit = take.limit
        if isinstance(held, RedisError) and held.kind != "WRONGTYPE":
            raise RedisUnavailable(held.kind)
        if limit.concurrent:
            tokens = limit.burst - (held if isinstance(held, int) else 0)
        else:
            tokens, _ = refill(limit, _level(held), now_us)
        states.append(bucket_state(limit, True, tokens, 0.0))
    return Decision(True, tuple(states), now_us / 1_000_000)


def _level(held: object) -> Level | None:
    if not isinstance(held, bytes) or len(held) != _LEVEL.size:
        return None
    tokens, at_us = _LEVEL.unpack(held)
    if not tokens >= -MOST_BURST or isnan(at_us):  # as in the script: a NaN makes it no bucket
        return None
    return (tokens, int(max(-_FAR_US, min(_FAR_US, at_us))))
