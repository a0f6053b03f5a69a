from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.workload_token import (
    MAX_LENGTH,
    Pattern,
    Requirement,
    describe_bearer,
    find_jwts,
    looks_like_jwt,
    peek,
    token_id,
)
from tests.fakes.issuer import segment

T = 1_800_000_000.0
ISSUER = "https://gitlab.example.com"
HEAD = {"alg": "RS256", "kid": "one"}
CLAIMS: dict[str, Any] = {"iss": ISSUER, "aud": "gateway", "exp": T + 300, "nbf": T - 5, "iat": T, "job_project_id": "7"}
WANTED = Requirement(ISSUER, "gateway", (("job_project_id", Pattern("7")),))


def token(header: Any = HEAD, claims: Any = CLAIMS, signature: str = "c2ln") -> str:
    return f"{segment(header)}.{segment(claims)}.{signature}"


def test_a_sound_token_is_read() -> None:
    unverified = peek(token())
    assert unverified is not None
    assert (unverified.sound, unverified.issuers, unverified.algorithm, unverified.key_id) == (
        True,
        (ISSUER,),
        "RS256",
        "one",
    )
    assert unverified.claims == CLAIMS
    assert repr(unverified) == "UnverifiedToken(RS256)"
    assert looks_like_jwt(token())
    assert not looks_like_jwt("glpat-x")


@pytest.mark.parametrize("wrapped", ["{}", '"{}"', "Token {}", "{}.x", "x:{}", "'{}' and more"])
def test_one_is_found_in_what_is_wrapped_around_it(wrapped: str) -> None:
    assert find_jwts(wrapped.format(token())) == [token()]


@pytest.mark.parametrize("text", ["", "eyJ", "eyJ.a", "eyJ a.b.c", "glpat-x", "glcbt-" + token(), "x" + token()])
def test_nothing_is_found_where_none_begins(text: str) -> None:
    assert find_jwts(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "eyJ",
        "eyJ.a",
        "a.b.c.d",
        "eyJ.e_-.x",
        token(claims=[1]),
        token(claims=b"\xff"),
        token(claims=b'{"exp": NaN}'),
        token(claims=b"[" * 9000),
        token(claims=b"1" * 5000),
        token(claims={**CLAIMS, "pad": "x" * MAX_LENGTH}),
    ],
)
def test_what_is_no_jwt_is_none(text: str) -> None:
    assert peek(text) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(token(b'{"alg":"none","alg":"RS256"}'), id="algorithm twice"),
        pytest.param(token(claims=b'{"iss":"%s","aud":"a","aud":"b"}' % ISSUER.encode()), id="audience twice"),
        pytest.param(token(claims=b'{"iss":"%s","x":{"a":1,"a":2}}' % ISSUER.encode()), id="twice inside"),
        pytest.param(token({**HEAD, "crit": ["b64"], "b64": False}), id="critical extension"),
        pytest.param(token({"kid": "one"}), id="no algorithm"),
        pytest.param(token({"alg": 1}), id="algorithm no text"),
        pytest.param(token({"alg": "RS256", "kid": ["one"]}), id="key id no text"),
        pytest.param(token({"alg": "RS256", "kid": ""}), id="key id empty"),
        pytest.param(token({"alg": "RS256", "kid": "k" * 600}), id="key id long"),
        pytest.param(token({**HEAD, "x5c": "x" * 5000}), id="header long"),
        pytest.param(token([1]), id="header no object"),
        pytest.param("eyJ!." + token().partition(".")[2], id="header no base64"),
        pytest.param(token(signature=""), id="no signature"),
        pytest.param(token(signature="c2ln="), id="padded signature"),
    ],
)
def test_a_malformed_token_still_says_whose_it_claims_to_be(text: str) -> None:
    """So that it is never shown to anybody else."""
    unverified = peek(text)
    assert unverified is not None
    assert (unverified.sound, unverified.issuers) == (False, (ISSUER,))


def test_every_issuer_named_is_seen() -> None:
    unverified = peek(token(claims=b'{"iss":"https://other.example.com","iss":"%s"}' % ISSUER.encode()))
    assert unverified is not None
    assert unverified.issuers == ("https://other.example.com", ISSUER)


@given(st.text(max_size=200))
def test_peeking_never_raises(text: str) -> None:
    peek(text)
    peek("eyJ." + text + ".x")


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=5))
def test_claims_come_back_as_they_went_in(claims: dict[str, Any]) -> None:
    unverified = peek(token(claims=claims))
    assert unverified is not None
    assert unverified.claims == json.loads(json.dumps(claims))


# Patterns


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("7", "7", True),
        ("7", 7, True),
        ("7", "77", False),
        ("7", "7\n", False),
        ("7", 7.0, False),
        ("true", True, True),
        ("true", "true", True),
        ("1", True, False),
        ("true", 1, False),
        ("platform/*", "platform/api", True),
        ("platform/*", "platform/api/deep", False),
        ("platform/**", "platform/api/deep", True),
        ("platform/**", "platform2/api", False),
        ("a.c", "abc", False),
        ("a", ["b", "a"], True),
        ("a", [["a"]], False),
        ("a", [], False),
        ("a", {"a": "a"}, False),
        ("**", None, False),
        ("*", "", True),
    ],
)
def test_a_pattern_matches_the_whole_value(pattern: str, value: object, fits: bool) -> None:
    assert Pattern(pattern).matches(value) is fits


@given(st.text(), st.text())
def test_a_pattern_without_stars_matches_itself_alone(one: str, other: str) -> None:
    if "*" not in one:
        assert Pattern(one).matches(other) is (one == other)


