from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.structured_fields import Token, parse_dictionary, serialise_name, serialise_string


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"", {}, id="empty"),
        pytest.param(b"max-age=60", {"max-age": (60, {})}, id="integer"),
        pytest.param(b"a=-1.5;b;c=2", {"a": (-1.5, {"b": True, "c": 2})}, id="decimal-with-parameters"),
        pytest.param(b"no-store", {"no-store": (True, {})}, id="boolean-by-name"),
        pytest.param(b"a=?0, b=?1;x", {"a": (False, {}), "b": (True, {"x": True})}, id="booleans"),
        pytest.param(b'a="q\\"\\\\"', {"a": ('q"\\', {})}, id="string"),
        pytest.param(b"a=*tok/en", {"a": (Token("*tok/en"), {})}, id="token"),
        pytest.param(b"a=:aGk=:", {"a": (b"hi", {})}, id="bytes"),
        pytest.param(b"a=(1  2;q );r", {"a": (((1, {}), (2, {"q": True})), {"r": True})}, id="inner-list"),
        pytest.param(b"a=()", {"a": ((), {})}, id="empty-inner-list"),
        pytest.param(b"a=1,\t b=2 ", {"a": (1, {}), "b": (2, {})}, id="blanks"),
        pytest.param(b"a=1, b, a=2", {"b": (True, {}), "a": (2, {})}, id="last-of-a-key-wins"),
        pytest.param(b"a=1; b=2", {"a": (1, {"b": 2})}, id="blank-before-parameter"),
    ],
)
def test_dictionaries(value: bytes, expected: dict[str, object]) -> None:
    assert parse_dictionary(value) == expected
    assert list(parse_dictionary(value)) == list(expected)


@pytest.mark.parametrize(
    "value",
    [
        b"A=1",
        b"a=1,",
        b"a=1 b=2",
        b"a=",
        b"a=1234567890123456",
        b"a=1.2345",
        b"a=1.",
        b'a="open',
        b'a="\\n"',
        b"a=:a:",
        b"a=:!:",
        b"a=?2",
        b"a=(1",
        b"a=(1,2)",
        b"a=@1",
        b"a;B",
        "a=\u00e9".encode(),
    ],
)
def test_a_broken_field_is_refused_as_a_whole(value: bytes) -> None:
    with pytest.raises(ValueError):
        parse_dictionary(value)


@given(st.binary(max_size=40))
def test_any_octets_end_in_a_dictionary_or_a_value_error(value: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_dictionary(value)


@given(st.text(max_size=20))
def test_a_written_string_is_read_back(text: str) -> None:
    written = serialise_string(text)
    assert parse_dictionary(b"a=" + written.encode("ascii"))["a"] == ("".join(c for c in text if " " <= c <= "~"), {})


def test_a_name_is_a_token_where_it_can_be() -> None:
    assert serialise_name("gateway") == "gateway"
    assert serialise_name("my gateway") == '"my gateway"'
