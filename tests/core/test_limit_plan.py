"""Which buckets a request takes from: hierarchy, conditions, costs, keys."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.access import Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Reference, ReferenceKind, Surface
from gateway.core.limit_plan import KEY_BYTES, Limits, bucket_key, parse_bucket_key
from gateway.core.limits import Limit, Match, Scope, Take
from gateway.core.project_names import ProjectNames
from gateway.core.target import Target, parse_target

OPERATION = Operation("GET /api/v4/projects", Access.READ, Surface.REST)


def target(text: str) -> Target:
    return parse_target(text.encode())


TARGET = target("/api/v4/projects")
PROJECT = (Reference(3, ReferenceKind.PROJECT),)
ISSUES = Operation("POST /api/v4/projects/:id/issues", Access.WRITE, Surface.REST, references=PROJECT)
GIT = Operation("GET /*project.git/info/refs", Access.READ, Surface.GIT)
UNKNOWN = Operation("other", Access.READ, Surface.REST, known=False)


def limit(rate: float = 10.0, burst: float = 50.0, **more: object) -> Limit:
    return Limit("caller", Scope.CALLER, rate, burst, **more)  # type: ignore[arg-type]


def key_principal(identity: str = "backstage", team: str = "") -> Principal:
    return Principal(identity, PrincipalKind.KEY, identity, team=team)


HIERARCHY = Limits.compile(
    Limit(scope.value, scope, 1.0, 1.0)
    for scope in (Scope.ORGANISATION, Scope.TEAM, Scope.IDENTITY, Scope.CALLER, Scope.ADDRESS)
)


def ids(takes: tuple[Take, ...]) -> list[str]:
    return [take.limit.id for take in takes]


def test_a_named_caller_takes_by_caller_identity_team_and_organisation() -> None:
    takes = HIERARCHY.takes_for(key_principal(team="platform"), OPERATION, TARGET, "GET", "10.0.0.1")
    assert ids(takes) == ["organisation", "team", "identity", "caller"]
    assert [take.key for take in takes] == [
        "{gw}:b:organisation:all",
        "{gw}:b:team:platform",
        "{gw}:b:identity:backstage",
        "{gw}:b:caller:backstage",
    ]


def test_without_a_team_no_team_bucket() -> None:
    assert ids(HIERARCHY.takes_for(key_principal(), OPERATION, TARGET, "GET", "10.0.0.1")) == [
        "organisation",
        "identity",
        "caller",
    ]


@pytest.mark.parametrize("kind", [PrincipalKind.ANONYMOUS, PrincipalKind.PASSTHROUGH])
def test_an_unnamed_caller_is_its_address(kind: PrincipalKind) -> None:
    principal = Principal(f"{kind.value}:2001:db8::7", kind, kind.value)
    takes = HIERARCHY.takes_for(principal, OPERATION, TARGET, "GET", "2001:db8::7")
    assert ids(takes) == ["organisation", "identity", "caller", "address"]
    assert takes[3].key == "{gw}:b:address:2001:db8::/64"
    assert takes[2].key == f"{{gw}}:b:caller:{kind.value}:2001:db8::/64"


def test_the_same_caller_is_not_compiled_twice() -> None:
    takes = HIERARCHY.takes_for(key_principal(), OPERATION, TARGET, "GET", "10.0.0.1")
    assert HIERARCHY.takes_for(key_principal(), OPERATION, TARGET, "GET", "10.9.9.9") is takes


def test_the_memo_is_bounded() -> None:
    limits = Limits.compile([limit()])
    for number in range(5000):
        limits.takes_for(key_principal(f"bot-{number}"), OPERATION, TARGET, "GET", "10.0.0.1")
    assert len(limits._memo) <= 4096


def test_a_name_that_no_project_has_is_not_kept() -> None:
    """Thousands of 16 KiB each would be."""
    limits = Limits.compile([Limit("each", Scope.PROJECT, 1.0, 1.0)])
    for name, kept in (("n" * 512, 1), ("n" * 513, 1), ("n" * 15_000, 1)):
        asked = target(f"/api/v4/projects/{name}/issues")
        takes = limits.takes_for(key_principal(), ISSUES, asked, "POST", "192.0.2.1")
        assert takes == limits.takes_for(key_principal(), ISSUES, asked, "POST", "192.0.2.1")
        assert (len(takes), len(limits._memo)) == (1, kept)


def test_no_limits_no_takes() -> None:
    none = Limits.compile([])
    assert none.takes_for(key_principal(), OPERATION, TARGET, "GET", "10.0.0.1") == ()
    assert none.advertised is None


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_keys_are_short_printable_of_one_slot_and_distinct(one: str, other: str) -> None:
    limits = Limits.compile([Limit("x" * 64, Scope.CALLER, 1.0, 1.0)])
    keys = [limits.takes_for(key_principal(name), OPERATION, TARGET, "GET", "10.0.0.1")[0].key for name in (one, other)]
    assert all(len(key.encode()) <= KEY_BYTES and key.isprintable() and key.startswith("{gw}:") for key in keys)
    assert (keys[0] == keys[1]) == (one == other)


def test_a_hashed_subject_cannot_be_spelled_out() -> None:
    limits = Limits.compile([limit()])
    hashed = limits.takes_for(key_principal("a" * 101), OPERATION, TARGET, "GET", "")[0].key
    spelled = limits.takes_for(key_principal(hashed.rpartition(":")[2]), OPERATION, TARGET, "GET", "")[0].key
    assert hashed != spelled


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param([Limit("a:b", Scope.CALLER, 1.0, 1.0)], id="colon"),
        pytest.param([Limit("", Scope.CALLER, 1.0, 1.0)], id="empty"),
        pytest.param([limit(), limit()], id="twice"),
        pytest.param([limit(rate=0.0)], id="no-rate"),
        pytest.param([limit(rate=math.inf)], id="endless-rate"),
        pytest.param([limit(rate=math.nan)], id="nan"),
        pytest.param([limit(burst=0.5)], id="burst-below-one"),
        pytest.param([limit(period_s=0.0)], id="no-period"),
    ],
)
def test_limits_no_bucket_can_hold(wrong: list[Limit]) -> None:
    with pytest.raises(ValueError, match=r"^limit "):
        Limits.compile(wrong)


def test_whose_rate_is_advertised() -> None:
    organisation, caller = Limit("org", Scope.ORGANISATION, 9.0, 1.0), limit()
    shadow = Limit("shadow", Scope.CALLER, 2.0, 1.0, advertise=True, shadow=True)
    assert Limits.compile([organisation, shadow]).advertised is organisation
    assert Limits.compile([organisation, shadow, caller]).advertised is caller
    marked = Limit("team", Scope.TEAM, 2.0, 1.0, advertise=True)
    assert Limits.compile([organisation, caller, marked]).advertised is marked


def test_a_limit_on_some_requests_is_advertised_last() -> None:
    some = Limit("writes", Scope.CALLER, 9.0, 1.0, match=Match(access=Access.WRITE))
    organisation = Limit("org", Scope.ORGANISATION, 9.0, 1.0)
    assert Limits.compile([some, organisation]).advertised is organisation
    assert Limits.compile([some]).advertised is some


def test_one_bucket_changed_for_a_time() -> None:
    limits = Limits.compile([limit(), Limit("team", Scope.TEAM, 1.0, 1.0)])
    wider = limit(burst=500.0)
    limits.change("{gw}:b:caller:backstage", wider)
    takes = limits.takes_for(key_principal(team="t"), OPERATION, TARGET, "GET", "")
    assert [take.limit.burst for take in takes] == [500.0, 1.0]
    assert limits.takes_for(key_principal("other"), OPERATION, TARGET, "GET", "")[0].limit.burst == 50.0
    limits.change("{gw}:b:caller:backstage", None)
    assert ids(limits.takes_for(key_principal(team="t"), OPERATION, TARGET, "GET", "")) == ["team"]
    limits.restore("{gw}:b:caller:backstage")
    limits.restore("{gw}:b:caller:backstage")
    assert limits.takes_for(key_principal(team="t"), OPERATION, TARGET, "GET", "")[0].limit.burst == 50.0


def test_takes_hold_until_a_limit_is_changed() -> None:
    limits = Limits.compile([limit()])
    for change in (lambda: limits.change("k", None), lambda: limits.restore("k")):
        takes = limits.takes_for(key_principal(), OPERATION, TARGET, "GET", "")
        assert not takes.validity.over
        change()
        assert takes.validity.over


# Conditions

READ_ISSUES = Operation("GET /api/v4/projects/:id/issues", Access.READ, Surface.REST, references=PROJECT)


@pytest.mark.parametrize(
    ("match", "operation", "spelt", "method", "applies"),
    [
        pytest.param(Match(access=Access.WRITE), ISSUES, "/api/v4/projects/7/issues", "POST", True, id="write"),
        pytest.param(Match(access=Access.WRITE), OPERATION, "/api/v4/projects", "GET", False, id="reads-are-no-writes"),
        pytest.param(Match(access=Access.READ), ISSUES, "/api/v4/projects/7/issues", "POST", False, id="read"),
        pytest.param(Match(surfaces=(Surface.GIT,)), GIT, "/a/b.git/info/refs", "GET", True, id="surface"),
        pytest.param(Match(surfaces=(Surface.GIT,)), OPERATION, "/api/v4/projects", "GET", False, id="other-surface"),
        pytest.param(Match(methods=("POST",)), ISSUES, "/api/v4/projects/7/issues", "POST", True, id="method"),
        pytest.param(Match(methods=("GET",)), OPERATION, "/api/v4/projects", "HEAD", True, id="head-is-a-get"),
        pytest.param(Match(methods=("POST",)), OPERATION, "/api/v4/projects", "GET", False, id="other-method"),
        pytest.param(Match(routes=("/api/v4/projects/**",)), ISSUES, "/api/v4/projects/7/issues", "POST", True, id="route"),
        pytest.param(Match(routes=("GET /api/v4/user",)), OPERATION, "/api/v4/projects", "GET", False, id="other-route"),
        pytest.param(Match(routes=("/api/v4/new",)), UNKNOWN, "/api/v4/new", "GET", True, id="unknown-by-path"),
        pytest.param(Match(routes=("/api/v4/new",)), UNKNOWN, "/api/v4/newer", "GET", False, id="unknown-elsewhere"),
        pytest.param(
            Match(access=Access.WRITE, methods=("POST",)), OPERATION, "/api/v4/projects", "POST", False, id="all-must-hold"
        ),
    ],
)
def test_conditions(match: Match, operation: Operation, spelt: str, method: str, applies: bool) -> None:
    limits = Limits.compile([limit(match=match)])
    assert bool(limits.takes_for(key_principal(), operation, target(spelt), method, "10.0.0.1")) is applies


@pytest.mark.parametrize("known", [True, False])
def test_each_class_of_request_has_its_own_takes(known: bool) -> None:
    limits = Limits.compile([limit(), Limit("writes", Scope.CALLER, 1.0, 5.0, match=Match(access=Access.WRITE))])
    read = Operation("GET /x", Access.READ, Surface.REST, known=known)
    write = Operation("POST /x", Access.WRITE, Surface.REST, known=known)
    for _ in range(2):
        assert ids(limits.takes_for(key_principal(), read, TARGET, "GET", "")) == ["caller"]
        assert ids(limits.takes_for(key_principal(), write, TARGET, "POST", "")) == ["caller", "writes"]


def test_the_memo_of_classes_is_bounded() -> None:
    limits = Limits.compile([limit(match=Match(access=Access.READ))])
    for number in range(5000):
        operation = Operation(f"GET /api/v4/x{number}", Access.READ, Surface.REST)
        assert limits.takes_for(key_principal(), operation, TARGET, "GET", "")
    assert len(limits._tariffs) <= 4096


# By project

BY_PROJECT = Limits.compile([Limit("project", Scope.PROJECT, 1.0, 5.0)])


@pytest.mark.parametrize(
    ("spelt", "key"),
    [
        pytest.param("/api/v4/projects/7/issues", "{gw}:b:project:7", id="number"),
        pytest.param("/api/v4/projects/007/issues", "{gw}:b:project:7", id="zeros"),
        pytest.param("/api/v4/projects/Group%2FName/issues", "{gw}:b:project:group/name", id="path"),
        pytest.param("/api/v4/projects/7%0Ax/issues", "{gw}:b:project:?", id="neither"),
    ],
)
def test_a_project_has_a_bucket_of_its_own(spelt: str, key: str) -> None:
    takes = BY_PROJECT.takes_for(key_principal(), ISSUES, target(spelt), "POST", "10.0.0.1")
    assert [take.key for take in takes] == [key]
    other = BY_PROJECT.takes_for(key_principal("other"), ISSUES, target(spelt), "POST", "10.0.0.1")
    assert [take.key for take in other] == [key]


def test_the_wiki_of_a_group_called_7_takes_nothing_from_project_7() -> None:
    repository = (Reference(0, ReferenceKind.PROJECT, end=1, repository=True),)
    fetch = Operation("GET /*repository_path.git/info/refs", Access.READ, Surface.GIT, references=repository)
    takes = BY_PROJECT.takes_for(key_principal(), fetch, target("/7.wiki.git/info/refs"), "GET", "10.0.0.1")
    assert [take.key for take in takes] == ["{gw}:b:project:?"]


def test_a_number_and_its_path_are_one_bucket_once_an_answer_told() -> None:
    names = ProjectNames()
    limits = Limits.compile([Limit("project", Scope.PROJECT, 1.0, 5.0)], names=names)

    def key(spelt: str) -> str:
        takes = limits.takes_for(key_principal(), ISSUES, target(f"/api/v4/projects/{spelt}/issues"), "POST", "10.0.0.1")
        assert takes.validity.over, "the next answer may tell the number"
        return takes[0].key

    assert key("Group%2FName") == "{gw}:b:project:group/name"
    names.learn(b"7", b"Group/Name")
    assert key("Group%2FName") == key("group%2Fname") == key("7") == "{gw}:b:project:7"
    assert key("group%2Fother") == "{gw}:b:project:group/other"


def test_a_request_that_names_no_project_takes_from_none() -> None:
    assert BY_PROJECT.takes_for(key_principal(), OPERATION, TARGET, "GET", "10.0.0.1") == ()
    group = Operation("GET /api/v4/groups/:id", Access.READ, Surface.REST, references=(Reference(3, ReferenceKind.GROUP),))
    assert BY_PROJECT.takes_for(key_principal(), group, target("/api/v4/groups/7"), "GET", "10.0.0.1") == ()


# Costs


def test_a_weighted_limit_asks_for_the_weight_of_the_operation() -> None:
    limits = Limits.compile([limit(), Limit("points", Scope.CALLER, 10.0, 500.0, weighted=True)])
    takes = limits.takes_for(key_principal(), ISSUES, target("/api/v4/projects/7/issues"), "POST", "10.0.0.1")
    assert [(take.limit.id, take.cost) for take in takes] == [("caller", 1.0), ("points", 7.0)]


def test_a_configured_weight_goes_first() -> None:
    limits = Limits.compile([limit(weighted=True)], {"POST /api/v4/projects/:id/issues": 2.0})
    takes = limits.takes_for(key_principal(), ISSUES, target("/api/v4/projects/7/issues"), "POST", "10.0.0.1")
    assert [take.cost for take in takes] == [2.0]


def test_a_key_tells_its_limit_and_subject() -> None:
    assert parse_bucket_key(bucket_key("caller", "anonymous:127.0.0.1")) == ("caller", "anonymous:127.0.0.1")
    assert parse_bucket_key(bucket_key("caller", "ü"))[1].startswith("#")
    assert parse_bucket_key("{gw}:p:sa") == parse_bucket_key("") == parse_bucket_key("{gw}:b:" + "x" * 200) == ("", "")
