"""Requests of the past under another configuration: from audit lines, and honest about what they do not tell."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.app.replaying import ALLOWED, Decision, Found, Replay, Unclear
from gateway.config import load

CONFIGURATION = """\
version: 1
upstream: {url: "http://127.0.0.1:9"}
identities:
  - {id: bot, key: issued, bind: {cidr: [192.0.2.0/24]}}
  - {id: people, gitlab_token: true}
credentials: [{id: sa, token: "${env:SA}"}, {id: other, token: "${env:OTHER}", sudo: true}]
passthrough: all
rules:
  - {id: reads, for: [bot], use: sa, allow: [{access: read, projects: {under_group: platform}}]}
  - id: comments
    for: [bot]
    use: sa
    allow:
      - {routes: ["/api/v4/projects/:id/issues/:issue_iid/notes"], projects: {under_group: platform}}
  - {id: query, for: [bot], use: sa, allow: [{access: read, surfaces: [graphql]}]}
  - {id: nobody, for: [people, passthrough], deny: [{routes: ["DELETE /api/v4/projects/:id"]}]}
"""
ISSUES = "/api/v4/projects/platform%2Fapi/issues"


def replay(text: str = CONFIGURATION) -> Replay:
    loaded = load(text, {"SA": "glpat-0123456789abcdefghij", "OTHER": "glpat-abcdefghij0123456789"}, str)
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return Replay(loaded.config)


def line(**facts: Any) -> bytes:
    past = {
        "schema": 1,
        "time": "2027-01-15T08:00:00.250Z",
        "request_id": "r-1",
        "peer": "192.0.2.7",
        "method": "GET",
        "target": ISSUES,
        "status": 200,
        "identity": "bot",
        "principal": "bot",
        "principal_kind": "key",
        "rule": "reads",
        "upstream_credential": "sa",
    }
    return json.dumps(past | facts).encode()


def judged(text: str = CONFIGURATION, **facts: Any) -> Decision | Unclear | None:
    """What is told of one line; None: the same."""
    one = replay(text)
    found = list(one.run([line(**facts)]))
    assert one.same + one.different + one.unclear.total() == 1
    return found[0].kind.now if found else None


def test_the_same_is_not_reported() -> None:
    one = replay()
    assert list(one.run([line()] * 3)) == []
    assert (one.same, one.different) == (3, 0)


def test_another_rule_that_decides_the_same_is_the_same() -> None:
    assert judged(rule="of-old") is None


def test_the_member_of_a_pool_is_its_pool() -> None:
    assert judged(upstream_credential="sa/2") is None


@pytest.mark.parametrize(
    ("facts", "now"),
    [
        pytest.param({"target": "/api/v4/projects/finance%2Fapi/issues"}, Decision("project_unknown"), id="another place"),
        pytest.param({"target": "/api/v4/user"}, Decision("forbidden"), id="no place"),
        pytest.param({"method": "POST"}, Decision("forbidden"), id="a write"),
        pytest.param({"identity": "gone"}, Decision("unauthenticated"), id="no such identity"),
        pytest.param({"peer": "198.51.100.1"}, Decision("unauthenticated"), id="from elsewhere"),
        pytest.param({"principal_kind": "oidc"}, Decision("unauthenticated"), id="recognised otherwise"),
        pytest.param({"principal_kind": "anonymous"}, Decision("unauthenticated"), id="nobody is anonymous"),
        pytest.param({"upstream_credential": "old"}, Decision(ALLOWED, "reads", "sa"), id="as somebody else"),
        pytest.param({"code": "forbidden", "rule": ""}, Decision(ALLOWED, "reads", "sa"), id="allowed now"),
        pytest.param({"sudo": "bob"}, Decision("sudo_forbidden"), id="sudo"),
        pytest.param(
            {"principal_kind": "gitlab_token", "identity": "people-of-old", "upstream_credential": "", "method": "DELETE"}
            | {"target": "/api/v4/projects/1"},
            Decision("forbidden", "nobody"),
            id="an own token, under another name",
        ),
        pytest.param(
            {"principal_kind": "passthrough", "identity": "passthrough", "upstream_credential": "", "method": "DELETE"}
            | {"target": "/api/v4/projects/1"},
            Decision("forbidden", "nobody"),
            id="passing through",
        ),
    ],
)
def test_what_would_differ_is_reported(facts: dict[str, Any], now: Decision) -> None:
    assert judged(**facts) == now


def test_an_answer_of_gitlabs_is_a_decision_to_allow() -> None:
    assert judged(status=404, target="/api/v4/user") == Decision("forbidden")
    assert judged(status=429, code="rate_limited") is None


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"target": "/api/v4/projects/42/issues"}, Unclear.PLACE),
        ({"target": "/x/[redacted]/y"}, Unclear.TARGET),
        ({"target": "/a/../b"}, Unclear.TARGET),
        ({"method": "POST", "target": "/api/graphql"}, Unclear.BODY),
        (
            {"method": "POST", "target": ISSUES + "/1/notes", "code": "project_unknown", "rule": "comments"},
            Unclear.BODY,
        ),
    ],
)
def test_what_a_line_cannot_tell_is_said(facts: dict[str, Any], why: Unclear) -> None:
    assert judged(**facts) is why


def test_a_blanked_parameter_does_not_hide_the_rest() -> None:
    assert judged(target=ISSUES + "?state=[redacted]") is None


def test_who_may_do_neither_gets_no_answer_about_a_document() -> None:
    one = judged(CONFIGURATION.replace("surfaces: [graphql]", "surfaces: [git]"), method="POST", target="/api/graphql")
    assert one == Decision("forbidden")


def test_lists_are_filtered_or_refused() -> None:
    filtering = CONFIGURATION.replace(
        "allow: [{access: read, projects: {under_group: platform}}]",
        "allow: [{access: read, projects: {under_group: platform}, lists: filter}]",
    )
    for target, now in (
        ("/api/v4/projects", None),
        ("/api/v4/search?scope=issues", None),
        ("/api/v4/search?scope=users", Decision("forbidden")),
    ):
        assert judged(filtering, target=target) == now
        assert judged(target=target) == Decision("forbidden")


def test_credentials_that_pass_may_be_fewer() -> None:
    facts = {"principal_kind": "passthrough", "identity": "passthrough", "rule": "passthrough", "upstream_credential": ""}
    assert judged(**facts) is None
    assert judged(CONFIGURATION.replace("passthrough: all", "passthrough: [runner]"), **facts) is Unclear.CREDENTIAL


def test_bodies_that_would_be_looked_into_are_counted() -> None:
    one = replay(CONFIGURATION.replace('routes: ["/api/v4/projects/:id/issues/:issue_iid/notes"]', "access: write"))
    target = "/api/v4/projects/platform%2Fapi/merge_requests"
    assert list(one.run([line(method="POST", target=target, rule="comments")])) == []
    assert one.bodies_searched == 1


@pytest.mark.parametrize(
    "facts",
    [
        {"event": "forwarding"},
        {"event": "chain_opened"},
        {"target": "", "principal_kind": "", "code": "bad_request"},
        {"principal_kind": "", "rule": "", "code": "unauthenticated"},
        {"principal_kind": "admin", "rule": ""},
        {"rule": "", "code": "place_unavailable"},
    ],
)
def test_what_no_rule_had_a_say_in_is_left_out(facts: dict[str, Any]) -> None:
    one = replay()
    assert list(one.run([line(**facts)])) == []
    assert one.unjudged == 1


@pytest.mark.parametrize("octets", [b"", b"{", b"\xff", b"[" * 100_000, b'{"target":7}'])
def test_what_is_no_line_is_counted(octets: bytes) -> None:
    one = replay()
    assert list(one.run([octets])) == []
    assert one.unreadable == 1


def test_many_alike_are_one() -> None:
    one = replay()
    lines = [line(target=f"/api/v4/projects/finance%2F{n % 3}/issues", request_id=f"r-{n}") for n in range(30)]
    found = list(one.run(lines))
    assert [(one.kind.project, one.times, one.request_id) for one in found] == [
        ("finance/0", 10, "r-0"),
        ("finance/1", 10, "r-1"),
        ("finance/2", 10, "r-2"),
    ]
    assert found[0] == Found(
        kind=found[0].kind, times=10, request_id="r-0", at="2027-01-15T08:00:00.250Z"
    )  # nothing of a line is kept but the first one's name
    assert str(found[0].kind.was) == "allowed by reads as sa"


def test_memory_has_a_bound() -> None:
    one = replay()
    lines = (line(target=f"/api/v4/projects/finance%2F{n}/issues") for n in range(10_050))
    running = one.run(lines)
    first = next(running)
    assert one.different == 10_000, "told when there are too many to keep"
    assert first.times == 1
    assert sum(found.times for found in running) == 10_049
