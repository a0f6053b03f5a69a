"""Shared credentials at GitLab's pace."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import redis

from gateway.core.access import Principal, PrincipalKind
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields, ResponseHead
from gateway.limit_stage import LimitStage
from gateway.pacing_stage import PacingStage
from gateway.stores.bucket_memory import MemoryBuckets
from gateway.stores.paces_redis import RedisPaces
from gateway.stores.redis_link import RedisLink

NOW = 1_800_000_000.0


def bot(name: str = "bot") -> Principal:
    return Principal(name, PrincipalKind.KEY, name)


def stage() -> PacingStage:
    return PacingStage(LimitStage(MemoryBuckets()), wall=lambda: NOW)


def limit_fields(observed: int, remaining: int, seconds: int) -> Fields:
    return (
        (b"RateLimit-Observed", b"%d" % observed),
        (b"RateLimit-Remaining", b"%d" % remaining),
        (b"RateLimit-Reset", b"%d" % (NOW + seconds)),
    )


async def test_a_credential_with_plenty_left_is_not_slowed() -> None:
    pacing = stage()
    await pacing.await_turn("sa", bot(), "1")
    pacing.learn("sa", ResponseHead(200, limit_fields(1, 599, 60)))
    for number in range(50):
        await asyncio.wait_for(pacing.await_turn("sa", bot(), f"{number}"), 1)


async def test_callers_share_what_is_left_in_turn() -> None:
    pacing = stage()
    pacing.learn("sa", ResponseHead(200, limit_fields(5000, 1200, 10)))
    order: list[str] = []

    async def ask(name: str, number: int) -> None:
        await pacing.await_turn("sa", bot(name), f"{name}{number}")
        order.append(name)

    await asyncio.gather(*[ask("greedy", number) for number in range(12)], *[ask("polite", number) for number in range(2)])
    assert [place for place, name in enumerate(order) if name == "polite"][-1] < 7


async def test_after_a_refusal_nobody_asks_until_gitlab_said() -> None:
    pacing = stage()
    pacing.learn("sa", ResponseHead(429, ((b"Retry-After", b"17"),)))
    with pytest.raises(Rejection) as refused:
        await pacing.await_turn("sa", bot(), "1")
    rejection = refused.value
    assert (rejection.code, rejection.status, rejection.source) == (Code.RATE_LIMITED, 429, Source.UPSTREAM)
    assert rejection.headers == ((b"Retry-After", b"17"),)
    await pacing.await_turn("other", bot(), "2")
    assert pacing.refused_total == 1


async def test_who_would_wait_too_long_is_told_to_come_back() -> None:
    pacing = stage()
    pacing.learn("sa", ResponseHead(200, limit_fields(600, 0, 60)))
    await pacing.await_turn("sa", bot(), "1")
    with pytest.raises(Rejection) as refused:
        await asyncio.wait_for(pacing.await_turn("sa", bot(), "2"), 1)
    (_, wait) = refused.value.headers[0]
    assert 100 < int(wait) <= 121


async def test_a_clock_set_back_prolongs_no_wait(redis_url: str) -> None:
    """Neither GitLab's refusal, nor the window, nor what other gateways are told of both."""
    ahead_s = 3600.0
    async with gateways(redis_url, "sa", wall=lambda: NOW + ahead_s) as (one, other):
        one.learn("sa", ResponseHead(429, (*limit_fields(600, 0, 3600 + 60), (b"Retry-After", b"30"))))
        ahead_s = 0.0
        assert 20 < one.report("sa").blocked_s <= 30
        assert 50 < one.report("sa").window_s <= 60
        await one.sync()
        await other.sync()
        assert 20 < other.report("sa").blocked_s <= 30
        one.learn("sa", ResponseHead(200, limit_fields(600, 0, 60)))
        assert 50 < one.report("sa").window_s <= 61


async def test_a_clock_set_back_does_not_wait_again() -> None:
    wall, now = NOW, 1000.0
    pacing = PacingStage(LimitStage(MemoryBuckets()), wall=lambda: wall, monotonic=lambda: now)
    pacing.learn("sa", ResponseHead(429, ((b"Retry-After", b"30"),)))
    wall, now = wall - 3600 + 30, now + 30
    assert pacing.is_free("sa")
    assert pacing.remaining("sa") == math.inf
    await pacing.await_turn("sa", bot(), "1")


async def test_how_much_a_credential_has_left_is_its_own() -> None:
    pacing = stage()
    assert pacing.remaining("sa") == math.inf
    pacing.learn("sa", ResponseHead(200, limit_fields(1, 599, 60)))
    assert (pacing.remaining("sa"), pacing.remaining("other")) == (599, math.inf)


