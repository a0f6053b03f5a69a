"""Who may do what."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import routes
from gateway.core import access
from gateway.core.access import Explanation, Permit, Principal, PrincipalKind, Rules, Verdict
from gateway.core.catalogue import Access, Operation, ReferenceKind, Surface
from gateway.core.errors import Code, Rejection
from gateway.core.rule_match import Clause, Lists, NamedPlace, Place, PlaceLookup, Projects, Resolved, Rule
from gateway.core.target import Target, parse_target

CATALOGUE = routes.catalogue()
BOT = Principal("bot", PrincipalKind.KEY, "bot")
JOB = Principal("bot", PrincipalKind.OIDC, "bot")
OTHER = Principal("other", PrincipalKind.KEY, "other")
PERSON = Principal("user:7", PrincipalKind.GITLAB_TOKEN, "people")
ANYONE = Principal("anonymous:::1", PrincipalKind.ANONYMOUS, "anonymous")
RUNNER = Principal("passthrough:::1", PrincipalKind.PASSTHROUGH, "passthrough")

READ = Clause(access=Access.READ)
WRITE = Clause(access=Access.WRITE)
OURS = Projects(under_group=("platform",))
READ_OURS = Clause(access=Access.READ, projects=OURS)
WRITE_OURS = Clause(access=Access.WRITE, projects=OURS)


def rule(*allow: Clause, deny: tuple[Clause, ...] = (), name: str = "r", **more: object) -> Rule:
    made = Rule(name, ("bot",), "cred" if allow else "", allow, deny)
    return msgspec.structs.replace(made, **more)


def request(method: str, target: str) -> tuple[Operation, Target]:
    parsed = parse_target(target.encode())
    return CATALOGUE.match(method, parsed), parsed


def ask(
    rules: Rules,
    method: str,
    target: str,
    *,
    who: Principal = BOT,
    sudo: str | None = None,
    resolved: Resolved | None = None,
    screened: bool = False,
) -> Permit | tuple[int, Code, str]:
    """The permit, or the refusal's status, code and message; and the memory, the explanation and both agree."""
    operation, parsed = request(method, target)
    answers: Resolved = resolved or {}

    def once() -> Permit | tuple[int, Code, str]:
        try:
            return rules.authorise(who, operation, parsed, method, sudo, resolved=answers, screened=screened)
        except Rejection as refused:
            return refused.status, refused.code, refused.message

    first, second = once(), once()
    assert first == second
    explained = rules.explain(who, operation, parsed, method, sudo, resolved=answers, screened=screened)
    assert (explained.verdict is Verdict.ALLOWED) == isinstance(first, Permit)
    if isinstance(first, Permit):
        assert explained.rule == first.rule
    return first


def allowed(*args: object, **more: object) -> bool:
    return isinstance(ask(*args, **more), Permit)  # type: ignore[arg-type]


NOT_ALLOWED = (403, Code.FORBIDDEN, "403 Forbidden - Not allowed by the gateway's rules")
NO_PROJECT = (404, Code.PROJECT_UNKNOWN, "404 Project Not Found")
NO_GROUP = (404, Code.PROJECT_UNKNOWN, "404 Group Not Found")
NO_SUDO = (403, Code.SUDO_FORBIDDEN, "403 Forbidden - Must be admin to use sudo")
BLOCKED = (404, Code.BLOCKED_ROUTE, "404 Not Found")


# Who needs a rule


@pytest.mark.parametrize(("who", "name"), [(PERSON, "own-token"), (ANYONE, "anonymous"), (RUNNER, "passthrough")])
def test_gitlab_judges_those_who_bring_their_own(who: Principal, name: str) -> None:
    rules = Rules.compile([])
    assert ask(rules, "DELETE", "/api/v4/projects/1", who=who) == Permit(name)
    assert ask(rules, "POST", "/api/v4/nothing", who=who) == Permit(name)
    assert ask(rules, "GET", "/api/v4/version", who=who, sudo="root") == Permit(name, sudo="root")


@pytest.mark.parametrize("who", [BOT, JOB])
def test_brokered_callers_may_do_nothing_unless_a_rule_says_so(who: Principal) -> None:
    assert ask(Rules.compile([]), "GET", "/api/v4/version", who=who) == NOT_ALLOWED
    assert ask(Rules.compile([rule(READ)]), "GET", "/api/v4/version", who=OTHER) == NOT_ALLOWED
    permit = ask(Rules.compile([rule(READ)]), "GET", "/api/v4/version", who=who)
    assert isinstance(permit, Permit)
    assert (permit.rule, permit.use, permit.confined, permit.sudo) == ("r", "cred", False, "")


