"""Small bodies, read into memory before a place at GitLab is held for them: a client that sends slowly holds none."""

from __future__ import annotations

from ..core.errors import bad_request
from ..ports import RequestBody

SMALL_BODY_BYTES = 64 * 1024
"""The most octets of a body that counts as small, in either direction."""


class WholeBody:
    """A ``ports.RequestBody`` that has arrived whole."""

    __slots__ = ("_octets", "content_length")

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.content_length: int | None = len(octets)

    async def read(self) -> bytes:
        octets, self._octets = self._octets, b""
        return octets


def is_small(length: int | None) -> bool:
    """Whether a body with this declared length is read whole before it is sent."""
    return length is not None and length <= SMALL_BODY_BYTES


async def collect(body: RequestBody, length: int) -> bytes:
    """Read the whole body. Raises Rejection if it is not as long as declared, and whatever ``body.read`` raises."""
    pieces: list[bytes] = []
    left = length
    while chunk := await body.read():
        left -= len(chunk)
        if left < 0:
            break
        pieces.append(chunk)
    if left:
        raise bad_request(close=True)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
