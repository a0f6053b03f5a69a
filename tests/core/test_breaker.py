"""The breaker: when it opens, whom it probes with, what it forgets."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.breaker import REFUSED, Breaker, BreakerSettings, BreakerState

SETTINGS = BreakerSettings(window_s=30.0, min_requests=4, error_ratio=0.5, open_for_s=10.0)


def outcomes(breaker: Breaker, results: str, now: float) -> None:
    for result in results:
        breaker.record(breaker.admit(now), ok=result == "+", now=now)


def opened(now: float = 100.0) -> Breaker:
    breaker = Breaker(SETTINGS)
    outcomes(breaker, "----", now)
    assert breaker.state is BreakerState.OPEN
    return breaker


@pytest.mark.parametrize(
    ("results", "state"),
    [
        pytest.param("---", BreakerState.CLOSED, id="too-few"),
        pytest.param("----", BreakerState.OPEN, id="all-failed"),
        pytest.param("++--", BreakerState.OPEN, id="half-failed"),
        pytest.param("+++-", BreakerState.CLOSED, id="a-quarter-failed"),
        pytest.param("+++---", BreakerState.OPEN, id="half-of-more"),
    ],
)
def test_opens_at_the_ratio(results: str, state: BreakerState) -> None:
    breaker = Breaker(SETTINGS)
    outcomes(breaker, results, 100.0)
    assert breaker.state is state


def test_open_refuses_until_its_time() -> None:
    breaker = opened()
    assert breaker.admit(109.9) == REFUSED
    assert breaker.is_refusing(109.0)
    assert breaker.retry_after_s(104.0) == pytest.approx(6.0)
    assert not breaker.is_refusing(110.0)


def test_each_change_is_told() -> None:
    told: list[BreakerState] = []
    breaker = Breaker(SETTINGS, told.append)
    outcomes(breaker, "++++----", 100.0)
    breaker.record(breaker.admit(110.0), ok=False, now=110.0)
    breaker.record(breaker.admit(120.0), ok=True, now=120.0)
    assert told == [
        *(BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.OPEN),
        *(BreakerState.HALF_OPEN, BreakerState.CLOSED),
    ]


def test_one_probe_closes_it() -> None:
    breaker = opened()
    probe = breaker.admit(110.0)
    assert probe != REFUSED
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.admit(110.0) == REFUSED
    assert breaker.retry_after_s(112.0) == pytest.approx(8.0)
    breaker.record(probe, ok=True, now=111.0)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.admit(111.0) != REFUSED
    assert not breaker.is_refusing(111.0)


def test_a_failed_probe_opens_it_anew() -> None:
    breaker = opened()
    breaker.record(breaker.admit(110.0), ok=False, now=111.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.admit(120.9) == REFUSED
    assert breaker.admit(121.0) != REFUSED


def test_a_forgotten_probe_makes_room_for_another() -> None:
    breaker = opened()
    breaker.forget(breaker.admit(110.0))
    assert breaker.retry_after_s(110.0) == 0.0
    assert breaker.admit(110.0) != REFUSED


def test_a_probe_that_takes_for_ever_does_not_keep_others_out() -> None:
    breaker = opened()
    breaker.admit(110.0)
    assert breaker.admit(119.9) == REFUSED
    assert breaker.admit(120.0) != REFUSED


def test_outcomes_from_before_a_change_say_nothing() -> None:
    breaker = Breaker(SETTINGS)
    early = breaker.admit(100.0)
    outcomes(breaker, "----", 100.0)
    breaker.record(early, ok=True, now=101.0)
    breaker.forget(early)
    assert breaker.state is BreakerState.OPEN
    breaker.admit(110.0)
    breaker.record(early, ok=True, now=110.0)
    assert breaker.state is BreakerState.HALF_OPEN


def test_an_outcome_with_the_open_epochs_ticket_changes_nothing() -> None:
    breaker = opened()
    breaker.record(1, ok=True, now=101.0)
    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize(
    ("later", "state"), [(120.0, BreakerState.OPEN), (131.0, BreakerState.CLOSED), (900.0, BreakerState.CLOSED)]
)
def test_the_window_slides(later: float, state: BreakerState) -> None:
    breaker = Breaker(SETTINGS)
    outcomes(breaker, "---", 100.0)
    outcomes(breaker, "-", later)
    assert breaker.state is state


@pytest.mark.parametrize(("later", "state"), [(120.0, BreakerState.CLOSED), (131.0, BreakerState.OPEN)])
def test_successes_slide_out_of_the_window_too(later: float, state: BreakerState) -> None:
    breaker = Breaker(SETTINGS)
    outcomes(breaker, "+++++", 100.0)
    outcomes(breaker, "----", later)
    assert breaker.state is state


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=60))
def test_never_opens_on_a_minority_of_failures(steps: list[tuple[bool, float]]) -> None:
    """Whatever the timing: while at most every third outcome of any window is a failure, it stays closed."""
    breaker = Breaker(SETTINGS)
    now = 0.0
    for at, (_, pause) in enumerate(steps):
        now += pause
        breaker.record(breaker.admit(now), ok=at % 3 != 2, now=now)
        if at % 3 == 2:
            breaker.record(breaker.admit(now), ok=True, now=now)
    assert breaker.state is BreakerState.CLOSED


@given(st.lists(st.tuples(st.sampled_from("+-?"), st.floats(0, 15)), max_size=80))
@example([("+", 0.0), ("+", 0.0), ("-", 3.005), ("-", 3.6581237874432566), ("+", 10.0)])
def test_open_never_lasts_longer_than_told(steps: list[tuple[str, float]]) -> None:
    breaker = Breaker(SETTINGS)
    now = 0.0
    for result, pause in steps:
        now += pause
        wait_s = breaker.retry_after_s(now)
        assert 0.0 <= wait_s <= SETTINGS.open_for_s
        ticket = breaker.admit(now)
        assert (ticket == REFUSED) == (wait_s > 0.0)
        if ticket == REFUSED:
            continue
        if result == "?":
            breaker.forget(ticket)
        else:
            breaker.record(ticket, ok=result == "+", now=now)
