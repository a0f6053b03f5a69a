"""Releases of tags."""

from __future__ import annotations

from typing import Any

from gateway.demo.seed import TOKENS

TARGET = "/api/v4/projects/platform%2Fapi/releases"


async def test_a_release_is_made_of_a_tag_that_is_there(ask: Any) -> None:
    link = {"name": "notes", "url": "https://example.com/notes"}
    form = {"tag_name": "rel/2.0", "description": "Second", "assets": {"links": [link]}}
    made = await ask("POST", TARGET, TOKENS.bob, data=form)
    assert (made.status, made.json["name"], made.json["description"]) == (201, "rel/2.0", "Second")
    assert made.json["assets"]["links"] == [{"id": 1, "link_type": "other", **link}]
    assert (await ask("GET", f"{TARGET}/rel%2F2.0", TOKENS.bob)).json == made.json
    again = await ask("POST", TARGET, TOKENS.bob, data=form)
    assert (again.status, again.body) == (409, b'{"message":"Release already exists"}')


async def test_a_release_may_make_its_tag(ask: Any) -> None:
    refused = await ask("POST", TARGET, TOKENS.bob, data={"tag_name": "v9"})
    assert (refused.status, refused.body) == (422, b'{"message":"Ref is not specified"}')
    assert (await ask("POST", TARGET, TOKENS.bob, data={"tag_name": "v9", "ref": "main"})).status == 201
    assert (await ask("POST", TARGET, TOKENS.bob, data={"tag_name": "v1.0.0", "assets": "x"})).status == 201
    assert [one["tag_name"] for one in (await ask("GET", TARGET, TOKENS.bob)).json] == ["v1.0.0", "v9"]
    assert (await ask("GET", "/api/v4/projects/platform%2Fapi/repository/tags/v9", TOKENS.bob)).status == 200


async def test_what_is_not_released_is_not_there(ask: Any) -> None:
    assert (await ask("GET", f"{TARGET}/v1.0.0", TOKENS.bob)).body == b'{"message":"404 Not found"}'
    assert (await ask("GET", TARGET, TOKENS.eve)).status == 404
    assert (await ask("POST", TARGET, TOKENS.bob, data={})).body == b'{"error":"tag_name is missing"}'
