"""Multipart bodies against the standard library's parser, however they are split."""

from __future__ import annotations

import email
import email.policy
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.body import BodyVerdict, Finding, Undecidable
from gateway.core.body_multipart import MultipartScanner, boundary_of
from gateway.core.query import top_level_name

B = b"--x7y"
WATCHED = {b"private_token", b"sudo", b"_method"}


def _scan(body: bytes, *cuts: int) -> tuple[BodyVerdict, MultipartScanner]:
    scanner = MultipartScanner(B)
    at = 0
    for cut in [*sorted(min(cut, len(body)) for cut in cuts), len(body)]:
        scanner.feed(body[at:cut])
        at = cut
    return scanner.finish(), scanner


def _part(name: bytes, content: bytes = b"v", more: bytes = b"") -> bytes:
    return b"--" + B + b'\r\nContent-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + content + b"\r\n"


END = b"--" + B + b"--\r\n"
NAMES = st.sampled_from([b"private_token", b"sudo", b"_method", b"a", b"a[]", b"file", b"tokens"])
CONTENT = st.lists(
    st.sampled_from([b"x", b"\r\n", b"-", b"--", b"--x7", b"\0", b"\xff", b"name=sudo", b"\r\n--"]), max_size=6
).map(b"".join)
FILE = st.sampled_from([b"", b'; filename="a b.txt"\r\nContent-Type: text/plain', b"\r\nContent-Type: text/plain"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, CONTENT, FILE), min_size=1, max_size=5), st.lists(st.integers(0, 400), max_size=4))
def test_agrees_with_a_parser_however_it_is_split(parts: list[tuple[bytes, bytes, bytes]], cuts: list[int]) -> None:
    body = b"".join(_part(*part) for part in parts) + END
    verdict, scanner = _scan(body, *cuts)
    assert verdict == _scan(body, *range(len(body)))[0]
    assert verdict.undecidable is None
    head = b"Content-Type: multipart/form-data; boundary=" + B + b"\r\n\r\n"
    parsed = [
        part.get_param("name", header="content-disposition")
        for part in email.message_from_bytes(head + body, policy=email.policy.HTTP).get_payload()
    ]
    assert parsed == [name.decode() for name, _, _ in parts]
    expected = [
        (n.decode(), None if b"filename" in f else c.decode("utf-8", "surrogateescape"))
        for n, c, f in parts
        if n in WATCHED
    ]
    assert [(f.name, f.value) for f in verdict.findings] == expected
    for finding in verdict.findings:
        left = scanner.cut(body, finding)
        kept = body[finding.start : finding.end]
        assert kept.startswith(b"--" + B + b"\r\n")
        assert left == body.replace(kept, b"", 1) or len(parts) == 1 or left.startswith(b"--" + B)


def test_wherever_it_is_cut_it_is_the_same() -> None:
    body = _part(b"a", b"\r\n--x7") + _part(b"sudo", b"\r\n-", b'; filename="f"') + _part(b"_method", b"--x7y") + END
    whole = _scan(body)[0]
    assert [finding.name for finding in whole.findings] == ["sudo", "_method"]
    for first in range(len(body)):
        for second in range(first, len(body), 3):
            assert _scan(body, first, second)[0] == whole, (body[:first], body[first:second])


def test_cutting_a_part_leaves_the_others() -> None:
    body = _part(b"a") + _part(b"sudo", b"me") + _part(b"b") + END
    verdict, scanner = _scan(body)
    assert verdict.findings == (
        Finding("sudo", "me", len(_part(b"a")), len(_part(b"a") + _part(b"sudo", b"me")), plain=True),
    )
    assert scanner.cut(body, verdict.findings[0]) == _part(b"a") + _part(b"b") + END
    for alone in (_part(b"sudo") + END, _part(b"sudo") + END[:-2], b"\r\n" + _part(b"sudo") + END + b"epilogue"):
        verdict, scanner = _scan(alone)
        assert scanner.cut(alone, verdict.findings[0]) == END, "to Rack nothing else is a body without parts"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (b"sudo[]", b""),
        (b"%73udo", b""),
        (b" sudo", b""),
        (b"[sudo]", b""),
        (b"sudo", b'; filename="x"'),
        (b"sudo", b"; filename*=UTF-8''x"),
        (b"sudo", b"\r\nContent-Transfer-Encoding: Quoted-Printable"),
    ],
)
def test_odd_names_are_found_but_not_plain(name: bytes, more: bytes) -> None:
    verdict = _scan(_part(name, b"x", more) + END)[0]
    assert [(f.name, f.value, f.plain) for f in verdict.findings] == [("sudo", None, False)]


