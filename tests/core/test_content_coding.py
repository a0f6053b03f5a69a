from __future__ import annotations

import gzip
import zlib

import pytest

from gateway.core import content_coding
from gateway.core.content_coding import decode_content


@pytest.mark.parametrize(
    ("body", "coding", "found"),
    [
        (b"x", None, b"x"),
        (b"x", b"identity", b"x"),
        (gzip.compress(b"x", mtime=0), b"gzip", b"x"),
        (gzip.compress(b"x", mtime=0), b" X-GZIP ", b"x"),
        (zlib.compress(b"x"), b"deflate", b"x"),
        (b"x", b"gzip", None),
        (gzip.compress(b"x" * 99, mtime=0)[:-9], b"gzip", None),
        (gzip.compress(b"x", mtime=0) + gzip.compress(b"y", mtime=0), b"gzip", None),
        (b"x", b"br", None),
        (b"x", b"gzip, gzip", None),
    ],
)
def test_what_can_be_looked_into(body: bytes, coding: bytes | None, found: bytes | None) -> None:
    assert decode_content(body, coding) == found


def test_a_bomb_is_not_inflated() -> None:
    assert decode_content(zlib.compress(bytes(content_coding.MAX_PLAIN_BYTES + 1)), b"deflate") is None
