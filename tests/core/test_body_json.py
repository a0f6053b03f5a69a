"""JSON bodies against the standard library's parser, however they are split."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import body_json as module
from gateway.core.body import WATCHED as EVERY
from gateway.core.body import BodyVerdict, Undecidable
from gateway.core.body_json import JsonScanner

NAMES = ["private_token", "access_token", "job_token", "sudo", "token", "a", 'q"\\', "é", "private_tokenx", "_method"]
WATCHED = {"private_token", "access_token", "bearer_token", "job_token", "sudo", "feed_token", "rss_token", "token"}


def _scan(body: bytes, *cuts: int) -> tuple[BodyVerdict, JsonScanner]:
    scanner = JsonScanner()
    at = 0
    for cut in [*sorted(min(cut, len(body)) for cut in cuts), len(body)]:
        scanner.feed(body[at:cut])
        at = cut
    return scanner.finish(), scanner


def _bytewise(body: bytes) -> BodyVerdict:
    return _scan(body, *range(len(body)))[0]


SCALARS = st.none() | st.booleans() | st.integers(-99, 99) | st.text('ab"\\/{}[],:é\n', max_size=6) | st.sampled_from(NAMES)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES) | st.text('ab\\"', max_size=3), VALUES, max_size=5)
DUMPS = st.sampled_from([{}, {"ensure_ascii": False}, {"indent": 1}, {"separators": (",", ":")}])


@settings(max_examples=100, deadline=None)
@given(OBJECTS | st.lists(VALUES, max_size=3), DUMPS, st.lists(st.integers(0, 120), max_size=4))
def test_agrees_with_a_parser_however_it_is_split(document: Any, options: Any, cuts: list[int]) -> None:
    body = json.dumps(document, **options).encode()
    verdict, scanner = _scan(body, *cuts)
    assert verdict.undecidable is None
    assert verdict == _bytewise(body)
    expected = [name for name in document if name in WATCHED] if isinstance(document, dict) else []
    assert [finding.name for finding in verdict.findings] == expected
    for finding in verdict.findings:
        value = document[finding.name]
        if isinstance(value, str):
            assert (finding.value, finding.plain) == (value, True)
        elif value is None:
            assert finding.value == ""
        elif not isinstance(value, bool) and isinstance(value, int) and value >= 0:
            assert finding.value == str(value)
        else:
            assert (finding.value, finding.plain) == (None, False)
        left = scanner.cut(body, finding)
        assert json.loads(left) == {name: document[name] for name in document if name != finding.name}
        assert len(left) < len(body)


@pytest.mark.parametrize("name", sorted(EVERY - {"_method"}))
def test_each_watched_name_is_found_among_others(name: str) -> None:
    body = json.dumps({"a": "x", name: "v", "z": "y"}).encode()
    assert [finding.name for finding in _scan(body)[0].findings] == [name]


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a":{"b":"x]}\"y","c":["p\\","}"]},"sudo":"v","d":[["q\"]"],"}"]}',
        rb'[{"a":"]\\"},["}"],{"sudo":["\"["]}]',
        rb' { "sudo" : [ [ ] , "\\\"" ] , "\u0073udo" : -1.5e3 , "z" : { } } ',
    ],
)
def test_wherever_it_is_cut_it_is_the_same(body: bytes) -> None:
    whole = _scan(body)[0]
    assert whole.undecidable is None
    for first in range(len(body)):
        for second in range(first, len(body)):
            assert _scan(body, first, second)[0] == whole, (body[:first], body[first:second])


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"sudo":"x"}', b"{}"),
        (b'{ "sudo" : 1 }', b"{  }"),
        (b'{"a":1, "sudo":"x" , "b":2}', b'{"a":1,  "b":2}'),
        (b'{"a":1 , "sudo":"x"}', b'{"a":1 }'),
        (b'{"\\u0073udo":null,"a":1}', b'{"a":1}'),
    ],
)
def test_cutting_a_member_takes_one_comma_along(body: bytes, left: bytes) -> None:
    verdict, scanner = _scan(body)
    (finding,) = verdict.findings
    assert scanner.cut(body, finding) == left


def test_escaped_and_repeated_names_are_all_found() -> None:
    body = b'{"\\u0070rivate_token":"a\\u0062\\"","private_token":"2","sudo":[1],"sudo":{"sudo":1}}'
    verdict = _scan(body)[0]
    assert [(f.name, f.value, f.plain) for f in verdict.findings] == [
        ("private_token", 'ab"', True),
        ("private_token", "2", True),
        ("sudo", None, False),
        ("sudo", None, False),
    ]
    assert verdict == _bytewise(body)
    assert [(f.value, f.plain) for f in _scan(b'{"sudo":1.5,"sudo":true,"sudo":-1}')[0].findings] == [(None, False)] * 3


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"sudo":1}',
        '{"sudo":1}'.encode("utf-16"),
        '{"sudo":1}'.encode("utf-16-le"),
        b'{"a":1 /* " */}',
        b"{'sudo':1}",
        b'{"a":NaN}',
        b'{"a":1} {"sudo":1}',
        b"{} x",
        b"1",
        b'"x" {"sudo":1}',
        b'"x""sudo"',
        b'"x" // {"sudo":1}',
        '"x"'.encode("utf-16-le"),
        b'{"a":"b" "sudo":"c"}',
        b'{[1]:2,"sudo":"c"}',
        b'{"a":[1] [2]}',
        b'{"a":{"b":\'\'}}',
        b'{"a":[}]',
        b'{"sudo":"\\q"}',
        b'{"sudo":' + b"1" * 80 + b"}",
        b'{"a":[\\"]}',
        b'{"a":[1,/],"b":1}',
        b'{"a":[1],"b":[/]}',
        b'{"a":[{],"b":1}',
    ],
    ids=repr,
)
def test_what_some_parser_might_read_differently_is_undecidable(body: bytes) -> None:
    assert _scan(body)[0].undecidable is not None
    assert _bytewise(body).undecidable is not None


@pytest.mark.parametrize("body", [b"{", b'{"a', b'{"a":"\\', b'{"a":1', b"[", b" ", b'{"a":{}', b'"x', b'"x\\"'])
def test_a_body_that_stops_is_undecidable(body: bytes) -> None:
    assert _scan(body)[0].undecidable is Undecidable.INCOMPLETE


def test_nothing_holds_nothing() -> None:
    assert _scan(b"")[0] == BodyVerdict()
    assert _scan(b"{}", 1)[0] == BodyVerdict()
    assert _scan(b' [ {"sudo":1} , "private_token" ] \r\n')[0] == BodyVerdict()


@pytest.mark.parametrize("body", [b'"1.0.0-rc.1+b"', b' "sudo" \r\n', rb'"{\"sudo\":1} \\ \u0022"', '"é"'.encode()])
def test_a_lone_string_holds_nothing(body: bytes) -> None:
    """As npm sends a version to be tagged."""
    assert _scan(body)[0] == _bytewise(body) == BodyVerdict()


def test_bounds() -> None:
    deep = b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"
    assert _scan(deep)[0].undecidable is Undecidable.TOO_DEEP
    assert _bytewise(deep).undecidable is Undecidable.TOO_DEEP
    assert _scan(b'{"a":[1],"b":' + b"[" * 200 + b"1" + b"]" * 200 + b"}")[0].undecidable is Undecidable.TOO_DEEP
    assert _scan(deep, 10, 100)[0].undecidable is Undecidable.TOO_DEEP
    members = b"{" + b",".join(b'"sud\\u006f%d":1' % number for number in range(module._MAX_MEMBERS + 10)) + b"}"
    assert _scan(members)[0].undecidable is Undecidable.TOO_MANY
    many = _scan(b"{" + b'"project":"%b",' % (b"x" * 16_000) * 100 + b'"a":1}')[0]
    assert (many.undecidable, len(many.findings)) == (Undecidable.TOO_MANY, 65)
    steps = b'{"a":[' + b"[[{}],1]," * 250_000 + b"1]}"
    assert _scan(steps[: len(steps)])[0].undecidable is None
    long = b'{"private_token":"' + b"x" * 20000 + b'","' + b"n" * 200 + b'":"y","sudo":"z"}'
    for verdict in (_scan(long)[0], _scan(long, 15, 18000, 20100)[0]):
        assert [(f.name, f.value, f.plain) for f in verdict.findings] == [
            ("private_token", None, False),
            ("sudo", "z", True),
        ]


def test_large_bodies_are_read_in_pieces() -> None:
    rows = ",".join(['{"id":1,"name":"a\\"b","x":{"private_token":"no"}}'] * 20000)
    body = ('{"rows":[' + rows + '],"sudo":"me"}').encode()
    verdict = _scan(body)[0]
    assert [(f.name, f.value) for f in verdict.findings] == [("sudo", "me")]
    assert body[verdict.findings[0].start : verdict.findings[0].end] == b'"sudo":"me"'


def test_containers_that_keep_coming_back_up_are_bounded() -> None:
    member = b'"a":[' + b"[[1]]," * 10 + b"1],"
    assert _scan(b"{" + member * 10_000 + b'"z":1}')[0].undecidable is Undecidable.TOO_MANY


def test_behind_what_is_no_json_it_reads_no_further_and_says_so() -> None:
    scanner = JsonScanner()
    scanner.feed(b'{"title":"x",')
    assert not scanner.blind
    scanner.feed(b"/**/")
    assert scanner.blind
    assert scanner.may_name(b'"private_token":"x"}')
    assert scanner.may_name(b'"private\\u005ftoken":"x"}')
    assert scanner.may_name(b'"private_t\\oken":"x"}')
    assert scanner.may_name(b'"su\\do":"root"}')
    assert not scanner.may_name(b'"title":"sudo make","a":"pseudo"}')
    assert not scanner.may_name(b'"title":"\\u00e9 _method"}')
