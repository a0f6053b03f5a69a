"""Token exchanges as they are asked for."""

from __future__ import annotations

import contextlib
import urllib.parse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.token_request import ACCESS_TOKEN, GRANT, TokenRefused, not_accepted, read_token_request

FORM = "application/x-www-form-urlencoded"
JWT = "urn:ietf:params:oauth:token-type:jwt"
GOOD = {"grant_type": GRANT, "subject_token": "eyJ.e30.c2ln", "subject_token_type": JWT}


def body(**changes: Any) -> bytes:
    return urllib.parse.urlencode(
        {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    ).encode()


@pytest.mark.parametrize("media_type", [FORM, f"{FORM}; charset=UTF-8", FORM.upper()])
def test_what_is_asked_for(media_type: str) -> None:
    request = read_token_request(media_type, body())
    assert (request.subject.reveal(), request.lifetime_s) == ("eyJ.e30.c2ln", None)
    assert "eyJ" not in repr(request)


@pytest.mark.parametrize(
    "changes",
    [
        {"subject_token_type": "urn:ietf:params:oauth:token-type:id_token"},
        {"requested_token_type": ACCESS_TOKEN},
        {"scope": "", "audience": "", "expires_in": ""},
        {"client_id": "ignored", "x-vendor": "ignored"},
    ],
    ids=str,
)
def test_what_may_stand_beside(changes: dict[str, str]) -> None:
    assert read_token_request(FORM, body(**changes)).subject


def test_a_shorter_life_may_be_asked_for() -> None:
    assert read_token_request(FORM, body(expires_in="300")).lifetime_s == 300.0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": None}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"subject_token": None}, "invalid_request"),
        ({"subject_token": ""}, "invalid_request"),
        ({"subject_token_type": None}, "invalid_request"),
        ({"subject_token_type": ACCESS_TOKEN}, "invalid_request"),
        ({"requested_token_type": JWT}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"client_secret": "x"}, "invalid_request"),
        ({"scope": "api"}, "invalid_scope"),
        ({"audience": "vault"}, "invalid_target"),
        ({"resource": "https://vault.example.com"}, "invalid_target"),
        ({"expires_in": "59"}, "invalid_request"),
        ({"expires_in": "-5"}, "invalid_request"),
        ({"expires_in": "1e9"}, "invalid_request"),
        ({"expires_in": "²"}, "invalid_request"),
        ({"expires_in": "999999999"}, "invalid_request"),
    ],
    ids=str,
)
def test_what_is_refused(changes: dict[str, str | None], error: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        read_token_request(FORM, body(**changes))
    assert refused.value.error == error
    assert "eyJ" not in str(refused.value)


@pytest.mark.parametrize(
    "octets",
    [b"", b"&", b"grant_type", b"%zz=%ff", b"a=%ff", "ä=1".encode(), b"&".join(b"p%d=1" % n for n in range(30))],
    ids=repr,
)
def test_what_is_no_form_is_refused(octets: bytes) -> None:
    with pytest.raises(TokenRefused):
        read_token_request(FORM, octets)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_no_parameter_stands_twice(name: str) -> None:
    with pytest.raises(TokenRefused, match="twice"):
        read_token_request(FORM, body() + f"&{name}=x".encode())


@pytest.mark.parametrize("media_type", ["", "application/json", "multipart/form-data", "text/plain"])
def test_only_forms_are_read(media_type: str) -> None:
    with pytest.raises(TokenRefused):
        read_token_request(media_type, body())


@given(st.binary(max_size=200))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    with contextlib.suppress(TokenRefused):
        assert read_token_request(FORM, octets).subject


def test_there_is_one_answer_to_every_bad_token() -> None:
    assert (not_accepted().error, str(not_accepted())) == ("invalid_request", "the subject token is not accepted")
