"""Stored answers as octets for stores that others may read: versioned, compressed, encrypted, bound to their key.

    version (1) · flags (1) · nonce (12) · AES-256-GCM( [zstd] msgpack [stamp, entries] )

The head and the cache key are the associated data: a value moved to another key, or from another version, does not decrypt.
Whatever can't be read is a miss, never an error.
"""

from __future__ import annotations

import secrets

import msgspec
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..core.cache_entry import Entry
from ..core.secret import keyed_hash

VERSION = 1
"""Raised with every change to ``Entry`` or to this layout: an older gateway's values are misses, not guesses."""
_COMPRESSED = 1
_HEAD_BYTES = 2
_NONCE_BYTES = 12
_LARGEST_BYTES = 64 << 20


class _Content(msgspec.Struct, frozen=True, array_like=True):
    stamp: int
    entries: tuple[Entry, ...]


class Codec:
    """Turns entries into octets and back.

    Args:
        key: At least 16 octets; encryption and key names are derived from it. Changing it empties the cache.
        compress_from_bytes: Smaller values are not compressed.
    """

    def __init__(self, key: bytes, *, compress_from_bytes: int = 1024) -> None:
        if len(key) < 16:
            raise ValueError("an encryption key has at least 16 octets")
        self._cipher = AESGCM(keyed_hash(key[:64], b"cache: values", 32))
        self._name_key = keyed_hash(key[:64], b"cache: names", 32)
        self._compress_from_bytes = compress_from_bytes
        # Level 1: this runs on the event loop, and 2 MiB must cost milliseconds.
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_Content)

    def hidden_name(self, text: bytes) -> bytes:
        """The name of a cache key or tag in the store, hidden: paths and partitions are nobody else's business."""
        return keyed_hash(self._name_key, text, 20).hex().encode()

    def encode(self, key: bytes, stamp: int, entries: tuple[Entry, ...]) -> bytes:
        """``entries`` as octets that can be read back under ``key`` only."""
        content = self._encoder.encode(_Content(stamp, entries))
        flags = 0
        if len(content) >= self._compress_from_bytes:
            packed = self._compressor.compress(content)
            if len(packed) < len(content):
                content, flags = packed, _COMPRESSED
        head = bytes((VERSION, flags))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return head + nonce + self._cipher.encrypt(nonce, content, head + key)

    def decode(self, key: bytes, value: bytes) -> tuple[int, tuple[Entry, ...]] | None:
        """(stamp, entries), or None for anything that this gateway did not write under ``key``."""
        if len(value) < _HEAD_BYTES + _NONCE_BYTES or value[0] != VERSION:
            return None
        head, nonce = value[:_HEAD_BYTES], value[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        try:
            content = self._cipher.decrypt(nonce, value[_HEAD_BYTES + _NONCE_BYTES :], head + key)
            if head[1] & _COMPRESSED:
                content = self._decompressor.decompress(content, max_output_size=_LARGEST_BYTES)
            decoded = self._decoder.decode(content)
        except (InvalidTag, zstandard.ZstdError, msgspec.MsgspecError):
            return None
        return decoded.stamp, decoded.entries