@pytest.mark.parametrize("coding", [b"7bit", b"8bit", b"binary"])
def test_a_coding_that_is_none_changes_nothing(coding: bytes) -> None:
    verdict = _scan(_part(b"sudo", b"x", b"\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: " + coding) + END)[0]
    assert [(f.name, f.value, f.plain) for f in verdict.findings] == [("sudo", "x", True)]


@pytest.mark.parametrize("name", [b"sudo", b"sudo[x]", b"sudo[", b"sudo]", b"s%75do"])
def test_names_without_quotes_are_found(name: bytes) -> None:
    head = b"Content-Disposition: form-data; name=%b; filename*=UTF-8''x\r\n\r\nroot\r\n" % name
    assert [each.name for each in _scan(b"--" + B + b"\r\n" + head + END)[0].findings] == ["sudo"]


HEADS = [
    b"Content-Type: text/plain",
    b"Content-Disposition: form-data",
    b'Content-Disposition: form-data; name="a"; name="sudo"',
    b"Content-Disposition: form-data; name*=UTF-8''sudo",
    b"Content-Disposition: form-data; name=\"a\"; name*=UTF-8''sudo",
    b'Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="sudo"',
    b'X: Content-Disposition: form-data; name="sudo"',
    b'Content-Disposition: form-data;\r\n name="sudo"',
    b'Content-Disposition: form-data; name="su\\do"',
    b'Content-Disposition: form-data; name="a"; filename="b; name=sudo"',
    b'Content-Disposition: attachment; name="sudo"',
    b'Content-Disposition: form-data; name = "sudo"',
    b'Content-Disposition: form-data; name="a\nb"',
    b'Content-Disposition : form-data; name="sudo"',
    b'Content-Disposition: form-data; name="a"\nX: y',
    b'Content-Disposition: form-data; name="a"\rX',
    b'Content-Disposition: form-data; name="a"\0',
    b'Content-Disposition: form-data; name="a" junk',
    b'Content-Disposition: form-data; name="unclosed',
    # To Rack 2 a name without quotes ends where no token goes on, and the first seven of these are `sudo`.
    b"Content-Disposition: form-data; name=sudo(x",
    b"Content-Disposition: form-data; name=sudo)",
    b"Content-Disposition: form-data; name=sudo<x>",
    b"Content-Disposition: form-data; name=sudo:x",
    b"Content-Disposition: form-data; name=sudo/x",
    b"Content-Disposition: form-data; name=sudo?x",
    b"Content-Disposition: form-data; name=sudo=x",
    # It takes a name that it does not find from elsewhere.
    b"Content-Disposition: form-data; name=(x\r\nContent-ID: sudo",
    b"Content-Disposition: form-data; name=[sudo]\r\nContent-ID: sudo",
    b'Content-Disposition: form-data; name=""\r\nContent-Type: sudo',
    b'Content-Disposition: form-data; x="; name=title"\r\nContent-ID: sudo',
    b'Content-Disposition: form-data; x="a:b"; name="title"\r\nContent-ID: sudo',
    b'Content-ID: sudo\r\nContent-Disposition: form-data; filename="a:b"; name="title"',
    b'Content-Disposition: form-data; x="a:b"; name="title"\r\nContent-Type: sudo',
    # Rack 2 calls it by its file then, where it finds one.
    b'Content-Disposition: form-data; filename="sudo"; x="a:b"; name="title"',
    b'Content-Disposition: form-data; filename="su%64o"; x="a:b"; name="title"',
    b'Content-Disposition: form-data; filename="[sudo+"; x="a:b"; name="title"',
    b'Content-Disposition: form-data; filename=""; x="a:b"; name="title"\r\nContent-Type: sudo',
    b'Content-Disposition: form-data; Filename="a"; x="a:b"; name="title"\r\nContent-Type: sudo',
    b'Content-Disposition: form-data; filename="a"; filename="b"; x="a:b"; name="title"\r\nContent-Type: sudo',
    b'Content-Disposition: form-data;filename="a"; x*="a:b"; name="title"\r\nContent-Type: sudo',
    b'Content-Disposition: form-data;filename="a"; x="a:b"; y=(; name="title"\r\nContent-Type: sudo',
    b'Content-Disposition: form-data;filename="a"; x="a:b"; name="title";\r\nContent-Type: sudo',
    b'Content-Disposition: form-data; filename*=UTF-8\'\'sudo; x="a:b"; name="title"',
    b'Content-Disposition: form-data; filename="a"; x="a:b"; name="title"\r\nX-Content-ID: sudo',
    b'Content-Disposition: form-data; x="a:b"; name="title"; filename="Content-ID: sudo["',
    b'Content-Disposition: form-data; filename="a"; x="a:b"; name="title"\r\nContent-Type: a/b; filename=sudo',
    # Rack 2 looks for it on other lines, too: as far as a colon.
    b'Content-Disposition: form-data; name="title"\r\nX; name=sudo: y',
    b'Content-Disposition: form-data; name="title";\r\nname=sudo: y',
    b'Content-Disposition: form-data; name="title"\r\nX; name="sudo"',
    b'Content-Disposition: form-data; name="title"\r\n; name=sudo',
    b'Content-Disposition: form-data; name="title"\r\n: y',
    # Rack 3 reads no longer a disposition, and no more of its parameters.
    b'Content-Disposition: form-data; name="title"; filename="%b"\r\nContent-Type: project_ids' % (b"x" * 1500),
    b"Content-Disposition: form-data%b; name=title" % (b"; a=b" * 16),
    b'Content-Disposition: form-data; name="title"\r\nContent-ID: sudo',
    # Nor does it take capitals for a name.
    b'Content-Disposition: form-data; NAME="title"\r\nContent-Type: project_ids',
]


