"""What an operator is told to look at."""

from __future__ import annotations

import sys

import msgspec
import pytest

from gateway import routes
from gateway.core.catalogue import Access, Surface
from gateway.core.rule_findings import review_rules
from gateway.core.rule_match import Clause, Lists, Projects, Rule

CATALOGUE = routes.catalogue()
READ = Clause(access=Access.READ)
OURS = Projects(under_group=("platform",))


def messages_of(clause: Clause, *, deny: bool = False) -> list[str]:
    rule = Rule("r", ("bot",), "" if deny else "cred", () if deny else (clause,), (clause,) if deny else ())
    found = review_rules([rule], CATALOGUE)
    assert {(finding.rule, finding.deny, finding.clause) for finding in found} <= {(0, deny, 0)}
    return [finding.message for finding in found]


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        pytest.param(READ, [], id="nothing"),
        pytest.param(Clause(permissions=("read_project",)), [], id="a permission"),
        pytest.param(
            Clause(permissions=("read_ci_variable",)),
            ["permission `read_ci_variable` belongs to no operation of the catalogue; did you mean `read_variable`?"],
            id="no such permission",
        ),
        pytest.param(Clause(routes=("GET /api/v4/projects/:anything",)), [], id="a route"),
        pytest.param(Clause(routes=("GET /api/v4/projects/:id/**",)), [], id="routes below"),
        pytest.param(
            Clause(routes=("GET /api/v4/projects/42",)),
            [
                "route `GET /api/v4/projects/42` never matches: the catalogue calls it `GET /api/v4/projects/:id`; "
                "name projects in `projects`"
            ],
            id="a path is no template",
        ),
        pytest.param(
            Clause(access=Access.READ, routes=("/api/v4/projects/42",)),
            [
                "route `/api/v4/projects/42` never matches: the catalogue calls it `GET /api/v4/projects/:id`; "
                "name projects in `projects`"
            ],
            id="whatever its method",
        ),
        pytest.param(
            Clause(routes=("GET /api/v4/brand_new",)),
            ["route `GET /api/v4/brand_new` is not in the catalogue: it matches only if GitLab adds it"],
            id="a new route",
        ),
        pytest.param(
            Clause(routes=("GET /api/v4/version/**",)),
            ["route `GET /api/v4/version/**` is not in the catalogue: it matches only if GitLab adds it"],
            id="nothing below",
        ),
        pytest.param(
            Clause(routes=("/api/v4/projects/:id",)),
            ["allows writes too: say `access: read` if only reading is meant"],
            id="writes by omission",
        ),
        pytest.param(
            Clause(projects=OURS), ["allows writes too: say `access: read` if only reading is meant"], id="only where"
        ),
        pytest.param(
            Clause(access=Access.READ, surfaces=(Surface.GRAPHQL,), projects=OURS),
            ["never holds: no operation that it selects stays within a project or group named in its path"],
            id="projects where none are named",
        ),
    ],
)
def test_an_allow(clause: Clause, expected: list[str]) -> None:
    assert messages_of(clause) == expected


FILTER = Clause(access=Access.READ, projects=OURS, lists=Lists.FILTER)


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        (FILTER, None),
        (msgspec.structs.replace(FILTER, routes=("GET /api/v4/projects",)), None),
        (msgspec.structs.replace(FILTER, projects=None), "narrows what an allow with `projects` lets through"),
        (msgspec.structs.replace(FILTER, surfaces=(Surface.GIT,)), "it selects no list that can be filtered"),
        (
            msgspec.structs.replace(FILTER, projects=Projects(under_group=("42",))),
            "shows nothing of a group named by number",
        ),
    ],
)
def test_a_filter_of_lists(clause: Clause, words: str | None) -> None:
    found = messages_of(clause)
    assert found == [] if words is None else words in found[0]


def test_a_deny_filters_nothing() -> None:
    assert "has no effect" in messages_of(FILTER, deny=True)[0]


def test_a_deny_may_be_as_broad_as_it_likes() -> None:
    assert messages_of(Clause(projects=OURS), deny=True) == []
    assert messages_of(Clause(permissions=("nonsense",)), deny=True) == [
        "permission `nonsense` belongs to no operation of the catalogue"
    ]


def together(*rules: Rule) -> list[str]:
    found = review_rules(rules, CATALOGUE)
    return [f"{rules[each.rule].id} {'deny' if each.deny else 'allow'} {each.clause}: {each.message}" for each in found]


