"""Heads as the wire carried them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import messages
from gateway.core.messages import Fields, first, joined, lower, values, without

FIELDS: Fields = ((b"Accept", b"a"), (b"X-Y", b"1"), (b"aCCept", b"b"), (b"x-y", b""))


@given(st.binary(max_size=80))
def test_lower_is_bytes_lower(name: bytes) -> None:
    assert lower(name) == name.lower()
    assert lower(name) == name.lower(), "remembered"


def test_a_flood_of_names_does_not_grow_the_memo() -> None:
    import gateway.core.messages as module

    for number in range(5000):
        assert lower(b"X-Flood-%d" % number) == b"x-flood-%d" % number
    assert len(module._LOWER) <= module._LOWER_BOUND
    long = b"X" * 65
    assert lower(long) is not lower(long), "a long name is not kept"


def test_lookups_ignore_case_and_keep_order() -> None:
    assert first(FIELDS, b"accept") == b"a"
    assert first(FIELDS, b"x-y") == b"1"
    assert first(FIELDS, b"host") is None
    assert values(FIELDS, b"accept") == [b"a", b"b"]
    assert values(FIELDS, b"host") == []


@pytest.mark.parametrize(("name", "value"), [(b"accept", b"a, b"), (b"x-y", b"1, "), (b"host", None)])
def test_joined(name: bytes, value: bytes | None) -> None:
    assert joined(FIELDS, name) == value


def test_an_empty_value_is_a_value() -> None:
    assert first(((b"A", b""), (b"A", b"x")), b"a") == b""


def test_without_leaves_the_rest_as_received() -> None:
    assert without(FIELDS, frozenset({b"accept"})) == ((b"X-Y", b"1"), (b"x-y", b""))
    assert without(FIELDS, frozenset()) == FIELDS


def test_a_flood_of_names_keeps_no_real_one_out() -> None:
    for number in range(10_000):
        lower(b"X-Made-Up-%d" % number)
    assert lower(b"X-Real") == b"x-real"
    assert b"X-Real" in messages._LOWER
    assert len(messages._LOWER) <= 4096
