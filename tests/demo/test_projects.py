"""Projects and groups by visibility and by page; variables; labels."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.demo.seed import TOKENS

API = "/api/v4/projects/platform%2Fapi"


async def ids(ask: Any, query: str, token: str | None = None) -> list[int]:
    return [project["id"] for project in (await ask("GET", f"/api/v4/projects?{query}", token)).json]


async def test_each_sees_their_own(ask: Any) -> None:
    totals = [(await ask("GET", "/api/v4/projects", token)).headers["X-Total"] for token in (None, TOKENS.eve, TOKENS.ada)]
    assert totals == ["46", "47", "49"]
    assert await ids(ask, "membership=true&sort=asc", TOKENS.bob) == [1, 2]
    assert await ids(ask, "visibility=internal", TOKENS.ada) == [2]
    assert await ids(ask, "search=HANDB") == [3]
    assert (await ask("GET", "/api/v4/projects?owned=yes")).status == 401


async def test_the_next_link_visits_each_once(ask: Any) -> None:
    seen, target = [], "/api/v4/projects?per_page=9&search=item"
    while target:
        page = await ask("GET", target)
        seen += [project["id"] for project in page.json]
        link = re.search(r'<[^>]*?(/api[^>]*)>; rel="next"', page.headers["Link"])
        target = link[1] if link else ""
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 45


@pytest.mark.parametrize(("sort", "marker"), [("asc", "id_after=6"), ("desc", "id_before=48")])
async def test_keyset_goes_on_after_the_last_id(ask: Any, sort: str, marker: str) -> None:
    query = f"pagination=keyset&order_by=id&sort={sort}&per_page=2&search=item"
    page = await ask("GET", f"/api/v4/projects?{query}")
    assert marker in page.headers["Link"]
    assert "X-Total" not in page.headers
    following = await ids(ask, f"{query}&{marker}")
    assert following == ([7, 8] if sort == "asc" else [47, 46])


async def test_keyset_ends_without_a_link(ask: Any) -> None:
    page = await ask("GET", "/api/v4/projects?pagination=keyset&order_by=id&per_page=100")
    assert "Link" not in page.headers


@pytest.mark.parametrize(
    "target",
    ["/api/v4/projects?pagination=keyset&order_by=name", "/api/v4/groups?pagination=keyset"],
)
async def test_keyset_is_not_everywhere(ask: Any, target: str) -> None:
    reply = await ask("GET", target)
    assert reply.status == 405
    assert reply.body == b'{"error":"Keyset pagination is not yet available for this type of request"}'


async def test_an_offset_too_far_is_refused(ask: Any) -> None:
    assert (await ask("GET", "/api/v4/projects?page=5002&per_page=10")).status == 405


async def test_a_project_comes_and_goes(ask: Any) -> None:
    made = await ask("POST", "/api/v4/projects?name=New%20one&visibility=public", TOKENS.eve)
    assert (made.status, made.json["path_with_namespace"]) == (201, "eve/new-one")
    again = await ask("POST", "/api/v4/projects?name=New%20one", TOKENS.eve)
    assert (again.status, again.json["message"]["name"]) == (400, ["has already been taken"])
    target = f"/api/v4/projects/{made.json['id']}"
    assert (await ask("PUT", target, TOKENS.eve, data={"description": "d"})).json["description"] == "d"
    assert (await ask("DELETE", target, TOKENS.ada)).status == 403
    assert (await ask("DELETE", target, TOKENS.eve)).body == b'{"message":"202 Accepted"}'
    assert (await ask("GET", target, TOKENS.eve)).status == 404
    assert (await ask("POST", "/api/v4/projects", TOKENS.eve)).status == 400


async def test_a_job_may_see_its_project(ask: Any) -> None:
    assert (await ask("GET", API, None, {"JOB-TOKEN": TOKENS.job})).json["id"] == 1


async def test_a_project_tells_what_its_caller_may(ask: Any) -> None:
    nested = "/api/v4/projects/platform%2Ftools%2Fdeploy%2Frunner-images"
    role = {"access_level": 40, "notification_level": 3}
    assert (await ask("GET", nested, TOKENS.ada)).json["permissions"] == {"project_access": role, "group_access": role}
    assert (await ask("GET", nested, TOKENS.root)).json["permissions"] == {"project_access": None, "group_access": None}
    assert "permissions" not in (await ask("GET", "/api/v4/projects/open%2Fhandbook")).json
    made = (await ask("POST", "/api/v4/projects?name=mine", TOKENS.eve)).json
    assert made["permissions"] == {"project_access": {"access_level": 50, "notification_level": 3}, "group_access": None}
    assert made["empty_repo"] is True


async def test_groups_nest(ask: Any) -> None:
    assert (await ask("GET", "/api/v4/groups/platform%2Ftools", TOKENS.ada)).json["full_path"] == "platform/tools"
    assert [group["id"] for group in (await ask("GET", "/api/v4/groups")).json] == [4, 5]
    inside = (await ask("GET", "/api/v4/groups/platform/projects", TOKENS.ada)).json
    assert [project["id"] for project in inside] == [1, 2]


async def test_variables_are_for_maintainers(ask: Any) -> None:
    target = f"{API}/variables"
    assert (await ask("GET", target, TOKENS.bob)).body == b'{"message":"403 Forbidden"}'
    assert (await ask("GET", f"{target}/DEPLOY_KEY", TOKENS.ada)).json["value"] == "demo-variable-secret"
    assert (await ask("POST", target, TOKENS.ada, data={"key": "A.B", "value": "1", "masked": True})).json["masked"] is True
    assert (await ask("POST", target, TOKENS.ada, data={"key": "A.B", "value": "1"})).status == 400
    assert (await ask("PUT", f"{target}/A.B", TOKENS.ada, data={"value": "2"})).json["value"] == "2"
    assert len((await ask("GET", target, TOKENS.ada)).json) == 2
    assert (await ask("DELETE", f"{target}/A.B", TOKENS.ada)).status == 204
    assert (await ask("GET", f"{target}/A.B", TOKENS.ada)).body == b'{"message":"404 Variable Not Found"}'


async def test_labels_may_hold_slashes(ask: Any) -> None:
    target = f"{API}/labels"
    assert (await ask("GET", f"{target}/team%3A%3Aplatform%2Fapi", TOKENS.bob)).json["name"] == "team::platform/api"
    assert (await ask("POST", target, TOKENS.bob, data={"name": "a/b", "color": "#000"})).status == 201
    assert (await ask("POST", target, TOKENS.bob, data={"name": "a/b", "color": "#000"})).status == 409
    assert (await ask("POST", target, TOKENS.bob, data={"name": "c"})).body == b'{"error":"color is missing"}'
    assert len((await ask("GET", target, TOKENS.bob)).json) == 3
    assert (await ask("DELETE", f"{target}/a%2Fb", TOKENS.bob)).status == 204
    assert (await ask("GET", f"{target}/a%2Fb", TOKENS.bob)).status == 404
