"""Long histories in which Redis forgets: expired keys, flushed scripts, a replica that was behind, everything lost.

The script runs in a real Redis under a clock of the test's. That clock goes on for hours where Redis's own goes on for
milliseconds, so the test itself removes each key when its TTL, as Redis tells it, is over by the test's clock.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.limits import Decision, Limit, Scope, Take
from gateway.stores.bucket_script import BatchItem, BucketOp, Script, TakePacker, decisions

from .bucket_model import (
    EVERY_BUCKET,
    LEASES,
    T0,
    TAKE,
    LeasedBuckets,
    Model,
    batch_item,
    changes,
    costs,
    done,
    driven,
    requests,
    said,
)

FORGETFUL = ("flush scripts", "copy", "fail over", "lose everything")
SCRIPT = Script(driven(TAKE))
GRID_US = 15_625
"""1/64 s: the memory store's clock is in seconds, and its microseconds must be these."""

steps = st.one_of(
    st.integers(0, 10_000_000),
    st.sampled_from([0, 0, 1, 100_000, 7_000_000, 30_000_000, 55_000_000, 66_000_000, 3_600_000_000]),
)
parts = st.lists(
    st.tuples(st.sampled_from(BucketOp), requests, costs, changes, st.sampled_from(LEASES)), min_size=1, max_size=4
)
events = st.one_of(st.tuples(steps, parts), st.tuples(steps, parts), st.sampled_from(FORGETFUL))


class Driven:
    """Buckets in a real Redis, and the replica that may take its place."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.packer = TakePacker()
        self.ends: dict[str, int] = {}
        """When each key's TTL is over."""
        self.replica: dict[str, tuple[bytes, int, int]] = {}
        client.flushdb()

    def turn(self, batch: list[BatchItem], now: int) -> list[Decision]:
        for key in [key for key, end in self.ends.items() if end <= now]:
            self.client.delete(key)
            del self.ends[key]
        before = self._held()
        arguments = (*self.packer.arguments(batch), now)
        try:
            answer = self.client.execute_command("EVALSHA", SCRIPT.sha, *arguments)
        except redis.exceptions.NoScriptError:
            answer = self.client.execute_command("EVAL", SCRIPT.text, *arguments)
        held = self._held()
        for key in {*before, *held}:
            if key not in held:
                self.ends.pop(key, None)
            elif held[key] != before.get(key):
                ttl_ms = cast(int, self.client.pttl(key))
                assert ttl_ms > 0
                self.ends[key] = now + ttl_ms * 1000
        return decisions(batch, answer)

    def copy(self) -> None:
        """The replica is in step."""
        self.replica = {
            key: (octets, cast(int, self.client.pttl(key)), self.ends[key]) for key, octets in self._held().items()
        }

    def fail_over(self) -> None:
        """The replica is the primary now: what it had not heard of is lost, and it has never seen the script."""
        self.client.flushdb()
        self.client.script_flush()
        for key, (octets, ttl_ms, _) in self.replica.items():
            self.client.restore(key, ttl_ms, octets)
        self.ends = {key: end for key, (_, _, end) in self.replica.items()}

    def _held(self) -> dict[str, bytes]:
        keys = [key for key, _ in EVERY_BUCKET]
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.dump(key)
        return {key: octets for key, octets in zip(keys, pipe.execute(), strict=True) if octets is not None}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(events, min_size=1, max_size=20))
def test_memory_lua_and_the_model_agree_whatever_redis_forgets(redis_url: str, history: list[Any]) -> None:
    now = T0
    clock = lambda: now / 1e6  # noqa: E731
    live: list[Any] = [Model(), LeasedBuckets(clock)]
    behind = [Model(), LeasedBuckets(clock)]
    with redis.Redis.from_url(redis_url) as client:
        driven_ = Driven(client)
        for event in history:
            match event:
                case "flush scripts":
                    client.script_flush()
                case "copy":
                    driven_.copy()
                    behind = copied(live)
                case "fail over":
                    driven_.fail_over()
                    live = copied(behind)
                case "lose everything":
                    client.flushall()
                    driven_.ends.clear()
                    live = [Model(), LeasedBuckets(clock)]
                case (int(step), list(asked)):
                    now += step // GRID_US * GRID_US
                    turn = [one for one in (batch_item(*part) for part in asked) if one.takes]
                    model, memory = live
                    expected = [model.do(one, now) for one in turn]
                    found = driven_.turn(turn, now)
                    meant = [said(one) for one in expected]
                    assert [
                        said(one) if wanted is not None else None for one, wanted in zip(found, expected, strict=True)
                    ] == meant
                    assert [said(done(memory, one)) for one in turn] == meant


def copied(live: list[Any]) -> list[Any]:
    """Model and memory as they are; their limits stay the same objects."""
    model, memory = live
    other = LeasedBuckets(memory._clock)
    other._levels, other._order = copy.copy(memory._levels), copy.copy(memory._order)
    other._leases, other.ends_us = copy.deepcopy(memory._leases), dict(memory.ends_us)
    twin = Model()
    twin.levels, twin.leases = dict(model.levels), copy.deepcopy(model.leases)
    return [twin, other]


TIGHT = Limit("tight", Scope.CALLER, 1.0, 10.0)


@pytest.mark.parametrize("forgetting", [event for event in FORGETFUL if event != "copy"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 400), min_size=5, max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_what_is_forgotten_once_admits_at_most_one_burst_more(
    redis_url: str, forgetting: str, waits: list[int], copied_at: int, forgotten_at: int
) -> None:
    """``waits`` in hundredths of a second between attempts; never more than burst + rate x time, plus the one burst."""
    now, admitted = T0, Counter[bool]()
    key = EVERY_BUCKET[0][0]
    with redis.Redis.from_url(redis_url) as client:
        driven_ = Driven(client)
        for number, wait in enumerate(waits):
            now += wait * 10_000
            if number == copied_at:
                driven_.copy()
            if number == forgotten_at:
                if forgetting == "fail over":
                    driven_.fail_over()
                elif forgetting == "flush scripts":
                    client.script_flush()
                else:
                    client.flushall()
                    driven_.ends.clear()
            (decision,) = driven_.turn([BatchItem([Take(key, TIGHT, 3.0)])], now)
            admitted[decision.allowed] += 1
    once = TIGHT.burst + TIGHT.rate * (now - T0) / 1e6
    bursts = 0 if forgetting == "flush scripts" else TIGHT.burst
    assert admitted[True] * 3.0 <= once + bursts + 1e-6
