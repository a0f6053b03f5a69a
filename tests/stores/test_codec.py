from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.cache_entry import Entry
from gateway.stores.codec import VERSION, Codec

from .cache_contract import ENTRY, saying

CODEC = Codec(b"k" * 32)
LARGE = saying(b"compressible " * 1000)


def test_a_value_comes_back_under_its_key_only() -> None:
    value = CODEC.encode(b"key", 7, (ENTRY, LARGE))
    assert CODEC.decode(b"key", value) == (7, (ENTRY, LARGE))
    assert CODEC.decode(b"another", value) is None


def test_large_values_are_compressed_and_incompressible_ones_left() -> None:
    assert len(CODEC.encode(b"k", 1, (LARGE,))) < 1000
    noise = saying(bytes(range(256)) * 5)
    assert CODEC.decode(b"k", CODEC.encode(b"k", 1, (noise,))) == (1, (noise,))
    plain = Codec(b"k" * 32, compress_from_bytes=1)
    assert plain.decode(b"k", plain.encode(b"k", 1, (saying(b""),))) == (1, (saying(b""),))


def test_nothing_is_readable_at_rest() -> None:
    value = CODEC.encode(b"key", 7, (saying(b"secret-canary"),))
    assert b"secret-canary" not in value
    assert b"ETag" not in value
    assert b"/api" not in CODEC.hidden_name(b"/api/v4/projects")


def test_the_same_content_is_never_encrypted_to_the_same_octets() -> None:
    assert CODEC.encode(b"k", 1, (ENTRY,)) != CODEC.encode(b"k", 1, (ENTRY,))


def test_another_key_another_world() -> None:
    other = Codec(b"o" * 32)
    assert other.decode(b"k", CODEC.encode(b"k", 1, (ENTRY,))) is None
    assert other.hidden_name(b"k") != CODEC.hidden_name(b"k")


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 octets"):
        Codec(b"short")


def test_another_version_is_a_miss() -> None:
    value = CODEC.encode(b"k", 1, (ENTRY,))
    assert CODEC.decode(b"k", bytes((VERSION + 1,)) + value[1:]) is None


@pytest.mark.parametrize("position", [0, 1, 5, 20, -1])
def test_a_flipped_bit_is_a_miss(position: int) -> None:
    value = bytearray(CODEC.encode(b"k", 1, (LARGE,)))
    value[position] ^= 1
    assert CODEC.decode(b"k", bytes(value)) is None


@given(st.binary(max_size=100))
def test_any_octets_are_a_miss(value: bytes) -> None:
    assert CODEC.decode(b"k", value) is None
    assert CODEC.decode(b"k", bytes((VERSION, 1)) + value) is None


def test_every_field_of_an_entry_survives() -> None:
    full = Entry(*[_other(value) for value in msgspec.structs.astuple(ENTRY)])
    assert CODEC.decode(b"k", CODEC.encode(b"k", 1, (full,))) == (1, (full,))


def _other(value: object) -> object:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case bytes():
            return value + b"\xff"
        case tuple():
            return (*value, (b"X-More", b"\xfe"))
    raise AssertionError(value)
