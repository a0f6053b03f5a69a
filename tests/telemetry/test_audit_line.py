"""The audit's line: every fact in its place, and the same octets whichever way it is made."""

from __future__ import annotations

import json
import math
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.exchange import Exchange, ObserverMemo
from gateway.telemetry.audit_line import SCHEMA, LineRenderer, encode, line_of

TOKEN = "glpat-c4n4ryc4n4ryc4n4ry"


def exchange(number: int = 0, **facts: object) -> Exchange:
    x = Exchange(f"r-{number}", 100.0, "GET", "192.0.2.1")
    for name, value in facts.items():
        setattr(x, name, value)
    return x


def no_json(word: str) -> object:
    raise AssertionError(f"{word} is no JSON")


def test_every_fact_has_its_place() -> None:
    x = exchange(
        target=b"/api/v4/projects/1?a=b",
        operation="GET /api/v4/projects/:id",
        status=200,
        code="rate_limited",
        detail="said \x1b of redis://:word@host",
        identity="people",
        principal="user:7",
        principal_kind="gitlab_token",
        team="platform",
        credential_kind="token",
        credential_fingerprint="tok:0123456789ab",
        credential_id="key_0123456789ab",
        credential_subject="ref:\x1b job_id=1",
        rule="own-token",
        rule_shadow="tried",
        permit_use="sa",
        sudo="root",
        limit_id="caller",
        limit_remaining=12.34567,
        limit_waited_s=1.5,
        limit_shadow="tighter",
        cache_status="hit",
        cache_reason="fresh",
        cache_stored="stored",
        aborted="client",
        upstream_status=200,
        upstream_s=0.5,
        upstream_connect_s=0.001,
        upstream_first_byte_s=0.25,
        upstream_request_id="01HX",
        user_agent=b"curl/8",
        bytes_in=3,
        bytes_out=4,
    )
    event = msgspec.to_builtins(line_of(x, 1_800_000_000.25, 0.25))
    expected = {
        "schema": SCHEMA,
        "time": "2027-01-15T08:00:00.250Z",
        "request_id": "r-0",
        "peer": "192.0.2.1",
        "method": "GET",
        "target": "/api/v4/projects/1?a=b",
        "operation": "GET /api/v4/projects/:id",
        "status": 200,
        "duration_ms": 250.0,
        "bytes_in": 3,
        "bytes_out": 4,
        "code": "rate_limited",
        "detail": "said \\x1b of redis://[redacted]@host",
        "identity": "people",
        "principal": "user:7",
        "principal_kind": "gitlab_token",
        "team": "platform",
        "credential_kind": "token",
        "credential_fingerprint": "tok:0123456789ab",
        "credential_id": "key_0123456789ab",
        "credential_subject": "ref:\\x1b job_id=1",
        "rule": "own-token",
        "rule_shadow": "tried",
        "sudo": "root",
        "upstream_credential": "sa",
        "limit": "caller",
        "limit_remaining": 12.346,
        "limit_wait_ms": 1500.0,
        "limit_shadow": "tighter",
        "cache_status": "hit",
        "cache_reason": "fresh",
        "cache_stored": "stored",
        "aborted": "client",
        "upstream_status": 200,
        "upstream_ms": 500.0,
        "upstream_connect_ms": 1.0,
        "upstream_first_byte_ms": 250.0,
        "upstream_request_id": "01HX",
        "user_agent": "curl/8",
    }
    assert {name: event[name] for name in expected} == expected


def test_what_is_not_known_is_left_out() -> None:
    always = "schema time request_id peer method target operation status duration_ms bytes_in bytes_out"
    assert set(msgspec.to_builtins(line_of(exchange(), 1.0, 1.0))) == set(always.split())


@pytest.mark.parametrize(
    "facts",
    [
        {"target": f"/feed?feed_token={TOKEN}".encode()},
        {"target": f"/x/{TOKEN}/y".encode()},
        {"target": f"/x/{TOKEN.replace('-', '%2D')}/y".encode()},
        {"user_agent": f"curl {TOKEN}".encode()},
    ],
)
def test_a_token_in_the_wrong_place_is_blanked(facts: dict[str, object]) -> None:
    line = json.dumps(msgspec.to_builtins(line_of(exchange(**facts), 1.0, 1.0)))
    assert "c4n4ry" not in line
    assert "[redacted]" in line


@pytest.mark.parametrize(
    "letter", ["\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u200f", "\u202e", "\u2066", "\ufeff", "\x1b"]
)
def test_nothing_in_a_line_moves_a_terminal_or_its_reader(letter: str) -> None:
    """Nor ends it for a reader of lines that knows more ends than a line feed."""
    facts = exchange(user_agent=f"café {letter}[31m".encode(), sudo=letter, target=b"/%67lpat-c4n4ryc4n4ry%1b")
    line = encode(line_of(facts, 0.0, 0.0)).decode()
    assert line.isprintable()
    assert json.loads(line)["user_agent"] == "café " + letter.encode("unicode_escape").decode() + "[31m"


