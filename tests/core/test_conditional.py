from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.conditional import is_etag, is_strong, none_match, strong_equal, weak_equal


@pytest.mark.parametrize("value", [b'""', b'"a"', b'W/"a"', b'"\xfc,x"'])
def test_etags(value: bytes) -> None:
    assert is_etag(value)


@pytest.mark.parametrize("value", [b"", b"a", b'w/"a"', b'"a', b'"a"b', b'W/ "a"', b'"a b"'])
def test_malformed_etags(value: bytes) -> None:
    assert not is_etag(value)


def test_comparison() -> None:
    assert weak_equal(b'W/"a"', b'"a"')
    assert not weak_equal(b'"a"', b'"b"')
    assert strong_equal(b'"a"', b'"a"')
    assert not strong_equal(b'W/"a"', b'W/"a"')
    assert not is_strong(b'W/"a"')


@pytest.mark.parametrize(
    ("condition", "etag", "sends"),
    [
        (b'"a"', b'"a"', False),
        (b'W/"a"', b'"a"', False),
        (b'"x", W/"a" ,"y"', b'"a"', False),
        (b'"x,y", "a"', b'"x,y"', False),
        (b" * ", b"", False),
        (b"*", b'"a"', False),
        (b'"b"', b'"a"', True),
        (b"a", b'"a"', True),
        (b'"a', b'"a"', True),
        (b'w/"a"', b'"a"', True),
        (b'garbage, "a"', b'"a"', False),
        (b'"a"', b"", True),
        (b"", b'"a"', True),
    ],
)
def test_if_none_match(condition: bytes, etag: bytes, sends: bool) -> None:
    assert none_match(condition, etag) is sends


@given(st.lists(st.text("abc,", max_size=3), min_size=1, max_size=5), st.text("abc,", max_size=3))
def test_a_list_matches_if_one_member_does(members: list[str], etag: str) -> None:
    condition = ", ".join(f'"{member}"' for member in members).encode()
    assert none_match(condition, f'"{etag}"'.encode()) is (etag not in members)


@given(st.binary(max_size=40))
def test_no_octets_break_the_reader(condition: bytes) -> None:
    none_match(condition, b'"a"')


@pytest.mark.parametrize("piece", [b",", b", ", b" ", b"\t,", b'W/"', b'"a" '])
def test_a_long_list_of_nothing_takes_no_longer_than_its_length(piece: bytes) -> None:
    """Its square would be minutes."""
    assert none_match(piece * (1 << 18), b'"q"')
    assert not none_match(piece * (1 << 10) + b',"q"', b'"q"')
