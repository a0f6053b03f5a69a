"""The pace of one upstream credential."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.messages import Fields, ResponseHead
from gateway.core.pacing import LONGEST_S, Pace, PaceReport

NOW = 1_800_000_000.0


def limit_fields(observed: int, remaining: int, reset: float = NOW + 60) -> Fields:
    return (
        (b"RateLimit-Observed", b"%d" % observed),
        (b"RateLimit-Remaining", b"%d" % remaining),
        (b"RateLimit-Reset", b"%d" % reset),
    )


def paced(*answers: tuple[int, Fields]) -> Pace:
    pace = Pace()
    for status, fields in answers:
        pace.learn(ResponseHead(status, fields), NOW)
    return pace


def test_nothing_is_slowed_while_there_is_plenty() -> None:
    assert paced((200, limit_fields(100, 500))).limit(NOW) is None
    assert paced((200, ())).limit(NOW) is None


def test_what_is_left_is_spread_over_the_rest_of_the_window() -> None:
    limit = paced((200, limit_fields(500, 100))).limit(NOW)
    assert limit is not None
    assert limit.rate == pytest.approx(1.5)
    assert limit.burst == 1.0


def test_with_nothing_left_one_may_still_try_before_the_window_ends() -> None:
    limit = paced((200, limit_fields(600, 0))).limit(NOW)
    assert limit is not None
    assert limit.rate == pytest.approx(0.5 / 60)


def test_how_much_is_left_is_known_until_the_window_ends() -> None:
    assert paced().remaining(NOW) == paced((200, ())).remaining(NOW) == math.inf
    pace = paced((200, limit_fields(100, 500)))
    assert (pace.remaining(NOW), pace.remaining(NOW + 60)) == (500, math.inf)
    pace.learn(ResponseHead(200, limit_fields(150, 450)), NOW)
    pace.learn(ResponseHead(429, ((b"Retry-After", b"7"),)), NOW)
    assert (pace.remaining(NOW + 6), pace.remaining(NOW + 7)) == (-1, 450)


def test_a_new_window_ends_the_pace() -> None:
    pace = paced((200, limit_fields(500, 100)))
    assert pace.limit(NOW + 60) is None
    pace.learn(ResponseHead(200, limit_fields(1, 599, NOW + 120)), NOW + 61)
    assert pace.limit(NOW + 61) is None


def test_small_changes_keep_the_bucket() -> None:
    pace = paced((200, limit_fields(500, 100)))
    before = pace.limit(NOW)
    pace.learn(ResponseHead(200, limit_fields(501, 99)), NOW)
    assert pace.limit(NOW) is before
    pace.learn(ResponseHead(200, limit_fields(550, 50)), NOW)
    assert pace.limit(NOW) is not before


@pytest.mark.parametrize(
    ("status", "fields", "wait_s"),
    [
        pytest.param(429, ((b"Retry-After", b"17"),), 17.0, id="retry-after"),
        pytest.param(429, limit_fields(600, 0), 60.0, id="reset"),
        pytest.param(503, ((b"Retry-After", b"3"),), 3.0, id="maintenance"),
        pytest.param(503, limit_fields(600, 0), 0.0, id="only-a-refusal-blocks"),
        pytest.param(429, ((b"Retry-After", b"999999"),), LONGEST_S, id="bounded"),
        pytest.param(429, ((b"Retry-After", b"5"), (b"retry-after", b"9")), 0.0, id="twice"),
        pytest.param(429, ((b"Retry-After", b"soon"),), 0.0, id="no-number"),
        pytest.param(200, ((b"Retry-After", b"17"),), 0.0, id="no-refusal"),
    ],
)
def test_nobody_asks_before_gitlab_said_one_may(status: int, fields: Fields, wait_s: float) -> None:
    assert paced((status, fields)).blocked_s(NOW) == wait_s


EXPORT, LIST = "POST /api/v4/projects/:id/export", "GET /api/v4/projects"


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        pytest.param(429, ((b"Retry-After", b"60"),), id="endpoint"),
        pytest.param(429, ((b"Retry-After", b"60"), *limit_fields(100, 500)), id="endpoint-with-the-throttles-fields"),
        pytest.param(503, ((b"Retry-After", b"60"),), id="repository-overloaded"),
    ],
)
def test_what_gitlab_refuses_of_one_operation_is_that_operations_alone(status: int, fields: Fields) -> None:
    pace = Pace()
    assert not pace.learn(ResponseHead(status, fields), NOW, EXPORT)  # no news for the others
    assert (pace.blocked_s(NOW, EXPORT), pace.blocked_s(NOW, LIST), pace.blocked_s(NOW)) == (60, 0, 0)
    assert pace.blocked_s(NOW + 60, EXPORT) == 0
    pace.learn(ResponseHead(status, ((b"Retry-After", b"3"),)), NOW, EXPORT)
    assert pace.blocked_s(NOW, EXPORT) == 60


def test_the_throttle_refuses_whatever_is_asked() -> None:
    pace = Pace()
    assert pace.learn(ResponseHead(429, ((b"Retry-After", b"17"), *limit_fields(600, 0))), NOW, EXPORT)
    assert (pace.blocked_s(NOW, EXPORT), pace.blocked_s(NOW, LIST)) == (17, 17)


def test_refused_operations_are_bounded() -> None:
    pace = Pace()
    for number in range(1000):
        pace.learn(ResponseHead(429, ((b"Retry-After", b"60"),)), NOW, f"{number}")
    assert len(pace._operations) <= 256
    assert pace.blocked_s(NOW, "999") == 60


def test_a_block_is_never_shortened() -> None:
    pace = paced((429, ((b"Retry-After", b"30"),)), (429, ((b"Retry-After", b"3"),)))
    assert pace.blocked_s(NOW) == 30.0
    assert pace.blocked_s(NOW + 31) == 0.0


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(limit_fields(500, 100, NOW - 1), id="past"),
        pytest.param(limit_fields(500, 100, NOW + 86_400), id="far"),
        pytest.param((*limit_fields(500, 100), (b"ratelimit-remaining", b"5")), id="twice"),
    ],
)
def test_odd_numbers_say_nothing(fields: Fields) -> None:
    assert paced((200, fields)).limit(NOW) is None


@given(st.integers(), st.tuples(*[st.binary(max_size=30)] * 4))
def test_whatever_gitlab_sends(status: int, values: tuple[bytes, bytes, bytes, bytes]) -> None:
    names = (b"RateLimit-Observed", b"RateLimit-Remaining", b"RateLimit-Reset", b"Retry-After")
    pace = paced((status, tuple(zip(names, values, strict=True))))
    limit = pace.limit(NOW)
    assert limit is None or 0 < limit.rate < 1e15
    assert 0 <= pace.blocked_s(NOW) <= LONGEST_S


# Among gateways


def test_what_is_worth_telling() -> None:
    pace = Pace()
    assert not pace.learn(ResponseHead(200, ()), NOW)
    assert not pace.learn(ResponseHead(200, limit_fields(1, 599)), NOW)
    assert pace.learn(ResponseHead(200, limit_fields(500, 100)), NOW)
    assert not pace.learn(ResponseHead(200, limit_fields(501, 99)), NOW)
    assert pace.learn(ResponseHead(200, limit_fields(560, 40)), NOW)
    assert pace.learn(ResponseHead(429, ((b"Retry-After", b"30"),)), NOW)
    assert not pace.learn(ResponseHead(429, ((b"Retry-After", b"29"),)), NOW + 1)
    assert pace.learn(ResponseHead(200, limit_fields(1, 599)), NOW)  # a new window: there is plenty again


def test_another_gateway_slows_as_the_one_that_heard() -> None:
    one, other = paced((200, limit_fields(500, 100)), (429, ((b"Retry-After", b"30"),))), Pace()
    other.merge(one.report(NOW), NOW + 1000)  # its clock is another
    assert other.blocked_s(NOW + 1000) == 30
    limit = other.limit(NOW + 1000)
    assert limit is not None
    assert limit.rate == pytest.approx(1.5)
    assert other.limit(NOW + 1061) is None
    assert other.report(NOW + 1000) == one.report(NOW)


def test_the_windows_end_is_told_by_gitlabs_clock_and_waited_for_by_ours() -> None:
    pace = Pace()
    pace.learn(ResponseHead(200, limit_fields(500, 100)), 1000.0, unix_ahead_s=NOW - 1000.0)
    limit = pace.limit(1000.0)
    assert limit is not None
    assert limit.rate == pytest.approx(1.5)
    assert (pace.limit(1059.0), pace.limit(1060.0)) == (limit, None)
    pace.learn(ResponseHead(200, limit_fields(501, 99)), 1000.0, unix_ahead_s=NOW - 1000.1)
    assert pace.limit(1000.0) is limit, "the clocks are read one after the other"


def test_hearing_the_same_again_keeps_the_bucket() -> None:
    one, other = paced((200, limit_fields(500, 100))), Pace()
    other.merge(one.report(NOW), NOW)
    before = other.limit(NOW)
    for second in range(1, 5):
        other.merge(one.report(NOW + second), NOW + second + 0.1)
        assert other.limit(NOW + second) is before


def test_of_two_rates_the_one_heard_last_counts() -> None:
    pace = paced((200, limit_fields(500, 100)))
    pace.merge(PaceReport(rate=9.0, window_s=60.0, age_s=10.0), NOW)
    limit = pace.limit(NOW)
    assert limit is not None
    assert limit.rate == pytest.approx(1.5)
    pace.merge(PaceReport(age_s=0.0), NOW + 1)
    assert pace.limit(NOW + 1) is None


def test_who_knows_nothing_of_a_rate_takes_none_away() -> None:
    pace = paced((200, limit_fields(500, 100)))
    pace.merge(paced((429, ((b"Retry-After", b"30"),))).report(NOW), NOW + 1)
    assert pace.limit(NOW + 1) is not None
    assert pace.blocked_s(NOW + 1) == 30


@pytest.mark.parametrize("rate", [math.nan, math.inf, 1e300, -1.0])
def test_a_rate_that_is_none_slows_nobody(rate: float) -> None:
    pace = Pace()
    pace.merge(PaceReport(math.nan, rate, 60.0, 0.0), NOW)
    assert pace.limit(NOW) is None
    assert pace.blocked_s(NOW) == 0


def test_no_wait_that_was_heard_is_longer_than_the_longest() -> None:
    pace = Pace()
    pace.merge(PaceReport(1e9, 1.0, 1e9, 0.0), NOW)
    assert pace.blocked_s(NOW) == LONGEST_S
    assert pace.limit(NOW + LONGEST_S + 1) is None


def test_how_much_is_left_is_heard_of_too() -> None:
    pace = Pace()
    pace.merge(paced((200, limit_fields(500, 100))).report(NOW), NOW)
    assert pace.remaining(NOW) == pytest.approx(100)
    assert pace.remaining(NOW + 61) == math.inf
