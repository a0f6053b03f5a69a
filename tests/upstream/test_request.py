"""Request heads: exactly what was given, framed once, never split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Code, Rejection
from gateway.core.messages import Fields
from gateway.ports import RepeatedFields, UpstreamRequest
from gateway.upstream.request import render_get, render_head

HOST = (b"Host", b"gitlab.test")


def head(
    method: str = "GET", target: bytes = b"/", fields: Fields = (HOST,), length: int | None = None, *, body: bool = False
) -> bytes:
    return render_head(UpstreamRequest(method=method, target=target, own=fields, content_length=length), has_body=body)


def test_octets_go_as_given() -> None:
    fields = (HOST, (b"X-ODD_name", b"a  b\t;=\xe9"), (b"x-dup", b"1"), (b"X-Dup", b""))
    assert head(target=b"/a%2fB/../%252F;+[]?q=&&x=%zz?", fields=fields) == (
        b"GET /a%2fB/../%252F;+[]?q=&&x=%zz? HTTP/1.1\r\nHost: gitlab.test\r\n"
        b"X-ODD_name: a  b\t;=\xe9\r\nx-dup: 1\r\nX-Dup: \r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "length", "body", "framing"),
    [
        pytest.param("GET", None, False, b"", id="bodiless"),
        pytest.param("DELETE", None, False, b"", id="delete-bodiless"),
        pytest.param("POST", None, False, b"Content-Length: 0\r\n", id="post-bodiless"),
        pytest.param("GET", 0, False, b"Content-Length: 0\r\n", id="said-zero"),
        pytest.param("POST", 5, True, b"Content-Length: 5\r\n", id="length"),
        pytest.param("POST", None, True, b"Transfer-Encoding: chunked\r\n", id="chunked"),
    ],
)
def test_framing(method: str, length: int | None, body: bool, framing: bytes) -> None:
    assert (
        head(method, length=length, body=body)
        == method.encode() + b" / HTTP/1.1\r\nHost: gitlab.test\r\n" + framing + b"\r\n"
    )


@pytest.mark.parametrize("name", [b"Content-Length", b"TRANSFER-ENCODING", b"expect"])
def test_framing_fields_of_others_are_dropped(name: bytes) -> None:
    """Twice: the second time from the memo."""
    for _ in range(2):
        assert head(fields=(HOST, (name, b"7"))) == b"GET / HTTP/1.1\r\nHost: gitlab.test\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "method", "field"),
    [
        pytest.param(b"", "GET", HOST, id="no-target"),
        pytest.param(b"/a b", "GET", HOST, id="space-in-target"),
        pytest.param(b"/\r\nX: y", "GET", HOST, id="crlf-in-target"),
        pytest.param(b"/\x00", "GET", HOST, id="nul-in-target"),
        pytest.param(b"/", "GE T", HOST, id="method"),
        pytest.param(b"/", "GÉT", HOST, id="method-not-ascii"),
        pytest.param(b"/", "GET", (b"X Y", b"1"), id="space-in-name"),
        pytest.param(b"/", "GET", (b"X:", b"1"), id="colon-in-name"),
        pytest.param(b"/", "GET", (b"", b"1"), id="no-name"),
        pytest.param(b"/", "GET", (b"X\r\nY", b"1"), id="crlf-in-name"),
        pytest.param(b"/", "GET", (b"X", b"1\r\nY: 2"), id="crlf-in-value"),
        pytest.param(b"/", "GET", (b"X", b"1\r\n"), id="crlf-at-the-end"),
        pytest.param(b"/", "GET", (b"X", b"\n"), id="lf"),
        pytest.param(b"/", "GET", (b"X", b"\r"), id="cr"),
        pytest.param(b"/", "GET", (b"X", b"\x00"), id="nul"),
        pytest.param(b"/", "GET", (b"X", b"\x7f"), id="del"),
    ],
)
def test_what_could_split_a_request_is_refused(target: bytes, method: str, field: tuple[bytes, bytes]) -> None:
    with pytest.raises(Rejection) as refused:
        head(method, target, (HOST, field))
    assert (refused.value.code, refused.value.status) == (Code.BAD_REQUEST, 400)


def test_a_length_needs_a_body() -> None:
    with pytest.raises(Rejection):
        head("POST", length=5)


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=20)), max_size=5), st.binary(max_size=20))
def test_one_line_a_field_or_nothing(fields: list[tuple[bytes, bytes]], target: bytes) -> None:
    try:
        octets = head(target=target, fields=tuple(fields))
    except Rejection:
        return
    assert octets.endswith(b"\r\n\r\n")
    lines = octets[:-4].split(b"\r\n")
    assert lines[0] == b"GET " + target + b" HTTP/1.1"
    ours = {b"content-length", b"transfer-encoding", b"expect"}
    assert lines[1:] == [name + b": " + value for name, value in fields if name.lower() not in ours]
    assert b"\n" not in b"".join(lines)


PARTS = st.lists(
    st.tuples(
        st.sampled_from([b"Host", b"X-Request-Id", b"content-length", b"X\r\nY", b""]),
        st.sampled_from([b"", b"1", b"a b", b"1\r\nX: 2", b"\0"]) | st.binary(max_size=5),
    ),
    max_size=2,
).map(tuple)


@given(PARTS, PARTS, PARTS, st.binary(max_size=3) | st.just(b"/a%2Fb"))
def test_in_parts_as_in_one(before: Fields, own: Fields, behind: Fields, target: bytes) -> None:
    """Twice: the second time what all have is rendered already."""
    repeated = RepeatedFields(before, behind)
    for _ in range(2):
        try:
            whole = head(target=target, fields=(*before, *own, *behind))
        except Rejection:
            with pytest.raises(Rejection):
                render_get(target, own, repeated)
        else:
            assert render_get(target, own, repeated) == whole
