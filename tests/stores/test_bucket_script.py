"""The take script: bit for bit the arithmetic of core, and sound on whatever a key may hold."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.limits import Decision, Level, Limit, Scope, Take, decide
from gateway.stores.bucket_memory import MemoryBuckets
from gateway.stores.bucket_script import Script, Wishes, decisions
from gateway.stores.redis_link import RedisError, RedisLink

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


def driven(script: Script) -> str:
    """The script under a clock of the test's: its last argument. Only the line that reads Redis's clock is replaced."""
    line = "local now = time[1] * 1000000 + time[2]\n"
    assert script.text.count(line) == 1
    return script.text.replace(line, "local now = tonumber(ARGV[#KEYS + 1])\n")


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=5.0, name="test")
    yield link
    await link.close()


requests = st.lists(st.sampled_from(range(len(BUCKETS))), min_size=1, max_size=4, unique=True)
costs = st.sampled_from([1.0, 0.1, 1 / 3, 2.5, 100.0])
turns = st.tuples(
    st.one_of(st.integers(-5_000_000, 10_000_000), st.sampled_from([0, 0, 1, 100_000, 3_600_000_000, -3_600_000_000])),
    st.lists(st.tuples(requests, costs), min_size=1, max_size=5),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(turns, min_size=1, max_size=12))
def test_memory_lua_and_the_model_agree_to_the_last_bit(
    redis_url: str, history: list[tuple[int, list[tuple[list[int], float]]]]
) -> None:
    text, wishes, now = driven(TAKE), Wishes(), T0
    model: dict[str, Level] = {}
    memory = MemoryBuckets(clock=lambda: now / 1e6)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        for step, asked in history:
            # A multiple of 1/64 s: the memory store's clock is in seconds, and its microseconds must be these.
            now += step // 15_625 * 15_625
            turn = [[Take(*BUCKETS[index], cost) for index in chosen] for chosen, cost in asked]
            expected: list[Decision] = []
            for takes in turn:
                decision, stored = decide(takes, [model.get(take.key) for take in takes], now)
                model.update({take.key: level for take, level in zip(takes, stored, strict=True) if level is not None})
                expected.append(decision)
            answer = client.execute_command("EVAL", text, *wishes.arguments(turn), now)
            assert decisions(turn, answer) == expected
            assert [memory.take_now(takes) for takes in turn] == expected
        held = {key: struct.unpack("<dd", client.get(key) or b"") for key, _ in BUCKETS if client.exists(key)}
        assert held == {key: (tokens, float(at)) for key, (tokens, at) in model.items()}


async def test_time_is_redis_own(link: RedisLink) -> None:
    turn = [[Take("{gw}:k", LIMITS[0])]]
    before, answer, after = await link.execute_many([("TIME",), ("EVAL", TAKE.text, *Wishes().arguments(turn)), ("TIME",)])
    assert isinstance(before, list)
    assert isinstance(after, list)
    times = [int(str(one[0], "ascii")) + int(str(one[1], "ascii")) / 1e6 for one in (before, after)]  # type: ignore[arg-type]
    assert times[0] <= decisions(turn, answer)[0].now <= times[1]


async def test_every_key_is_small_and_has_a_ttl_past_full(link: RedisLink) -> None:
    await link.execute("EVAL", TAKE.text, *Wishes().arguments([[Take(*bucket, 1.0) for bucket in BUCKETS]]))
    for key, limit in BUCKETS:
        value = await link.execute("GET", key)
        assert isinstance(value, bytes)
        assert len(value) == 16
        ttl_ms = await link.execute("PTTL", key)
        assert isinstance(ttl_ms, int)
        assert 1000 / limit.rate <= ttl_ms <= 1000 * limit.burst / limit.rate + 6000


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(("LPUSH", "{gw}:k", "x"), id="list"),
        pytest.param(("SET", "{gw}:k", "not a bucket"), id="short"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", math.nan, 1.0)), id="nan-tokens"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", 1.0, math.nan)), id="nan-instant"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", -math.inf, 1.0)), id="minus-infinity"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", math.inf, math.inf)), id="infinity"),
    ],
)
async def test_what_is_no_bucket_is_replaced_by_one(link: RedisLink, damage: tuple[str | bytes, ...]) -> None:
    await link.execute(*damage)
    turn = [[Take("{gw}:k", LIMITS[0]), Take("{gw}:other", LIMITS[1])]]
    found = decisions(turn, await link.execute("EVAL", TAKE.text, *Wishes().arguments(turn)))
    assert found[0].allowed
    assert [one.remaining for one in found[0].states] == [19.0, 6.0]
    value = await link.execute("GET", "{gw}:k")
    assert isinstance(value, bytes)
    assert struct.unpack("<dd", value)[0] == 19.0


async def test_a_refusal_writes_nothing(link: RedisLink) -> None:
    turn = [[Take("{gw}:x", LIMITS[0]), Take("{gw}:k", LIMITS[2], 3.0)]]
    await link.execute("EVAL", TAKE.text, *Wishes().arguments(turn))
    held = await link.execute("MGET", "{gw}:x", "{gw}:k")
    refused = decisions(turn, await link.execute("EVAL", TAKE.text, *Wishes().arguments(turn)))
    assert not refused[0].allowed
    assert await link.execute("MGET", "{gw}:x", "{gw}:k") == held


@pytest.mark.parametrize("answer", [None, 1, b"", b"x" * 18, [b""], RedisError("ERR no")])
def test_what_is_no_answer_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        decisions([[Take("k", LIMITS[0])]], answer)


def test_the_memo_of_wishes_is_bounded() -> None:
    wishes = Wishes()
    for number in range(3000):
        wishes.arguments([[Take("k", LIMITS[0], float(number))]])
    assert len(wishes._packed) <= 1024
