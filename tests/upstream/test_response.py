"""The response reader: what it takes, what it refuses, and that pieces don't matter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.upstream.response import (
    CHUNKED,
    MAX_CHUNK_LINE_BYTES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_LINE_BYTES,
    UNTIL_CLOSE,
    ChunkedReader,
    CloseReader,
    Head,
    HeadBuffer,
    LengthReader,
    Malformed,
    body_reader,
    parse_head,
)


def head(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK", bodiless: bool = False) -> Head:
    return parse_head(b"\r\n".join((status, *lines)), bodiless=bodiless)


def test_fields_keep_spelling_order_and_duplicates() -> None:
    read = head(
        b'ETag:W/"a,b"',
        b"SET-cookie: a=1 ",
        b"Set-Cookie:\t b=2",
        b"X-Next-Page:",
        b"X: caf\xe9",
        b"Content-Length: 3",
    )
    assert read.fields == (
        (b"ETag", b'W/"a,b"'),
        (b"SET-cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Next-Page", b""),
        (b"X", b"caf\xe9"),
        (b"Content-Length", b"3"),
    )
    assert (read.status, read.reason, read.length, read.persistent) == (200, b"OK", 3, True)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.1 404 Not  Found", 404, b"Not  Found"),
        (b"HTTP/1.1 200 \xc3\x9cber", 200, b"\xc3\x9cber"),
        (b"HTTP/1.1 599 X", 599, b"X"),
    ],
)
def test_status_lines(status: bytes, code: int, reason: bytes) -> None:
    read = head(b"Content-Length: 0", status=status)
    assert (read.status, read.reason) == (code, reason)


@pytest.mark.parametrize(
    "status",
    [
        b"HTTP/1.1 099 X",
        b"HTTP/1.1 600 X",
        b"HTTP/1.1 999 X",
        b"HTTP/1.1 abc X",
        b"HTTP/1.1 -20 X",
        b"HTTP/1.1 20 X",
        b"HTTP/1.1 2000 X",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200 O\x01K",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\nK",
        b"HTTP/1.2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/2 200",
        b"http/1.1 200 OK",
        b" HTTP/1.1 200 OK",
        b"ICY 200 OK",
        b"RTSP/1.0 200 OK",
        b"<html>",
        b"",
    ],
)
def test_what_is_no_status_line(status: bytes) -> None:
    with pytest.raises(Malformed):
        head(b"Content-Length: 0", status=status)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"X-Foo : 1", id="space-before-colon"),
        pytest.param(b" folded", id="fold"),
        pytest.param(b"\tfolded", id="tab-fold"),
        pytest.param(b"no colon", id="no-colon"),
        pytest.param(b"", id="empty"),
        pytest.param(b": x", id="no-name"),
        pytest.param(b"X\x00: 1", id="nul-in-name"),
        pytest.param(b"X\xe9: 1", id="8bit-name"),
        pytest.param(b"X(: 1", id="delimiter-in-name"),
        pytest.param(b"X: a\x00b", id="nul"),
        pytest.param(b"X: a\x01b", id="ctl"),
        pytest.param(b"X: a\x7fb", id="del"),
        pytest.param(b"X: a\nY: b", id="bare-lf"),
        pytest.param(b"X: a\rY: b", id="bare-cr"),
        pytest.param(b"X: " + b"a" * MAX_LINE_BYTES, id="too-long"),
        pytest.param(b"Content-Length: +5", id="cl-plus"),
        pytest.param(b"Content-Length: -5", id="cl-minus"),
        pytest.param(b"Content-Length: 5, 5", id="cl-list"),
        pytest.param(b"Content-Length: 0x5", id="cl-hex"),
        pytest.param(b"Content-Length: 1_0", id="cl-underscore"),
        pytest.param(b"Content-Length:", id="cl-empty"),
        pytest.param(b"Content-Length: " + b"9" * 19, id="cl-huge"),
        pytest.param(b"Content-Length: \xd9\xa5", id="cl-digits-of-others"),
        pytest.param(b"Transfer-Encoding: gzip", id="te-gzip"),
        pytest.param(b"Transfer-Encoding: gzip, chunked", id="te-list"),
        pytest.param(b"Transfer-Encoding: chunked, chunked", id="te-twice"),
        pytest.param(b"Transfer-Encoding: xchunked", id="te-unknown"),
        pytest.param(b"Transfer-Encoding: chunked;q=1", id="te-parameter"),
        pytest.param(b"Transfer-Encoding:", id="te-empty"),
    ],
)
def test_fields_refused(line: bytes) -> None:
    """Also the second time, when a memo could have learnt them."""
    for _ in range(2):
        with pytest.raises(Malformed):
            head(line, b"Connection: close")


def test_a_foreign_coding_ends_with_its_connection() -> None:
    """RFC 9112 §6.3, rule 4, where that is allowed: nothing else is ever read from this connection."""
    octets = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: V1\r\nConnection: keep-alive"
    read = parse_head(octets, bodiless=False, foreign_codings=True)
    assert (read.length, read.persistent) == (UNTIL_CLOSE, False)
    assert parse_head(octets, bodiless=True, foreign_codings=True).length == 0
    with pytest.raises(Malformed):
        parse_head(octets, bodiless=False)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Transfer-Encoding: gzip",),
        (b"Transfer-Encoding: X-Gzip",),
        (b"Transfer-Encoding: v1, chunked",),
        (b"Transfer-Encoding: chunked, v1",),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding: v1;q=1",),
        (b"Transfer-Encoding: ",),
        (b"Transfer-Encoding: v1", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: v1"),
        (b"Transfer-Encoding: v1", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Transfer-Encoding: v1"),
    ],
)
def test_what_could_hide_a_framing_is_no_foreign_coding(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(Malformed):
        parse_head(b"\r\n".join((b"HTTP/1.1 200 OK", *lines)), bodiless=False, foreign_codings=True)


def test_a_foreign_coding_is_not_of_http_10() -> None:
    with pytest.raises(Malformed):
        parse_head(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: v1", bodiless=False, foreign_codings=True)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"content-length: 6"),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    ],
)
def test_framing_that_contradicts_itself(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(Malformed):
        head(*lines)


@pytest.mark.parametrize(
    ("status", "lines", "bodiless", "length", "persistent"),
    [
        (b"HTTP/1.1 200 OK", (b"Transfer-Encoding: Chunked",), False, CHUNKED, True),
        (b"HTTP/1.1 200 OK", (b"Content-Length: 0",), False, 0, True),
        (b"HTTP/1.1 200 OK", (b"Connection: foo, CLOSE",), False, UNTIL_CLOSE, False),
        (b"HTTP/1.1 200 OK", (b"Connection: close-not", b"Content-Length: 1"), False, 1, True),
        (b"HTTP/1.1 200 OK", (b"Connection: x", b"Connection: close", b"Content-Length: 1"), False, 1, False),
        (b"HTTP/1.0 200 OK", (), False, UNTIL_CLOSE, False),
        (b"HTTP/1.0 200 OK", (b"Connection: keep-alive", b"Content-Length: 4"), False, 4, False),
        (b"HTTP/1.1 200 OK", (b"Content-Length: 500",), True, 0, True),
        (b"HTTP/1.1 200 OK", (b"Transfer-Encoding: chunked",), True, 0, True),
        (b"HTTP/1.1 200 OK", (), True, 0, True),
        (b"HTTP/1.1 304 Not Modified", (b"Content-Length: 500",), False, 0, True),
        (b"HTTP/1.1 204 No Content", (), False, 0, True),
        (b"HTTP/1.1 204 No Content", (b"Content-Length: 0",), False, 0, True),
        (b"HTTP/1.1 204 No Content", (b"Content-Length: 5",), False, 0, False),
        (b"HTTP/1.1 204 No Content", (b"Transfer-Encoding: chunked",), False, 0, False),
        (b"HTTP/1.1 103 Early Hints", (b"Link: </x>",), False, 0, True),
    ],
)
def test_framing(status: bytes, lines: tuple[bytes, ...], bodiless: bool, length: int, persistent: bool) -> None:
    read = head(*lines, status=status, bodiless=bodiless)
    assert (read.length, read.persistent) == (length, persistent)


def test_a_body_without_a_length_needs_an_announced_close() -> None:
    with pytest.raises(Malformed):
        head(b"Server: x")


def test_chunked_is_not_of_http_10() -> None:
    with pytest.raises(Malformed):
        head(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK")


def test_counts_and_sizes_are_bounded() -> None:
    head(*[b"X: y"] * (MAX_FIELDS - 1), b"Content-Length: 0")
    with pytest.raises(Malformed):
        head(*[b"X: y"] * MAX_FIELDS, b"Content-Length: 0")
    with pytest.raises(Malformed):
        head(*[b"X: " + b"y" * 30000] * 3, b"Content-Length: 0")


def test_cookies_are_read_each_time() -> None:
    """A memo of lines must not keep secrets; what it gives must be what stands there."""
    for value in (b"a=1", b"a=2", b"a=1"):
        assert head(b"Set-Cookie: " + value, b"Content-Length: 0").fields[0] == (b"Set-Cookie", value)


def test_many_different_lines_stay_right() -> None:
    for at in range(3000):
        assert head(b"X-Id: %d" % at, b"Content-Length: 0").fields[0] == (b"X-Id", b"%d" % at)


# Heads in pieces


def test_a_head_in_pieces() -> None:
    buffer = HeadBuffer()
    octets = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nrest"
    found = None
    for at in range(len(octets) - 4):
        assert found is None
        found = buffer.feed(octets[at : at + 1])
    assert found == (b"HTTP/1.1 200 OK\r\nX: y", b"")
    assert bool(buffer)


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param([b"<html>hello"], id="no-http"),
        pytest.param([b"\n"], id="lf-first"),
        pytest.param([b"HT", b"MLx"], id="in-pieces"),
        pytest.param([b"HTTP/1.1 200 OK\nX: y\n\n"], id="bare-lf"),
        pytest.param([b"HTTP/1.1 200 OK\r", b"\nX: y", b"\n"], id="bare-lf-in-pieces"),
        pytest.param([b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD_BYTES], id="endless-line"),
        pytest.param([b"HTTP/1.1 200 OK\r\n"] + [b"X: y\r\n"] * 20000, id="endless-head"),
    ],
)
def test_what_can_not_become_a_head_is_refused_at_once(octets: list[bytes]) -> None:
    buffer = HeadBuffer()

    def feed_all() -> None:
        for piece in octets:
            assert buffer.feed(piece) is None

    with pytest.raises(Malformed):
        feed_all()


# Bodies


def chunked(octets: bytes, sizes: list[int] | None = None) -> tuple[bytes, ChunkedReader]:
    reader = ChunkedReader()
    got = b""
    while octets:
        size = sizes.pop() if sizes else len(octets)
        got += reader.feed(octets[:size])
        octets = octets[size:]
    return got, reader


@pytest.mark.parametrize(
    ("octets", "body"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
        (b"0\r\n\r\n", b""),
        (b"000A\r\n0123456789\r\n00\r\n\r\n", b"0123456789"),
        (b'5;name="v" ; x\r\nhello\r\n0;last\r\n\r\n', b"hello"),
        (b"5\r\nhello\r\n0\r\nX-Checksum: 1\r\nSet-Cookie: evil=1\r\n\r\n", b"hello"),
    ],
)
def test_chunked_bodies(octets: bytes, body: bytes) -> None:
    for sizes in (None, [1] * len(octets)):
        got, reader = chunked(octets, sizes)
        assert (got, reader.done, reader.surplus) == (body, True, False)


@pytest.mark.parametrize(
    "octets",
    [
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"1_0\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"g\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\rX0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        b"5\r\nhello\r\n0\r\n folded: 1\r\n\r\n",
        b"5;\x00\r\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\nhello\r\n0\r\n\r\n",
        b"1" * 16 + b"\r\n",
        (b"1;" + b"a" * 2000 + b"\r\nx\r\n") * 20,
        b"0\r\n" + (b"X: " + b"y" * 2000 + b"\r\n") * 20,
    ],
)
def test_broken_chunks_are_refused(octets: bytes) -> None:
    for sizes in (None, [1] * len(octets)):
        with pytest.raises(Malformed):
            chunked(octets, sizes)


def test_surplus_is_seen() -> None:
    assert chunked(b"0\r\n\r\nHTTP/1.1")[1].surplus
    reader = LengthReader(3)
    assert reader.feed(b"abcd") == b"abc"
    assert (reader.done, reader.surplus) == (True, True)


def test_the_kinds_of_body() -> None:
    assert isinstance(body_reader(CHUNKED), ChunkedReader)
    assert isinstance(body_reader(3), LengthReader)
    reader = body_reader(UNTIL_CLOSE)
    assert isinstance(reader, CloseReader)
    assert reader.feed(b"x") == b"x"
    assert not reader.done


@settings(max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.lists(st.integers(1, 40), max_size=40))
def test_how_chunks_arrive_does_not_matter(pieces: list[bytes], sizes: list[int]) -> None:
    octets = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    got, reader = chunked(octets, sizes)
    assert (got, reader.done, reader.surplus) == (b"".join(pieces), True, False)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.lists(st.integers(1, 9), max_size=60))
def test_any_octets_end_in_a_verdict(octets: bytes, sizes: list[int]) -> None:
    """No other exception, and pieces change nothing about it."""

    def verdict(cuts: list[int] | None) -> tuple[bytes, bool] | None:
        try:
            got, reader = chunked(octets, cuts)
        except Malformed:
            return None
        return got, reader.done

    whole, pieces = verdict(None), verdict(sizes)
    if whole is None or pieces is None:  # one saw the fault earlier than the other: neither may call it complete
        assert not any(other is not None and other[1] for other in (whole, pieces))
    else:
        assert whole == pieces
    try:
        parse_head(octets, bodiless=False)
    except Malformed:
        return
    assert octets.startswith(b"HTTP/1.")
