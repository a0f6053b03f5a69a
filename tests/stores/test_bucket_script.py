"""The take script: bit for bit the arithmetic of core, and sound on whatever a key may hold."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.limits import LEASE_S, Decision, Level, Limit, Scope, Take, decide, settled
from gateway.stores.bucket_memory import MemoryBuckets
from gateway.stores.bucket_script import Deed, Script, Wishes, Work, decisions
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


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=5.0, name="test")
    yield link
    await link.close()


requests = st.lists(st.sampled_from(range(len(EVERY_BUCKET))), min_size=1, max_size=4, unique=True)
costs = st.sampled_from([1.0, 0.1, 1 / 3, 2.5, 100.0])
changes = st.sampled_from([-0.1, -3.0, -500.0, 1 / 3, 2.5, 9.0, 500.0])
turns = st.tuples(
    st.one_of(st.integers(-5_000_000, 10_000_000), st.sampled_from([0, 0, 1, 100_000, 3_600_000_000, -3_600_000_000])),
    st.lists(st.tuples(st.sampled_from(Deed), requests, costs, changes, st.sampled_from(LEASES)), min_size=1, max_size=5),
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

    def do(self, work: Work, now: int) -> Decision | None:
        if work.deed is Deed.SETTLE:
            for take in work.takes:
                level = settled(take.limit, self.levels.get(take.key), take.cost, now)
                if level is not None:
                    self.levels[take.key] = level
        elif work.deed is Deed.RELEASE:
            for take in work.takes:
                self.leases.get(take.key, {}).pop(work.lease, None)
        elif work.deed is Deed.RENEW:
            for take in work.takes:
                self.leases.setdefault(take.key, {})[work.lease] = now + int(LEASE_S * 1e6)
        else:
            places = [(self.free(take, now), now) if take.limit.concurrent else None for take in work.takes]
            before = [place or self.levels.get(take.key) for place, take in zip(places, work.takes, strict=True)]
            decision, stored = decide(work.takes, before, now)
            for take, level, found in zip(work.takes, stored, decision.states, strict=True):
                if take.limit.concurrent:
                    if decision.allowed and found.allowed:
                        self.leases[take.key][work.lease] = now + int(LEASE_S * 1e6)
                elif level is not None:
                    self.levels[take.key] = level
            return decision
        return None


def work(deed: Deed, chosen: list[int], cost: float, change: float, lease: bytes) -> Work:
    """A part of a script call that makes sense: only tokens are settled, only places are released and renewed."""
    takes = [Take(*EVERY_BUCKET[index], change if deed is Deed.SETTLE else cost) for index in chosen]
    if deed is not Deed.TAKE:
        takes = [take for take in takes if take.limit.concurrent is (deed is not Deed.SETTLE)]
    return Work(takes, lease, deed)


def done(memory: MemoryBuckets, work: Work) -> Decision | None:
    match work.deed:
        case Deed.TAKE:
            return memory.take_now(work.takes, work.lease)
        case Deed.SETTLE:
            memory.settle(work.takes)
        case Deed.RELEASE:
            memory.release(work.takes, work.lease)
        case Deed.RENEW:
            memory.renew(work.takes, work.lease)
    return None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(turns, min_size=1, max_size=12))
def test_memory_lua_and_the_model_agree_to_the_last_bit(
    redis_url: str, history: list[tuple[int, list[tuple[Deed, list[int], float, float, bytes]]]]
) -> None:
    text, wishes, now = driven(TAKE), Wishes(), T0
    model = Model()
    memory = MemoryBuckets(clock=lambda: now / 1e6, leases_end=True)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        for step, asked in history:
            # A multiple of 1/64 s: the memory store's clock is in seconds, and its microseconds must be these.
            now += step // 15_625 * 15_625
            turn = [one for one in (work(*part) for part in asked) if one.takes]
            expected = [model.do(one, now) for one in turn]
            found = decisions(turn, client.execute_command("EVAL", text, *wishes.arguments(turn), now))
            assert [one if wanted is not None else None for one, wanted in zip(found, expected, strict=True)] == expected
            assert [done(memory, one) for one in turn] == expected
        held = {key: struct.unpack("<dd", client.get(key) or b"") for key, _ in BUCKETS if client.exists(key)}
        assert held == {key: (tokens, float(at)) for key, (tokens, at) in model.levels.items()}


async def test_time_is_redis_own(link: RedisLink) -> None:
    turn = [Work([Take("{gw}:k", LIMITS[0])])]
    before, answer, after = await link.execute_many([("TIME",), ("EVAL", TAKE.text, *Wishes().arguments(turn)), ("TIME",)])
    assert isinstance(before, list)
    assert isinstance(after, list)
    times = [int(str(one[0], "ascii")) + int(str(one[1], "ascii")) / 1e6 for one in (before, after)]  # type: ignore[arg-type]
    assert times[0] <= decisions(turn, answer)[0].now <= times[1]


async def test_every_key_is_small_and_has_a_ttl_past_full(link: RedisLink) -> None:
    await link.execute("EVAL", TAKE.text, *Wishes().arguments([Work([Take(*bucket, 1.0) for bucket in BUCKETS])]))
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
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", -1e9, 1.0)), id="more-debt-than-there-is"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", math.nan, 1.0)), id="nan-tokens"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", 1.0, math.nan)), id="nan-instant"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", -math.inf, 1.0)), id="minus-infinity"),
        pytest.param(("SET", "{gw}:k", struct.pack("<dd", math.inf, math.inf)), id="infinity"),
    ],
)
async def test_what_is_no_bucket_is_replaced_by_one(link: RedisLink, damage: tuple[str | bytes, ...]) -> None:
    await link.execute(*damage)
    turn = [Work([Take("{gw}:k", LIMITS[0]), Take("{gw}:other", LIMITS[1])])]
    found = decisions(turn, await link.execute("EVAL", TAKE.text, *Wishes().arguments(turn)))
    assert found[0].allowed
    assert [one.remaining for one in found[0].states] == [19.0, 6.0]
    value = await link.execute("GET", "{gw}:k")
    assert isinstance(value, bytes)
    assert struct.unpack("<dd", value)[0] == 19.0


async def test_a_refusal_writes_nothing(link: RedisLink) -> None:
    turn = [Work([Take("{gw}:x", LIMITS[0]), Take("{gw}:k", LIMITS[2], 3.0)])]
    await link.execute("EVAL", TAKE.text, *Wishes().arguments(turn))
    held = await link.execute("MGET", "{gw}:x", "{gw}:k")
    refused = decisions(turn, await link.execute("EVAL", TAKE.text, *Wishes().arguments(turn)))
    assert not refused[0].allowed
    assert await link.execute("MGET", "{gw}:x", "{gw}:k") == held


@pytest.mark.parametrize("answer", [None, 1, b"", b"x" * 18, [b""], RedisError("ERR no")])
def test_what_is_no_answer_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        decisions([Work([Take("k", LIMITS[0])])], answer)


def test_the_memo_of_wishes_is_bounded() -> None:
    wishes = Wishes()
    for number in range(3000):
        wishes.arguments([Work([Take("k", LIMITS[0], float(number))])])
    assert len(wishes._packed) <= 1024