@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_heads_that_parsers_read_differently_are_undecidable(head: bytes) -> None:
    body = b"--" + B + b"\r\n" + head + b"\r\n\r\nx\r\n" + END
    assert _scan(body)[0].undecidable is Undecidable.MALFORMED
    assert _scan(body, *range(len(body)))[0].undecidable is Undecidable.MALFORMED


@pytest.mark.parametrize("charset", [b"ISO-2022-JP", b'"iso2022-jp"; x=y'])
@pytest.mark.parametrize("name", [b"su\x1b(Bdo", b"sudo"])
def test_a_part_that_rack_writes_in_another_charset_is_undecidable(name: bytes, charset: bytes) -> None:
    """Its third one takes the escapes out of the name, and out of the user."""
    body = _part(name, b"ro\x1b(Bot", b"\r\nContent-Type: text/plain; charset=" + charset) + END
    verdict, scanner = _scan(body)
    assert verdict == BodyVerdict((), Undecidable.CHARSET)
    assert scanner.may_name(body)


def test_a_file_may_be_in_any_charset() -> None:
    """Rack leaves it as it is, and its name."""
    japanese = b'; filename="iso-2022-jp.txt"\r\nContent-Type: text/plain; charset=ISO-2022-JP'
    assert _scan(_part(b"a", more=japanese) + END)[0] == BodyVerdict()
    assert _scan(_part(b"a", more=japanese.upper()) + END)[0].undecidable is Undecidable.CHARSET, "no file to Rack 3"


# Where Racks 2.0, 2.2 and 3 take a part's name from: Rack::Multipart's own expressions, and its third one's loop.
_TOKEN = rb'[^\s()<>,;:\\"/\[\]?=]+'
_VALUE = rb'"(?:\\"|[^"])*"|' + _TOKEN
_RACK_20 = re.compile(rb"Content-Disposition:.*;\s*name=(" + _VALUE + rb")", re.IGNORECASE)
_RACK_22 = re.compile(rb"Content-Disposition:[^:]*;\s*name=(" + _VALUE + rb")", re.IGNORECASE)
_RACK_3 = re.compile(rb"Content-Disposition:(.*)(?=\r\n(?:\S|$))", re.IGNORECASE)
_RACK_3_PARAMETER = re.compile(rb'([^=]*)=(?:"((?:[^"\\]|\\.)*)"?[^;]*|([^;]*));?')
# The file's, from a disposition that its second one takes for well formed.
_RACK_22_FILE = re.compile(
    rb"Content-Disposition:\s*"
    + _TOKEN
    + rb"\s*(?:;\s*[^ \t\v\n\r)(><@,;:\\\"/\[\]?='*%]+=(?:"
    + _VALUE
    + rb")\s*)*?;\s*filename=("
    + _VALUE
    + rb")\s*(?:;\s*[^ \t\v\n\r)(><@,;:\\\"/\[\]?='*%]+=(?:"
    + _VALUE
    + rb")\s*)*$",
    re.IGNORECASE | re.MULTILINE,
)
_ELSEWHERE = (
    re.compile(rb"Content-ID:\s*([^\r\n]*)", re.IGNORECASE),
    re.compile(rb"Content-Type: (.*)\r\n", re.IGNORECASE),
)


