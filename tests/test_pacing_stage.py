"""Shared credentials at GitLab's pace."""

from __future__ import annotations

import asyncio
import math

import pytest

from gateway.core.access import Principal, PrincipalKind
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields
from gateway.limit_stage import LimitStage
from gateway.pacing_stage import PacingStage
from gateway.stores.bucket_memory import MemoryBuckets

NOW = 1_800_000_000.0


def bot(name: str = "bot") -> Principal:
    return Principal(name, PrincipalKind.KEY, name)


def stage() -> PacingStage:
    return PacingStage(LimitStage(MemoryBuckets()), wall=lambda: NOW)


def told(observed: int, remaining: int, seconds: int) -> Fields:
    return (
        (b"RateLimit-Observed", b"%d" % observed),
        (b"RateLimit-Remaining", b"%d" % remaining),
        (b"RateLimit-Reset", b"%d" % (NOW + seconds)),
    )


async def test_a_credential_with_plenty_left_is_not_slowed() -> None:
    pacing = stage()
    await pacing.go("sa", bot(), "1")
    pacing.learn("sa", 200, told(1, 599, 60))
    for number in range(50):
        await asyncio.wait_for(pacing.go("sa", bot(), f"{number}"), 1)


async def test_callers_share_what_is_left_in_turn() -> None:
    pacing = stage()
    pacing.learn("sa", 200, told(5000, 1200, 10))
    order: list[str] = []

    async def ask(name: str, number: int) -> None:
        await pacing.go("sa", bot(name), f"{name}{number}")
        order.append(name)

    await asyncio.gather(*[ask("greedy", number) for number in range(12)], *[ask("polite", number) for number in range(2)])
    assert [place for place, name in enumerate(order) if name == "polite"][-1] < 7


async def test_after_a_refusal_nobody_asks_until_gitlab_said() -> None:
    pacing = stage()
    pacing.learn("sa", 429, ((b"Retry-After", b"17"),))
    with pytest.raises(Rejection) as refused:
        await pacing.go("sa", bot(), "1")
    rejection = refused.value
    assert (rejection.code, rejection.status, rejection.source) == (Code.RATE_LIMITED, 429, Source.UPSTREAM)
    assert rejection.headers == ((b"Retry-After", b"17"),)
    await pacing.go("other", bot(), "2")
    assert pacing.refused_total == 1


async def test_who_would_wait_too_long_is_told_to_come_back() -> None:
    pacing = stage()
    pacing.learn("sa", 200, told(600, 0, 60))
    await pacing.go("sa", bot(), "1")
    with pytest.raises(Rejection) as refused:
        await asyncio.wait_for(pacing.go("sa", bot(), "2"), 1)
    (_, wait) = refused.value.headers[0]
    assert 100 < int(wait) <= 121


async def test_how_much_a_credential_has_left_is_its_own() -> None:
    pacing = stage()
    assert pacing.remaining("sa") == math.inf
    pacing.learn("sa", 200, told(1, 599, 60))
    assert (pacing.remaining("sa"), pacing.remaining("other")) == (599, math.inf)