def test_a_deny_narrows_those_who_bring_their_own() -> None:
    rules = Rules.compile([Rule("no-writes", ("people",), deny=(Clause(methods=("POST",)),))])
    assert ask(rules, "POST", "/api/v4/projects", who=PERSON) == NOT_ALLOWED
    assert ask(rules, "GET", "/api/v4/projects", who=PERSON) == Permit("own-token")
    assert ask(rules, "GET", "/api/v4/projects", who=PERSON, sudo="eve") == Permit("own-token", sudo="eve")


def test_a_deny_by_surface_catches_what_the_catalogue_does_not_know_of_it() -> None:
    """GitLab adds routes to its registries with every release."""
    rules = Rules.compile([Rule("no-packages", ("people",), deny=(Clause(surfaces=(Surface.PACKAGES,)),))])
    assert ask(rules, "PUT", "/api/v4/projects/1/packages/npm/x", who=PERSON) == NOT_ALLOWED
    assert ask(rules, "PUT", "/api/v4/projects/1/packages/cargo/api/v1/crates/new", who=PERSON) == NOT_ALLOWED
    assert ask(rules, "PUT", "/api/v4/projects/1/nothing", who=PERSON) == Permit("own-token")


@pytest.mark.parametrize("who", [BOT, PERSON, ANYONE, RUNNER])
@pytest.mark.parametrize("rules", [Rules.compile([]), Rules.compile([rule(WRITE)])])
def test_blocked_routes_are_nobodys(who: Principal, rules: Rules) -> None:
    assert ask(rules, "GET", "/api/v4/%69nternal/allowed", who=who) == BLOCKED


# Any deny wins


def test_any_deny_wins_over_any_allow() -> None:
    no_variables = Clause(permissions=("read_variable",))
    for order in ([rule(READ), rule(name="d", deny=(no_variables,))], [rule(name="d", deny=(no_variables,)), rule(READ)]):
        rules = Rules.compile(order)
        assert ask(rules, "GET", "/api/v4/projects/1/variables") == NOT_ALLOWED
        assert allowed(rules, "GET", "/api/v4/projects/1")


def test_the_first_rule_that_allows_is_used() -> None:
    rules = Rules.compile([rule(WRITE_OURS, name="a", use="one"), rule(READ, name="b", use="two")])
    first = ask(rules, "GET", "/api/v4/projects/platform%2Fx")
    second = ask(rules, "GET", "/api/v4/projects/else%2Fx")
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    assert (first.rule, first.use, first.confined) == ("a", "one", True)
    assert (second.rule, second.use, second.confined) == ("b", "two", False)


def test_a_clause_without_projects_frees_what_one_with_them_confines() -> None:
    permit = ask(Rules.compile([rule(READ_OURS, READ)]), "GET", "/api/v4/projects/platform%2Fx")
    assert isinstance(permit, Permit)
    assert not permit.confined


# Projects


@pytest.mark.parametrize(
    ("method", "target", "answer"),
    [
        ("GET", "/api/v4/projects/else%2Fx", NO_PROJECT),
        ("GET", "/api/v4/projects/42", NO_PROJECT),
        ("GET", "/api/v4/projects/platform%252Fx", NO_PROJECT),
        ("GET", "/api/v4/groups/else/issues", NO_GROUP),
        ("GET", "/api/v4/namespaces/else", (404, Code.PROJECT_UNKNOWN, "404 Namespace Not Found")),
        ("DELETE", "/api/v4/projects/platform%2Fx", NOT_ALLOWED),
        ("GET", "/api/v4/projects", NOT_ALLOWED),
        ("GET", "/api/v4/groups/platform/projects", NOT_ALLOWED),
        ("GET", "/api/v4/search?scope=blobs&search=key", NOT_ALLOWED),
        ("POST", "/api/v4/markdown", NOT_ALLOWED),
        ("POST", "/api/v4/projects/platform%2Fx/ci/lint", NOT_ALLOWED),
        ("POST", "/api/graphql", NOT_ALLOWED),
        ("GET", "/api/v4/nothing", NOT_ALLOWED),
        ("GET", "/platform/x/-/issues", NOT_ALLOWED),
        ("GET", "/api/v4/users/1/projects", NOT_ALLOWED),
        ("GET", "/api/v4/issues/5", NOT_ALLOWED),
    ],
)
def test_what_a_rule_about_projects_does_not_allow(method: str, target: str, answer: tuple[int, Code, str]) -> None:
    assert ask(Rules.compile([rule(READ_OURS)]), method, target) == answer