def _names_in(head: bytes) -> set[bytes]:
    """Under which parameter some Rack files the part."""
    found = []
    for expression in (_RACK_20, _RACK_22):
        match = expression.search(head)
        found.append(b"" if match is None else match[1].strip(b'"'))
    disposition = _RACK_3.search(head)
    given = [] if disposition is None else _RACK_3_PARAMETER.findall(disposition[1].partition(b";")[2])
    found += [quoted or bare for key, quoted, bare in given[:16] if key.strip() == b"name"][-1:] or [b""]
    file = _RACK_22_FILE.search(head)
    if b"" in found and file is not None:
        found.append(file[1].strip(b'"'))
    elif b"" in found:
        found += [match[1] for expression in _ELSEWHERE if (match := expression.search(head)) is not None][:1]
    return {top_level_name(name) for name in found}


def test_no_name_is_another_to_gitlab() -> None:
    """All heads of up to four of these pieces that the gateway decides."""
    pieces = [
        *(
            b'; name="title"',
            b'; Name="title"',
            b"; name=sudo",
            b'; x="a:b"',
            b'; filename="f"',
            b"; name=[sudo]",
            b'; filename="sudo"',
            b";",
            b" ",
            b'"',
            b": y",
        ),
        *(b"\r\nname=sudo", b"\r\nX: y", b"\r\nX; name=sudo", b"\r\nContent-ID: sudo", b"\r\nContent-Type: sudo"),
    ]
    decided = 0
    for count in range(1, 5):
        for chosen in itertools.product(pieces, repeat=count):
            head = b"Content-Disposition: form-data" + b"".join(chosen)
            verdict = _scan(b"--" + B + b"\r\n" + head + b"\r\n\r\nroot\r\n" + END)[0]
            if verdict.undecidable is None:
                decided += 1
                named = {finding.name for finding in verdict.findings}
                assert b"sudo" not in _names_in(head + b"\r\n") or named == {"sudo"}, head
    assert decided > 100


@pytest.mark.parametrize(
    "body",
    [
        b"preamble\r\n" + _part(b"a") + END,
        _part(b"a", b"x--" + B + b"\r\ny") + END,
        _part(b"a", b"x\n--" + B + b"\r\ny") + END,
        _part(b"a", b"x\r\n--" + B + b" \r\ny") + END,
        _part(b"a", b"x\r\n--" + B + b"y") + END,
        _part(b"a") + END + _part(b"sudo") + END,
        b"--" + B + b"\n" + _part(b"sudo") + END,
        b"--" + B + b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n--' + B + b"--\r\n",
    ],
    ids=repr,
)
def test_delimiters_that_parsers_read_differently_are_undecidable(body: bytes) -> None:
    assert _scan(body)[0].undecidable is Undecidable.BOUNDARY
    assert _scan(body, *range(len(body)))[0].undecidable is Undecidable.BOUNDARY


@pytest.mark.parametrize("body", [b"--", _part(b"a"), b"--" + B + b"\r\nContent-Disp", _part(b"a") + b"--" + B])
def test_a_body_that_stops_is_undecidable(body: bytes) -> None:
    assert _scan(body)[0].undecidable is Undecidable.INCOMPLETE


@pytest.mark.parametrize("name", ["a.txt", "project.zip", "a:b", "100%.txt"])
def test_a_file_with_a_date_before_its_name_is_read(name: str) -> None:
    """As Jersey writes it, and gitlab4j with it."""
    dated = f'; filename="{name}"; modification-date="Sun, 22 Nov 2026 22:38:00 GMT"; size=5; name='
    for called, findings in (("file", []), ("sudo", ["sudo"])):
        head = f'Content-Type: text/plain\r\nContent-Disposition: form-data{dated}"{called}"'.encode()
        verdict = _scan(b"--" + B + b"\r\n" + head + b"\r\n\r\nx\r\n" + END)[0]
        assert verdict.undecidable is None
        assert [(f.name, f.value, f.plain) for f in verdict.findings] == [(name, None, False) for name in findings]


