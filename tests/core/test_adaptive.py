"""The adaptive limit, against a model of a GitLab of fixed capacity."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.access import Priority
from gateway.core.adaptive import AdaptiveLimit, AdaptiveSettings

QUICK = AdaptiveSettings(most=100, least=5, memory=50)


def loaded(limit: AdaptiveLimit, latency_s: float, in_flight: int, windows: int, start: float = 0.0) -> float:
    """``windows`` windows of busy traffic; the time afterwards."""
    now = start
    for _ in range(windows):
        for _ in range(11):
            limit.observe(latency_s, in_flight, now)
            now += 0.1
    return now


def test_starts_at_the_most() -> None:
    assert AdaptiveLimit(QUICK).limit == 100


def test_steady_latency_keeps_it() -> None:
    limit = AdaptiveLimit(QUICK)
    loaded(limit, 0.05, 100, 100)
    assert limit.limit == 100


def test_a_gitlab_that_slows_to_a_tenth_gets_less_and_recovers() -> None:
    limit = AdaptiveLimit(QUICK)
    now = loaded(limit, 0.05, 100, 30)
    now = loaded(limit, 0.5, 100, 10, now)
    slowed = limit.limit
    assert slowed < 60
    now = loaded(limit, 0.05, 100, 100, now)
    assert limit.limit == 100


def test_never_below_the_least() -> None:
    limit = AdaptiveLimit(QUICK)
    now = loaded(limit, 0.01, 100, 40)
    for step in range(200):
        limit.record_drop(now + step * 2)
    assert limit.limit == 5


def test_it_shrinks_by_half_at_most_in_one_window() -> None:
    limit = AdaptiveLimit(AdaptiveSettings(most=100, least=5, smoothing=1.0, queue=0.0))
    now = loaded(limit, 0.001, 100, 30)
    loaded(limit, 60.0, 100, 1, now)
    assert limit.limit == 50


def test_latency_that_nobody_s_load_explains_changes_nothing() -> None:
    limit = AdaptiveLimit(QUICK)
    now = loaded(limit, 0.05, 3, 30)
    loaded(limit, 5.0, 3, 30, now)
    assert limit.limit == 100


def test_a_crowd_of_drops_is_one() -> None:
    limit = AdaptiveLimit(QUICK)
    for _ in range(500):
        limit.record_drop(10.0)
    assert limit.limit == 90
    limit.record_drop(11.0)
    assert limit.limit == 81


def test_no_latency_at_all_is_no_reason_to_shrink() -> None:
    limit = AdaptiveLimit(QUICK)
    loaded(limit, 0.0, 100, 5)
    assert limit.limit == 100


@pytest.mark.parametrize(
    ("priority", "room"),
    [
        pytest.param(Priority.CRITICAL, 100, id="critical"),
        pytest.param(Priority.INTERACTIVE, 90, id="interactive"),
        pytest.param(Priority.BACKGROUND, 70, id="background"),
    ],
)
def test_classes_fill_their_part(priority: Priority, room: int) -> None:
    limit = AdaptiveLimit(QUICK)
    assert limit.has_room(priority, room - 1)
    assert not limit.has_room(priority, room)


def test_everybody_may_use_an_idle_gitlab() -> None:
    limit = AdaptiveLimit(AdaptiveSettings(most=1, least=1))
    assert all(limit.has_room(priority, 0) for priority in Priority)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 300), st.floats(0, 5), st.booleans()), max_size=200))
def test_it_stays_within_its_bounds_whatever_happens(history: list[tuple[float, int, float, bool]]) -> None:
    limit, now = AdaptiveLimit(AdaptiveSettings(most=50, least=3, samples=2)), 0.0
    for latency_s, in_flight, step, drop in history:
        now += step
        if drop:
            limit.record_drop(now)
        else:
            limit.observe(latency_s, in_flight, now)
        assert 3 <= limit.limit <= 50


@pytest.mark.parametrize("capacity", [10, 40])
def test_it_finds_what_a_gitlab_of_fixed_capacity_can_do(capacity: int) -> None:
    """Latency is flat up to the capacity, then grows with what is too much: as Little's law has it."""
    limit, now = AdaptiveLimit(AdaptiveSettings(most=100, least=5)), 0.0
    now = loaded(limit, 0.05, 60, 300)
    for _ in range(60):
        in_flight = limit.limit
        now = loaded(limit, 0.05 * max(1.0, in_flight / capacity), in_flight, 1, now)
    assert limit.limit <= capacity * 4
