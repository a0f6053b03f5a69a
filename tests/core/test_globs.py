from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.globs import Glob, Globs


def as_expression(entry: str, path: str) -> bool:
    """What stars mean, written down the short way."""
    stars = {"**": "[a-z0-9_./-]*", "*": "[a-z0-9_.-]*"}
    pieces = re.split(r"(\*\*|\*)", entry)
    return re.fullmatch("".join(stars.get(piece, re.escape(piece)) for piece in pieces), path) is not None


@pytest.mark.parametrize(
    ("entry", "path", "fits"),
    [
        ("team/*", "team/a", True),
        ("team/*", "team/a/b", False),
        ("team/*", "Team/a", False),
        ("team/*", "team/a b", False),
        ("team/**", "team/a/b", True),
        ("team/*-*", "team/a-b", True),
        ("team/*-*", "team/-", True),
        ("team/*-*", "team/a", False),
        ("team/*-*", "team/a/b-c", False),
        ("team/*-*", "team/a-b/c", False),
        ("team/*-*", "team/a b-c", False),
        ("*-api-*", "a-api", False),
        ("*-a/b-*", "x-a/b-c", True),
        ("*-a/b-*", "x/y-a/b-c", False),
        ("**/*-api", "a/b/c-api", True),
        ("**/*-api", "a-api", False),
        ("**/*-api", "a/b/c-apis", False),
        ("a/**/b-*/**/c", "a/x/b-/b-y/z/c", True),
        ("a/**/b*y/**/c", "a/b/y/b1y/c/c", True),
        ("a/**/b*y/**/c", "a/b/y/c", False),
        ("a/**/b*y/**/c", "a/by/c", False),
        ("a/**/b*y/**/c", "a//by//c", True),
        ("a*b/**c", "a/b/c", False),
        ("**a*b", "a/b", False),
        ("**a*b", "b", False),
        ("*ab*ab", "ab", False),
        ("**b**/c*b**b", "ab/cb", False),
        ("**a*b**", "a/ab", True),
        ("**-*/x**", "-/-/x", True),
        ("**a/*b**", "a/a/b", True),
        ("**a/*b/*c**", "a/b/a/b/c", True),
        ("***", "a", True),
        ("a", "a", True),
        ("a", "b", False),
    ],
)
def test_stars(entry: str, path: str, fits: bool) -> None:
    assert Globs([entry]).match(path) is fits
    if "*" in entry:
        assert as_expression(entry, path) is fits


def test_one_of_several_is_enough() -> None:
    globs = Globs(["a/*", "b/**/c", "d/*-*"])
    assert [path for path in ("a/x", "b/x/c", "d/x-y", "e/x", "a/x/y") if globs.match(path)] == ["a/x", "b/x/c", "d/x-y"]
    assert not Globs([]).match("a")


_ENTRIES = st.lists(st.sampled_from(["*", "**", "a", "b", "/", "-", "ab", "a/", "/b"]), min_size=1, max_size=7).map("".join)


@given(_ENTRIES, st.lists(st.text("ab/-", max_size=3), min_size=8, max_size=8), st.text("ab/-", max_size=2))
def test_stars_are_what_an_expression_makes_of_them(entry: str, fills: list[str], more: str) -> None:
    pieces = re.split(r"(\*\*|\*)", entry)
    path = "".join(fills.pop() if "*" in piece else piece for piece in pieces)
    for one in (path, path + more, path.replace("a", more, 1)):
        assert Globs([entry]).match(one) is as_expression(entry, one)


def test_between_two_double_ones_each_place_is_tried() -> None:
    paths = ["".join(path) for length in range(6) for path in itertools.product("ab/", repeat=length)]
    for middle in itertools.product("ab/*", repeat=3):
        entry = f"**{''.join(middle)}**"
        expression = re.compile(entry.replace("**", "#").replace("*", "[^/]*").replace("#", ".*"))
        glob = Glob(entry)
        assert [path for path in paths if glob.match(path)] == list(filter(expression.fullmatch, paths)), entry


@pytest.mark.parametrize(
    "entry", ["team/*-*-*-*", "**/*-svc-*", "team/**/x-**", "team/**-*-*/**", "*a*b*c*d*", "**-**-**/z"]
)
@pytest.mark.parametrize("piece", ["-", "-svc-", "/x-", "a", "abc", "/"])
@pytest.mark.parametrize("end", ["", "/y", "!"])
def test_a_long_path_takes_no_square_for_each_star(entry: str, piece: str, end: str) -> None:
    """Its cube would be hours."""
    Globs([entry]).match("team/" + piece * (1 << 14) + end)


class Counted(str):
    """How many characters were looked at."""

    __slots__ = ("looked_at",)
    looked_at: int

    def find(self, sub: str, start: Any = 0, end: Any = None) -> int:
        return self._counted(super().find(sub, start, end), start, end)

    def rfind(self, sub: str, start: Any = 0, end: Any = None) -> int:
        found = super().rfind(sub, start, end)
        self._counted(-1, max(found, start), end)
        return found

    def _counted(self, found: int, start: int, end: int | None) -> int:
        self.looked_at += (found if found >= 0 else len(self) if end is None else end) - start + 1
        return found


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ("**a*bc**", "a" * 4000 + "/bc"),
        ("**a*b*cd**", "ab" * 2000 + "/cd"),
        ("**a*/b*cd**", "a" * 4000 + "/bx/cd"),
        ("**a*/b*cd**", "a/b" * 1500 + "/cd"),
        ("**-*/x**", "-" * 4000 + "/y/x"),
        ("**/-*-/**", "/-" * 2000 + "/-/"),
        ("**/-*zz**", "/-" * 2000),
    ],
)
def test_a_star_between_two_double_ones_takes_no_square(entry: str, path: str) -> None:
    """From each place for the first text the next one was looked for as far as the path goes."""
    counted = Counted(path)
    counted.looked_at = 0
    assert not Glob(entry).match(counted)
    assert counted.looked_at < 20 * len(path)
