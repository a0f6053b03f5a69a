"""Secrets that can't be printed."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.secret import Secret, fingerprint, keyed_hash

VALUE = "glpat-AAAABBBBCCCCDDDD"
KEY = b"k" * 32


@pytest.mark.parametrize(
    "show", [repr, str, format, "{:>40}".format, lambda secret: f"{[secret]}", lambda secret: f"{secret!r}"]
)
def test_no_way_of_printing_shows_it(show: object) -> None:
    assert callable(show)
    assert VALUE not in show(Secret(VALUE))


@pytest.mark.parametrize("serialise", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode])
def test_no_way_of_serialising_takes_it(serialise: object) -> None:
    assert callable(serialise)
    with pytest.raises(TypeError) as refused:
        serialise(Secret(VALUE))
    assert VALUE not in str(refused.value)


def test_it_holds_no_dictionary() -> None:
    assert not hasattr(Secret(VALUE), "__dict__")


@given(st.text(), st.text())
def test_equality_is_that_of_the_values(one: str, other: str) -> None:
    assert (Secret(one) == Secret(other)) == (one == other)
    assert Secret(one) == Secret(one)
    assert hash(Secret(one)) == hash(Secret(one))


def test_a_secret_is_no_string() -> None:
    assert Secret(VALUE) != VALUE
    assert Secret(VALUE).reveal() == VALUE


def test_an_empty_one_is_false() -> None:
    assert not Secret("")
    assert Secret("x")


def test_octets_that_are_no_utf8_are_kept() -> None:
    odd = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert Secret(odd) == Secret(odd)
    assert keyed_hash(KEY, odd) == keyed_hash(KEY, b"\xff\xfe")


def test_keyed_hash() -> None:
    assert keyed_hash(KEY, "x") == hashlib.blake2b(b"x", key=KEY, digest_size=32).digest()
    assert len(keyed_hash(KEY, b"x", 6)) == 6
    assert keyed_hash(KEY, "x") != keyed_hash(b"j" * 32, "x")


def test_fingerprint() -> None:
    shown = fingerprint(KEY, Secret(VALUE))
    assert shown == "tok:" + keyed_hash(KEY, VALUE, 6).hex()
    assert len(shown) == 16


def test_a_keyed_hash_is_kept_for_its_key_alone() -> None:
    secret = Secret("value")
    one, two = b"1" * 32, b"2" * 32
    assert secret.keyed(one) == keyed_hash(one, "value")
    assert secret.keyed(one) is secret.keyed(one)
    assert secret.keyed(two) == keyed_hash(two, "value")
    assert "value" not in repr(secret)
