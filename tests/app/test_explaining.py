"""``explain``: each stage's word, and nothing asked of anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app.explaining import Explained, explain, trace
from gateway.app.limit_levels import Bucket, Levels, describe
from gateway.config import Config
from gateway.core.pacing import PaceReport
from tests.fakes.world import CONFIGURATION, configured

TEXT = CONFIGURATION.replace("credentials:", "  - {id: anyone, anonymous: true}\ncredentials:")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(f"{TEXT}cache: {{routes: [{{match: GET /api/v4/projects/:id, ttl: 30s}}]}}\n", tmp_path)


@pytest.mark.parametrize(
    ("identity", "method", "target", "lines"),
    [
        ("reader", "GET", "/api/v4/projects/1", ["permit      allowed by `reads`", "GitLab sees `sa`", "reused for 30 s"]),
        (
            "reader",
            "DELETE",
            "/api/v4/projects/1",
            ["permit      denied by `reads`", "answer      403 Forbidden - ", "code forbidden"],
        ),
        (
            "other",
            "POST",
            "/api/v4/projects",
            ["permit      not allowed", "answer      403 Forbidden - ", "code forbidden"],
        ),
        ("nobody", "GET", "/api/v4/user", ["permit      not allowed", "code forbidden"]),
        ("reader", "GET", "/api/v4/user?sudo=root", ["permit      no sudo", "code sudo_forbidden"]),
        ("actor", "GET", "/api/v4/user?sudo=root", ["permit      allowed by `acts`", "GitLab sees `sa-sudo`"]),
        (
            "people",
            "GET",
            "/api/v4/projects/a%2Fb",
            ["projects/a%2Fb", "GitLab sees the caller's own credential", "this very token"],
        ),
        ("anyone", "GET", "/api/v4/projects", ["anonymous:203.0.113.1", "anonymous callers"]),
        (
            "passthrough",
            "POST",
            "/api/v4/jobs/request",
            ["passthrough", "GitLab sees the caller's own credential", "POST goes up"],
        ),
        ("people", "POST", "/api/v4/internal/allowed", ["permit      blocked", "404"]),
        ("people", "GET", "/a/../b", ["target      refused: 400 bad_target"]),
        ("people", "TRACE", "/", ["method      refused: 405"]),
        ("people", "GET", "/no/such/route", ["not in the catalogue"]),
        ("reader", "POST", "/a/b.git/info/lfs/objects/batch", ["its body decides", "judged as a write here"]),
        ("reader", "POST", "/api/graphql", ["its body decides", "judged as a write here"]),
        ("people", "GET", "/api/v4/user?private_token=a&job_token=b", ["claim       refused: 400 ambiguous_credential"]),
    ],
)
def test_verdicts(config: Config, identity: str, method: str, target: str, lines: list[str]) -> None:
    text = explain(config, identity, method, target)
    for line in lines:
        assert line in text, text


@pytest.mark.parametrize(
    ("identity", "rule", "said"),
    [
        ("reader", "for: [reader], use: sa, allow: [{projects: [g/p]}]", "GitLab will be asked which one it is"),
        ("people", "for: [people], deny: [{projects: [g/p]}]", "which counts as not allowed"),
    ],
)
def test_what_only_gitlab_can_tell(tmp_path: Path, identity: str, rule: str, said: str) -> None:
    rules = f"rules: [{{id: r, {rule}}}]\n"
    text = explain(
        configured(CONFIGURATION.partition("rules:")[0] + rules, tmp_path), identity, "GET", "/api/v4/projects/7"
    )
    assert "unresolved  project 7: spelt differently from the rules" in text, text
    assert said in text
    assert "404" in text


def test_a_list_that_is_filtered(tmp_path: Path) -> None:
    text = CONFIGURATION.replace("identities:", "identities:\n  - {id: lister, key: issued}", 1).replace(
        "rules:",
        "rules:\n  - {id: lists, for: [lister], use: sa, allow: [{access: read, projects: [a/b], lists: filter}]}",
        1,
    )
    config = configured(text, tmp_path)
    assert "list        filtered: GitLab's page" in explain(config, "lister", "GET", "/api/v4/projects")
    refused = trace(config, "lister", "GET", "/api/v4/search?scope=users")
    assert (refused.allowed, refused.status, refused.code) == (False, 403, "forbidden")


def test_limits_are_reported_as_they_were_written(tmp_path: Path) -> None:
    more = """\
  - {id: exports, by: caller, rate: 3/day}
  - {id: quick, by: caller, rate: 2.5/s, burst: 7, mode: shadow}
  - {id: hourly, by: organisation, rate: 20000/hour}
  - {id: at-once, by: caller, concurrent: 20}