def test_what_it_allows() -> None:
    rules = Rules.compile([rule(READ_OURS)])
    for target in (
        "/api/v4/projects/platform%2Fx",
        "/api/v4/projects/PLATFORM%2fsub%2Fx/issues",
        "/api/v4/groups/platform/-/epics",
    ):
        permit = ask(rules, "GET", target)
        assert isinstance(permit, Permit)
        assert permit.confined


def test_a_body_that_may_name_another_project_needs_the_promise_to_screen_it() -> None:
    rules = Rules.compile([rule(WRITE_OURS)])
    target = "/api/v4/projects/platform%2Fx/merge_requests"
    assert ask(rules, "POST", target) == NOT_ALLOWED
    permit = ask(rules, "POST", target, screened=True)
    assert isinstance(permit, Permit)
    assert permit.confined
    assert ask(rules, "POST", target + "?target_project_id=9", screened=True) == NO_PROJECT


def test_whose_word_counts_on_what_an_identitys_rules_name() -> None:
    rules = Rules.compile(
        [rule(READ_OURS), rule(READ, name="second"), rule(WRITE_OURS, name="shadowed", use="other", shadow=True)]
    )
    assert rules.credentials_of("bot") == ("cred",)
    assert rules.credentials_of("nobody") == ()
    assert not rules.by_group_id
    by_number = Clause(access=Access.READ, projects=Projects(under_group=("7",)))
    assert Rules.compile([rule(by_number)]).by_group_id
    assert Rules.compile([rule(READ_OURS, by_number)]).by_group_id


def test_gitlabs_answers_decide_what_was_open() -> None:
    rules = Rules.compile([rule(READ_OURS)])
    operation, parsed = request("GET", "/api/v4/projects/42")
    lookup = PlaceLookup(ReferenceKind.PROJECT, "42")
    assert rules.lookups(BOT, operation, parsed, "GET") == (lookup,)
    assert ask(rules, "GET", "/api/v4/projects/42") == NO_PROJECT
    assert allowed(rules, "GET", "/api/v4/projects/42", resolved={lookup: Place("42", "platform/x")})
    assert ask(rules, "GET", "/api/v4/projects/42", resolved={lookup: Place("42", "else/x")}) == NO_PROJECT


def test_a_rule_that_a_number_may_fall_under_is_heard_before_one_that_surely_allows() -> None:
    here = Clause(access=Access.READ, projects=Projects(named=("platform/api",)))
    rules = Rules.compile([rule(here, name="a", use="one"), rule(READ, name="b", use="two")])
    operation, parsed = request("GET", "/api/v4/projects/42")
    lookup = PlaceLookup(ReferenceKind.PROJECT, "42")
    assert rules.lookups(BOT, operation, parsed, "GET") == (lookup,)
    for path, use in (("platform/api", "one"), ("platform/web", "two")):
        permit = rules.authorise(BOT, operation, parsed, "GET", resolved={lookup: Place("42", path)})
        assert permit.use == use


def test_gitlab_is_asked_whether_a_number_is_denied() -> None:
    rules = Rules.compile([rule(READ), rule(name="d", deny=(Clause(projects=OURS),))])
    operation, parsed = request("GET", "/api/v4/projects/42")
    lookup = PlaceLookup(ReferenceKind.PROJECT, "42")
    assert rules.lookups(BOT, operation, parsed, "GET") == (lookup,)
    assert allowed(rules, "GET", "/api/v4/projects/42", resolved={lookup: Place("42", "else/x")})
    assert ask(rules, "GET", "/api/v4/projects/42", resolved={lookup: Place("42", "platform/x")}) == NO_PROJECT


def test_of_what_git_follows_gitlab_is_asked_though_its_spelling_decides() -> None:
    rules = Rules.compile([rule(READ_OURS)])
    operation, parsed = request("GET", "/platform/x.git/info/refs?service=git-upload-pack")
    lookup = PlaceLookup(ReferenceKind.PROJECT, "platform/x")
    assert rules.lookups(BOT, operation, parsed, "GET") == (lookup,)
    assert rules.authorise(BOT, operation, parsed, "GET").rule
    moved = {lookup: Place("42", "finance/x")}
    with pytest.raises(Rejection):
        rules.authorise(BOT, operation, parsed, "GET", resolved=moved)
    own = msgspec.structs.replace(BOT, kind=PrincipalKind.GITLAB_TOKEN)
    assert rules.lookups(own, operation, parsed, "GET") == ()
    elsewhere, at = request("GET", "/finance/x.git/info/refs?service=git-upload-pack")
    assert rules.lookups(BOT, elsewhere, at, "GET") == ()  # refused by its spelling


