"""The take script: bit for bit the arithmetic of core, and sound on whatever a key may hold."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.limits import Take, Takes
from gateway.stores.bucket_script import BatchItem, BucketOp, TakePacker, decisions
from gateway.stores.redis_link import RedisError, RedisLink
from gateway.stores.redis_wire import pack_commands

from .bucket_model import BUCKETS, LIMITS, T0, TAKE, LeasedBuckets, Model, batch_item, done, driven, said, turns


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="test")
    yield link
    await link.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(turns, min_size=1, max_size=12))
def test_memory_lua_and_the_model_agree_to_the_last_bit(
    redis_url: str, history: list[tuple[int, list[tuple[BucketOp, list[int], float, float, bytes]]]]
) -> None:
    text, packer, now = driven(TAKE), TakePacker(), T0
    model = Model()
    memory = LeasedBuckets(lambda: now / 1e6)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        for step, asked in history:
            # A multiple of 1/64 s: the memory store's clock is in seconds, and its microseconds must be these.
            now += step // 15_625 * 15_625
            turn = [one for one in (batch_item(*part) for part in asked) if one.takes]
            expected = [model.do(one, now) for one in turn]
            found = decisions(turn, client.execute_command("EVAL", text, *packer.arguments(turn), now))
            meant = [said(one) for one in expected]
            assert [said(one) if wanted is not None else None for one, wanted in zip(found, expected, strict=True)] == meant
            assert [said(done(memory, one)) for one in turn] == meant
        held = {key: struct.unpack("<dd", client.get(key) or b"") for key, _ in BUCKETS if client.exists(key)}
        assert held == {key: (tokens, float(at)) for key, (tokens, at) in model.levels.items()}


async def test_time_is_redis_own(link: RedisLink) -> None:
    turn = [BatchItem([Take("{gw}:k", LIMITS[0])])]
    before, answer, after = await link.execute_many(
        [("TIME",), ("EVAL", TAKE.text, *TakePacker().arguments(turn)), ("TIME",)]
    )
    assert isinstance(before, list)
    assert isinstance(after, list)
    times = [int(str(one[0], "ascii")) + int(str(one[1], "ascii")) / 1e6 for one in (before, after)]  # type: ignore[arg-type]
    assert times[0] <= decisions(turn, answer)[0].now <= times[1]


async def test_every_key_is_small_and_has_a_ttl_past_full(link: RedisLink) -> None:
    await link.execute("EVAL", TAKE.text, *TakePacker().arguments([BatchItem([Take(*bucket, 1.0) for bucket in BUCKETS])]))
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
    turn = [BatchItem([Take("{gw}:k", LIMITS[0]), Take("{gw}:other", LIMITS[1])])]
    found = decisions(turn, await link.execute("EVAL", TAKE.text, *TakePacker().arguments(turn)))
    assert found[0].allowed
    assert [one.remaining for one in found[0].states] == [19.0, 6.0]
    value = await link.execute("GET", "{gw}:k")
    assert isinstance(value, bytes)
    assert struct.unpack("<dd", value)[0] == 19.0


async def test_a_refusal_writes_nothing(link: RedisLink) -> None:
    turn = [BatchItem([Take("{gw}:x", LIMITS[0]), Take("{gw}:k", LIMITS[2], 3.0)])]
    await link.execute("EVAL", TAKE.text, *TakePacker().arguments(turn))
    held = await link.execute("MGET", "{gw}:x", "{gw}:k")
    refused = decisions(turn, await link.execute("EVAL", TAKE.text, *TakePacker().arguments(turn)))
    assert not refused[0].allowed
    assert await link.execute("MGET", "{gw}:x", "{gw}:k") == held


async def test_what_many_requests_of_a_call_take_from_is_read_and_written_once(link: RedisLink) -> None:
    shared = Take("{gw}:shared", LIMITS[1], 0.5)
    turn = [BatchItem([Take(f"{{gw}}:{number % 2}", LIMITS[0]), shared]) for number in range(6)]
    await link.execute("CONFIG", "RESETSTAT")
    await link.execute("EVAL", TAKE.text, *TakePacker().arguments(turn))
    stats = await link.execute("INFO", "commandstats")
    assert isinstance(stats, bytes)
    calls = {line.partition(b":")[0]: line.partition(b"calls=")[2].partition(b",")[0] for line in stats.split()}
    assert (calls[b"cmdstat_get"], calls[b"cmdstat_set"]) == (b"3", b"3")


@pytest.mark.parametrize("answer", [None, 1, b"", b"x" * 18, [b""], RedisError("ERR no")])
def test_what_is_no_answer_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        decisions([BatchItem([Take("k", LIMITS[0])])], answer)


async def test_who_is_refused_beside_others_takes_nothing_of_theirs(link: RedisLink) -> None:
    for cost, allowed in ((0.25, True), (3.0, False), (0.25, True)):
        plain = [Takes([Take("{gw}:k", LIMITS[2], each), Take("{gw}:x", LIMITS[1])]) for each in (cost, 0.5)]
        turn = [BatchItem(takes) for takes in plain]
        found = decisions(turn, await link.execute("EVAL", TAKE.text, *TakePacker().arguments(turn)))
        assert [one.allowed for one in found] == [allowed, True]
        assert [one.takes for one in found] == [plain[0] if allowed else None, plain[1]]
        assert [[bucket.limit for bucket in one.states] for one in found] == [list(takes.limits) for takes in plain]


@given(turns)
def test_a_call_is_written_as_the_client_library_writes_it(
    asked: tuple[int, list[tuple[BucketOp, list[int], float, float, bytes]]],
) -> None:
    packer = TakePacker()
    turn = [batch_item(*part) for part in asked[1]]
    expected = pack_commands([("EVALSHA", TAKE.sha, *packer.arguments(turn))])
    for _ in range(2):  # as remembered, too
        assert packer.command(TAKE.by_hash, turn) == expected
    assert packer.command(TAKE.in_full, turn) == pack_commands([("EVAL", TAKE.text, *packer.arguments(turn))])


def test_the_memo_of_packed_takes_is_bounded() -> None:
    packer = TakePacker()
    for number in range(3000):
        packer.arguments([BatchItem([Take("k", LIMITS[0], float(number))])])
    assert len(packer._packed) <= 1024
