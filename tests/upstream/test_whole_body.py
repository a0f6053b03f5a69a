"""Small bodies in memory."""

from __future__ import annotations

import pytest

from gateway.core.errors import Code, Rejection
from gateway.upstream.whole_body import SMALL_BODY_BYTES, WholeBody, collect, is_small


class Pieces:
    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.content_length: int | None = None

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


async def test_what_arrived_is_given_once() -> None:
    body = WholeBody(b"abc")
    assert (body.content_length, await body.read(), await body.read()) == (3, b"abc", b"")


@pytest.mark.parametrize(
    ("length", "small"), [(None, False), (0, True), (SMALL_BODY_BYTES, True), (SMALL_BODY_BYTES + 1, False)]
)
def test_what_is_small(length: int | None, small: bool) -> None:
    assert is_small(length) is small


@pytest.mark.parametrize("pieces", [(b"abcd",), (b"a", b"bcd"), (b"a", b"b", b"c", b"d")])
async def test_pieces_are_joined(pieces: tuple[bytes, ...]) -> None:
    assert await collect(Pieces(*pieces), 4) == b"abcd"


@pytest.mark.parametrize("pieces", [(), (b"abc",), (b"abc", b"de")])
async def test_a_wrong_length_is_refused(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(Rejection) as refused:
        await collect(Pieces(*pieces), 4)
    assert (refused.value.code, refused.value.close) == (Code.BAD_REQUEST, True)