def test_what_is_harmless_passes() -> None:
    assert _scan(b"")[0] == BodyVerdict()
    assert _scan(b"\r\n" + _part(b"a") + END + b"epilogue" * 10)[0] == BodyVerdict()
    assert _scan(END)[0] == BodyVerdict()
    assert _scan(_part(b"a", b"") + END)[0] == BodyVerdict()
    file = b'; filename="C:a.txt"\r\nContent-Type: text/plain; name="x"\r\nContent-Length: 1'
    more = b"\r\nContent-Transfer-Encoding: binary\r\nX-Own: a; name=b"
    assert _scan(_part(b"file", b"x", file + more) + END)[0] == BodyVerdict()
    token = b"--" + B + b"\r\ncontent-disposition:form-data;name=sudo\r\n\r\nx\r\n" + END
    assert [(f.name, f.value, f.plain) for f in _scan(token)[0].findings] == [("sudo", "x", True)]


def test_bounds() -> None:
    assert _scan(_part(b"a", b"x", b"\r\nX: " + b"y" * 20000) + END)[0].undecidable is Undecidable.TOO_MANY
    assert _scan((_part(b"a") * 4097) + END)[0].undecidable is Undecidable.TOO_MANY
    many = _scan(_part(b"project", b"x" * 16_000) * 100 + END)[0]
    assert (many.undecidable, len(many.findings)) == (Undecidable.TOO_MANY, 65)
    long = _part(b"sudo", b"x" * 40000) + END
    for verdict in (_scan(long)[0], _scan(long, *range(0, len(long), 1000))[0]):
        assert [(f.value, f.plain) for f in verdict.findings] == [(None, False)]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'multipart/form-data; Boundary="a b=c"; x=y', b"a b=c"),
        (b"multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxk", b"----WebKitFormBoundary7MA4YWxk"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b'multipart/form-data; boundary=""', None),
        (b"multipart/form-data; boundary=a; boundary=b", None),
        (b"multipart/form-data; boundary*=UTF-8''a", None),
        (b"multipart/form-data; boundary = a", None),
        (b'multipart/form-data; boundary="a', None),
        (b'multipart/form-data; boundary="a "', None),
        (b'multipart/form-data; boundary="a,b"', None),
        (b'multipart/form-data; boundary="a\\"b"', None),
        (b"multipart/form-data; boundary=a b", None),
        (b"multipart/form-data; boundary=" + b"a" * 71, None),
        (b"multipart/form-data;boundary=abc;", b"abc"),
        (b"multipart/form-data; charset=UTF-8; boundary=Boundary_1-abc ; x", None),
        (b"multipart/form-data; charset=UTF-8; boundary=Boundary_1-abc ;", b"Boundary_1-abc"),
        (b'multipart/related; type="text/xml"; start="<a@b.c>"; boundary="=_a.b:c"', b"=_a.b:c"),
        # Go puts one together of pieces, and takes that one.
        (b"multipart/form-data; boundary*0=b; boundary=a", None),
        (b"multipart/form-data; boundary=a; boundary*0*=utf-8''b", None),
        (b"multipart/form-data; boundary=a; BOUNDARY*0=b; boundary*1=c", None),
        (b"multipart/form-data; xboundary=a; boundary*0=b", None),
        # To Go any blank of Unicode's may stand before the sign, and Rack takes what is in another's name, or its quotes.
        (b"multipart/form-data; boundary\xc2\xa0=b; xboundary=a", None),
        (b"multipart/form-data; boundary\xe2\x80\x83=b; xboundary=a", None),
        (b"multipart/form-data; boundary=b; xboundary=a", None),
        (b"multipart/form-data; boundary=b; xBOUNDARY=a", None),
        (b"multipart/form-data; xboundary=a", None),
        (b'multipart/form-data; boundary=b; x="; boundary=a"', None),
        (b'multipart/form-data; boundary=b; x="; BOUNDARY=a"', None),
        (b'multipart/form-data; x="; boundary=a"', None),
        (b'multipart/form-data; boundary="b boundary=a"', None),
        (b"multipart/form-data; boundary=Boundary=a", None),
        (b'multipart/form-data; boundary=b; x="a\\"; boundary=a"', None),
        (b"multipart/form-data, boundary=a", None),
        (b"multipart/form-data,a/b; boundary=a", None),
        (b"multipart/form-data a; boundary=a", None),
        (b"multipart/form-data ; boundary=a", b"a"),
        (b"multipart/form-data; boundary= a", None),
        (b"multipart/form-data; boundary=a; x=b,c", None),
        (b"multipart/form-data; boundary=a; x=b\\c", None),
        (b'multipart/form-data; boundary=a; x="\\"', None),
        (b'multipart/form-data; boundary=a; x="\xc3\xa9"', None),
        (b"multipart/form-data; boundary=a, multipart/form-data; x=y", None),
    ],
)
def test_boundary(content_type: bytes, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    ("blanks", "undecidable"),
    [
        (b'; filename="name' + b" " * 16000 + b'"', Undecidable.MALFORMED),
        (b" " * 16000 + b"x", Undecidable.MALFORMED),
        (b"; a=b" + b" ;" * 8000, Undecidable.MALFORMED),
    ],
)
def test_blanks_take_no_longer_than_their_length(blanks: bytes, undecidable: Undecidable | None) -> None:
    """Their square, in each of so many parts, would be minutes."""
    part = _part(b"a", more=blanks)
    for _ in range(1000):
        scanner = MultipartScanner(B)
        scanner.feed(part)
        scanner.feed(END)
        assert scanner.finish().undecidable is undecidable


