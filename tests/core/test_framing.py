"""Framing, Host and field checks: one reading, or a refusal that closes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import framing
from gateway.core.errors import Code, Rejection
from gateway.core.framing import Framing, has_control, host_name, judge_fields, judge_framing, judge_host
from gateway.core.messages import Field

CL, TE, HOST = b"Content-Length", b"Transfer-Encoding", b"Host"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], Framing(False)),
        ([(CL, b"0")], Framing(False, 0)),
        ([(CL, b"5")], Framing(True, 5)),
        ([(b"content-LENGTH", b"0000000005")], Framing(True, 5)),
        ([(CL, b"5"), (CL, b"5")], Framing(True, 5)),
        ([(TE, b"chunked")], Framing(True)),
        ([(TE, b"\tChunked ")], Framing(True)),
        ([(b"X-Transfer-Encoding", b"chunked"), (b"X-Content-Len", b"1")], Framing(False)),
        ([(b"If-Modified-Since", b"chunked"), (b"Accept-Charset", b"5")], Framing(False)),  # of the same lengths
    ],
)
def test_one_length(fields: list[Field], expected: Framing) -> None:
    assert judge_framing(fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        [(CL, b"5"), (CL, b"6")],
        [(CL, b"5, 5")],
        [(CL, b"+5")],
        [(CL, b"-5")],
        [(CL, b"0x5")],
        [(CL, b"5.0")],
        [(CL, b"1_0")],
        [(CL, b"")],
        [(CL, "５".encode())],
        [(CL, b"6"), (TE, b"chunked")],
        [(TE, b"chunked"), (CL, b"0")],
        [(TE, b"chunked"), (TE, b"chunked")],
        [(TE, b"chunked, chunked")],
        [(TE, b"gzip, chunked")],
        [(TE, b"identity, chunked")],
        [(TE, b"chunked;q=1")],
        [(TE, b'"chunked"')],
        [(TE, b"\x0bchunked")],
        [(TE, b"\xa0chunked")],
        [(TE, b"chunked\x85")],
        [(TE, b"")],
        [(TE, b"xchunked")],
        [(TE, b"identity")],
    ],
    ids=repr,
)
def test_doubtful_framing_is_refused_and_closes(fields: list[Field]) -> None:
    with pytest.raises(Rejection) as refused:
        judge_framing(fields)
    assert refused.value.status in {400, 501}
    assert refused.value.close


def test_an_absurd_length_is_413() -> None:
    with pytest.raises(Rejection) as refused:
        judge_framing([(CL, b"18446744073709551621")])
    assert (refused.value.status, refused.value.code, refused.value.close) == (413, Code.BODY_TOO_LARGE, True)


def test_http_10_knows_no_coding() -> None:
    assert judge_framing([(CL, b"1")], http_10=True) == Framing(True, 1)
    with pytest.raises(Rejection):
        judge_framing([(TE, b"chunked")], http_10=True)


@pytest.mark.parametrize(
    "value",
    [b"gateway.test", b"gateway.test:443", b"gateway.test.", b"a_b.test", b"[::1]", b"[::1]:80", b"127.0.0.1:", b"x"],
)
def test_hosts_that_are_one(value: bytes) -> None:
    assert judge_host([(b"Date", b"x"), (HOST, value)]) == value


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"a b",
        b"a, b",
        b"a/b",
        b"a#b",
        b"a?b",
        b"u@a",
        b"http://a",
        b"a:abc",
        b"a:123456",
        b"a:65536",
        b"a:1:2",
        b"[::1",
        b"::1",
        b"[g::]",
        b".a",
        b"a..b",
        b"a%2eb",
        "é".encode(),
        b"a" * 300,
    ],
)
def test_hosts_that_are_none(value: bytes) -> None:
    with pytest.raises(Rejection) as refused:
        judge_host([(HOST, value)])
    assert refused.value.status == 400
    assert refused.value.close


def test_host_is_there_once_and_the_targets_authority_wins() -> None:
    with pytest.raises(Rejection):
        judge_host([])
    assert judge_host([], http_10=True) == b""
    assert judge_host([], b"a.test", http_10=True) == b"a.test"
    with pytest.raises(Rejection):
        judge_host([(HOST, b"a"), (b"host", b"a")])
    assert judge_host([(HOST, b"evil.test")], b"gateway.test") == b"gateway.test"
    with pytest.raises(Rejection):
        judge_host([(HOST, b"gateway.test")], b"bad host")


def test_host_name() -> None:
    assert host_name(b"Gateway.TEST.:443") == b"gateway.test"
    assert host_name(b"[::1]:80") == b"[::1]"
    assert host_name(b"a b") == b""


def test_sound_fields_pass() -> None:
    judge_fields(((b"X!#$%&'*+-.^`|~9", b"a\tb \xff\x80"), (b"Cookie", b"a"), (b"Cookie", b"b"), (HOST, b"x")))


@pytest.mark.parametrize(
    "name", [b"", b"a b", b"a\0", b"a(b", b'"a"', b"a\xff", b"a\\b", b"a:", b"content_LENGTH", b"Transfer_Encoding"]
)
def test_names_that_are_none(name: bytes) -> None:
    with pytest.raises(Rejection) as refused:
        judge_fields(((name, b"x"),))
    assert refused.value.status == 400


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=20))
def test_control_octets_do_not_pass(value: bytes) -> None:
    bad = any((octet < 0x20 and octet != 9) or octet == 0x7F for octet in value)
    assert has_control(value) is bad
    if bad:
        with pytest.raises(Rejection):
            judge_fields(((b"X", b"a"), (b"Y", value)))


@pytest.mark.parametrize("name", [b"Host", b"Content-Type", b"Content-Length"])
def test_some_fields_come_once(name: bytes) -> None:
    with pytest.raises(Rejection):
        judge_fields(((name, b"a"), (b"X", b"y"), (name.lower(), b"a")))


def test_limits_are_exact() -> None:
    judge_fields(((b"X", b"a" * 9),) * 5, max_count=5, max_field_bytes=10, max_bytes=60)
    for limits in (
        {"max_count": 4, "max_field_bytes": 10, "max_bytes": 60},
        {"max_count": 5, "max_field_bytes": 9, "max_bytes": 60},
        {"max_count": 5, "max_field_bytes": 10, "max_bytes": 49},
    ):
        with pytest.raises(Rejection) as refused:
            judge_fields(((b"X", b"a" * 9),) * 5, **limits)
        assert (refused.value.status, refused.value.code) == (431, Code.HEADERS_TOO_LARGE)
    with pytest.raises(Rejection):  # one of several, however short the others
        judge_fields(((HOST, b"x"), (b"X", b"a" * 10)), max_count=5, max_field_bytes=10, max_bytes=60)


def test_the_memory_of_names_is_bounded() -> None:
    for number in range(4200):
        judge_fields(((b"X-%d" % number, b""), (b"L" * 65 + b"%d" % number, b"")))
    assert len(framing._names) <= 4096