@pytest.mark.parametrize("at", [0.0, 0.9999, 1_800_000_000.0, 1_799_999_999.9996])
def test_instants_are_rfc_3339(at: float) -> None:
    text = msgspec.to_builtins(line_of(exchange(), at, 0.5))["time"]
    assert len(text) == len("2027-01-15T08:00:00.250Z")
    assert text[19] == "."
    assert text.startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(at))))


# Of many that are alike

WORDS = st.one_of(
    st.just(""),
    st.text(max_size=12),
    st.sampled_from(['","duration_ms":1', '\\","limit":"x', ',"user_agent":', "100%d", "é\x00"]),
)
NUMBERS = st.one_of(
    st.floats(0, 1e6), st.floats(0, 1e20), st.floats(-1e8, 0), st.sampled_from([0.0, 0.0005, 1.5, 0.12, 1e12, 1e15])
)
WAITED = st.sampled_from([0.0, 0.0, 0.0, 0.25])
TRACES = st.sampled_from(["", "0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736"])
FACTS = st.fixed_dictionaries(
    {
        **{
            name: WORDS
            for name, kind in Exchange.__annotations__.items()
            if kind == "str" and name not in {"request_id", "code", "limit_id", "upstream_request_id", "trace_id"}
        },
        "target": st.one_of(WORDS.map(str.encode), st.just(f"/a?private_token={TOKEN}".encode())),
        "user_agent": st.one_of(WORDS.map(str.encode), st.binary(max_size=8)),
        "status": st.integers(100, 599),
        "code": st.sampled_from(["", "rate_limited"]),
    }
)
ASKED = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {
                "request_id": WORDS,
                "trace_id": TRACES,
                "bytes_in": st.integers(0, 9),
                "bytes_out": st.sampled_from([0, 7, 123_456]),
                "limit_id": st.sampled_from(["", "caller", "team"]),
                "limit_remaining": NUMBERS,
                "limit_waited_s": WAITED,
            }
        ),
        st.floats(0, 4e9),
        NUMBERS,
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(FACTS, ASKED)
def test_kin_have_the_line_that_each_would_have_alone(
    facts: dict[str, object], asked: list[tuple[dict[str, object], float, float]]
) -> None:
    renderer, observer_memo = LineRenderer(), ObserverMemo()
    for differing, at, took_s in asked:
        x = exchange(**facts, **differing, observer_memo=observer_memo)
        (line,) = renderer.render([(x, took_s)], at - x.started_at)
        assert line == encode(line_of(x, x.started_at + (at - x.started_at), took_s))
        assert json.loads(line, parse_constant=no_json)["schema"] == SCHEMA


TIMES = st.one_of(
    st.floats(0, 1e6),
    st.floats(0, 1e20),
    st.sampled_from([0.0, 0.0001, 0.00102, 0.012, 0.1, 1.0, 10.0, 1e12, 1e13, -1.0, math.inf, math.nan]),
)
# Targets of one path, as requests recorded alike have them, and others: what is kept of the one is nothing to the others.
TARGETS = st.one_of(
    WORDS.map(str.encode),
    st.tuples(
        st.sampled_from([b"", b"/a", b"/a%2Fb", b"/a;token=x", b"/a&key=x", f"/{TOKEN}".encode(), b'/"']),
        st.sampled_from(
            [b"", b"?", b"?page=2", b"?page=3&sort=desc", b"?page=2&", b"?a=b", b"?private_token=x", b"?page=2?"]
        ),
    ).map(b"".join),
)
FORWARDED = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {
                "request_id": WORDS,
                "trace_id": TRACES,
                "target": TARGETS,
                "bytes_in": st.integers(0, 9),
                "bytes_out": st.sampled_from([0, 7, 123_456]),
                "limit_id": st.sampled_from(["", "caller", "team"]),
                "limit_remaining": NUMBERS,
                "limit_waited_s": WAITED,
                "upstream_s": TIMES,
                "upstream_connect_s": TIMES,
                "upstream_first_byte_s": TIMES,
                "upstream_request_id": WORDS,
            }
        ),
        st.floats(0, 4e9),
        NUMBERS,
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(FACTS, st.integers(100, 599), FORWARDED)
def test_kin_that_went_up_have_the_line_that_each_would_have_alone(
    facts: dict[str, object], upstream_status: int, asked: list[tuple[dict[str, object], float, float]]
) -> None:
    renderer, observer_memo = LineRenderer(), ObserverMemo()
    for differing, at, took_s in asked:
        x = exchange(**{**facts, **differing}, upstream_status=upstream_status, observer_memo=observer_memo)
        (line,) = renderer.render([(x, took_s)], at - x.started_at)
        assert line == encode(line_of(x, x.started_at + (at - x.started_at), took_s))
        assert json.loads(line, parse_constant=no_json)["schema"] == SCHEMA
