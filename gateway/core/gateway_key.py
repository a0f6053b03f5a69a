"""Gateway keys: their text, their checksum, their keyed digest. Randomness and storage are the caller's.

``ggw_`` + 43 base62 digits (256 bits) + 6 base62 digits of CRC-32 over everything before. The prefix lets secret scanners
find a leaked key (``PATTERN``); the checksum tells a typo from a key without a lookup. It is no protection: anyone can
compute it. Only HMAC-SHA-256(pepper, SHA-256(key)) is ever stored, and the pepper is not in the store. The plain hash
inside lets somebody import a key who knows only its SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
import zlib

from .secret import Secret

PREFIX = "ggw_"
RANDOM_BYTES = 32
PATTERN = r"ggw_[0-9A-Za-z]{49}"
"""For secret scanners."""

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BODY_DIGITS = 43  # 62**43 > 2**256
_CHECKSUM_DIGITS = 6  # 62**6 > 2**32
_SHAPE = re.compile(PATTERN, re.ASCII)


def new_key(random: bytes) -> Secret:
    """The key made from ``random``: 32 octets from the system's generator. ValueError for any other length."""
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a gateway key is made of {RANDOM_BYTES} random octets")
    stem = PREFIX + _base62(int.from_bytes(random, "big"), _BODY_DIGITS)
    return Secret(stem + _checksum(stem))


def is_gateway_key(text: str) -> bool:
    """Whether ``text`` is meant to be a gateway key: GitLab is never asked about one, and never sees one."""
    return text.startswith(PREFIX)


def holds_gateway_key(text: str) -> bool:
    """Whether ``text`` holds a gateway key, perhaps quoted or after a scheme: not accepted there, it must not go up."""
    return PREFIX in text and (text.startswith(PREFIX) or _SHAPE.search(text) is not None)


def is_well_formed(text: str) -> bool:
    """Whether shape and checksum are right. False for a typo, a truncated paste, or a guess made without reading this."""
    return _SHAPE.fullmatch(text) is not None and _checksum(text[:-_CHECKSUM_DIGITS]) == text[-_CHECKSUM_DIGITS:]


def digest_of_hash(pepper: bytes, hashed: bytes) -> bytes:
    """The ``digest`` of the key whose SHA-256 is ``hashed``, which is all that an import knows of the key."""
    return hmac.digest(pepper, hashed, hashlib.sha256)


def digest(pepper: bytes, key: Secret) -> bytes:
    """What a store holds and looks up by: 32 octets that say nothing about the key without the pepper."""
    return digest_of_hash(pepper, hashlib.sha256(key.reveal().encode("utf-8", "surrogateescape")).digest())


def same_digest(ours: bytes, theirs: bytes) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(ours, theirs)


def _checksum(stem: str) -> str:
    return _base62(zlib.crc32(stem.encode("ascii")), _CHECKSUM_DIGITS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