"""
    text = explain(configured(CONFIGURATION + more, tmp_path), "people", "GET", "/api/v4/projects")
    describe = "caller: 1 of 50, 60/min; exports: 1 of 3, 3/day; quick: 1 of 7, 2.5/s (shadow); "
    assert f"limits      {describe}hourly: 1 of 20000, 20000/hour; at-once: 1 of 20 at one time\n" in text


def test_a_token_in_the_target_is_not_repeated(config: Config) -> None:
    assert "c4n4ry" not in explain(config, "people", "GET", "/api/v4/user?a=1&private_token=glpat-c4n4ryc4n4ryc4n4ry")
    assert "c4n4ry" not in explain(config, "people", "GET", "/feed?feed_token=glft-c4n4ryc4n4ryc4n4ry")


def test_what_a_target_decodes_to_does_not_move_the_terminal(config: Config) -> None:
    """Whoever asks has it from an audit, that is from a caller."""
    text = explain(config, "people", "GET", "/api/v4/projects/x%1B%5B2J%2Fe%E2%80%AE")
    assert r"x\x1b[2j/e\u202e" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_odd_octets_are_taken_as_they_would_be_sent(config: Config) -> None:
    assert "refused: 400" in explain(config, "people", "GET", "/é")
    assert "refused: 400" in explain(config, "people", "GET", "/\udcff")


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("method", "target", "lines"),
    [
        (
            "GET",
            "/api/v4/projects/1",
            ["reused for 30 s", "while hooks come", "`runners_token`", "tags all project:1 unnamed rest:1"],
        ),
        ("GET", "/api/v4/projects/a%2FB/merge_requests/7", ["validated with GitLab", "project:a/b unnumbered mr:a/b!7"]),
        (
            "GET",
            f"/api/v4/projects/1/repository/tree?ref={SHA}",
            ["reused for 60 s", "kept for 604800 s", "named by a full commit SHA: with or without hooks"],
        ),
        ("GET", "/api/v4/projects/1/repository/tree?ref=main", ["validated with GitLab", "served stale for 600 s"]),
        ("GET", "/api/v4/projects/1/variables", ["not looked up: secret-answer"]),
        ("PUT", "/api/v4/projects/1", ["PUT goes up", "purges, unless refused: project:1 unnumbered kind:projects"]),
        ("HEAD", "/api/v4/projects/1", ["not looked up: HEAD goes up"]),
    ],
)
def test_what_the_cache_would_do(tmp_path: Path, method: str, target: str, lines: list[str]) -> None:
    cache = (
        "cache:\n  stale_if_error: 10m\n  routes: [{match: GET /api/v4/projects/:id, ttl: 30s}]\n"
        '  hooks: {secret: "${env:SA}"}\n'
    )
    text = explain(configured(TEXT + cache, tmp_path), "people", method, target)
    for line in lines:
        assert line in text, text


@pytest.mark.parametrize(("identity", "taken"), [("people", "kind:api partition:caller"), ("visitors", "kind:api")])
def test_whose_answers_a_mutation_takes(tmp_path: Path, identity: str, taken: str) -> None:
    text = (
        'version: 1\nupstream: {url: "http://gitlab.test"}\n'
        "identities: [{id: people, gitlab_token: true}, {id: visitors, anonymous: true}]\n"
    )
    describe = explain(configured(text, tmp_path), identity, "POST", "/api/graphql")
    assert f"purges, unless refused: {taken}\n" in describe, describe


@pytest.mark.parametrize(
    ("mode", "method", "line"),
    [
        ("shared", "GET", "shared: looked up; stored, and for how long, as the origin's answer says (RFC 9111)"),
        ("shared", "HEAD", "served stale for 600 s while the origin fails"),
        ("shared", "PUT", "shared: PUT goes up; an answer below 400 purges /api/v4/projects/1"),
        ("shared", "OPTIONS", "shared: not looked up: OPTIONS goes up"),
        ("off", "GET", "cache       off"),
    ],
)
def test_what_the_other_modes_would_do(tmp_path: Path, mode: str, method: str, line: str) -> None:
    text = f'version: 1\nupstream: {{url: "http://gitlab.test"}}\ncache: {{mode: {mode}, stale_if_error: 10m}}\n'
    describe = explain(configured(text, tmp_path), "people", method, "/api/v4/projects/1")
    assert line in describe, describe


@pytest.mark.parametrize(
    ("passthrough", "method", "target", "allowed", "line"),
    [
        ("none", "GET", "/api/v4/projects", False, "refused: 401 unauthenticated (`passthrough` does not list session)"),
        ("[runner, git]", "POST", "/api/v4/projects", False, "(`passthrough` does not list session)"),
        ("[runner, git]", "GET", "/v2/", False, "(`passthrough` does not list registry)"),
        ("[runner, git]", "POST", "/api/v4/jobs/request", True, "lets through: runner"),
        ("all", "GET", "/api/v4/projects", True, "lets through: session"),
        ("none", "GET", "/api/v4/internal/check", False, "404 Not Found, code blocked_route"),
    ],
)
def test_what_passes_through_is_what_the_configuration_lets_through(
    tmp_path: Path, passthrough: str, method: str, target: str, allowed: bool, line: str
) -> None:
    found = trace(configured(f"{TEXT}passthrough: {passthrough}\n", tmp_path), "passthrough", method, target)
    assert found.allowed is allowed
    assert any(line in words for _, words in found.stages), found.stages


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/api/v4/internal/check", 0),
        ("PURGE", "/api/v4/projects", 0),
        ("GET", "/api/v4/user?private_token=a&job_token=b", 0),
        ("TRACE", "/", 405),
        ("GET", "/a/../b", 400),
    ],
)
def test_a_plain_cache_has_no_routes_credentials_rules_or_limits(
    tmp_path: Path, method: str, target: str, status: int
) -> None:
    text = (
        'version: 1\nupstream: {url: "http://gitlab.test"}\ncache: {mode: shared}\n'
        "limits: [{id: caller, by: caller, rate: 6/min}]\n"
    )
    found = trace(configured(text, tmp_path), "people", method, target)
    assert (found.allowed, found.status, found.takes) == (not status, status, ())


def stages(found: Explained) -> list[tuple[str, str]]:
    """Levels of nobody's."""
    return describe(
        found,
        Levels(
            {take.key: Bucket(7.0, 50.0, 1.0) for take in found.takes}, {one: PaceReport(9.0) for one in found.credentials}
        ),
    )


