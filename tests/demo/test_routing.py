"""Routes are found by the shape of decoded segments; projects by what the caller may see."""

from __future__ import annotations

import pytest

from gateway.demo.access import Caller
from gateway.demo.answer import Answer, Refusal
from gateway.demo.request import Request
from gateway.demo.routing import Call, Route, Router
from gateway.demo.seed import TOKENS, seed
from gateway.demo.state import Level


def endpoint(_: Call) -> Answer:
    return Answer(200)


ROUTER = Router(
    [
        Route("GET", "/a", endpoint),
        Route("GET", "/a/:id", endpoint),
        Route("HEAD", "/a/:id", endpoint),
        Route("PUT", "/a/:id/*rest", endpoint),
    ]
)


@pytest.mark.parametrize(
    ("method", "segments", "found", "params"),
    [
        ("GET", ("a",), "GET /a", {}),
        ("GET", ("a.json",), "GET /a", {}),
        ("HEAD", ("a",), "GET /a", {}),
        ("HEAD", ("a", "1"), "HEAD /a/:id", {"id": "1"}),
        ("GET", ("a", "x/y.json"), "GET /a/:id", {"id": "x/y.json"}),
        ("PUT", ("a", "1", "b", "c"), "PUT /a/:id/*rest", {"id": "1", "rest": "b/c"}),
    ],
)
def test_found(method: str, segments: tuple[str, ...], found: str, params: dict[str, str]) -> None:
    route, captured = ROUTER.find(method, segments)
    assert f"{route.method} {route.template}" == found
    assert captured == params


@pytest.mark.parametrize("segments", [(), ("b",), ("a", ""), ("a", "1", "2", "3", "4")[:0], ("b.json",)])
def test_unknown(segments: tuple[str, ...]) -> None:
    with pytest.raises(Refusal) as refused:
        ROUTER.find("GET", segments)
    assert refused.value.answer.status == 404


def test_another_method_is_told_which_there_are() -> None:
    with pytest.raises(Refusal) as refused:
        ROUTER.find("DELETE", ("a", "1"))
    assert refused.value.answer.headers["Allow"] == "GET, HEAD, OPTIONS"


STATE = seed(0)


def call(reference: str, token: str | None = None, method: str = "GET", base: str = "https://g") -> Call:
    found = STATE.tokens[token] if token else None
    target = f"/api/v4/projects/{reference.replace('/', '%2f')}/issues?x=1"
    request = Request(method, target, ("api", "v4", "projects", reference, "issues"), "x=1", {}, {}, {"id": reference})
    return Call(STATE, request, Caller(found.user if found else None, found), base)


@pytest.mark.parametrize(
    ("reference", "token", "found"),
    [
        ("1", TOKENS.ada, 1),
        ("platform/api", TOKENS.ada, 1),
        ("Platform/API", TOKENS.bob, 1),
        ("platform/api", TOKENS.root, 1),
        ("platform/tools/deploy/runner-images", TOKENS.eve, 2),
        ("open/handbook", None, 3),
    ],
)
def test_projects_one_may_see(reference: str, token: str | None, found: int) -> None:
    assert call(reference, token).project().id == found


@pytest.mark.parametrize(
    ("reference", "token"),
    [("1", None), ("platform/api", TOKENS.eve), ("2", None), ("99", TOKENS.ada), ("platform/legacy-api", TOKENS.eve)],
)
def test_projects_one_may_not_see_are_not_there(reference: str, token: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        call(reference, token).project()
    assert refused.value.answer.body == b'{"message":"404 Project Not Found"}'


def test_groups_one_may_not_see_are_not_there() -> None:
    assert call("platform", TOKENS.ada).group().id == 1
    with pytest.raises(Refusal) as refused:
        call("platform", TOKENS.eve).group()
    assert refused.value.answer.body == b'{"message":"404 Group Not Found"}'


@pytest.mark.parametrize(("token", "status"), [(None, 401), (TOKENS.eve, 403)])
def test_a_role_is_needed_for_more(token: str | None, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        call("open/handbook", token).project(Level.DEVELOPER)
    assert refused.value.answer.status == status


def test_a_job_token_stays_in_its_project() -> None:
    assert call("1", TOKENS.job).project().id == 1
    with pytest.raises(Refusal) as refused:
        call("3", TOKENS.job).project()
    assert b"not allowed from platform/api to project #3." in refused.value.answer.body


def test_a_moved_project_says_where_it_is() -> None:
    with pytest.raises(Refusal) as refused:
        call("platform/legacy-api", TOKENS.ada).project()
    assert refused.value.answer.status == 301
    assert refused.value.answer.headers["Location"] == "https://g/api/v4/projects/1/issues?x=1"


def test_a_moved_project_is_not_written_to() -> None:
    with pytest.raises(Refusal) as refused:
        call("platform/legacy-api", TOKENS.ada, "POST").project()
    assert (refused.value.answer.status, refused.value.answer.body) == (
        405,
        b"Non GET methods are not allowed for moved projects",
    )
