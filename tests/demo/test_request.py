"""Targets are split before they are decoded; parameters nest and merge as Rack has it."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.request import Malformed, Request, Upload, effective_method, nest, read_params, split_target

FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("target", "segments", "query"),
    [
        ("/a%2Fb/c", ("a/b", "c"), ""),
        ("/a%252Fb?x=%2F", ("a%2Fb",), "x=%2F"),
        ("/", ("",), ""),
        ("/a/", ("a", ""), ""),
        ("http://host/a/b?c", ("a", "b"), "c"),
        ("http://host", ("",), ""),
        ("/%C3%BC", ("ü",), ""),
    ],
)
def test_split(target: str, segments: tuple[str, ...], query: str) -> None:
    assert split_target(target) == (segments, query)


@pytest.mark.parametrize("target", ["/%00", "/%ff"])
def test_what_is_no_text_is_refused(target: str) -> None:
    with pytest.raises(Malformed):
        split_target(target)


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1), min_size=1))
def test_encoded_segments_come_back_whole(names: list[str]) -> None:
    target = "".join("/" + "".join(f"%{octet:02x}" for octet in name.encode()) for name in names)
    assert split_target(target)[0] == tuple(names)


@pytest.mark.parametrize(
    ("query", "nested"),
    [
        ("a=1&a=2", {"a": "2"}),
        ("a[]=1&a[]=2", {"a": ["1", "2"]}),
        ("a[b]=1&a[c]=2", {"a": {"b": "1", "c": "2"}}),
        ("v[][k]=1&v[][x]=2&v[][k]=3", {"v": [{"k": "1", "x": "2"}, {"k": "3"}]}),
        ("v[0][k]=1", {"v": {"0": {"k": "1"}}}),
        ("a=1&a[b]=2", {"a": {"b": "2"}}),
        ("a=1&a[]=2", {"a": ["2"]}),
        ("[]=1", {"[]": "1"}),
        ("=1", {"": "1"}),
    ],
)
def test_names_nest(query: str, nested: dict[str, object]) -> None:
    assert nest(parse_qsl(query, keep_blank_values=True)) == nested


@pytest.mark.parametrize(
    ("kind", "body", "params"),
    [
        pytest.param("application/json; charset=utf-8", b'{"a":2}', {"a": 2}, id="json"),
        pytest.param("application/json", b"[1]", {"a": "1"}, id="json that is no object"),
        pytest.param(FORM, b"a=2&b", {"a": "2", "b": ""}, id="form"),
        pytest.param("text/plain", b"a=2", {"a": "1"}, id="a type Rails does not parse"),
        pytest.param("", b"", {"a": "1"}, id="none"),
    ],
)
def test_a_body_wins_over_the_query(kind: str, body: bytes, params: dict[str, object]) -> None:
    assert read_params("a=1", kind, body) == params


def test_multipart_parts_are_texts_and_files() -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="a[b]"\r\n\r\nx\r\n'
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
        b"Content-Type: application/x-y\r\n\r\n\x00\xff\r\n--B--\r\n"
    )
    params = read_params("", "multipart/form-data; boundary=B", body)
    assert params == {"a": {"b": "x"}, "file": Upload("f.bin", b"\x00\xff", "application/x-y")}


@pytest.mark.parametrize(
    ("kind", "body"), [("application/json", b"{"), ("application/json", b"[" * 100_000), ("multipart/form-data", b"x")]
)
def test_a_broken_body_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(Malformed):
        read_params("", kind, body)


@pytest.mark.parametrize(
    ("method", "header", "form", "result"),
    [
        ("POST", "delete", {}, "DELETE"),
        ("POST", "", {"_method": "put"}, "PUT"),
        ("POST", "PUT", {"_method": "DELETE"}, "DELETE"),
        ("POST", "CONNECT", {}, "POST"),
        ("GET", "DELETE", {"_method": "DELETE"}, "GET"),
    ],
)
def test_only_a_post_is_overridden(method: str, header: str, form: dict[str, object], result: str) -> None:
    assert effective_method(method, {"x-http-method-override": header}, form) == result


def test_scalars() -> None:
    request = Request(
        "GET", "/a%2Fb?x", ("a/b",), "x", {}, {"t": True, "f": False, "n": 3, "e": "", "l": [], "big": "9" * 10}
    )
    assert request.path == "/a%2Fb"
    assert [request.text(name) for name in ("t", "f", "n", "e", "l", "missing")] == ["true", "false", "3", None, None, None]
    assert (request.number("n", 1), request.number("big", 1), request.number("e", 7)) == (3, 1, 7)
    assert (request.flag("t"), request.flag("f"), request.flag("missing")) == (True, False, False)