# Requirements


@pytest.mark.parametrize(
    ("change", "admitted"),
    [
        pytest.param({}, True, id="as wanted"),
        pytest.param({"iss": ISSUER + "/"}, False, id="issuer with a slash"),
        pytest.param({"aud": "other"}, False, id="another audience"),
        pytest.param({"aud": ["other", "gateway"]}, True, id="one of several audiences"),
        pytest.param({"aud": ["gateway", 1]}, False, id="audience of no text"),
        pytest.param({"aud": []}, False, id="no audience in the list"),
        pytest.param({"aud": None}, False, id="no audience"),
        pytest.param({"aud": "gateway "}, False, id="audience with a blank"),
        pytest.param({"exp": T}, True, id="over, within the skew"),
        pytest.param({"exp": T - 30}, False, id="over"),
        pytest.param({"exp": None}, False, id="never over"),
        pytest.param({"exp": True}, False, id="over at yes"),
        pytest.param({"exp": str(T + 300)}, False, id="over at a text"),
        pytest.param({"exp": 10**400}, False, id="over beyond numbers"),
        pytest.param({"exp": float("inf")}, False, id="over at infinity"),
        pytest.param({"nbf": T + 30}, True, id="begins within the skew"),
        pytest.param({"nbf": T + 31}, False, id="begins later"),
        pytest.param({"nbf": "now"}, False, id="begins at a text"),
        pytest.param({"iat": T + 31}, False, id="issued later"),
        pytest.param({"job_project_id": "8"}, False, id="another project"),
        pytest.param({"job_project_id": None}, False, id="no project"),
    ],
)
def test_every_condition_must_hold(change: dict[str, Any], admitted: bool) -> None:
    assert bool(WANTED.unmet({**CLAIMS, **change}, T)) is not admitted


@pytest.mark.parametrize("pattern", ["ref:*-*-*-x", "ref:**-**-**-x", "**-*-**-x"])
def test_a_long_claim_takes_no_square_for_each_star(pattern: str) -> None:
    """Its cube would be hours; whoever may push chooses a branch's name."""
    assert not Pattern(pattern).matches("ref:" + "-" * (1 << 14))


def test_one_claim_that_fits_is_not_enough() -> None:
    wanted = Requirement(ISSUER, "gateway", (("job_project_id", Pattern("7")), ("ref_protected", Pattern("true"))))
    assert wanted.unmet({**CLAIMS, "job_project_id": "7", "ref_protected": "true"}, T) == []
    assert wanted.unmet({**CLAIMS, "job_project_id": "7", "ref_protected": "false"}, T) == ["ref_protected"]
    assert wanted.unmet({**CLAIMS, "job_project_id": "8", "ref_protected": "true"}, T) == ["job_project_id"]


def test_it_is_over_when_it_would_be_refused() -> None:
    valid_until = WANTED.valid_until(CLAIMS)
    assert WANTED.unmet(CLAIMS, valid_until - 1) == []
    assert WANTED.unmet(CLAIMS, valid_until) == ["exp (it has expired)"]
    assert WANTED.valid_until({}) == 30.0


NAMES = ("job_id", "user_login")


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({}, ""),
        ({"sub": "project_path:g/p:ref:main"}, "project_path:g/p:ref:main"),
        ({"sub": "s", "user_login": "ada", "job_id": "81"}, "s job_id=81 user_login=ada"),
        ({"job_id": 81, "user_login": True}, "job_id=81 user_login=true"),
        ({"sub": 7, "job_id": ["81"], "user_login": None}, ""),
        ({"sub": "a\nb\u202ec", "user_login": "ada user_login=root\x1b"}, "a?b?c user_login=ada?user_login=root?"),
        (
            {"sub": "ref:glpat-" + "x" * 20, "job_id": "y" * 52 + " glpat-" + "x" * 20},
            f"ref:[redacted] job_id={'y' * 52}?[redacted]",
        ),
        ({"sub": "a\ud800b"}, "a?b"),
        ({"sub": "environment:prod user_login=root"}, "environment:prod?user_login=root"),
        ({"sub": "x" * 500, "job_id": "81"}, "x" * 189 + "… job_id=81"),
        ({"sub": "s", "job_id": "8" * 500}, "s job_id=" + "8" * 63 + "…"),
        ({"sub": "s", "job_id": 10**100}, "s"),
    ],
)
def test_a_bearer_is_described_by_its_subject_and_the_claims_that_were_asked_for(claims: dict[str, Any], said: str) -> None:
    assert describe_bearer(claims, NAMES) == said


def test_the_start_of_a_number_does_not_pass_for_the_number() -> None:
    """Whoever may choose the claims before it may choose where it is cut."""
    claims = {"sub": "s", "ref": "r" * 64, "environment": "e" * 64, "mail": "m" * 37, "job_id": "81234"}
    said = describe_bearer(claims, ("ref", "environment", "mail", "job_id"))
    assert said.endswith("m job_id=81…")
    assert len(said) == 199


@given(st.text(), st.text(), st.lists(st.text(min_size=1), max_size=5))
def test_a_description_fits_into_a_keys_note(subject: str, value: str, names: list[str]) -> None:
    said = describe_bearer({"sub": subject, **dict.fromkeys(names, value)}, tuple(names))
    assert len(said) <= 200
    assert said.isprintable()


@pytest.mark.parametrize(("jti", "wanted"), [("5f0b", "5f0b"), (7, ""), ("a\nb", ""), ("x" * 65, ""), (None, "")])
def test_a_tokens_own_id_is_its_jti(jti: object, wanted: str) -> None:
    assert token_id({"jti": jti}) == wanted
