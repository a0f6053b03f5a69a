"""Who a token belongs to, asked in each of GitLab's ways."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.demo.seed import TOKENS


@pytest.mark.parametrize("path", ["version", "metadata"])
async def test_the_version_is_for_the_known(ask: Any, path: str) -> None:
    assert (await ask("GET", f"/api/v4/{path}", TOKENS.ada)).json["version"] == "19.3.0-demo"
    assert (await ask("GET", f"/api/v4/{path}")).body == b'{"message":"401 Unauthorized"}'


async def test_the_current_user(ask: Any) -> None:
    assert (await ask("GET", "/api/v4/user", TOKENS.root)).json["is_admin"] is True
    assert "is_admin" not in (await ask("GET", "/api/v4/user", TOKENS.ada)).json
    acting = await ask("GET", "/api/v4/user", TOKENS.root_sudo, {"Sudo": "bob"})
    assert acting.json["username"] == "bob"


async def test_users_by_name_and_number(ask: Any) -> None:
    assert [user["id"] for user in (await ask("GET", "/api/v4/users?username=bob", TOKENS.ada)).json] == [3]
    assert (await ask("GET", "/api/v4/users/6", TOKENS.ada)).json["state"] == "blocked"
    for nobody in ("99", "bob"):
        assert (await ask("GET", f"/api/v4/users/{nobody}", TOKENS.ada)).body == b'{"message":"404 User Not Found"}'


async def test_every_personal_token_can_ask_about_itself(ask: Any) -> None:
    reply = await ask("GET", "/api/v4/personal_access_tokens/self", TOKENS.ada_registry)
    assert (reply.json["scopes"], reply.json["user_id"], reply.json["active"]) == (["read_registry"], 2, True)


@pytest.mark.parametrize(("token", "status"), [(TOKENS.oauth, 400), ("x", 401), (None, 401)])
async def test_other_tokens_cannot(ask: Any, token: str | None, status: int) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    assert (await ask("GET", "/api/v4/personal_access_tokens/self", None, headers)).status == status


async def test_a_token_can_end_itself(ask: Any) -> None:
    assert (await ask("DELETE", "/api/v4/personal_access_tokens/self", TOKENS.eve)).status == 204
    reply = await ask("GET", "/api/v4/user", TOKENS.eve)
    assert (reply.status, reply.json["error"]) == (401, "invalid_token")
    assert reply.headers["WWW-Authenticate"].startswith('Bearer realm="Protected by OAuth 2.0", error="invalid_token"')


async def test_oauth_tokens_are_shown_by_their_own_endpoint(ask: Any) -> None:
    reply = await ask("GET", "/oauth/token/info", None, {"Authorization": f"Bearer {TOKENS.oauth}"})
    assert (reply.json["resource_owner_id"], reply.json["scope"]) == (2, ["api"])
    assert (await ask("GET", "/oauth/token/info", TOKENS.ada)).status == 401


async def test_job_tokens_by_theirs(ask: Any) -> None:
    reply = await ask("GET", "/api/v4/job", None, {"JOB-TOKEN": TOKENS.job})
    assert (reply.json["user"]["username"], reply.json["project"]["id"]) == ("ada", 1)
    assert (await ask("GET", "/api/v4/job", TOKENS.ada)).body == b'{"message":"404 Job Not Found"}'


async def test_graphql_tells_who_asks(ask: Any) -> None:
    query = {"query": "{ currentUser { username } }"}
    assert (await ask("POST", "/api/graphql", TOKENS.ada_read, data=query)).json["data"]["currentUser"] == {
        "username": "ada"
    }
    assert (await ask("GET", "/api/graphql?query=x")).json["data"]["currentUser"] is None
