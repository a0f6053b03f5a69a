from __future__ import annotations

import pytest

from gateway.core.cache_control import parse_cache_control, parse_targeted
from gateway.core.freshness import (
    HEURISTIC_CAP_S,
    age_value,
    corrected_age,
    date_of,
    has_explicit_lifetime,
    lifetime,
    year_of,
)
from gateway.core.http_date import format_date
from gateway.core.messages import Fields

NOW = 1_800_000_000.0
NONE = parse_cache_control(b"")


def dated(name: bytes, offset: float) -> tuple[bytes, bytes]:
    return name, format_date(NOW + offset)


@pytest.mark.parametrize(
    ("value", "age"),
    [
        (b"7200", 7200),
        (b"7200,0", 7200),
        (b"0,7200", 0),
        (b"7200;foo=bar", 7200),
        (b" 5 ", 5),
        (b"99999999999", 2147483648),
        (b"abc", 0),
        (b"-7200", 0),
        (b"7200.0", 0),
    ],
)
def test_age_reads_the_first_member_or_nothing(value: bytes, age: float) -> None:
    assert age_value(((b"Age", value),)) == age


def first_age(fields: Fields, requested_at: float, received_at: float) -> float:
    return corrected_age(date_of(fields, b"date", received_at), age_value(fields), requested_at, received_at)


def test_the_pessimistic_of_date_and_age_counts() -> None:
    assert first_age((), NOW - 2, NOW) == 2
    assert first_age((dated(b"Date", -100),), NOW, NOW) == 100
    assert first_age((dated(b"Date", -100), (b"Age", b"300")), NOW - 1, NOW) == 301
    assert first_age((dated(b"Date", +500),), NOW, NOW) == 0
    assert first_age((dated(b"Date", 0),), NOW, NOW + 0.9) == pytest.approx(0.9)  # the response delay, not Date's
    assert first_age((dated(b"Date", 0),), NOW + 0.9, NOW + 0.9) == 0


@pytest.mark.parametrize(
    ("fields", "cache_control", "seconds"),
    [
        pytest.param((), b"max-age=60", 60, id="max-age"),
        pytest.param((dated(b"Expires", 9),), b"max-age=60", 60, id="max-age-before-expires"),
        pytest.param((dated(b"Expires", 9), dated(b"Date", 0)), b"", 9, id="expires"),
        pytest.param((dated(b"Expires", 300), dated(b"Date", 400)), b"", 0, id="expires-before-date"),
        pytest.param((dated(b"Expires", 9), (b"Date", b"foo")), b"", 9, id="unreadable-date"),
        pytest.param(((b"Expires", b"0"),), b"", 0, id="unreadable-expires"),
        pytest.param((dated(b"Expires", 9), dated(b"Expires", 9)), b"", 0, id="two-expires"),
        pytest.param((dated(b"Last-Modified", -100),), b"", 10, id="a-tenth"),
        pytest.param((dated(b"Last-Modified", -1e8),), b"", HEURISTIC_CAP_S, id="capped"),
        pytest.param((dated(b"Last-Modified", +5),), b"", 0, id="modified-in-the-future"),
        pytest.param((), b"", 0, id="nothing-said"),
    ],
)
def test_lifetimes(fields: Fields, cache_control: bytes, seconds: float) -> None:
    assert lifetime(200, fields, parse_cache_control(cache_control), NOW) == seconds


def test_only_some_statuses_may_be_guessed_about() -> None:
    fields = (dated(b"Last-Modified", -100),)
    assert lifetime(403, fields, NONE, NOW) == 0
    assert lifetime(403, fields, parse_cache_control(b"public"), NOW) == 10


def test_expires_does_not_count_beside_a_targeted_field() -> None:
    said = parse_targeted(b"must-revalidate")
    assert said is not None
    assert lifetime(200, (dated(b"Expires", 60),), said, NOW) == 0
    assert not has_explicit_lifetime((dated(b"Expires", 60),), said)
    assert has_explicit_lifetime((dated(b"Expires", 60),), NONE)
    assert has_explicit_lifetime((), parse_cache_control(b"max-age=0"))


def test_dates() -> None:
    assert date_of((dated(b"Date", 0), dated(b"Date", 0)), b"date", NOW) is None
    assert year_of(0) == 1970
    assert year_of(NOW) == 2027