def test_parts_take_no_longer_for_what_stands_behind_them() -> None:
    """All of it moved for each of so many parts would be minutes."""
    body = _part(b"a") * 4095 + _part(b"f", b"y" * (1 << 26)) + END
    assert _scan(body)[0] == BodyVerdict()


@pytest.mark.parametrize("more", [b"; x=a,b", b"; x=a\\b", b'; x=a"b', b"; x=a b", b"; x =a", b"; x=", b"; x"])
def test_a_parameter_is_a_token_or_in_quotes(more: bytes) -> None:
    scanner = MultipartScanner(B)
    scanner.feed(_part(b"a", more=more) + END)
    assert scanner.finish().undecidable is Undecidable.MALFORMED


@pytest.mark.parametrize("other", [b"NAME=x", b"name =x", b"name* =x", b"name*=x"])
def test_no_other_name_stands_in_quotes(other: bytes) -> None:
    scanner = MultipartScanner(B)
    scanner.feed(_part(b"a", more=b'; filename="; %b"' % other) + END)
    assert scanner.finish().undecidable is Undecidable.MALFORMED


@pytest.mark.parametrize("file", [b"my name=sudo.txt", b"report_name=sudo;x.csv", b"a; file name=sudo", b"x;nickname=sudo"])
def test_a_file_may_be_called_so(file: bytes) -> None:
    scanner = MultipartScanner(B)
    scanner.feed(_part(b"title", more=b'; filename="%b"' % file) + END)
    assert scanner.finish() == BodyVerdict()


@pytest.mark.parametrize("more", [b'; FILENAME="f"', b"; FileName*=f"])
def test_a_file_is_one_however_that_is_spelt(more: bytes) -> None:
    scanner = MultipartScanner(B)
    scanner.feed(_part(b"sudo", more=more) + END)
    assert [(finding.value, finding.plain) for finding in scanner.finish().findings] == [(None, False)]


@pytest.mark.parametrize("more", [b"", b"=x", b"*"])
def test_blanks_of_a_boundary_take_no_longer_than_their_length(more: bytes) -> None:
    assert boundary_of(b"multipart/form-data; boundary" + b" " * (1 << 18) + more) is None
    assert boundary_of(b"multipart/form-data" + b"; a=b" * (1 << 16) + b" " * (1 << 18) + more + b",") is None


def test_behind_what_readers_take_differently_it_reads_no_further_and_says_so() -> None:
    scanner = MultipartScanner(B)
    scanner.feed(_part(b"title"))
    assert not scanner.blind
    scanner.feed(_part(b"a", more=b"\r\n folded"))
    assert scanner.blind
    assert scanner.may_name(_part(b"_method"))
    assert scanner.may_name(_part(b"private\\_token"))
    assert not scanner.may_name(_part(b"title"))
