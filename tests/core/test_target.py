"""Targets: what is refused, what passes, and that whatever passes is never altered."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import target as module
from gateway.core.errors import Code, Rejection
from gateway.core.target import parse_target, percent_decode

TABLE = Path(__file__).parent.parent / "data" / "nasty_targets.txt"


def _rows() -> list[tuple[str, bytes]]:
    rows = []
    for line in TABLE.read_text("ascii").split("\n")[:-1]:
        if not line.startswith("#"):
            expected, _, written = line.partition(" ")
            rows.append((expected, written.encode().decode("unicode_escape").encode("latin-1")))
    return rows


ROWS = _rows()


def test_the_table_is_long() -> None:
    assert len(ROWS) >= 300


@pytest.mark.parametrize(("expected", "raw"), ROWS, ids=[f"{expected}-{raw!r}" for expected, raw in ROWS])
def test_table(expected: str, raw: bytes) -> None:
    if expected == "400":
        with pytest.raises(Rejection) as refused:
            parse_target(raw)
        assert (refused.value.status, refused.value.code) == (400, Code.BAD_TARGET)
        return
    target = parse_target(raw)
    origin = raw
    if target.authority is not None:
        origin = raw.partition(b"://")[2].removeprefix(target.authority)
        origin = origin if origin.startswith(b"/") else b"/" + origin
    assert target.raw == origin
    assert target.path + (b"" if target.query is None else b"?" + target.query) == origin


PIECE = st.sampled_from(
    [
        b"a",
        b"Z",
        b"0",
        b".",
        b"..",
        b"%2F",
        b"%2f",
        b"%2e",
        b"%252e",
        b"%25",
        b"%5c",
        b"%00",
        b"%3b",
        b";",
        b"~",
        b"+",
        b"@",
    ]
)
SEGMENT = st.lists(PIECE, min_size=1, max_size=4).map(b"".join)
QUERY = st.lists(st.sampled_from([b"a", b"=", b"&", b";", b"?", b"%", b"%2F", b"/", b"..", b"[]", b"+"]), max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(SEGMENT, max_size=5), st.booleans(), st.none() | QUERY.map(b"".join))
def test_what_passes_is_unaltered_and_holds_no_dot_segment(segments: list[bytes], slash: bool, query: bytes | None) -> None:
    raw = b"/" + b"/".join(segments) + (b"/" if slash and segments else b"") + (b"" if query is None else b"?" + query)
    try:
        target = parse_target(raw)
    except Rejection:
        return  # the table says what is refused; this, that nothing passes altered
    assert target.raw == raw
    assert target.query == query
    assert len(target.segments) == len(segments)
    for segment in target.segments:
        decoded = segment.encode("utf-8", "surrogateescape")
        for _ in range(3):
            assert decoded.partition(b";")[0] not in {b".", b".."}
            assert b"\0" not in decoded
            decoded = percent_decode(decoded)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_any_octets_pass_unaltered_or_are_refused(raw: bytes) -> None:
    try:
        target = parse_target(b"/" + raw)
    except Rejection:
        return
    assert target.raw == b"/" + raw


def test_segments_are_split_before_they_are_decoded() -> None:
    target = parse_target(b"/api/v4/projects/g%2Fp%252F/files/%E6%97%A5%ff/?a")
    assert target.segments == ("api", "v4", "projects", "g/p%2F", "files", "日\udcff")
    assert parse_target(b"/a/b/").segments == ("a", "b")
    assert parse_target(b"/").segments == ()


@pytest.mark.parametrize("dots", [b"..", b"%2e.", b"%2e%2e", b"%252e%252e", b"%25252e%25252e"])
def test_dots_are_looked_for_under_three_encodings_and_no_more(dots: bytes) -> None:
    with pytest.raises(Rejection):
        parse_target(b"/a/" + dots + b"/b")
    assert parse_target(b"/a/%2525252e%2525252e/b").segments == ("a", "%25252e%25252e", "b")


@pytest.mark.parametrize(
    ("raw", "authority", "origin"),
    [
        (b"http://gateway.test", b"gateway.test", b"/"),
        (b"HTTPS://gateway.test:443?a", b"gateway.test:443", b"/?a"),
        (b"http://[::1]:80/x%2F", b"[::1]:80", b"/x%2F"),
    ],
)
def test_absolute_form(raw: bytes, authority: bytes, origin: bytes) -> None:
    target = parse_target(raw)
    assert (target.authority, target.raw) == (authority, origin)


def test_too_long_is_414_and_exactly_the_limit_passes() -> None:
    assert parse_target(b"/" + b"a" * 16383).raw
    with pytest.raises(Rejection) as refused:
        parse_target(b"/" + b"a" * 16384)
    assert (refused.value.status, refused.value.code) == (414, Code.TARGET_TOO_LONG)


def test_relative_url_root() -> None:
    assert parse_target(b"/gitlab/api/v4", prefix=b"/gitlab").segments == ("api", "v4")
    assert parse_target(b"/gitlab", prefix=b"/gitlab").segments == ()
    assert parse_target(b"/gitlab?x", prefix=b"/gitlab").raw == b"/gitlab?x"
    for outside in (b"/", b"/gitlabs/x", b"/api/v4", b"/%67itlab/x"):
        with pytest.raises(Rejection) as refused:
            parse_target(outside, prefix=b"/gitlab")
        assert refused.value.status == 404
    with pytest.raises(Rejection):
        parse_target(b"/gitlab//x", prefix=b"/gitlab")


def test_a_refusal_never_repeats_the_target() -> None:
    with pytest.raises(Rejection) as refused:
        parse_target(b"/api/%00?private_token=glpat-secret")
    assert "secret" not in f"{refused.value!r}{refused.value}{refused.value.message}{refused.value.detail}"


def test_the_memory_of_paths_is_bounded_and_holds_no_query() -> None:
    module._PARSED.clear()
    for number in range(module._PARSED_BOUND + 10):
        parse_target(b"/n/%d?private_token=x" % number)
    assert len(module._PARSED) <= module._PARSED_BOUND
    assert not any(b"?" in path for path in module._PARSED)
    parse_target(b"/" + b"l" * 600)
    assert b"/" + b"l" * 600 not in module._PARSED
    assert parse_target(b"/n/1").segments == ("n", "1")


@given(
    st.lists(st.sampled_from([b"%2F", b"%2f", b"%25", b"%", b"%%2F", b"2F", b"%252F", b"/", b"a", b"%ff", b"%2"])).map(
        b"".join
    )
)
def test_percent_decode_is_the_usual_one(octets: bytes) -> None:
    assert percent_decode(octets) == unquote_to_bytes(octets)


def test_percent_decode_leaves_the_invalid() -> None:
    assert percent_decode(b"%41%zz%4") == b"A%zz%4"
    assert percent_decode(b"plain") == b"plain"
