"""A stored answer's content without its content coding, within bounds: for looking into it, never for sending."""

from __future__ import annotations

import zlib

MAX_PLAIN_BYTES = 16 << 20
"""An answer that decodes to more is not looked into."""

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def decode_content(body: bytes, coding: bytes | None) -> bytes | None:
    """The decoded content; None if it can't be had: another coding, broken, or larger than ``MAX_PLAIN_BYTES``.

    Args:
        body: The body as it came.
        coding: The ``Content-Encoding``; None if there is none.
    """
    coding = (coding or b"identity").strip().lower()
    if coding == b"identity":
        return body
    if coding not in {b"gzip", b"x-gzip", b"deflate"}:
        return None
    reader = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        found = reader.decompress(body, MAX_PLAIN_BYTES)
    except zlib.error:
        return None
    # A second gzip member after the first would be content, too.
    return found if reader.eof and not reader.unused_data else None
