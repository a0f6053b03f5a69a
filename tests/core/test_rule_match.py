"""One clause against one request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import routes
from gateway.core.catalogue import Access, Operation, ReferenceKind, Surface
from gateway.core.rule_match import (
    Clause,
    Fit,
    Matcher,
    NamedPlace,
    Place,
    PlaceLookup,
    Projects,
    access_of,
    keeps_to_place,
    lookups_of,
    named,
    named_places_key,
    names_place,
    normalise_spelling,
    parameter_spelling,
    parse_route,
    reaches_beyond,
    spellings,
)
from gateway.core.target import Target, parse_target

CATALOGUE = routes.catalogue()
PROJECT, GROUP = ReferenceKind.PROJECT, ReferenceKind.GROUP
KNOWN = {PlaceLookup(PROJECT, "42"): Place("42", "Platform/API", ("7",)), PlaceLookup(GROUP, "7"): Place("7", "platform")}


def request(method: str, target: str) -> tuple[Operation, Target]:
    parsed = parse_target(target.encode())
    return CATALOGUE.match(method, parsed), parsed


def refused(clause: Clause, method: str, target: str, *, deny: bool = False, brokered: bool = True) -> str:
    operation, parsed = request(method, target)
    access = access_of(operation, method, brokered=brokered)
    return Matcher(clause).refuses(operation, access, parsed, method, deny=deny)


def reach(projects: Projects, method: str, target: str, *, known: bool = False, screened: bool = False) -> Fit:
    operation, parsed = request(method, target)
    matcher = Matcher(Clause(projects=projects))
    return matcher.may_reach(operation, named(operation, parsed), KNOWN if known else {}, screened)


def touch(projects: Projects, method: str, target: str, *, known: bool = False, screened: bool = False) -> Fit:
    operation, parsed = request(method, target)
    matcher = Matcher(Clause(projects=projects))
    return matcher.may_touch(operation, parsed, named(operation, parsed), KNOWN if known else {}, screened)


@pytest.mark.parametrize(
    ("clause", "method", "target", "why"),
    [
        pytest.param(Clause(access=Access.READ), "GET", "/api/v4/version", "", id="read"),
        pytest.param(Clause(access=Access.READ), "POST", "/api/v4/markdown", "", id="a POST that reads"),
        pytest.param(Clause(access=Access.READ), "POST", "/api/v4/projects", "access", id="a write"),
        pytest.param(Clause(access=Access.READ), "GET", "/api/v4/nothing", "access", id="unknown is a write"),
        pytest.param(Clause(access=Access.WRITE), "GET", "/api/v4/version", "", id="write includes read"),
        pytest.param(Clause(access=Access.WRITE), "GET", "/api/v4/nothing", "", id="write includes unknown"),
        pytest.param(Clause(methods=("get",)), "GET", "/api/v4/version", "", id="method"),
        pytest.param(Clause(methods=("GET",)), "HEAD", "/api/v4/version", "", id="HEAD is a GET"),
        pytest.param(Clause(methods=("HEAD",)), "GET", "/api/v4/version", "methods", id="GET is no HEAD"),
        pytest.param(Clause(methods=("POST",)), "HEAD", "/api/v4/version", "methods", id="HEAD is no POST"),
        pytest.param(Clause(surfaces=(Surface.GIT,)), "POST", "/a/b.git/git-upload-pack", "", id="surface"),
        pytest.param(Clause(surfaces=(Surface.GIT,)), "GET", "/api/v4/version", "surfaces", id="another surface"),
        pytest.param(Clause(permissions=("read_project",)), "GET", "/api/v4/projects/1", "", id="permission"),
        pytest.param(Clause(permissions=("read_code",)), "GET", "/api/v4/projects/1", "permissions", id="another"),
        pytest.param(Clause(permissions=("read_x",)), "GET", "/api/v4/nothing", "permissions", id="unknown has none"),
        pytest.param(
            Clause(permissions=("read_deployment",)),
            "GET",
            "/api/v4/projects/1/deployments/2/merge_requests",
            "permissions",
            id="an allow needs every permission",
        ),
        pytest.param(
            Clause(permissions=("read_deployment", "read_merge_request")),
            "GET",
            "/api/v4/projects/1/deployments/2/merge_requests",
            "",
            id="both",
        ),
        pytest.param(Clause(routes=("/api/v4/projects/:x",)), "DELETE", "/api/v4/projects/1", "", id="any method"),
        pytest.param(Clause(routes=("GET /api/v4/projects/:id",)), "GET", "/api/v4/projects/1", "", id="route"),
        pytest.param(Clause(routes=("GET /api/v4/projects/:id",)), "HEAD", "/api/v4/projects/1", "", id="its HEAD"),
        pytest.param(Clause(routes=("GET /api/v4/projects/:id",)), "DELETE", "/api/v4/projects/1", "routes", id="not its"),
        pytest.param(Clause(routes=("GET /api/v4/projects",)), "GET", "/api/v4/projects/1", "routes", id="whole"),
        pytest.param(Clause(routes=("/api/v4/projects/:id/**",)), "GET", "/api/v4/projects/1/issues/2", "", id="below"),
        pytest.param(Clause(routes=("/api/v4/projects/:id/**",)), "GET", "/api/v4/projects/1", "routes", id="not above"),
        pytest.param(
            Clause(routes=("/api/v4/projects/:id/issues/**",)),
            "GET",
            "/api/v4/projects/1/issues_statistics",
            "routes",
            id="below, not beside",
        ),
        pytest.param(Clause(routes=("GET /api/v4/projects/:id/search",)), "GET", "/api/v4/projects/1/search", "", id="opt"),
        pytest.param(Clause(routes=("GET /api/v4/new/:x",)), "GET", "/api/v4/new/1", "", id="a route unknown yet"),
        pytest.param(Clause(routes=("GET /api/v4/new/:x",)), "POST", "/api/v4/new/1", "routes", id="by its method"),
        pytest.param(Clause(routes=("POST /api/v4/new/**",)), "POST", "/api/v4/new/1/2", "", id="below one unknown"),
        pytest.param(Clause(routes=("ANY /api/v3/*path",)), "PUT", "/api/v3/x", "", id="a row for every method"),
        pytest.param(Clause(routes=("GET /*project?go-get=1",)), "GET", "/a/b?go-get=1", "", id="a row for one query"),
        pytest.param(Clause(routes=("GET /*project?go-get=1",)), "GET", "/a/b", "routes", id="not without it"),
        pytest.param(Clause(routes=("GET /*project?go-get=1",)), "GET", "/a/b%3Fgo-get=1", "routes", id="not in a path"),
        pytest.param(Clause(routes=("PUT /api/v3/*path",)), "PUT", "/api/v3/x", "", id="one method of such a row"),
    ],
)
def test_conditions_on_the_operation(clause: Clause, method: str, target: str, why: str) -> None:
    assert refused(clause, method, target) == why


def test_a_deny_needs_only_one_of_the_permissions() -> None:
    clause = Clause(permissions=("read_deployment",))
    assert refused(clause, "GET", "/api/v4/projects/1/deployments/2/merge_requests", deny=True) == ""


def test_an_unknown_route_is_a_write_for_whoever_has_no_token_of_their_own() -> None:
    assert refused(Clause(access=Access.READ), "GET", "/api/v4/nothing", brokered=False) == ""
    assert refused(Clause(access=Access.READ), "POST", "/api/v4/nothing", brokered=False) == "access"


@pytest.mark.parametrize(
    ("written", "expected"),
    [("/a/:b", ("ANY", "/a/:b")), ("GET /a", ("GET", "/a")), (" POST  /a ", ("POST", "/a"))],
)
def test_routes_are_read(written: str, expected: tuple[str, str]) -> None:
    assert parse_route(written) == expected


@pytest.mark.parametrize("written", ["", "a/b", "get /a", "GET a", "GET"])
def test_what_is_no_route_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="is not a route"):
        Matcher(Clause(routes=(written,)))


@pytest.mark.parametrize(
    ("value", "spelt"),
    [
        ("42", "42"),
        ("0042", "42"),
        ("0", "0"),
        ("Group/Sub/Project", "group/sub/project"),
        ("a.b_c-d", "a.b_c-d"),
        ("42\nx", None),
        ("-42", "-42"),
        ("²", None),
        ("g%2Fp", None),
        ("g//p", None),
        ("/g/p", None),
        ("g/p/", None),
        ("g p", None),
        ("", None),
        ("gr\xfcn/p", None),
    ],
)
def test_spelling(value: str, spelt: str | None) -> None:
    assert normalise_spelling(value) == spelt


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/api/v4/projects/g%2FP", [(PROJECT, "g/p")]),
        ("GET", "/api/v4/projects/g%252FP", [(PROJECT, None)]),
        ("GET", "/api/v4/projects/42%0Ax", [(PROJECT, None)]),
        ("GET", "/api/v4/users/3/projects", []),
        ("GET", "/api/v4/version?project_id=4", [(PROJECT, "4")]),
        ("GET", "/api/v4/version?a=b%20c", []),
        ("GET", "/api/v4/version?project_id=", []),
        ("GET", "/api/v4/version?project_ids[]=4&project_ids%5b%5d=5", [(PROJECT, "4"), (PROJECT, "5")]),
        ("GET", "/api/v4/version?from%5Fproject%5Fid=4", [(PROJECT, "4")]),
        ("GET", "/api/v4/version?x=1;group_id=g%2fH", [(GROUP, "g/h")]),
        ("GET", "/api/v4/version?project_ids=1,2", [(PROJECT, None)]),
        (
            "GET",
            "/api/v4/version?[project_id]=4&+project_id=5&%5b%5dproject_id=6",
            [(PROJECT, "4"), (PROJECT, "5"), (PROJECT, "6")],
        ),
        ("GET", "/api/v4/version?project_id%20=4&project_id=a+b", [(PROJECT, "4"), (PROJECT, None)]),
        ("GET", "/api/v4/version?my_project_id=1", []),
        ("GET", "/api/v4/version?page=2", []),
    ],
)
def test_what_a_request_names(method: str, target: str, expected: list[tuple[ReferenceKind, str | None]]) -> None:
    assert [(thing.kind, thing.spelt) for thing in named(*request(method, target))] == expected


def test_requests_that_name_the_same_ask_the_same() -> None:
    one, other = request("GET", "/api/v4/projects/1/issues/2"), request("GET", "/api/v4/projects/1/issues/3?page=2")
    assert named_places_key(*one) == named_places_key(*other)
    assert named_places_key(*one) != named_places_key(*request("GET", "/api/v4/projects/2/issues/2"))
    assert named_places_key(*one) != named_places_key(*request("GET", "/api/v4/projects/1/issues/2?project_id=9"))
    eight, nine = (request("GET", f"/api/v4/projects/1/issues/2?project_id={number}") for number in (8, 9))
    assert named_places_key(*eight) != named_places_key(*nine)


BY_PATH, BY_ID = Projects(named=("platform/api",)), Projects(named=("42",))
UNDER, UNDER_ID = Projects(under_group=("Platform",)), Projects(under_group=("7",))
GLOB = Projects(named=("platform/*", "/tools/**"))


@pytest.mark.parametrize(
    ("projects", "target", "asked", "answered"),
    [
        (BY_PATH, "/api/v4/projects/platform%2Fapi", Fit.YES, Fit.YES),
        (BY_PATH, "/api/v4/projects/PLATFORM%2fApi", Fit.YES, Fit.YES),
        (BY_PATH, "/api/v4/projects/platform%2Fapi2", Fit.NO, Fit.NO),
        (BY_PATH, "/api/v4/projects/platform%252Fapi", Fit.UNSURE, Fit.UNSURE),
        (BY_PATH, "/api/v4/projects/42", Fit.UNSURE, Fit.YES),
        (BY_PATH, "/api/v4/projects/43", Fit.UNSURE, Fit.UNSURE),
        (BY_ID, "/api/v4/projects/42", Fit.YES, Fit.YES),
        (BY_ID, "/api/v4/projects/0042", Fit.YES, Fit.YES),
        (BY_ID, "/api/v4/projects/43", Fit.NO, Fit.NO),
        (BY_ID, "/api/v4/projects/platform%2Fapi", Fit.UNSURE, Fit.UNSURE),
        (UNDER, "/api/v4/projects/platform%2Fa%2Fb", Fit.YES, Fit.YES),
        (UNDER, "/api/v4/projects/platform2%2Fa", Fit.NO, Fit.NO),
        (UNDER, "/api/v4/projects/42", Fit.UNSURE, Fit.YES),
        (UNDER, "/api/v4/groups/platform/issues", Fit.YES, Fit.YES),
        (UNDER, "/api/v4/groups/platform%2Fsub/issues", Fit.YES, Fit.YES),
        (UNDER, "/api/v4/groups/other/issues", Fit.NO, Fit.NO),
        (UNDER, "/api/v4/groups/7/issues", Fit.UNSURE, Fit.YES),
        (UNDER_ID, "/api/v4/groups/7/issues", Fit.YES, Fit.YES),
        (UNDER_ID, "/api/v4/projects/42", Fit.UNSURE, Fit.YES),
        (UNDER_ID, "/api/v4/projects/platform%2Fapi", Fit.UNSURE, Fit.UNSURE),
        (GLOB, "/api/v4/projects/platform%2Fx", Fit.YES, Fit.YES),
        (GLOB, "/api/v4/projects/platform%2Fx%2Fy", Fit.NO, Fit.NO),
        (GLOB, "/api/v4/projects/tools%2Fx%2Fy", Fit.YES, Fit.YES),
        (GLOB, "/api/v4/projects/platform%252Fx", Fit.UNSURE, Fit.UNSURE),
        (GLOB, "/api/v4/projects/42", Fit.UNSURE, Fit.YES),
        (BY_PATH, "/api/v4/groups/platform/issues", Fit.NO, Fit.NO),
        (BY_PATH, "/api/v4/projects", Fit.NO, Fit.NO),
        (BY_PATH, "/api/v4/nothing/platform%2Fapi", Fit.NO, Fit.NO),
        (BY_PATH, "/api/v4/users/1/projects", Fit.NO, Fit.NO),
        (UNDER, "/api/v4/groups/platform/projects", Fit.NO, Fit.NO),
        (BY_PATH, "/api/v4/projects/platform%2Fapi/repository/compare?from_project_id=43", Fit.UNSURE, Fit.UNSURE),
        (BY_PATH, "/api/v4/projects/platform%2Fapi/repository/compare?from_project_id=42", Fit.UNSURE, Fit.YES),
        (BY_PATH, "/api/v4/projects/platform%2Fapi/repository/compare?from_project_id=a%2Fb", Fit.NO, Fit.NO),
        (BY_PATH, "/platform/api.git/info/refs?service=git-upload-pack", Fit.YES, Fit.YES),
        (BY_PATH, "/platform/api/x.git/info/refs?service=git-upload-pack", Fit.NO, Fit.NO),
        (BY_PATH, "/platform/api?go-get=1", Fit.YES, Fit.YES),
        (BY_PATH, "/platform/api/x?go-get=1", Fit.NO, Fit.NO),
        (BY_PATH, "/platform/x?go-get=1", Fit.NO, Fit.NO),
        (UNDER, "/platform/api/x?go-get=1", Fit.YES, Fit.YES),
    ],
)
def test_what_an_allow_reaches(projects: Projects, target: str, asked: Fit, answered: Fit) -> None:
    assert reach(projects, "GET", target) is asked
    assert reach(projects, "GET", target, known=True) is answered


DIGITS = [
    "/42.git/info/refs?service=git-upload-pack",
    "/42/info/refs?service=git-upload-pack",
    "/42.wiki.git/info/refs?service=git-upload-pack",
    "/42.design.git/info/refs?service=git-upload-pack",
    "/42/snippets/7.git/info/refs?service=git-upload-pack",
    "/0042.git/info/refs?service=git-upload-pack",
    "/42.git/info/lfs/locks",
    "/42.git/gitlab-lfs/objects/" + "0" * 64,
    "/42/-/raw/main/x",
    "/42/-/archive/main/x.zip",
    "/42/-/issues.atom",
    "/42/-/jobs/1/terminal.ws",
    "/v2/42/dependency_proxy/containers/alpine/manifests/latest",
]


@pytest.mark.parametrize("target", DIGITS)
@pytest.mark.parametrize("projects", [BY_ID, BY_PATH, UNDER, UNDER_ID], ids=["number", "path", "group", "group-number"])
def test_digits_are_no_number_where_gitlab_looks_for_a_path(projects: Projects, target: str) -> None:
    """There 42 is what a group is called, of which a wiki may be the repository."""
    operation, parsed = request("GET", target)
    assert [thing.spelt for thing in named(operation, parsed)] == [None]
    assert lookups_of(operation, parsed) == ()
    for known in (False, True):
        assert reach(projects, "GET", target, known=known) is Fit.UNSURE
        assert touch(projects, "GET", target, known=known) is Fit.UNSURE


@pytest.mark.parametrize("target", ["/42/7.git/info/refs", "/42/7.wiki.git/info/refs", "/42/7/-/raw/main/x"])
def test_digits_are_a_part_of_a_path(target: str) -> None:
    operation, parsed = request("GET", target)
    assert [(thing.kind, thing.spelt) for thing in named(operation, parsed)] == [(PROJECT, "42/7")]


def test_a_body_that_may_name_another_project_is_allowed_only_when_it_is_screened() -> None:
    target = "/api/v4/projects/platform%2Fapi/merge_requests"
    assert reach(BY_PATH, "POST", target) is Fit.NO
    assert reach(BY_PATH, "POST", target, screened=True) is Fit.YES
    assert not keeps_to_place(request("POST", target)[0], False)


@pytest.mark.parametrize(
    ("projects", "fit"),
    [(None, Fit.YES), (BY_PATH, Fit.YES), (UNDER, Fit.YES), (Projects(named=("9",)), Fit.NO), (UNDER_ID, Fit.UNSURE)],
)
def test_whether_an_item_of_a_list_is_one_of_them(projects: Projects | None, fit: Fit) -> None:
    """It says its number and its path, and not the numbers of the groups around it."""
    item = NamedPlace(PROJECT, "42")
    assert Matcher(Clause(projects=projects)).fits(item, {PlaceLookup(PROJECT, "42"): Place("42", "Platform/API")}) is fit


def test_an_allow_without_projects_reaches_everything() -> None:
    operation, parsed = request("GET", "/api/v4/nothing")
    assert Matcher(Clause(access=Access.READ)).may_reach(operation, named(operation, parsed), {}, False) is Fit.YES


@pytest.mark.parametrize(
    ("projects", "method", "target", "asked", "answered"),
    [
        (BY_PATH, "GET", "/api/v4/projects/platform%2Fapi", Fit.YES, Fit.YES),
        (BY_PATH, "GET", "/api/v4/projects/platform%2Fapi.json", Fit.YES, Fit.YES),
        (BY_PATH, "GET", "/api/v4/projects/other%2Fx", Fit.NO, Fit.NO),
        (BY_PATH, "GET", "/api/v4/projects/other%2Fx.", Fit.NO, Fit.NO),
        (BY_PATH, "GET", "/api/v4/projects/42", Fit.UNSURE, Fit.YES),
        (BY_ID, "GET", "/api/v4/projects/42.json", Fit.YES, Fit.YES),
        (BY_ID, "GET", "/api/v4/projects/42%0Ax", Fit.UNSURE, Fit.UNSURE),
        (BY_PATH, "GET", "/api/v4/projects/platform%252Fapi", Fit.UNSURE, Fit.UNSURE),
        (BY_PATH, "GET", "/api/v4/groups/platform/issues", Fit.YES, Fit.YES),
        (BY_PATH, "GET", "/api/v4/groups/other/issues", Fit.NO, Fit.NO),
        (BY_PATH, "GET", "/api/v4/groups/7/issues", Fit.UNSURE, Fit.YES),
        (BY_PATH, "GET", "/api/v4/groups/a%252Fb/issues", Fit.UNSURE, Fit.UNSURE),
        (GLOB, "GET", "/api/v4/projects/42", Fit.UNSURE, Fit.YES),
        (GLOB, "GET", "/api/v4/groups/platform/issues", Fit.UNSURE, Fit.UNSURE),
        (GLOB, "GET", "/api/v4/groups/7/issues", Fit.UNSURE, Fit.UNSURE),
        (UNDER, "GET", "/api/v4/groups/platform/issues", Fit.YES, Fit.YES),
        (Projects(under_group=("/Platform/",)), "GET", "/api/v4/projects/platform%2Fapi", Fit.YES, Fit.YES),
        (Projects(under_group=("a/b",)), "GET", "/api/v4/groups/a/issues", Fit.YES, Fit.YES),
        (BY_PATH, "GET", "/api/v4/issues/3", Fit.NO, Fit.NO),
        (BY_PATH, "GET", "/platform/api/-/raw/main/x", Fit.YES, Fit.YES),
        (BY_PATH, "GET", "/platform/api/-/issues", Fit.UNSURE, Fit.UNSURE),
        (BY_PATH, "GET", "/platform/api?go-get=1", Fit.YES, Fit.YES),
        (BY_PATH, "GET", "/platform/api/v2/x?go-get=1", Fit.YES, Fit.YES),  # GitLab finds the project above
        (BY_PATH, "GET", "/Platform/API/x?go-get=1", Fit.YES, Fit.YES),
        (BY_PATH, "GET", "/platform/x/api?go-get=1", Fit.NO, Fit.NO),
        (BY_ID, "GET", "/other/x/y?go-get=1", Fit.UNSURE, Fit.UNSURE),
        (BY_PATH, "POST", "/api/v4/projects/other%2Fx/merge_requests", Fit.UNSURE, Fit.UNSURE),
    ],
)
def test_what_a_deny_touches(projects: Projects, method: str, target: str, asked: Fit, answered: Fit) -> None:
    assert touch(projects, method, target) is asked
    assert touch(projects, method, target, known=True) is answered


@pytest.mark.parametrize(
    ("method", "target", "beyond"),
    [
        ("GET", "/api/v4/version", False),
        ("GET", "/api/v4/users/7", False),
        ("GET", "/api/v4/projects/1/issues", False),
        ("GET", "/api/v4/groups/1/issues", False),
        ("POST", "/platform/api.git/git-upload-pack", False),
        ("GET", "/api/v4/issues/3", True),
        ("GET", "/api/v4/issues?project_id=1", True),
        ("GET", "/api/v4/users/7/projects", True),
        ("POST", "/api/graphql", True),
        ("POST", "/api/v4/projects/1/ci/lint", True),
        ("GET", "/jwt/auth?scope=repository:a/b:pull", True),
        ("GET", "/api/v4/brand_new", True),
    ],
)
def test_what_reaches_beyond_its_path(method: str, target: str, beyond: bool) -> None:
    assert reaches_beyond(request(method, target)[0]) is beyond


def test_whatever_keeps_to_its_place_reaches_no_further() -> None:
    for operation in CATALOGUE.operations():
        if keeps_to_place(operation, screened=True):
            assert names_place(operation)
            assert not reaches_beyond(operation)


def test_a_screened_body_names_nothing_else() -> None:
    assert touch(BY_PATH, "POST", "/api/v4/projects/other%2Fx/merge_requests", screened=True) is Fit.NO


def test_a_deny_without_projects_touches_everything() -> None:
    operation, parsed = request("GET", "/api/v4/version")
    assert Matcher(Clause(access=Access.READ)).may_touch(operation, parsed, (), {}, False) is Fit.YES


def test_a_deny_about_a_place_alone_hides_it() -> None:
    assert Matcher(Clause(projects=BY_PATH)).hides_place
    assert Matcher(Clause(access=Access.WRITE, projects=BY_PATH)).hides_place
    assert not Matcher(Clause(permissions=("read_code",), projects=BY_PATH)).hides_place
    assert not Matcher(Clause(permissions=("read_code",))).hides_place


ESCAPES = st.lists(st.sampled_from(["/", "%2F", "%2f", "%252F", "%252f", "%25252F"]), min_size=1, max_size=3)


@given(ESCAPES)
def test_a_slash_escaped_twice_never_gains_access(slashes: list[str]) -> None:
    path = "platform" + "".join(f"{slash}x" for slash in slashes)
    fit = reach(Projects(named=("**",), under_group=("platform",)), "GET", f"/api/v4/projects/{path}")
    assert (fit is Fit.YES) == all(slash.lower() == "%2f" for slash in slashes)


@given(st.sampled_from(["platform/api", "Platform/API", "42", "042"]), st.sampled_from(["%2F", "%2f"]))
def test_every_spelling_of_one_project_agrees_once_gitlab_has_answered(spelt: str, slash: str) -> None:
    target = "/api/v4/projects/" + spelt.replace("/", slash)
    known = KNOWN | {PlaceLookup(PROJECT, "platform/api"): Place("42", "platform/api", ("7",))}
    operation, parsed = request("GET", target)
    for projects in (BY_PATH, BY_ID, UNDER, UNDER_ID, GLOB):
        matcher = Matcher(Clause(projects=projects))
        assert matcher.by_project
        assert matcher.may_reach(operation, named(operation, parsed), known, False) is Fit.YES


@pytest.mark.parametrize("target", ["/platform/api.git/git-upload-pack", "/platform/api.git/info/lfs/objects/batch"])
def test_where_gitlab_follows_a_former_path_its_word_counts(target: str) -> None:
    operation, parsed = request("POST", target)
    (thing,) = named(operation, parsed)
    assert thing == NamedPlace(PROJECT, "platform/api", follows=True)
    moved = {PlaceLookup(PROJECT, "platform/api"): Place("42", "finance/ledger", ("9",))}
    here = {PlaceLookup(PROJECT, "platform/api"): Place("42", "platform/api", ("7",))}
    for projects in (BY_PATH, UNDER, GLOB):
        matcher = Matcher(Clause(projects=projects))
        found = [matcher.may_reach(operation, (thing,), resolved, False) for resolved in ({}, here, moved)]
        assert found == [Fit.YES, Fit.YES, Fit.NO]
    denied = Matcher(Clause(projects=Projects(named=("finance/ledger",))))
    found = [denied.may_touch(operation, parsed, (thing,), resolved, False) for resolved in ({}, here, moved)]
    assert found == [Fit.NO, Fit.NO, Fit.YES]


@pytest.mark.parametrize("target", ["/platform.wiki.git/git-upload-pack", "/platform.wiki.git/info/lfs/objects/batch"])
def test_a_groups_own_wiki_is_the_groups(target: str) -> None:
    operation, parsed = request("POST", target)
    (thing,) = named(operation, parsed)
    assert (thing.kind, thing.spelt) == (GROUP, "platform")
    for projects, reaches, touches in ((UNDER, Fit.YES, Fit.YES), (BY_PATH, Fit.NO, Fit.YES)):
        matcher = Matcher(Clause(projects=projects))
        assert matcher.may_reach(operation, (thing,), {}, False) is reaches
        assert matcher.may_touch(operation, parsed, (thing,), {}, False) is touches


def test_a_named_thing_is_a_value() -> None:
    assert NamedPlace(PROJECT, "1") == NamedPlace(PROJECT, "1")


def test_how_a_body_may_spell_what_the_path_names_already() -> None:
    target = parse_target(b"/api/v4/projects/42/issues?group_id=Top")
    operation = CATALOGUE.match("POST", target)
    assert spellings(operation, target, {}) == {(True, "42"), (False, "top")}
    resolved = {PlaceLookup(ReferenceKind.PROJECT, "42"): Place("42", "Platform/Api")}
    assert spellings(operation, target, resolved) == {
        (True, "42"),
        (True, "platform/api"),
        (False, "top"),
    }
    odd = parse_target(b"/api/v4/projects/42%0Ax/issues")
    assert spellings(CATALOGUE.match("POST", odd), odd, {}) == frozenset()


@pytest.mark.parametrize(
    ("parameter", "value", "found"),
    [
        ("target_project_id", "042", (True, "42")),
        ("project", "Platform/API", (True, "platform/api")),
        ("namespace_id", "42", (False, "42")),
        ("group_path", "Platform", (False, "platform")),
        ("namespace_path", "A/42", (False, "a/42")),
        ("namespace_path", "42", None),  # a path to GitLab, whoever number 42 is
        ("project_path", "42", None),
        ("group", "42\nx", None),
    ],
)
def test_what_a_parameter_names(parameter: str, value: str, found: object) -> None:
    assert parameter_spelling(parameter, value) == found


def test_what_gitlab_could_say_of_a_requests_places() -> None:
    path = "/api/v4/projects/a%2Fb/fork/007?namespace_id=A%2FB&project_id=%0A&namespace_path=42"
    operation, target = request("POST", path)
    assert lookups_of(operation, target) == (
        PlaceLookup(PROJECT, "a/b"),
        PlaceLookup(PROJECT, "7"),
        PlaceLookup(ReferenceKind.NAMESPACE, "a/b"),
    )