@pytest.mark.parametrize(
    ("who", "rules", "target"),
    [
        pytest.param(BOT, [rule(READ)], "/api/v4/projects/42", id="no rule names projects"),
        pytest.param(BOT, [rule(READ_OURS)], "/api/v4/projects/platform%2Fx", id="decided already"),
        pytest.param(BOT, [rule(READ_OURS)], "/api/v4/projects/platform%252Fx", id="GitLab could not tell"),
        pytest.param(OTHER, [rule(READ_OURS)], "/api/v4/projects/42", id="no rule at all"),
        pytest.param(BOT, [rule(READ_OURS)], "/api/v4/internal/x", id="blocked"),
    ],
)
def test_nothing_is_asked_that_changes_nothing(who: Principal, rules: list[Rule], target: str) -> None:
    operation, parsed = request("GET", target)
    assert Rules.compile(rules).lookups(who, operation, parsed, "GET") == ()


def test_a_denied_place_looks_as_if_it_were_not_there() -> None:
    secret = Clause(projects=Projects(named=("platform/secret",)))
    rules = Rules.compile([rule(READ), rule(name="d", deny=(secret,))])
    assert ask(rules, "GET", "/api/v4/projects/platform%2Fsecret") == NO_PROJECT
    assert ask(rules, "GET", "/api/v4/projects/platform%2Fsecret.json") == NO_PROJECT
    assert ask(rules, "GET", "/api/v4/projects/42") == NO_PROJECT
    assert ask(rules, "GET", "/api/v4/groups/platform/issues") == NO_GROUP
    assert allowed(rules, "GET", "/api/v4/projects/platform%2Fopen")
    assert allowed(rules, "GET", "/api/v4/version")
    assert ask(rules, "DELETE", "/api/v4/projects/platform%2Fsecret") == NO_PROJECT, "though nothing allows it anywhere"


# Sudo


def test_sudo_is_for_named_users_only() -> None:
    rules = Rules.compile([rule(READ, name="plain"), rule(READ, name="as", sudo=("Alice", "42"))])
    for user in ("alice", "ALICE", " alice ", "42"):
        permit = ask(rules, "GET", "/api/v4/version", sudo=user)
        assert isinstance(permit, Permit)
        assert (permit.rule, permit.sudo) == ("as", user)
    assert ask(rules, "GET", "/api/v4/version", sudo="bob") == NO_SUDO
    assert ask(rules, "DELETE", "/api/v4/projects/1", sudo="alice") == NOT_ALLOWED
    without = ask(rules, "GET", "/api/v4/version")
    assert isinstance(without, Permit)
    assert (without.rule, without.sudo) == ("plain", "")


# Shadow


def test_a_rule_in_shadow_decides_nothing_and_is_told() -> None:
    writes = Clause(methods=("POST",))
    rules = Rules.compile([rule(WRITE), rule(name="s", deny=(writes,), shadow=True), rule(WRITE, name="t", shadow=True)])
    permit = ask(rules, "POST", "/api/v4/projects")
    assert isinstance(permit, Permit)
    assert (permit.rule, permit.shadow) == ("r", "s")
    only = Rules.compile([rule(READ, name="t", shadow=True)])
    operation, parsed = request("GET", "/api/v4/version")
    with pytest.raises(Rejection) as refused:
        only.authorise(BOT, operation, parsed, "GET")
    assert refused.value.shadow == "t"
    missed = ask(Rules.compile([rule(WRITE), rule(READ, name="t", shadow=True)]), "POST", "/api/v4/projects")
    assert isinstance(missed, Permit)
    assert missed.shadow == ""
    agreed = ask(Rules.compile([rule(READ), rule(READ, name="t", shadow=True)]), "GET", "/api/v4/version")
    assert isinstance(agreed, Permit)
    assert agreed.shadow == "", "it would have decided the same"


