"""Urlencoded bodies against the standard library's parser, however they are split."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import body_form
from gateway.core.body import MAX_FOUND_BYTES, BodyVerdict, Undecidable
from gateway.core.body_form import FormScanner
from gateway.core.query import form_decode

WATCHED = {"private_token", "access_token", "job_token", "token", "sudo", "_method"}


def _scan(body: bytes, *cuts: int) -> tuple[BodyVerdict, FormScanner]:
    scanner = FormScanner()
    at = 0
    for cut in [*sorted(min(cut, len(body)) for cut in cuts), len(body)]:
        scanner.feed(body[at:cut])
        at = cut
    return scanner.finish(), scanner


NAME = st.sampled_from(
    ["private_token", "private%5Ftoken", "%73udo", "sudo", "_method", "job_token", "a", "a[]", "%61", "tokens", "é"]
)
PAIRS = st.lists(st.tuples(NAME, st.text("xy%+=[]é", max_size=5)), max_size=6)


@pytest.mark.parametrize(
    "body", [b"&sudo=v;a=&&%73udo=%76;private_token", b"a=1&_method=x+y&sud", b";;sudo;sudo=;b[sudo]=1"]
)
def test_wherever_it_is_cut_it_is_the_same(body: bytes) -> None:
    whole = _scan(body)[0]
    for first in range(len(body)):
        for second in range(first, len(body)):
            assert _scan(body, first, second)[0] == whole, (body[:first], body[first:second])


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.lists(st.integers(0, 90), max_size=4))
def test_agrees_with_a_parser_however_it_is_split(pairs: list[tuple[str, str]], cuts: list[int]) -> None:
    text = "&".join(f"{name}={value}" for name, value in pairs)
    body = text.encode()
    verdict, scanner = _scan(body, *cuts)
    assert verdict == _scan(body, *range(len(body)))[0]
    assert verdict.undecidable is None
    parsed = [pair for pair in parse_qsl(text, keep_blank_values=True, errors="surrogateescape") if pair[0] in WATCHED]
    assert [(f.name, f.value) for f in verdict.findings] == parsed
    for finding in verdict.findings:
        assert finding.plain
        left = parse_qsl(scanner.cut(body, finding).decode(), keep_blank_values=True, errors="surrogateescape")
        whole = parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
        whole.remove((finding.name, finding.value))
        assert sorted(left) == sorted(whole)


@pytest.mark.parametrize(
    "body",
    [
        b"sudo[]=x",
        b"[sudo]=x",
        b"+sudo=x",
        b"a=1;sudo=x",
        b"sudo=x;a=1",
        b"a;sudo=x&b=2",
        b"sudo%20=x",
        b"sudo%5Ba%5D=x",
        b" sudo=x",
    ],
)
def test_spellings_that_readers_take_differently_are_not_plain(body: bytes) -> None:
    for verdict in (_scan(body)[0], _scan(body, *range(len(body)))[0], _scan(b"z=1&" + body + b"&y=2")[0]):
        assert [(f.name, f.plain) for f in verdict.findings] == [("sudo", False)]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b"sudo=x", b""),
        (b"sudo=x&a=1", b"a=1"),
        (b"sudo=x&  a=1& b=2", b"a=1& b=2"),
        (b"c=3&sudo=x& a=1", b"c=3& a=1"),
        (b"a=1&sudo=x", b"a=1"),
        (b"a=1&sudo=x&b", b"a=1&b"),
        (b"a=1&&sudo=x&&b", b"a=1&&&b"),
    ],
)
def test_cutting_leaves_the_rest(body: bytes, left: bytes) -> None:
    verdict, scanner = _scan(body)
    assert scanner.cut(body, verdict.findings[0]) == left


def test_a_trailing_nul_is_no_part_of_the_value() -> None:
    assert [(f.name, f.value) for f in _scan(b"sudo=x\0")[0].findings] == [("sudo", "x")]


@pytest.mark.parametrize("cuts", [(), range(0, 20_000, 700), range(0, 20_000, 5_000)])
@pytest.mark.parametrize("end", [b"", b"=1", b"&x=1", b"=1&sudo=v", b"&sudo=v"])
@pytest.mark.parametrize(
    "name",
    [
        b"a" * 5000,
        b"body=first; " + b"a token of mine, in my group; " * 200 + b"dolor " * 1000,
        b"body=R&D " + b"lorem ipsum, " * 600,
        b"%61" * 2000,
        b"a[" + b"sudo" * 2000,
        b"+[sudo" + b"o" * 5000,
        b"v" + b" " * 5000,
        b"[a" + b"]" * 5000,
    ],
)
def test_the_beginning_of_a_long_name_tells_that_it_is_no_watched_one(name: bytes, end: bytes, cuts: Sequence[int]) -> None:
    """Text that was not encoded: Rack passes over what follows a separator in it."""
    verdict = _scan(name + end, *cuts)[0]
    assert verdict.undecidable is None
    assert [(f.name, f.value, f.plain) for f in verdict.findings] == [("sudo", "v", True)] * end.endswith(b"v")


@pytest.mark.parametrize("cuts", [(), range(0, 20_000, 700)])
@pytest.mark.parametrize(
    "name",
    [b" " * 4093 + b"sudo", b" " * 5000 + b"sudo", b"[" * 5000 + b"sudo", b"sudo" + b"+" * 5000, b"%20" * 3000 + b"sudo"],
)
def test_a_long_name_that_may_be_a_watched_one_is_undecidable(name: bytes, cuts: Sequence[int]) -> None:
    for body in (name + b"=root", b"a=b&" + name + b"=root&c=d"):
        assert _scan(body, *cuts)[0] == BodyVerdict((), Undecidable.MALFORMED)


def test_a_name_is_read_once_however_its_value_comes() -> None:
    """For each octet of each value it would be minutes."""
    scanner = FormScanner()
    for _ in range(50):
        scanner.feed(b"sudo[" + b"%73" * 1300 + b"]=")
        for _ in range(16_000):
            scanner.feed(b"x")
        scanner.feed(b"&")
    assert [(f.name, f.value, f.plain) for f in scanner.finish().findings] == [("sudo", "x" * 16_000, False)] * 50


def test_a_long_name_with_a_watched_beginning_is_found() -> None:
    assert [(f.name, f.plain) for f in _scan(b"sudo[" + b"a" * 5000 + b"]=x&b=c")[0].findings] == [("sudo", False)]
    assert _scan(b"sudo[" + b"a" * 5000, 4990)[0].undecidable is Undecidable.MALFORMED


def test_bounds() -> None:
    assert _scan(b"token&" * 70_000)[0].undecidable is Undecidable.TOO_MANY
    assert _scan(b"token&" * 4_096 + b"a&" * 61_439 + b"a")[0].undecidable is None
    assert _scan(b"token&" * 4_096 + b"token")[0].undecidable is Undecidable.TOO_MANY
    assert _scan(b"token&" + b"a&" * 65_535 + b"a")[0].undecidable is Undecidable.TOO_MANY
    for value, cuts in ((b"x" * 16_000, ()), (b"x" * 16_000, range(0, 10_000_000, 9_000)), (b"", range(0, 100_000, 900))):
        many = _scan((b"project[a]=" + value + b"&") * (6_000_000 // (1000 + len(value))) + b"sudo=x", *cuts)[0]
        assert many.undecidable is Undecidable.TOO_MANY
        assert sum(256 + len(finding.value or "") for finding in many.findings) <= MAX_FOUND_BYTES + 20_000
    long = b"a=" + b"x" * 100000 + b"&sudo=" + b"y" * 20000 + b"&private_token=z"
    for verdict in (_scan(long)[0], _scan(long, *range(0, len(long), 1000))[0], _scan(long[:-16])[0]):
        assert verdict.findings[0].value is None
        assert not verdict.findings[0].plain
    assert [f.name for f in _scan(long, 118000)[0].findings] == ["sudo", "private_token"]


@pytest.mark.parametrize("pair", [b"%4&", b"%4=&", b"%41=&", b"a%5Bb%5D=&", b"%61=&", b"sudo=&"])
def test_what_hides_no_name_is_not_decoded_and_of_the_rest_no_more_than_the_bound(
    pair: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody's form is read before it is known who asks, and a name's decoding takes microseconds."""
    decoded: list[bytes] = []

    def counting(octets: bytes) -> bytes:
        decoded.append(octets)
        return form_decode(octets)

    monkeypatch.setattr(body_form, "form_decode", counting)
    verdict = _scan(pair * 70_000)[0]
    hides = pair in {b"%61=&", b"sudo=&"}
    assert len(decoded) <= (3 * 4_096 if hides else 1)
    assert (verdict.undecidable is Undecidable.TOO_MANY) is hides


def test_nothing_holds_nothing() -> None:
    assert _scan(b"")[0] == BodyVerdict()
    assert _scan(b"a=1&b=2&", 3)[0] == BodyVerdict()
    assert _scan(b"a=token&b=2&c")[0] == BodyVerdict()


def test_behind_a_name_that_is_too_long_it_reads_no_further_and_says_so() -> None:
    scanner = FormScanner()
    scanner.feed(b"title=x&" + b" " * 4096)
    assert not scanner.blind
    scanner.feed(b" ")
    assert scanner.blind
    assert scanner.may_name(b"a&_method=delete")
    assert scanner.may_name(b"a&_%6dethod=delete")
    assert not scanner.may_name(b"a&title=x")
