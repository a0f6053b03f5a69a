from __future__ import annotations

import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.http_date import date_line, format_date, parse_date

NEW_YEAR_2050 = float(calendar.timegm((2050, 1, 1, 0, 0, 0)))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"Sat, 01 Jan 2050 00:00:00 GMT", id="imf-fixdate"),
        pytest.param(b"Saturday, 01-Jan-50 00:00:00 GMT", id="rfc850"),
        pytest.param(b"Sat Jan  1 00:00:00 2050", id="asctime"),
    ],
)
def test_the_three_forms_are_one_instant(value: bytes) -> None:
    assert parse_date(value) == NEW_YEAR_2050


def test_a_two_digit_year_more_than_fifty_years_ahead_is_of_the_last_century() -> None:
    assert parse_date(b"Saturday, 01-Jan-50 00:00:00 GMT", 1999) == calendar.timegm((1950, 1, 1, 0, 0, 0))


@pytest.mark.parametrize(
    "value",
    [
        b"0",
        b"",
        b"-1",
        b"Sat 01 Jan 2050 00:00:00 GMT",
        b"Sat, 01 Jan 2050 00:00:00 UTC",
        b"Sat, 01 jan 2050 00:00:00 GMT",
        b"Sat, 1 Jan 2050 00:00:00 GMT",
        b"Sat, 30 Feb 2050 00:00:00 GMT",
        b"Sat, 01 Jan 2050 24:00:00 GMT",
        b"Sat, 01 Jan 0000 00:00:00 GMT",
        b"Sat, 01 Jan 2050 00:00:00 GMT, Sat, 01 Jan 2050 00:00:00 GMT",
        b" Sat, 01 Jan 2050 00:00:00 GMT",
        b"S" * 41,
    ],
)
def test_anything_else_is_no_date(value: bytes) -> None:
    assert parse_date(value) is None


@given(st.integers(0, 4_102_444_800))
def test_what_is_written_is_read_back_and_agrees_with_the_platform(second: int) -> None:
    written = format_date(second + 0.9)
    assert written == time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second)).encode()
    assert parse_date(written, 2030) == second


def test_a_line_is_made_anew_for_another_second() -> None:
    for at in (1e9, 1e9 + 0.9, 1e9 + 1, 1e9):
        assert date_line(at) == b"Date: " + format_date(at) + b"\r\n"
