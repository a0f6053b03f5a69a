from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.byte_ranges import (
    ByteRange,
    ContentRange,
    content_range,
    parse_content_range,
    parse_range,
    unsatisfied,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes=0-1", ByteRange(0, 1)),
        (b"bytes=5-", ByteRange(5, None)),
        (b"bytes=-5", ByteRange(None, 5)),
        (b"BYTES = 1 - 2 ", ByteRange(1, 2)),
        (b"bytes = 1 -\t ", ByteRange(1, None)),
        (b"bytes =\t- 2 ", ByteRange(None, 2)),
        (b"bytes=0-1,3-4", None),
        (b"bytes=2-1", None),
        (b"bytes=-", None),
        (b"lines=0-1", None),
        (b"bytes=0-99999999999999999999", None),
        (b"", None),
    ],
)
def test_ranges(value: bytes, expected: ByteRange | None) -> None:
    assert parse_range(value) == expected


@pytest.mark.parametrize(
    "value", [b"bytes=0-%bx", b"bytes%bx", b"bytes=%bx", b"bytes=0%bx", b"bytes=-%bx", b"bytes=0-1%bx", b"bytes=-1%bx"]
)
def test_blanks_take_no_longer_than_their_length(value: bytes) -> None:
    """Their square would be minutes."""
    assert parse_range(value % (b" " * (1 << 18))) is None


@pytest.mark.parametrize(
    ("asked", "total", "piece"),
    [
        (ByteRange(0, 1), 10, ContentRange(0, 1, 10)),
        (ByteRange(8, 99), 10, ContentRange(8, 9, 10)),
        (ByteRange(8, None), 10, ContentRange(8, 9, 10)),
        (ByteRange(10, None), 10, None),
        (ByteRange(None, 3), 10, ContentRange(7, 9, 10)),
        (ByteRange(None, 30), 10, ContentRange(0, 9, 10)),
        (ByteRange(None, 0), 10, None),
        (ByteRange(None, 1), 0, None),
    ],
)
def test_pieces(asked: ByteRange, total: int, piece: ContentRange | None) -> None:
    assert asked.within(total) == piece


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes 0-4/10", ContentRange(0, 4, 10)),
        (b"bytes 4-9/*", ContentRange(4, 9, -1)),
        (b"bytes 4-3/10", None),
        (b"bytes 4-10/10", None),
        (b"bytes */10", None),
        (b"", None),
    ],
)
def test_content_ranges(value: bytes, expected: ContentRange | None) -> None:
    assert parse_content_range(value) == expected


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 60))
def test_a_piece_lies_within_and_is_read_back(first: int, length: int, total: int) -> None:
    piece = ByteRange(first, first + length).within(total)
    if piece is None:
        assert first >= total
    else:
        assert 0 <= piece.first <= piece.last < total
        assert parse_content_range(content_range(piece)) == piece


def test_unsatisfied() -> None:
    assert unsatisfied(7) == b"bytes */7"
