"""Parameters read as Rack reads them, and cut without touching a neighbour."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.query import cut_parameters, form_decode, query_parameters, top_level_name

NAMES = frozenset({"private_token", "sudo"})


@pytest.mark.parametrize(
    ("query", "name", "value", "plain"),
    [
        (b"private_token=x", "private_token", b"x", True),
        (b"private%5Ftoken=x", "private_token", b"x", True),
        (b"%70rivate_token=a%2Bb+c", "private_token", b"a+b c", True),
        (b"private_token", "private_token", b"", True),
        (b"private_token=a=b", "private_token", b"a=b", True),
        (b"private_token[]=x", "private_token", b"x", False),
        (b"private_token%5Bx%5D=x", "private_token", b"x", False),
        (b"[private_token]=x", "private_token", b"x", False),
        (b"+private_token=x", "private_token", b"x", False),
        (b"private_token%20=x", "private_token", b"x", False),
        (b"[+private_token]=x", "private_token", b"x", False),
        (b"private_token+[]=x", "private_token", b"x", False),
        (b"%zz=x", "%zz", b"x", True),
    ],
)
def test_one_parameter(query: bytes, name: str, value: bytes, plain: bool) -> None:
    (parameter,) = query_parameters(query)
    assert (parameter.name, parameter.value, parameter.plain) == (name, value, plain)
    assert query[parameter.start : parameter.end] == query


def test_semicolons_separate_but_are_never_plain() -> None:
    query = b"a=1;private_token=x&&b=2;"
    assert [(p.name, query[p.start : p.end], p.plain) for p in query_parameters(query)] == [
        ("a", b"a=1", False),
        ("private_token", b"private_token=x", False),
        ("b", b"b=2", False),
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab=&%2F[]+;?", max_size=6), max_size=6))
def test_cutting_leaves_every_other_octet_in_place(pieces: list[str]) -> None:
    others = [piece.encode().replace(b"&", b"") for piece in pieces]
    raw = b"/x?" + b"&".join(others)
    assert cut_parameters(raw, NAMES) == raw
    with_one = b"/x?" + b"&".join([*others[:1], b"private%5ftoken=s", *others[1:]])
    expected = b"/x?" + b"&".join(others) if others else b"/x"
    assert cut_parameters(with_one, NAMES) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.text("xy+%", max_size=4)), max_size=5))
def test_agrees_with_the_standard_library(pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={value}" for name, value in pairs)
    ours = [(p.name, p.value.decode()) for p in query_parameters(query.encode())]
    assert ours == parse_qsl(query, keep_blank_values=True)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/x", b"/x"),
        (b"/x?sudo=1", b"/x"),
        (b"/x?sudo=1&a", b"/x?a"),
        (b"/x?a&sudo=1", b"/x?a"),
        (b"/x?sudo=1&&a&", b"/x?&a&"),
        (b"/x?a=1&sudo=1;b=2&c", b"/x?a=1&c"),
        (b"/x?a=sudo", b"/x?a=sudo"),
        (b"https://h/x?sudo=1#f", b"https://h/x#f"),
        (b"/x?a?sudo=1", b"/x?a?sudo=1"),
    ],
)
def test_cut(raw: bytes, expected: bytes) -> None:
    assert cut_parameters(raw, NAMES) == expected


def test_names_nest_and_blanks_do_not_hide_them() -> None:
    assert top_level_name(b"a[b][c]") == b"a"
    assert top_level_name(b" [[a]]\0") == b"a"
    assert top_level_name(b"") == b""
    assert form_decode(b"a+%2B%") == b"a +%"
