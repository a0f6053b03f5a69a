"""Limits as the pipeline sees them."""

from __future__ import annotations

import pytest

from gateway.core.access import Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.dialect import LimitDialect, NoDialect
from gateway.core.limit_headers import LimitHeaders
from gateway.core.limit_plan import Limits
from gateway.core.limits import Decision, Limit, Scope, decide
from gateway.core.messages import Fields, ResponseHead, first, values
from gateway.core.target import parse_target

NOW = 1_800_000_000.0
LIMITS = Limits.compile([Limit("caller", Scope.CALLER, 10.0, 20.0)])
HEADERS = LimitHeaders(LIMITS, key=b"k" * 16)
DIALECT = LimitDialect(LIMITS, HEADERS)
OPERATION = Operation("GET /api/v4/user", Access.READ, Surface.REST)
TARGET = parse_target(b"/api/v4/user")
BROKERED = Principal("backstage", PrincipalKind.KEY, "backstage")
OWN = Principal("user:1", PrincipalKind.GITLAB_TOKEN, "people", token_hash=b"t")
GITLABS: Fields = (
    (b"RateLimit-Limit", b"60"),
    (b"RateLimit-Remaining", b"0"),
    (b"RateLimit-Reset", b"1800000030"),
    (b"RateLimit-Name", b"throttle"),
)


def taken(principal: Principal) -> Decision:
    takes = DIALECT.takes_for(principal, OPERATION, TARGET, "GET", "192.0.2.1")
    return decide(takes, [None] * len(takes), int(NOW * 1_000_000))[0]


def test_the_configured_limits_are_taken_from() -> None:
    assert [take.limit.id for take in DIALECT.takes_for(OWN, OPERATION, TARGET, "GET", "192.0.2.1")] == ["caller"]


@pytest.mark.parametrize(("decided", "known"), [(False, False), (False, True), (True, False)])
def test_before_a_decision_the_nominal_quota_is_sent(decided: bool, known: bool) -> None:
    decision = taken(OWN) if decided else None
    assert DIALECT.own_fields(decision, OWN if known else None) == HEADERS.nominal()


def test_a_decisions_numbers_are_sent() -> None:
    fields = DIALECT.own_fields(taken(OWN), OWN)
    assert first(fields, b"ratelimit-remaining") == b"19"
    assert first(fields, b"ratelimit-limit") == b"600"


def test_a_brokered_caller_never_sees_gitlabs_numbers() -> None:
    """They describe a credential that others use too."""
    merged = DIALECT.merged(taken(BROKERED), BROKERED, 200, ((b"ETag", b'"1"'), *GITLABS), NOW)
    assert values(merged, b"ratelimit-limit") == [b"600"]
    assert values(merged, b"ratelimit-remaining") == [b"19"]
    assert b"throttle" not in b"".join(value for _, value in merged)
    assert first(merged, b"etag") == b'"1"'


def test_an_own_token_sees_the_stricter_set() -> None:
    merged = DIALECT.merged(taken(OWN), OWN, 200, GITLABS, NOW)
    assert values(merged, b"ratelimit-remaining") == [b"0"]
    assert values(merged, b"ratelimit-name") == [b"throttle"]


def test_without_a_dialect_nothing_is_taken_sent_or_changed() -> None:
    dialect = NoDialect()
    assert dialect.takes_for(OWN, OPERATION, TARGET, "GET", "192.0.2.1") == ()
    assert dialect.own_fields(taken(OWN), OWN) == ()
    assert dialect.merged(taken(OWN), OWN, 200, GITLABS, NOW) is GITLABS


@pytest.mark.parametrize("principal", [BROKERED, OWN])
@pytest.mark.parametrize("status", [200, 404, 429])
@pytest.mark.parametrize("upstream", [((b"ETag", b'"1"'),), ((b"ETag", b'"1"'), *GITLABS)])
def test_the_merged_parts_say_the_same_as_the_merged_fields(principal: Principal, status: int, upstream: Fields) -> None:
    decision = taken(principal)
    merged_parts = DIALECT.merged_parts(decision, principal, ResponseHead(status, upstream))
    weighed = status == 429 or (principal is OWN and len(upstream) > 1)
    assert (merged_parts is None) is weighed
    if merged_parts is not None:
        fields, lines = merged_parts
        added = tuple(tuple(line.split(b": ", 1)) for line in lines.split(b"\r\n")[:-1])
        assert fields + added == DIALECT.merged(decision, principal, status, upstream, NOW)


def test_nothing_is_added_to_an_answer_without_a_dialect() -> None:
    assert NoDialect().merged_parts(None, OWN, ResponseHead(200, GITLABS)) == (GITLABS, b"")