async def test_one_operations_limit_is_not_the_credentials() -> None:
    pacing = stage()
    pacing.learn("sa", ResponseHead(429, ((b"Retry-After", b"17"),)), "export")
    with pytest.raises(Rejection):
        await pacing.await_turn("sa", bot(), "1", "export")
    await pacing.await_turn("sa", bot(), "2", "list")


# Among gateways


@asynccontextmanager
async def gateways(
    url: str, *credentials: str, wall: Callable[[], float] | None = None
) -> AsyncIterator[tuple[PacingStage, PacingStage]]:
    """Two on one Redis, whose clocks are a thousand seconds apart, unless ``wall`` is that of both."""
    links = [RedisLink.from_url(url, timeout_s=60.0, name=f"test-{number}") for number in range(2)]
    began = time.monotonic()

    def own_wall(ahead: float) -> float:
        """Goes on as Redis's clock does: both say which note is the newer one."""
        return NOW + ahead + time.monotonic() - began

    made = [
        PacingStage(
            LimitStage(MemoryBuckets()),
            wall=wall or partial(own_wall, ahead),
            credentials=credentials,
            store=RedisPaces(link),
        )
        for ahead, link in zip((0, 1000), links, strict=True)
    ]
    yield made[0], made[1]
    for stage, link in zip(made, links, strict=True):
        stage.close()
        await link.close()


async def test_what_one_gateway_heard_of_gitlab_slows_the_others(redis_url: str) -> None:
    async with gateways(redis_url, "sa", "unused") as (one, other):
        one.learn("sa", ResponseHead(429, ((b"Retry-After", b"30"),)))
        await one.sync()
        await other.sync()
        with pytest.raises(Rejection) as refused:
            await other.await_turn("sa", bot(), "1")
        assert 20 < int(refused.value.headers[0][1]) <= 30
        await other.await_turn("unused", bot(), "2")


async def test_a_pace_is_everybodys(redis_url: str) -> None:
    async with gateways(redis_url, "sa") as (one, other):
        one.learn("sa", ResponseHead(200, limit_fields(600, 0, 60)))
        await one.sync()
        await other.sync()
        assert other.report("sa").rate == pytest.approx(one.report("sa").rate)
        one.learn("sa", ResponseHead(200, limit_fields(1, 599, 120)))
        await one.sync()
        await other.sync()
        assert other.report("sa").rate == 0


async def test_nobody_is_told_what_changed_nothing(redis_url: str) -> None:
    async with gateways(redis_url, "sa") as (one, _):
        one.learn("sa", ResponseHead(200, limit_fields(1, 599, 60)))
        one.learn("sa", ResponseHead(200, ()))
        await one.sync()
        with redis.Redis.from_url(redis_url) as client:
            assert client.keys() == []


async def test_news_is_told_and_heard_by_itself_until_closed(redis_url: str) -> None:
    async with gateways(redis_url, "sa") as (one, other):
        one.start()
        other.start()
        one.learn("sa", ResponseHead(429, ((b"Retry-After", b"30"),)))
        async with asyncio.timeout(30):
            while not other.report("sa").blocked_s:
                await asyncio.sleep(0.02)
        one.close()
        (task,) = [task for task in asyncio.all_tasks() if task is one._sync_task]
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_could_not_be_told_is_told_when_redis_is_back(start_redis: Any) -> None:
    server = start_redis()
    async with gateways(server.url, "sa") as (one, other):
        server.stop()
        one.learn("sa", ResponseHead(429, ((b"Retry-After", b"30"),)))
        await one.sync()
        await other.sync()
        await other.await_turn("sa", bot(), "1")  # heard nothing yet
        server.start()
        async with asyncio.timeout(30):
            while not other.report("sa").blocked_s:
                await one.sync()
                await other.sync()
                await asyncio.sleep(0.02)


async def test_who_stood_in_line_when_gitlab_refused_does_not_ask() -> None:
    pacing = stage()
    pacing.learn("sa", ResponseHead(200, limit_fields(5000, 500, 90)))
    first = asyncio.ensure_future(pacing.await_turn("sa", bot(), "1"))
    second = asyncio.ensure_future(pacing.await_turn("sa", bot(), "2"))
    await first
    pacing.learn("sa", ResponseHead(429, ((b"Retry-After", b"17"),)))
    with pytest.raises(Rejection) as refused:
        await asyncio.wait_for(second, 30)
    assert refused.value.headers == ((b"Retry-After", b"17"),)