@pytest.mark.parametrize(
    ("rules", "shadow"),
    [
        ([rule(READ, name="t", shadow=True)], "t"),
        ([rule(READ), rule(name="d", deny=(READ,)), rule(READ, name="t", shadow=True)], ""),
        ([rule(READ), rule(name="d", deny=(READ,)), rule(name="t", deny=(READ,), shadow=True)], ""),
        ([rule(READ, name="t", shadow=True), rule(name="u", deny=(READ,), shadow=True)], ""),
    ],
)
def test_a_refusal_tells_of_a_shadow_that_would_have_allowed(rules: list[Rule], shadow: str) -> None:
    operation, parsed = request("GET", "/api/v4/version")
    with pytest.raises(Rejection) as refused:
        Rules.compile(rules).authorise(BOT, operation, parsed, "GET")
    assert refused.value.shadow == shadow


def test_a_refusal_names_its_rule_to_the_operator_alone() -> None:
    rules = Rules.compile([rule(READ), rule(name="d", deny=(READ,)), rule(name="e", deny=(READ,))])
    operation, parsed = request("GET", "/api/v4/version")
    with pytest.raises(Rejection) as refused:
        rules.authorise(BOT, operation, parsed, "GET")
    assert refused.value.rule == "d"
    assert "`" not in refused.value.message
    assert "d" not in refused.value.message.split("Not allowed")[0].replace("Forbidden", "")


# The digest


def digest(*rules: Rule, who: Principal = BOT) -> bytes:
    permit = ask(Rules.compile(rules), "GET", "/api/v4/version", who=who)
    assert isinstance(permit, Permit)
    assert permit.digest or who is PERSON
    return permit.digest


def test_the_digest_stands_for_what_may_be_seen() -> None:
    base = digest(rule(READ))
    assert base == digest(rule(READ, name="renamed"))
    assert base == digest(rule(READ), rule(READ_OURS, name="s", shadow=True))
    assert base != digest(rule(READ, READ_OURS))
    assert base != digest(rule(READ, use="another"))
    assert base != digest(rule(READ), rule(name="d", deny=(Clause(permissions=("read_variable",)),)))
    assert base != digest(rule(READ, sudo=("alice",)))
    assert digest(rule(READ), rule(WRITE)) == digest(rule(WRITE), rule(READ))
    assert digest(who=PERSON) == b""


# Explaining


def test_an_explanation_names_every_clause_and_why() -> None:
    no_variables = Clause(permissions=("read_variable",))
    rules = Rules.compile([rule(READ_OURS, WRITE, name="a"), rule(name="d", deny=(no_variables,), shadow=True)])
    operation, parsed = request("GET", "/api/v4/projects/42")
    explained = rules.explain(BOT, operation, parsed, "GET")
    assert [(each.rule, each.deny, each.position, each.holds, each.why, each.shadow) for each in explained.considered] == [
        ("d", True, 0, False, "permissions", True),
        ("a", False, 0, False, "unresolved", False),
        ("a", False, 1, True, "", False),
    ]
    assert (explained.verdict, explained.rule) == (Verdict.ALLOWED, "a")
    assert explained.lookups == (PlaceLookup(ReferenceKind.PROJECT, "42"),)
    refused = Rules.compile([rule(READ_OURS)]).explain(BOT, *request("GET", "/api/v4/projects/else%2Fx"), "GET")
    assert (refused.verdict, refused.considered[0].why) == (Verdict.UNKNOWN_PLACE, "projects")


def test_an_explanation_where_no_rule_is_looked_at() -> None:
    operation, parsed = request("GET", "/api/v4/version")
    blocked, inner = request("GET", "/-/metrics")
    rules = Rules.compile([rule(READ)])
    assert rules.explain(PERSON, operation, parsed, "GET") == Explanation(Verdict.ALLOWED, (), "own-token")
    assert rules.explain(OTHER, operation, parsed, "GET") == Explanation(Verdict.NOT_ALLOWED, ())
    assert rules.explain(BOT, blocked, inner, "GET") == Explanation(Verdict.BLOCKED, ())
    assert rules.explain(BOT, operation, parsed, "GET", "root").verdict is Verdict.NO_SUDO


# Compiling


def test_an_allow_needs_a_credential() -> None:
    with pytest.raises(ValueError, match="names no credential"):
        Rules.compile([Rule("r", ("bot",), allow=(READ,))])


def test_a_route_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a route"):
        Rules.compile([rule(Clause(routes=("projects",)))])


# The memory


def test_the_memory_is_bounded_and_keeps_no_long_targets() -> None:
    rules = Rules.compile([rule(READ_OURS)])
    for number in range(17_000):
        path = b"/api/v4/projects/%d" % number
        target = Target(path, path, None, ("api", "v4", "projects", str(number)))
        operation = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
        with pytest.raises(Rejection):
            rules.authorise(BOT, operation, target, "GET" + str(number))
    kept = len(rules._memo)
    assert 0 < kept <= access._MEMO_BOUND
    long = "/api/v4/projects/platform%2F" + "x" * 2000
    assert allowed(rules, "GET", long)
    assert len(rules._memo) == kept


