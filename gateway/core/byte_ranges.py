"""Byte ranges (RFC 9110 §14): one range of a stored answer, and what it takes to join pieces of one."""

from __future__ import annotations

import re

import msgspec

# Blanks are matched possessively: shared between two places, those after the dash would take quadratic time.
_RANGE = re.compile(
    rb"bytes[ \t]*+=[ \t]*+(?:(\d{1,18})[ \t]*+-(?:[ \t]*+(\d{1,18}))?|-[ \t]*+(\d{1,18}))[ \t]*+", re.IGNORECASE
)
_CONTENT_RANGE = re.compile(rb"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)


class ContentRange(msgspec.Struct, frozen=True, gc=False):
    """The position of a piece in the whole answer."""

    first: int
    last: int
    total: int
    """The complete length; -1 if the sender did not know it."""


class ByteRange(msgspec.Struct, frozen=True, gc=False):
    """What a client asks for, before the length is known."""

    first: int | None
    """The first octet; None for the last ``last`` octets."""
    last: int | None

    def within(self, total: int) -> ContentRange | None:
        """The piece of an answer of ``total`` octets; None if the range can't be satisfied (416)."""
        if self.first is None:
            assert self.last is not None, "a suffix range has a length"
            if self.last == 0 or total == 0:
                return None
            return ContentRange(max(0, total - self.last), total - 1, total)
        if self.first >= total:
            return None
        return ContentRange(self.first, total - 1 if self.last is None else min(self.last, total - 1), total)


def parse_range(value: bytes) -> ByteRange | None:
    """A single byte range; None for what a server may ignore: other units, several ranges, nonsense (§14.2)."""
    match = _RANGE.fullmatch(value)
    if match is None:
        return None
    if match[3] is not None:
        return ByteRange(None, int(match[3]))
    first, last = int(match[1]), int(match[2]) if match[2] else None
    return None if last is not None and last < first else ByteRange(first, last)


def parse_content_range(value: bytes) -> ContentRange | None:
    """A ``Content-Range``; None if its unit is not bytes, or if it contradicts itself (§14.4)."""
    match = _CONTENT_RANGE.fullmatch(value)
    if match is None:
        return None
    first, last, total = int(match[1]), int(match[2]), -1 if match[3] == b"*" else int(match[3])
    if last < first or (total >= 0 and last >= total):
        return None
    return ContentRange(first, last, total)


def content_range(piece: ContentRange) -> bytes:
    """The field value that describes ``piece``."""
    return b"bytes %d-%d/%d" % (piece.first, piece.last, piece.total)


def unsatisfied(total: int) -> bytes:
    """The ``Content-Range`` of a 416."""
    return b"bytes */%d" % total
