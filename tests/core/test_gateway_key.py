from __future__ import annotations

import hashlib
import hmac
import re
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.gateway_key import (
    PATTERN,
    RANDOM_BYTES,
    digest,
    digest_of_hash,
    holds_gateway_key,
    is_gateway_key,
    is_well_formed,
    new_key,
    same_digest,
)
from gateway.core.secret import Secret

RANDOM = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("random", "key"),
    [
        # Written down once: keys in the field must stay valid.
        pytest.param(bytes(32), "ggw_00000000000000000000000000000000000000000002GXdX1", id="zeroes"),
        pytest.param(b"\xff" * 32, "ggw_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp13oUK27", id="ones"),
    ],
)
def test_the_format_is_fixed(random: bytes, key: str) -> None:
    assert new_key(random).reveal() == key


@given(RANDOM)
def test_a_new_key_is_recognised_and_well_formed(random: bytes) -> None:
    key = new_key(random).reveal()
    assert is_gateway_key(key)
    assert is_well_formed(key)
    assert re.fullmatch(PATTERN, key)


@given(RANDOM, st.text(max_size=5), st.text(max_size=5))
def test_a_key_is_found_in_whatever_is_around_it(random: bytes, before: str, after: str) -> None:
    key = new_key(random).reveal()
    assert holds_gateway_key(before + key + after)
    assert holds_gateway_key("ggw_" + after)
    assert not holds_gateway_key("-" + before + "ggw_" + after)


@given(RANDOM, RANDOM)
def test_different_randomness_makes_different_keys(one: bytes, other: bytes) -> None:
    assert (new_key(one) == new_key(other)) is (one == other)


@given(RANDOM, st.integers(min_value=4, max_value=52), st.sampled_from(DIGITS))
def test_every_single_wrong_character_is_noticed(random: bytes, at: int, digit: str) -> None:
    key = new_key(random).reveal()
    typo = key[:at] + digit + key[at + 1 :]
    assert is_well_formed(typo) is (typo == key)


@given(RANDOM, st.integers(min_value=4, max_value=51))
def test_two_swapped_characters_are_noticed(random: bytes, at: int) -> None:
    key = new_key(random).reveal()
    swapped = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    assert is_well_formed(swapped) is (swapped == key)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_too_little_or_too_much_randomness_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 random octets"):
        new_key(secrets.token_bytes(length))


GOOD = new_key(b"k" * 32).reveal()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ggw_",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        " " + GOOD,
        GOOD.upper(),
        GOOD.replace("ggw_", "ggw-"),
        GOOD[:20] + "é" + GOOD[21:],
        GOOD[:20] + "٣" + GOOD[21:],
        GOOD[:20] + "\udcff" + GOOD[21:],
        GOOD[:20] + "\0" + GOOD[21:],
        "ggw_" + "0" * 100_000,
    ],
    ids=ascii,
)
def test_what_is_no_key_is_not_well_formed(text: str) -> None:
    assert not is_well_formed(text)


@pytest.mark.parametrize("text", ["", "glpat-abc", "GGW_x", " ggw_x", "xggw_"], ids=ascii)
def test_other_credentials_are_not_taken_for_ours(text: str) -> None:
    assert not is_gateway_key(text)


def test_the_digest_is_hmac_sha_256_by_the_pepper_of_the_plain_hash() -> None:
    hashed = hashlib.sha256(GOOD.encode()).digest()
    assert digest(b"pepper", Secret(GOOD)) == hmac.new(b"pepper", hashed, hashlib.sha256).digest()
    assert digest(b"pepper", Secret(GOOD)) == digest_of_hash(b"pepper", hashed)
    assert digest(b"other", Secret(GOOD)) != digest(b"pepper", Secret(GOOD))


def test_a_digest_is_made_of_any_text_a_client_may_send() -> None:
    assert len(digest(b"pepper", Secret("ggw_\udcff\u2028\0"))) == 32


def test_digests_are_compared_whole() -> None:
    assert same_digest(b"a" * 32, b"a" * 32)
    assert not same_digest(b"a" * 32, b"a" * 31 + b"b")
    assert not same_digest(b"a" * 32, b"")
