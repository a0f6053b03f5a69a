"""Streamed answers, held back between their pieces."""

from __future__ import annotations

import asyncio

import pytest

from gateway.bandwidth_stage import BandwidthStage, Flow
from gateway.core.access import Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.limit_plan import Limits
from gateway.core.limits import Limit, Match, Scope
from gateway.core.target import parse_target

ARCHIVE = Operation("GET /api/v4/projects/:id/repository/archive", Access.READ, Surface.REST)
CLONE = Operation("POST /*project.git/git-upload-pack", Access.READ, Surface.GIT)
TARGET = parse_target(b"/api/v4/projects/1/repository/archive")
CALLER = Limit("caller", Scope.CALLER, 1e6, 1e5)
CLONES = Limit("clones", Scope.ORGANISATION, 1e3, 1e3, match=Match(surfaces=(Surface.GIT,)))


def flow(stage: BandwidthStage, operation: Operation = ARCHIVE, name: str = "bot") -> Flow | None:
    return stage.flow(Principal(name, PrincipalKind.KEY, name), operation, TARGET, "GET", "127.0.0.1")


def stage(*limits: Limit) -> BandwidthStage:
    return BandwidthStage(Limits.compile(limits))


def test_where_no_limit_applies_nothing_flows_through_a_pipe() -> None:
    assert flow(stage()) is None
    assert flow(stage(CLONES)) is None
    assert flow(stage(CLONES), CLONE) is not None


async def test_pieces_wait_for_their_turn_and_the_wait_is_told() -> None:
    made = stage(CALLER)
    started = made.monotonic()
    one, two = flow(made), flow(made)
    assert one is not None
    assert two is not None
    await one.pace(100_000)  # the burst
    assert made.waited_s["caller"] == 0.0
    await asyncio.gather(one.pace(50_000), two.pace(50_000))
    assert made.monotonic() - started >= 0.1
    assert made.octets_total == {"caller": 200_000}
    assert 0.14 <= made.waited_s["caller"] < 5.0
    other = flow(made, name="other")
    assert other is not None
    await asyncio.wait_for(other.pace(100_000), 30)


async def test_the_slowest_pipe_is_the_one_that_holds_back() -> None:
    made = stage(CALLER, CLONES)
    through = flow(made, CLONE)
    assert through is not None
    await through.pace(1050)
    assert made.waited_s["clones"] >= 0.05
    assert made.waited_s["caller"] == 0.0
    assert made.octets_total == {"caller": 1050, "clones": 1050}


async def test_who_leaves_waits_no_longer() -> None:
    made = stage(CLONES)
    through = flow(made, CLONE)
    assert through is not None
    waiting = asyncio.ensure_future(through.pace(3_600_000))
    await asyncio.sleep(0)
    assert made.waiting == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert made.waiting == 0


async def test_a_long_wait_is_many_short_naps() -> None:
    times = iter([0.0, 0.0, 3.0])
    made = BandwidthStage(Limits.compile((CLONES,)), monotonic=lambda: next(times))
    through = flow(made, CLONE)
    assert through is not None
    await asyncio.wait_for(through.pace(3500), 30)  # 2.5 s by the clock, one nap of a second's
    assert made.waited_s["clones"] == 3.0