def test_an_allow_that_a_deny_covers() -> None:
    allow = Rule("a", ("bot",), "cred", (Clause(permissions=("read_variable",)),))
    deny = Rule("d", ("bot",), deny=(Clause(permissions=("read_variable", "read_code")),))
    assert together(allow, deny) == ["a allow 0: never holds: rule `d` denies all of it"]
    partial = Rule("d", ("bot",), deny=(Clause(permissions=("read_variable",), projects=Projects(("1",))),))
    assert together(allow, partial) == []


def test_an_allow_that_an_earlier_one_covers() -> None:
    wide = Rule("a", ("bot", "too"), "cred", (READ,))
    narrow = Rule("b", ("bot", "too"), "cred", (Clause(permissions=("read_project",)),))
    assert together(wide, narrow) == ["b allow 0: never decides: rule `a` before it allows all of it"]
    assert together(narrow, wide) == []
    confined = Rule("a", ("bot",), "cred", (Clause(access=Access.READ, projects=OURS),))
    same = Rule("b", ("bot",), "cred", (Clause(permissions=("read_project",), projects=OURS),))
    other = Rule("b", ("bot",), "cred", (Clause(permissions=("read_project",), projects=Projects(("9",))),))
    assert together(confined, same) == ["b allow 0: never decides: rule `a` before it allows all of it"]
    assert together(confined, other) == []


def test_two_credentials_for_one_request() -> None:
    one = Rule("a", ("bot",), "one", (Clause(permissions=("read_project",)),))
    two = Rule("b", ("bot",), "two", (READ,))
    assert together(one, two) == ["b allow 0: overlaps rule `a`, whose credential `one` is used where both hold"]


def test_rules_apart_or_in_shadow_do_not_meet() -> None:
    mine = Rule("a", ("bot",), "one", (READ,))
    assert together(mine, Rule("b", ("other",), "two", (READ,))) == []
    assert together(mine, Rule("b", ("bot",), "two", (READ,), shadow=True)) == []


def test_an_allow_that_loses_what_may_reach_a_denied_place() -> None:
    hidden = Rule("d", ("bot",), deny=(Clause(projects=Projects(("finance/ledger",))),))
    (told_,) = together(Rule("a", ("bot",), "cred", (READ,)), hidden)
    assert "a allow 0: rule `d` denies " in told_
    assert "of its operations, `GET /api/v4/events` among them" in told_
    (told_,) = together(Rule("a", ("bot",), "cred", (Clause(access=Access.WRITE),)), hidden)
    assert "`POST /api/graphql` among them" in told_
    graphql = Rule("a", ("bot",), "cred", (Clause(surfaces=(Surface.GRAPHQL,), access=Access.READ),))
    assert "rule `d` denies all of it" in together(graphql, hidden)[0]
    version = Rule(
        "a", ("bot",), "cred", (Clause(routes=("GET /api/v4/version", "GET /api/v4/projects"), access=Access.READ),)
    )
    assert together(version, hidden) == []
    elsewhere = Rule("d", ("bot",), deny=(Clause(surfaces=(Surface.GIT,), projects=Projects(("finance/ledger",))),))
    assert together(Rule("a", ("bot",), "cred", (READ,)), elsewhere) == []


def test_a_deny_that_leaves_nothing_of_a_list() -> None:
    by_number = Clause(projects=Projects(under_group=("6",)))
    assert messages_of(by_number, deny=True) == [
        "leaves nothing of the lists that it filters: name groups by path, not by number"
    ]
    assert messages_of(msgspec.structs.replace(by_number, surfaces=(Surface.GIT,)), deny=True) == []


def test_an_allow_with_projects_beside_a_deny_with_them() -> None:
    allow = Rule("a", ("bot",), "cred", (Clause(access=Access.READ, projects=OURS),))
    deny = Rule("d", ("bot",), deny=(Clause(projects=Projects(("1",))),))
    assert together(allow, deny) == []


@pytest.mark.parametrize("identities", [("bot",), None], ids=["one identity", "one each"])
def test_many_rules_that_select_the_same_are_looked_at_once(identities: tuple[str, ...] | None) -> None:
    """A rule for each project takes the same time each, however many there are."""

    def calls(count: int) -> int:
        rules = [
            Rule(
                f"r{number}",
                identities or (f"bot-{number}",),
                "cred",
                (Clause(routes=("GET /api/v4/version",), projects=Projects((f"group/project-{number}",))),),
            )
            for number in range(count)
        ]
        seen = 0

        def note(_frame: object, event: str, _of: object) -> None:
            nonlocal seen
            seen += event == "call"

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            found = review_rules(rules, CATALOGUE)
        finally:
            sys.setprofile(before)
        assert len(found) == count
        return seen

    few = calls(100)
    assert calls(200) - few < 100 * 50
