"""Token buckets: arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.cost import Settlement
from gateway.core.limits import (
    Decision,
    Level,
    Limit,
    Scope,
    Take,
    Takes,
    Validity,
    affordable,
    bucket_state,
    decide,
    needs_settling,
    paired,
    preliminary_takes,
    refill,
    refusal_after,
    scale_takes,
    settle_level,
)

T0 = 1_800_000_000_000_000


def limit(rate: float = 10.0, burst: float = 50.0, **more: object) -> Limit:
    return Limit("caller", Scope.CALLER, rate, burst, **more)  # type: ignore[arg-type]


class Buckets:
    """Buckets by key, driven through ``decide``."""

    def __init__(self) -> None:
        self.levels: dict[str, Level] = {}

    def take(self, now_us: int, *takes: Take) -> Decision:
        decision, stored = decide(takes, [self.levels.get(take.key) for take in takes], now_us)
        for take, level in zip(takes, stored, strict=True):
            if level is not None:
                self.levels[take.key] = level
        return decision


# Arithmetic


def test_admits_exactly_the_burst_at_one_instant() -> None:
    buckets = Buckets()
    taken = [buckets.take(T0, Take("k", limit())).allowed for _ in range(500)]
    assert taken.count(True) == 50


def test_tokens_flow_back_at_the_rate() -> None:
    buckets = Buckets()
    for _ in range(50):
        buckets.take(T0, Take("k", limit()))
    refused = buckets.take(T0, Take("k", limit()))
    assert refused.refusal is not None
    assert refused.refusal.retry_after_s == 0.1
    assert refused.refusal.full_in_s == 5.0
    assert not buckets.take(T0 + 99_999, Take("k", limit())).allowed
    assert buckets.take(T0 + 100_000, Take("k", limit())).allowed


def test_a_refusal_takes_nothing_from_any_bucket() -> None:
    buckets = Buckets()
    wide, narrow = limit(), Limit("team", Scope.TEAM, 1.0, 1.0)
    assert buckets.take(T0, Take("a", wide), Take("b", narrow)).allowed
    refused = buckets.take(T0, Take("a", wide), Take("b", narrow))
    assert not refused.allowed
    assert [found.allowed for found in refused.states] == [True, False]
    assert refused.states[0].remaining == 49.0
    assert buckets.take(T0, Take("a", wide)).states[0].remaining == 48.0


def test_the_refusal_is_the_bucket_one_waits_for_longest() -> None:
    buckets = Buckets()
    fast, slow = Limit("fast", Scope.CALLER, 10.0, 1.0), Limit("slow", Scope.TEAM, 0.1, 1.0)
    buckets.take(T0, Take("a", fast), Take("b", slow))
    refusal = buckets.take(T0, Take("a", fast), Take("b", slow)).refusal
    assert refusal is not None
    assert refusal.limit is slow
    assert refusal.retry_after_s == 10.0


def test_a_shadow_limit_is_measured_and_never_refuses() -> None:
    buckets = Buckets()
    shadow = Limit("tighter", Scope.CALLER, 1.0, 1.0, shadow=True)
    first = buckets.take(T0, Take("a", limit()), Take("s", shadow))
    second = buckets.take(T0, Take("a", limit()), Take("s", shadow))
    assert (first.shadowed, second.shadowed) == ("", "tighter")
    assert second.allowed
    assert second.refusal is None
    assert second.states[0].remaining == 48.0


def test_a_refused_request_leaves_shadow_buckets_alone() -> None:
    buckets = Buckets()
    one, shadow = Limit("one", Scope.CALLER, 1.0, 1.0), Limit("s", Scope.CALLER, 1.0, 9.0, shadow=True)
    buckets.take(T0, Take("a", one), Take("s", shadow))
    assert buckets.take(T0, Take("a", one), Take("s", shadow)).states[1].remaining == 8.0
    assert buckets.levels["s"][0] == 8.0


@pytest.mark.parametrize(
    ("cost", "counted"),
    [
        pytest.param(3.0, 3.0, id="several"),
        pytest.param(900.0, 50.0, id="beyond-burst"),
        pytest.param(-5.0, 0.0, id="negative"),
    ],
)
def test_cost(cost: float, counted: float) -> None:
    assert affordable(limit(), cost) == counted
    assert Buckets().take(T0, Take("k", limit(), cost)).states[0].remaining == 50.0 - counted


def test_a_clock_that_jumps_back_gives_nothing_and_freezes_nothing() -> None:
    buckets = Buckets()
    for _ in range(50):
        buckets.take(T0, Take("k", limit()))
    back = T0 - 3_600_000_000
    assert not buckets.take(back, Take("k", limit())).allowed
    assert not buckets.take(back + 99_999, Take("k", limit())).allowed
    assert buckets.take(back + 100_000, Take("k", limit())).allowed


def test_the_instant_never_moves_without_a_token_flowing() -> None:
    # Asked every microsecond, each gain alone would drown in the last bits of a big bucket's double.
    big = limit(rate=0.01, burst=1e8)
    level: Level = (9e7, T0)
    for elapsed in range(1, 2_000):
        level = refill(big, level, T0 + elapsed)
    assert level[0] == pytest.approx(9e7 + 2e-5, abs=2e-6)
    assert refill(big, (9e7, T0), T0 + 99) == (9e7, T0)


def test_a_lowered_burst_lowers_the_bucket() -> None:
    assert refill(limit(burst=5.0), (40.0, T0), T0) == (5.0, T0)


def test_nan_is_a_full_bucket() -> None:
    assert refill(limit(), (math.nan, T0), T0) == (50.0, T0)


def test_state_of_a_short_bucket() -> None:
    found = bucket_state(limit(), False, 1.0, 3.0)
    assert (found.retry_after_s, found.full_in_s) == (0.2, 4.9)
    assert bucket_state(limit(), True, 1.0, 3.0).retry_after_s == 0.0


def test_a_closed_outage_is_no_refusal_by_a_limit() -> None:
    assert Decision(False, (), 0.0, degraded=True, unavailable=True).refusal is None


steps = st.lists(st.tuples(st.integers(-10_000_000, 30_000_000), st.floats(0, 20), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(steps, st.floats(0.001, 1000), st.floats(1, 100))
def test_a_bucket_never_holds_more_than_its_burst_nor_less_than_nothing(
    history: list[tuple[int, float, bool]], rate: float, burst: float
) -> None:
    buckets, now = Buckets(), T0
    for step, cost, both in history:
        now += step
        takes = [Take("k", limit(rate, burst), cost)] + ([Take("t", limit(1.0, 3.0), 1.0)] if both else [])
        buckets.take(now, *takes)
        assert all(0.0 <= tokens <= 100.0 for tokens, _ in buckets.levels.values())
        assert buckets.levels.get("k", (0.0, 0))[0] <= burst


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 500_000), min_size=1, max_size=80), st.floats(0.1, 50), st.integers(1, 20))
def test_never_more_than_burst_plus_rate_times_time(gaps: list[int], rate: float, burst: int) -> None:
    buckets, now, admitted = Buckets(), T0, 0
    for gap in gaps:
        now += gap
        admitted += buckets.take(now, Take("k", limit(rate, float(burst)))).allowed
    assert admitted <= burst + rate * (now - T0) / 1e6 + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.floats(0.001, 1000), st.integers(1, 50), st.floats(0.5, 60))
def test_who_waits_as_told_is_admitted(rate: float, burst: int, cost: float) -> None:
    buckets = Buckets()
    take = Take("k", limit(rate, float(burst)), cost)
    while (refusal := buckets.take(T0, take).refusal) is None:
        pass
    wait_us = math.ceil(refusal.retry_after_s * 1e6) + 1
    assert buckets.take(T0 + wait_us, take).allowed


@pytest.mark.parametrize(
    ("rate", "per_minute"),
    [
        pytest.param(600 / 60, 600, id="per-minute"),
        pytest.param(20000 / 3600, 334, id="rounded-up"),
        pytest.param(1 / 86400, 1, id="never-zero"),
        pytest.param(7 / 60, 7, id="no-rounding-of-doubles"),
    ],
)
def test_the_rate_per_minute(rate: float, per_minute: int) -> None:
    assert limit(rate).per_minute == per_minute


def test_what_the_script_multiplies_by_is_what_refill_does() -> None:
    seventh = limit(1 / 7)
    assert refill(seventh, (0.0, T0), T0 + 12_345_678) == (12_345_678 * seventh.per_us, T0 + 12_345_678)


# After the answer


@pytest.mark.parametrize(
    ("level", "change", "left"),
    [
        pytest.param((30.0, T0), 5.0, 25.0, id="owed"),
        pytest.param((30.0, T0), -5.0, 35.0, id="given-back"),
        pytest.param((48.0, T0), -5.0, 50.0, id="never-above-the-burst"),
        pytest.param((1.0, T0), 10.0, -9.0, id="in-debt"),
        pytest.param((1.0, T0), 1e9, -50.0, id="bounded-debt"),
        pytest.param(None, 5.0, 45.0, id="absent-is-full"),
    ],
)
def test_a_settlement(level: Level | None, change: float, left: float) -> None:
    assert settle_level(limit(), level, change, T0) == (left, T0)


def test_nothing_is_stored_for_a_full_bucket_that_is_given_tokens() -> None:
    assert settle_level(limit(), None, -5.0, T0) is None


def test_a_debt_is_paid_by_waiting() -> None:
    buckets = Buckets()
    buckets.levels["k"] = (-9.0, T0)
    refusal = buckets.take(T0, Take("k", limit())).refusal
    assert refusal is not None
    assert refusal.retry_after_s == 1.0
    assert buckets.take(T0 + 1_000_000, Take("k", limit())).allowed


def test_a_debt_beyond_the_burst_is_forgiven() -> None:
    assert refill(limit(burst=5.0), (-40.0, T0), T0) == (-5.0, T0)


def test_the_tightest_bucket_is_an_enforced_one() -> None:
    wide, narrow, shadow = limit(burst=50.0), limit(burst=5.0), limit(burst=2.0, shadow=True)
    takes = [Take("a", wide), Take("b", narrow), Take("c", shadow)]
    decision, _ = decide(takes, [None, None, None], T0)
    assert decision.tightest is not None
    assert decision.tightest.limit is narrow
    assert decide([takes[2]], [None], T0)[0].tightest is None


# Takes


@pytest.mark.parametrize(
    "take",
    [
        pytest.param(Take("k", limit(shadow=True)), id="shadow"),
        pytest.param(Take("k", limit(concurrent=True)), id="places"),
        pytest.param(Take("k", limit(), 51.0), id="beyond the burst"),
        pytest.param(Take("k", limit(), -1.0), id="less than nothing"),
        pytest.param(Take("k", limit(), math.nan), id="no number"),
    ],
)
def test_takes_that_go_the_long_way(take: Take) -> None:
    assert Takes([Take("other", limit()), take]).plain == ()


def test_a_take_and_its_bucket_stand_together() -> None:
    """Of a store that is away, some limits fail open: nothing is known of their buckets."""
    wanted = [Take("a", limit()), Take("b", limit()), Take("c", limit())]
    for counted in (wanted, wanted[:2], wanted[1:], wanted[1:2], wanted[::2], []):
        decision, _ = decide(counted, [None] * len(counted), 0)
        assert paired(wanted, decision) == list(zip(counted, decision.states, strict=True))


def test_preliminary_takes_leave_what_a_projects_callers_share() -> None:
    mine, theirs = Take("m", Limit("mine", Scope.CALLER, 1.0, 5.0)), Take("t", Limit("theirs", Scope.PROJECT, 1.0, 5.0))
    alone = Takes([mine])
    assert preliminary_takes(alone, 1) is alone
    assert preliminary_takes(Takes([mine, theirs]), 1) == (mine,)
    assert preliminary_takes(Takes([mine, theirs]), 3) == (Take("m", mine.limit, 3.0),)
    assert preliminary_takes(Takes([theirs]), 1) == ()


def test_a_refusal_after_something_was_taken_all_the_same() -> None:
    mine, other = Limit("mine", Scope.CALLER, 0.5, 5.0), Limit("other", Scope.TEAM, 1.0, 5.0)
    watched, place = (
        Limit("watched", Scope.CALLER, 1.0, 5.0, shadow=True),
        Limit("place", Scope.CALLER, 1.0, 5.0, concurrent=True),
    )
    takes = [Take(limit.id, limit, 4.0) for limit in (mine, other, watched, place)]
    refused, _ = decide(takes, [(3.0, 0), (4.0, 0), (4.0, 0), (4.0, 0)], 0)
    after = refusal_after(takes, refused, [Take("mine", mine), Take("other", other), Take("watched", watched)])
    assert [(one.allowed, one.remaining, one.retry_after_s) for one in after.states] == [
        (False, 2.0, 4.0),
        (False, 3.0, 1.0),
        (True, 4.0, 0.0),
        (True, 4.0, 0.0),
    ]
    assert not after.allowed
    assert after.refusal == after.states[0]
    away = Decision(False, (), 1.0, degraded=True, unavailable=True)
    assert refusal_after(takes, away, [Take("mine", mine)]) == away


def test_takes_know_whether_they_need_settling() -> None:
    assert not needs_settling(Takes([Take("k", limit())]))
    assert needs_settling(Takes([Take("k", limit(concurrent=True))]))
    assert needs_settling(Takes([Take("k", limit(settlement=Settlement()))]))


def test_scaled_takes_are_as_long_lived() -> None:
    validity = Validity()
    takes = scale_takes(Takes([Take("k", limit()), Take("p", limit(concurrent=True))], validity), 3)
    assert ([take.cost for take in takes], takes.validity) == ([3.0, 1.0], validity)