def test_what_was_decided_of_one_unknown_route_says_nothing_of_another() -> None:
    rules = Rules.compile([rule(Clause(routes=("/api/v4/brand/new",)))])
    assert allowed(rules, "GET", "/api/v4/brand/new")
    assert ask(rules, "GET", "/api/v4/brand/other") == NOT_ALLOWED


# Against a brute-force reading of the same rules

TARGETS = [
    ("GET", "/api/v4/version", None, None),
    ("GET", "/api/v4/projects", None, None),
    ("GET", "/api/v4/projects/platform%2Fa", "project", "platform/a"),
    ("GET", "/api/v4/projects/platform%2Fa/variables", "project", "platform/a"),
    ("GET", "/api/v4/projects/Other%2fb/issues", "project", "other/b"),
    ("DELETE", "/api/v4/projects/platform%2Fa", "project", "platform/a"),
    ("POST", "/api/v4/projects/other%2Fb/issues", "project", "other/b"),
    ("GET", "/api/v4/projects/7", "project", "7"),
    ("GET", "/api/v4/projects/platform%252Fa", "project", None),
    ("POST", "/platform/a.git/git-upload-pack", "project", "platform/a"),
    ("GET", "/api/v4/groups/platform/issues", "group", "platform"),
    ("POST", "/api/graphql", None, None),
    ("GET", "/api/v4/issues/3", None, None),
    ("POST", "/api/v4/projects/other%2Fb/ci/lint", "project", "other/b"),
]
BEYOND = {"POST /api/graphql", "GET /api/v4/issues/:id", "POST /api/v4/projects/:id/ci/lint"}
"""Of these, what may reach other places than its path's; ``GET /api/v4/projects`` is a list, and filtered."""

CLAUSES = st.builds(
    Clause,
    access=st.sampled_from([None, Access.READ, Access.WRITE]),
    methods=st.sampled_from([None, ("GET",), ("POST", "DELETE")]),
    permissions=st.sampled_from([None, ("read_project",), ("read_variable", "delete_project")]),
    surfaces=st.sampled_from([None, (Surface.REST,), (Surface.GIT,)]),
    projects=st.sampled_from(
        [
            None,
            Projects(named=("platform/a",)),
            Projects(named=("7",)),
            Projects(under_group=("platform",)),
            Projects(("9",), ("x",)),
        ]
    ),
)
RULES = st.lists(
    st.tuples(
        st.lists(CLAUSES, max_size=2),
        st.lists(CLAUSES, max_size=1),
        st.booleans(),
        st.sampled_from([("bot",), ("other",), ("bot", "other")]),
    ),
    max_size=4,
)


def holds(clause: Clause, operation: Operation, method: str, kind: str | None, place: str | None, deny: bool) -> bool:
    """The clause read aloud: for a deny, what can't be told holds; for an allow, it does not."""
    if clause.access is Access.READ and operation.access is Access.WRITE:
        return False
    if clause.methods and method not in clause.methods:
        return False
    if clause.surfaces and operation.surface not in clause.surfaces:
        return False
    if clause.permissions:
        has = set(operation.permissions)
        if not has or (not has & set(clause.permissions) if deny else not has <= set(clause.permissions)):
            return False
    if clause.projects is None:
        return True
    if operation.name in BEYOND:
        return deny
    if kind is None:
        return False
    if place is None:
        return deny
    wanted, groups = clause.projects.named, clause.projects.under_group
    numbers = [each for each in wanted if each.isdigit()]
    paths = [each for each in wanted if not each.isdigit()]
    if kind == "group":
        inside = any(place == group or place.startswith(group + "/") for group in groups)
        around = deny and (any(path.startswith(place + "/") for path in paths) or bool(numbers))
        return inside or around
    if place in wanted or any(place.startswith(group + "/") for group in groups):
        return True
    open_question = bool(paths or groups) if place.isdigit() else bool(numbers)
    return deny and open_question


Made = list[tuple[list[Clause], list[Clause], bool, tuple[str, ...]]]


@settings(max_examples=300, deadline=None)
@given(RULES, st.sampled_from(TARGETS), st.sampled_from([BOT, OTHER, JOB]))
def test_decisions_agree_with_a_reading_of_every_rule(
    made: Made, asked: tuple[str, str, str | None, str | None], who: Principal
) -> None:
    agrees(made, asked, who)


