"""HTTP dates (RFC 9110 §5.6.7), read strictly and written in the one current form.

They are read strictly because for a cache an unreadable ``Expires`` means *already expired* (RFC 9111 §5.3): guessing would
keep answers that their origin wanted gone.
"""

from __future__ import annotations

import calendar
import re
from functools import lru_cache

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_MONTH_NUMBER = {name: number for number, name in enumerate(_MONTHS, 1)}

_MONTH = b"(?P<month>" + b"|".join(_MONTHS) + b")"
_TIME = rb"(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d):(?P<second>[0-5]\d|60)"
_FORMS = (
    re.compile(rb"(?:%s), (?P<day>\d\d) %s (?P<year>\d{4}) %s GMT" % (b"|".join(_DAYS), _MONTH, _TIME)),
    re.compile(rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>\d\d)-%s-(?P<year>\d\d) %s GMT" % (_MONTH, _TIME)),
    re.compile(rb"(?:%s) %s (?P<day>[ \d]\d) %s (?P<year>\d{4})" % (b"|".join(_DAYS), _MONTH, _TIME)),
)


@lru_cache(maxsize=2048)
def parse_date(value: bytes, this_year: int = 2025) -> float | None:
    """Unix seconds of an HTTP date in one of its three forms, or None.

    Args:
        value: The field value.
        this_year: Decides the century of RFC 850's two-digit years: more than 50 years ahead means the last century.
    """
    if len(value) > 40:
        return None
    for form in _FORMS:
        match = form.fullmatch(value)
        if match is None:
            continue
        day, year = int(match["day"]), int(match["year"])
        if len(match["year"]) == 2:
            year += this_year - this_year % 100
            if year > this_year + 50:
                year -= 100
        month = _MONTH_NUMBER[match["month"]]
        if year < 1 or not 1 <= day <= calendar.monthrange(year, month)[1]:
            return None
        return float(calendar.timegm((year, month, day, int(match["hour"]), int(match["minute"]), int(match["second"]))))
    return None


@lru_cache(maxsize=64)
def _format_second(second: int) -> bytes:
    days, rest = divmod(second, 86_400)
    year, month, day = _civil(days)
    return b"%s, %02d %s %04d %02d:%02d:%02d GMT" % (
        _DAYS[(days + 3) % 7],
        day,
        _MONTHS[month - 1],
        year,
        rest // 3600,
        rest // 60 % 60,
        rest % 60,
    )


def format_date(at: float) -> bytes:
    """Unix seconds as an IMF-fixdate; one string is made per second, not per answer."""
    return _format_second(int(at))


_second = -1
_line = b""


def date_line(at: float) -> bytes:
    """The ``Date`` header line, formatted once per second."""
    global _second, _line  # noqa: PLW0603 — a one-entry memo
    second = int(at)
    if second != _second:
        _line = b"Date: %b\r\n" % format_date(second)
        _second = second
    return _line


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days since 1970-01-01 (proleptic Gregorian calendar, years counted from March)."""
    era, of_era = divmod(days + 719_468, 146_097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    day = of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (1 if month <= 2 else 0), month, day