@pytest.mark.parametrize(
    ("identity", "caller", "key", "line"),
    [
        ("reader", "", "{gw}:b:caller:reader", "bucket      caller of reader: 7 of 50 left, full in 43 s"),
        ("people", "user:42", "{gw}:b:caller:user:42", "bucket      caller of user:42: 7 of 50"),
        (
            "people",
            "",
            "{gw}:b:caller:user:1",
            "bucket      caller: each caller has one of its own; name a caller with --caller",
        ),
        ("anyone", "", "{gw}:b:caller:anonymous:203.0.113.1", "bucket      caller: each caller has one"),
        ("anyone", "anonymous:2001:db8::1", "{gw}:b:caller:anonymous:2001:db8::/64", "anonymous:2001:db8::/64: 7 of"),
        ("anyone", "198.51.100.7", "{gw}:b:caller:anonymous:198.51.100.7", "anonymous:198.51.100.7: 7 of 50"),
        ("passthrough", "passthrough:198.51.100.7", "{gw}:b:caller:passthrough:198.51.100.7", ": 7 of 50"),
    ],
)
def test_levels_are_those_of_the_caller_named(config: Config, identity: str, caller: str, key: str, line: str) -> None:
    found = trace(config, identity, "GET", "/api/v4/projects", caller=caller)
    assert [take.key for take in found.takes] == [key]
    text = explain(config, identity, "GET", "/api/v4/projects", caller=caller, level_lookup=stages)
    assert line in text
    assert ("pace        GitLab throttles `sa`: it is not used for 9 s" in text) is (identity == "reader")


def test_nothing_is_looked_at_for_a_request_that_is_refused_before(config: Config) -> None:
    text = explain(config, "reader", "DELETE", "/api/v4/projects/1", level_lookup=lambda _: [("bucket", "looked at")])
    assert "looked at" not in text


def test_nothing_is_looked_at_where_there_is_no_bucket_and_no_credential(tmp_path: Path) -> None:
    alone = configured('version: 1\nupstream: {url: "http://gitlab.test"}\n', tmp_path)
    text = explain(alone, "people", "GET", "/api/v4/projects", level_lookup=lambda _: [("levels", "looked at")])
    assert "none applies" in text
    assert "looked at" not in text


def test_of_a_pool_each_members_pace_is_reported(tmp_path: Path) -> None:
    pool = TEXT.replace('{id: sa, token: "${env:SA}"}', '{id: sa, pool: [{token: "${env:SA}"}, {token: "${env:SA_SUDO}"}]}')
    assert pool != TEXT
    found = trace(configured(pool, tmp_path), "reader", "GET", "/api/v4/projects")
    assert found.credentials == ("sa/1", "sa/2")
    paces = dict.fromkeys(["sa/2"], PaceReport(9.0))
    assert [words for stage, words in describe(found, Levels(paces=paces)) if stage == "pace"] == [
        "GitLab throttles `sa/2`: it is not used for 9 s"
    ]