def test_ten_thousand_rule_sets_agree_with_a_reading_of_every_rule() -> None:
    """The same ten thousand in every run; allowed and refused ones are both many."""
    chance = random.Random(20_261_121)
    verdicts = Counter(
        agrees(drawn(chance), chance.choice(TARGETS), chance.choice([BOT, OTHER, JOB])) for _ in range(10_000)
    )
    assert min(verdicts[True], verdicts[False]) > 1000


def drawn(chance: random.Random) -> Made:
    def clauses(most: int) -> list[Clause]:
        return [
            Clause(
                access=chance.choice([None, Access.READ, Access.WRITE]),
                methods=chance.choice([None, None, ("GET",), ("POST", "DELETE")]),
                permissions=chance.choice([None, None, ("read_project",), ("read_variable", "delete_project")]),
                surfaces=chance.choice([None, None, (Surface.REST,), (Surface.GIT,)]),
                projects=chance.choice(
                    [
                        None,
                        Projects(named=("platform/a",)),
                        Projects(named=("7",)),
                        Projects(under_group=("platform",)),
                        Projects(("9",), ("x",)),
                        Projects(("other/b",), ("platform",)),
                    ]
                ),
            )
            for _ in range(chance.randint(0, most))
        ]

    return [
        (clauses(3), clauses(1), chance.random() < 0.2, chance.choice([("bot",), ("other",), ("bot", "other")]))
        for _ in range(chance.randint(0, 4))
    ]


def agrees(made: Made, asked: tuple[str, str, str | None, str | None], who: Principal) -> bool:
    """Whether it was allowed; fails where the reading and the rules differ, in verdict or in the rule that decided."""
    method, target, kind, place = asked
    written = [
        Rule(f"r{index}", people, "cred" if allow else "", tuple(allow), tuple(deny), shadow=shadow)
        for index, (allow, deny, shadow, people) in enumerate(made)
    ]
    operation, _ = request(method, target)
    mine = [each for each in written if who.identity in each.identities and not each.shadow]
    denied = any(holds(clause, operation, method, kind, place, True) for each in mine for clause in each.deny)
    granting = [
        each.id for each in mine if any(holds(clause, operation, method, kind, place, False) for clause in each.allow)
    ]
    answer = ask(Rules.compile(written), method, target, who=who)
    assert isinstance(answer, Permit) == (bool(granting) and not denied)
    if isinstance(answer, Permit):
        assert answer.rule == granting[0]
    return isinstance(answer, Permit)


# Lists

FILTERED = msgspec.structs.replace(READ_OURS, lists=Lists.FILTER)


def test_a_list_that_shows_more_is_refused_or_narrowed() -> None:
    refusing, filtering = Rules.compile([rule(READ_OURS)]), Rules.compile([rule(FILTERED)])
    for target in ("/api/v4/projects", "/api/v4/issues", "/api/v4/search?scope=projects"):
        assert ask(refusing, "GET", target) == NOT_ALLOWED
        permit = ask(filtering, "GET", target)
        assert isinstance(permit, Permit)
        assert permit.narrowing is not None
    assert ask(filtering, "GET", "/api/v4/events") == NOT_ALLOWED, "nobody reviewed it"
    assert ask(filtering, "GET", "/api/v4/groups/finance/projects") == NO_GROUP
    assert ask(filtering, "POST", "/api/v4/projects") == NOT_ALLOWED
    inside = ask(filtering, "GET", "/api/v4/projects/platform%2Fapi/issues")
    assert isinstance(inside, Permit)
    assert inside.narrowing is None


def test_one_clause_that_filters_is_enough() -> None:
    permit = ask(Rules.compile([rule(FILTERED, READ_OURS)]), "GET", "/api/v4/projects")
    assert isinstance(permit, Permit)
    assert permit.narrowing is not None


def test_whoever_may_see_all_of_a_list_does() -> None:
    permit = ask(Rules.compile([rule(FILTERED, READ)]), "GET", "/api/v4/projects")
    assert isinstance(permit, Permit)
    assert permit.narrowing is None


def test_a_filter_in_shadow_lets_nothing_through() -> None:
    rules = Rules.compile([rule(FILTERED, shadow=True)])
    assert ask(rules, "GET", "/api/v4/projects") == NOT_ALLOWED


