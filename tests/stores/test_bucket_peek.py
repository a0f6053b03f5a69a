"""Looking into buckets: the script's own view of whatever a key holds, and nothing written by it."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator

import pytest

from gateway.core.limits import Limit, Scope, Take
from gateway.stores.bucket_peek import peek
from gateway.stores.bucket_script import BatchItem, Script, TakePacker, decisions
from gateway.stores.redis_link import RedisLink, RedisUnavailable

TOKENS = Limit("t", Scope.CALLER, 0.001, 20.0)
PLACES = Limit("p", Scope.CALLER, 3.0, 3.0, concurrent=True)
TAKES = [Take("{gw}:t", TOKENS, 0.0), Take("{gw}:p", PLACES, 0.0)]


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="test")
    yield link
    await link.close()


def level(tokens: float, at_us: float) -> tuple[str | bytes, ...]:
    return ("SET", "{gw}:t", struct.pack("<dd", tokens, at_us))


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(("GET", "{gw}:t"), id="nothing"),
        pytest.param(level(3.5, 1e15), id="long-ago"),
        pytest.param(level(3.5, 4e15), id="from-the-future"),
        pytest.param(level(-7.0, 4e15), id="debt"),
        pytest.param(level(-70.0, 4e15), id="more-debt-than-a-burst"),
        pytest.param(level(50.0, 4e15), id="more-than-the-burst"),
        pytest.param(level(-1e9, 4e15), id="no-bucket"),
        pytest.param(level(math.nan, 4e15), id="nan-tokens"),
        pytest.param(level(5.0, math.nan), id="nan-instant"),
        pytest.param(level(5.0, math.inf), id="never"),
        pytest.param(level(math.inf, math.inf), id="infinity"),
        pytest.param(("SET", "{gw}:t", "short"), id="short"),
        pytest.param(("LPUSH", "{gw}:t", "x"), id="list"),
        pytest.param(("SET", "{gw}:p", "no set"), id="no-places"),
        pytest.param(("ZADD", "{gw}:p", "1e15", "ended", "4e15", "held"), id="places"),
    ],
)
async def test_it_sees_what_the_script_would(link: RedisLink, held: tuple[str | bytes, ...]) -> None:
    await link.execute(*held)
    before = [await link.execute("DUMP", take.key) for take in TAKES]
    seen = await peek(link, TAKES)
    assert [await link.execute("DUMP", take.key) for take in TAKES] == before
    turn = [BatchItem([Take("{gw}:t", TOKENS, 1e-9), TAKES[1]], b"x")]
    (taken,) = decisions(turn, await link.execute("EVAL", Script.named("take.lua").text, *TakePacker().arguments(turn)))
    assert [found.remaining for found in seen.states] == pytest.approx(
        [found.remaining for found in taken.states], abs=1e-3
    )
    assert abs(seen.now - taken.now) < 60


async def test_a_redis_that_refuses_is_not_taken_for_full_buckets(link: RedisLink, redis_url: str) -> None:
    await link.execute("ACL", "SETUSER", "blind", "on", "nopass", "~none", "+@all")
    host = RedisLink.from_url(redis_url.replace("redis://", "redis://blind:x@"), timeout_s=60.0, name="blind")
    try:
        with pytest.raises(RedisUnavailable, match="NOPERM"):
            await peek(host, TAKES)
    finally:
        await host.close()
        await link.execute("ACL", "DELUSER", "blind")


async def test_nobody_listening() -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1/0", timeout_s=0.2, name="test")
    try:
        with pytest.raises(RedisUnavailable):
            await peek(link, TAKES)
    finally:
        await link.close()
