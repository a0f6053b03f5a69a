"""What stays of a list: only what a rule allows for sure, to the octet as GitLab wrote it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import routes
from gateway.core.catalogue import ReferenceKind
from gateway.core.narrowing import (
    LISTS,
    SCOPES,
    SEARCHES,
    Narrowing,
    is_list,
    item_kind_of,
    narrow,
    narrowed_fields,
)
from gateway.core.rule_match import Clause, Lists, Matcher, Projects, reaches_beyond
from gateway.core.target import parse_target

CATALOGUE = routes.catalogue()
PROJECTS, GROUPS, ISSUES = LISTS["GET /api/v4/projects"], LISTS["GET /api/v4/groups"], LISTS["GET /api/v4/issues"]


def matcher(**projects: tuple[str, ...]) -> Matcher:
    return Matcher(Clause(projects=Projects(**projects), lists=Lists.FILTER))


OURS = Narrowing((matcher(under_group=("platform",)),))


def kept(items: list[object], narrowing: Narrowing = OURS, item_kind: object = PROJECTS) -> list[object] | None:
    body = narrow(json.dumps(items).encode(), item_kind, narrowing)  # type: ignore[arg-type]
    return None if body is None else json.loads(body)


def project(number: object, path: object, **more: object) -> dict[str, object]:
    return {"id": number, "path_with_namespace": path, **more}


# The table


@pytest.mark.parametrize("name", [*LISTS, *SEARCHES])
def test_every_row_is_a_list_of_the_catalogue(name: str) -> None:
    (operation,) = [one for one in CATALOGUE.operations() if one.name == name]
    assert is_list(operation)
    assert operation.name.startswith("GET ")
    assert not operation.secret_answer


@pytest.mark.parametrize(
    ("query", "item_kind"),
    [
        ("scope=projects&search=x", PROJECTS),
        ("scope=issues", ISSUES),
        ("search=x&scope=%70rojects", PROJECTS),
        ("%73cope=merge_requests", ISSUES),
        ("scope=blobs", None),
        ("search=x", None),
        ("", None),
        ("scope=projects&scope=blobs", None),
        ("scope=projects&scope%5B%5D=blobs", None),
        ("scope[]=projects", None),
        ("scope=projects;scope=users", None),
        ("scope=projects&+scope=users", None),
        ("scope=projects%00", None),
        ("scope=projects&[scope]=users", None),
        ("scope=Projects", None),
    ],
)
def test_a_search_is_what_its_scope_says_if_it_says_one(query: str, item_kind: object) -> None:
    target = parse_target(b"/api/v4/search" + (b"?" + query.encode() if query else b""))
    assert item_kind_of(CATALOGUE.match("GET", target), target) is item_kind
    assert set(SCOPES.values()) == {PROJECTS, ISSUES}


# Items


def test_what_is_elsewhere_goes() -> None:
    items = [
        project(1, "platform/api"),
        project(2, "finance/ledger"),
        project(3, "Platform/Deep/er"),
        project(4, "platformx/a"),
    ]
    assert kept(items) == [items[0], items[2]]


def test_an_item_stays_to_the_octet() -> None:
    body = b'[ {"path_with_namespace" : "platform/\\u0061pi", "id":1 ,"x":1.0e2 } , {"id":2,"path_with_namespace":"b/c"}]'
    assert narrow(body, PROJECTS, OURS) == b'[{"path_with_namespace" : "platform/\\u0061pi", "id":1 ,"x":1.0e2 }]'


ELSEWHERE, OURS_TOO = project(2, "finance/ledger", description="SECRET"), project(3, "platform/api")


def test_what_it_was_forked_from_goes_where_that_is_elsewhere() -> None:
    fork = project(1, "platform/web", forked_from_project=ELSEWHERE, namespace={"full_path": "platform"}, x=[1, {}])
    assert kept([fork]) == [{name: value for name, value in fork.items() if name != "forked_from_project"}]
    secret = Narrowing(OURS.allow, (matcher(named=("3",)),))
    assert kept([project(1, "platform/web", forked_from_project=OURS_TOO)], secret) == [project(1, "platform/web")]


@pytest.mark.parametrize("item_kind", [PROJECTS, GROUPS, ISSUES], ids=["projects", "groups", "issues"])
def test_any_project_within_an_item_is_looked_at(item_kind: object) -> None:
    item: dict[str, object] = {"id": 1, "project_id": 1, "full_path": "platform", "references": {"full": "platform/web#1"}}
    item |= project(1, "platform/web") if item_kind is PROJECTS else {}
    for other in (
        ELSEWHERE,
        [OURS_TOO, ELSEWHERE],
        {"a": [{"b": ELSEWHERE}]},
        {**OURS_TOO, "source": ELSEWHERE},
        project(2, None),
    ):
        assert kept([{**item, "other": other, "z": 1}], item_kind=item_kind) == [{**item, "z": 1}]
    whole = {**item, "other": OURS_TOO, "z": None}
    assert kept([whole], item_kind=item_kind) == [whole]


WEB = b'{"id":1 , "path_with_namespace":"platform/web","a":1.0e2,'


@pytest.mark.parametrize(
    "rest",
    [
        b'"forked_from_project" : {"id":3, "path_with_namespace":"platform/api"}}',
        b'"description":"a \\"path_with_namespace\\": \\u003cb\\u003e", "n":{"k":"\\u0026"}}',
    ],
)
def test_an_item_with_a_project_that_stays_keeps_its_octets(rest: bytes) -> None:
    assert narrow(b"[ " + WEB + rest + b"]", PROJECTS, OURS) == b"[" + WEB + rest + b"]"


def test_the_other_members_keep_their_octets() -> None:
    item = WEB + b'"f":{"path_with_namespace":"x/y","id":9},"n":{ "k":"\\u0026" }}'
    expected = b'{"id":1,"path_with_namespace":"platform/web","a":1.0e2,"n":{ "k":"\\u0026" }}'
    assert narrow(b"[" + item + b"]", PROJECTS, OURS) == b"[" + expected + b"]"


def test_a_name_in_escapes_hides_nothing() -> None:
    item = b'{"id":1,"path_with_namespace":"platform/web","f":{"id":9,"p\\u0061th_with_namespace":"x/y"}}'
    assert narrow(b"[" + item + b"]", PROJECTS, OURS) == b'[{"id":1,"path_with_namespace":"platform/web"}]'


def test_numbers_and_patterns_are_rules_too() -> None:
    items = [project(7, "a/b"), project(8, "a/c"), project(9, "d/e")]
    assert kept(items, Narrowing((matcher(named=("8",)),))) == [items[1]]
    assert kept(items, Narrowing((matcher(named=("a/*",)),))) == items[:2]
    assert kept(items, Narrowing((matcher(named=("8",)), matcher(named=("d/e",))))) == items[1:]


def test_a_group_named_by_number_cannot_be_told() -> None:
    assert kept([project(7, "a/b")], Narrowing((matcher(under_group=("5",)),))) == []
    everything = matcher(named=("**",))
    assert kept([project(7, "a/b")], Narrowing((everything,), (matcher(under_group=("5",)),))) == []


def test_every_list_reaches_beyond_its_path() -> None:
    """So that none is sent as it is where a deny by project is about it."""
    operations = {operation.name: operation for operation in CATALOGUE.operations()}
    assert all(reaches_beyond(operations[name]) for name in {*LISTS, *SEARCHES})


def test_a_deny_takes_its_places_out() -> None:
    items = [project(1, "platform/api"), project(2, "platform/secret/x")]
    assert kept(items, Narrowing(OURS.allow, (matcher(under_group=("platform/secret",)),))) == items[:1]
    assert kept(items, Narrowing(OURS.allow, (matcher(named=("1",)),))) == items[1:]


def test_groups_and_issues_say_it_otherwise() -> None:
    groups = [{"id": 1, "full_path": "platform"}, {"id": 2, "full_path": "platform/a"}, {"id": 3, "full_path": "finance"}]
    assert kept(groups, item_kind=GROUPS) == groups[:2]
    assert GROUPS.kind is ReferenceKind.GROUP
    issues = [
        {"project_id": number, "references": {"full": full}}
        for number, full in (
            (1, "platform/api#3"),
            (2, "finance/l#1"),
            (3, "platform/a/b!7"),
            (4, "platform/api"),
            (5, "platform&2"),
        )
    ]
    assert kept(issues, item_kind=ISSUES) == [issues[0], issues[2]]


@pytest.mark.parametrize(
    "item",
    [
        {},
        7,
        None,
        "platform/api",
        [],
        [project(1, "platform/api")],
        project("1", "platform/api"),
        project(True, "platform/api"),
        project(1.5, "platform/api"),
        project(None, "platform/api"),
        project(0, "platform/api"),
        project(-1, "platform/api"),
        project(10**30, "finance/ledger"),
        project(1, None),
        project(1, ""),
        project(1, ["platform/api"]),
        project(1, "/platform/api"),
        project(1, "finance/../platform/api"),
        {"id": 1, "project": project(1, "platform/api")},
        {"ID": 1, "Path_With_Namespace": "platform/api"},
        project(2, "finance/ledger", forked_from_project=project(1, "platform/api")),
        project(2, "finance/ledger", namespace={"full_path": "platform"}),
    ],
)
def test_what_does_not_say_whose_it_is_goes(item: object) -> None:
    assert kept([item]) == []


def test_the_last_of_two_members_counts_as_it_does_for_readers() -> None:
    body = b'[{"id":1,"path_with_namespace":"platform/api","path_with_namespace":"finance/ledger"}]'
    assert narrow(body, PROJECTS, OURS) == b"[]"


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b'{"message":"x"}', b"[", b"[1,]", b"\xff", b"<html>", b"[]x", b'"[]"', b"[" * 5000]
)
def test_what_is_no_list_is_nothing(body: bytes) -> None:
    assert narrow(body, PROJECTS, OURS) is None


def test_an_item_of_any_depth_harms_nobody() -> None:
    deep = b'{"id":1,"path_with_namespace":"platform/api","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert narrow(b"[" + deep + b"]", PROJECTS, OURS) in {None, b"[]"}


PATHS = st.lists(st.sampled_from(["platform", "finance", "Platform", "api", "p", "platformx"]), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.integers(-2, 9), PATHS), max_size=8), st.sets(st.integers(1, 9)), st.booleans())
def test_exactly_what_is_allowed_stays_in_its_order(
    found: list[tuple[int, list[str]]], denied: set[int], by_number: bool
) -> None:
    """Against the plainest reading of a rule."""
    items = [project(number, "/".join(path)) for number, path in found]
    deny = (matcher(named=tuple(map(str, sorted(denied)))),) if denied and by_number else ()
    expected = [
        item
        for item, (number, path) in zip(items, found, strict=True)
        if number > 0 and len(path) > 1 and path[0].lower() == "platform" and not (deny and number in denied)
    ]
    assert kept(items, Narrowing(OURS.allow, deny)) == expected


# Fields


def test_nothing_is_left_of_what_went() -> None:
    fields = (
        (b"Content-Type", b"application/json"),
        (b"ETag", b'W/"x"'),
        (b"Last-Modified", b"x"),
        (b"Content-Length", b"5"),
        (b"X-Total", b"2"),
        (b"x-total-pages", b"1"),
        (b"X-Next-Page", b"2"),
        (b"X-Page", b"1"),
        (b"Link", b'<http://g/?a=1,2>; rel="next", <http://g/?page=1>; rel="first", <http://g/?page=9>; rel="last"'),
        (b"Link", b"<http://g/?page=9>; rel=last"),
        (b"Link", b'<http://g/?page=9>; title="a"; rel="LAST nofollow"'),
    )
    assert narrowed_fields(fields) == (
        (b"Content-Type", b"application/json"),
        (b"X-Next-Page", b"2"),
        (b"X-Page", b"1"),
        (b"Link", b'<http://g/?a=1,2>; rel="next", <http://g/?page=1>; rel="first"'),
    )