def test_only_denies_about_the_list_take_from_it() -> None:
    hidden = Clause(access=Access.READ, projects=Projects(named=("platform/secret",)))
    elsewhere = Clause(methods=("DELETE",), projects=Projects(named=("platform/api",)))
    permit = ask(Rules.compile([rule(FILTERED), rule(name="d", deny=(hidden, elsewhere))]), "GET", "/api/v4/projects")
    assert isinstance(permit, Permit)
    assert permit.narrowing is not None
    assert [matcher.clause for matcher in permit.narrowing.deny] == [hidden]


LEDGER = Clause(projects=Projects(named=("finance/ledger",)))


@pytest.mark.parametrize("who", [BOT, PERSON])
def test_a_list_less_what_a_deny_hides(who: Principal) -> None:
    """Also where nothing else is left out: under an allow without projects, and for those who need none."""
    rules = Rules.compile([rule(WRITE), Rule("d", ("bot", "people"), deny=(LEDGER,))])
    permit = ask(rules, "GET", "/api/v4/projects", who=who)
    assert isinstance(permit, Permit)
    assert permit.narrowing is not None
    assert [matcher.clause for matcher in permit.narrowing.deny] == [LEDGER]
    asked = [("1", "platform/api"), ("2", "finance/ledger"), ("3", "finance/ledger2")]
    things = [(NamedPlace(ReferenceKind.PROJECT, number), Place(number, path)) for number, path in asked]
    assert [permit.narrowing.keeps(*thing) for thing in things] == [True, False, True]
    inside = ask(rules, "GET", "/api/v4/projects/platform%2Fapi", who=who)
    assert isinstance(inside, Permit)
    assert inside.narrowing is None
    operation, parsed = request("GET", "/api/v4/projects")
    explained = rules.explain(who, operation, parsed, "GET")
    assert [(each.rule, each.holds, each.why) for each in explained.considered if each.deny] == [("d", False, "filters")]


@pytest.mark.parametrize("who", [BOT, PERSON, ANYONE, RUNNER])
def test_a_deny_by_project_refuses_what_may_reach_it(who: Principal) -> None:
    rules = Rules.compile([rule(WRITE), Rule("d", ("bot", "people", "anonymous", "passthrough"), deny=(LEDGER,))])
    for method, target in (
        ("POST", "/api/graphql"),
        ("GET", "/jwt/auth?scope=repository:finance/ledger:pull"),
        ("GET", "/api/v4/issues/3"),
        ("GET", "/api/v4/events"),
        ("POST", "/api/v4/groups"),
        ("POST", "/api/v4/projects/platform%2Fapi/ci/lint"),
    ):
        assert ask(rules, method, target, who=who, screened=True) == NOT_ALLOWED
        operation, parsed = request(method, target)
        explained = rules.explain(who, operation, parsed, method, screened=True)
        assert [(each.holds, each.why) for each in explained.considered if each.deny] == [(True, "beyond")]
        assert explained.lookups == ()
    assert allowed(rules, "GET", "/api/v4/version", who=who)
    assert allowed(rules, "POST", "/api/v4/projects/platform%2Fapi/issues", who=who)


def test_a_deny_by_project_and_more_is_about_no_more() -> None:
    pushes = Clause(surfaces=(Surface.GIT,), projects=Projects(named=("finance/ledger",)))
    rules = Rules.compile([rule(WRITE), rule(name="d", deny=(pushes,))])
    permit = ask(rules, "GET", "/api/v4/projects")
    assert isinstance(permit, Permit)
    assert permit.narrowing is None
    assert allowed(rules, "POST", "/api/graphql")
    assert ask(rules, "POST", "/finance/ledger.git/git-receive-pack") == (403, Code.FORBIDDEN, NOT_ALLOWED[2])


def test_a_deny_by_project_in_shadow_is_written_down_and_filters_nothing() -> None:
    rules = Rules.compile([rule(WRITE), rule(name="d", deny=(LEDGER,), shadow=True)])
    graphql, listed = ask(rules, "POST", "/api/graphql"), ask(rules, "GET", "/api/v4/projects")
    assert isinstance(graphql, Permit)
    assert graphql.shadow == "d"
    assert isinstance(listed, Permit)
    assert (listed.shadow, listed.narrowing) == ("", None)


def test_those_with_other_lists_share_no_answers() -> None:
    one, other = (
        ask(Rules.compile([rule(clause)]), "GET", "/api/v4/projects/platform%2Fapi") for clause in (FILTERED, READ_OURS)
    )
    assert isinstance(one, Permit)
    assert isinstance(other, Permit)
    assert one.digest != other.digest
