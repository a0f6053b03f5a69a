"""Personal access tokens as GitLab keeps them: ends are days, a rotation revokes, and reuse takes the whole family."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS

TODAY = datetime.date(2026, 6, 1)
SELF = "/api/v4/personal_access_tokens/self"
LIST = "/api/v4/personal_access_tokens"


@pytest.fixture(autouse=True)
def _today(gitlab: DemoGitLab) -> None:
    gitlab.state.today = lambda: TODAY


async def alive(ask: Any, token: str) -> bool:
    return bool((await ask("GET", SELF, token)).status == 200)


async def test_a_rotation_revokes_the_old_token_and_the_new_one_ends_in_a_week(ask: Any) -> None:
    reply = await ask("POST", f"{SELF}/rotate", TOKENS.ada)
    assert (reply.status, reply.json["user_id"], reply.json["scopes"]) == (200, 2, ["api"])
    assert reply.json["expires_at"] == "2026-06-08"
    assert await alive(ask, reply.json["token"])
    assert not await alive(ask, TOKENS.ada)


async def test_reuse_at_the_rotate_endpoint_revokes_the_family_and_only_there(ask: Any) -> None:
    second = (await ask("POST", f"{SELF}/rotate", TOKENS.ada)).json["token"]
    third = (await ask("POST", f"{SELF}/rotate", second)).json["token"]
    assert (await ask("GET", "/api/v4/user", TOKENS.ada)).status == 401
    assert await alive(ask, third)
    assert (await ask("POST", f"{SELF}/rotate", TOKENS.ada)).status == 401
    assert not await alive(ask, third)
    assert await alive(ask, TOKENS.ada_read)


async def test_rotating_oneself_needs_a_scope_and_a_personal_token(ask: Any) -> None:
    assert (await ask("POST", f"{SELF}/rotate", TOKENS.ada_read)).status == 403
    assert (await ask("POST", f"{SELF}/rotate", None, {"Authorization": f"Bearer {TOKENS.oauth}"})).status == 400


@pytest.mark.parametrize("end", ["2026-06-01", "2025-01-01", "2027-06-02", "soon"])
async def test_an_end_is_a_day_to_come_within_a_year(ask: Any, end: str) -> None:
    assert (await ask("POST", f"{SELF}/rotate", TOKENS.ada, data={"expires_at": end})).status == 400
    assert await alive(ask, TOKENS.ada)


async def test_a_token_is_dead_from_the_first_second_of_its_day(ask: Any, gitlab: DemoGitLab) -> None:
    made = (await ask("POST", f"{SELF}/rotate", TOKENS.ada, data={"expires_at": "2026-06-02"})).json["token"]
    assert await alive(ask, made)
    gitlab.state.today = lambda: TODAY + datetime.timedelta(days=1)
    reply = await ask("GET", SELF, made)
    assert (reply.status, "expired" in reply.json["error_description"]) == (401, True)


async def test_administrators_make_list_and_revoke_for_anybody(ask: Any) -> None:
    wanted = {"name": "x", "scopes": ["read_api"], "expires_at": "2026-07-01"}
    reply = await ask("POST", "/api/v4/users/5/personal_access_tokens", TOKENS.root, data=wanted)
    made = reply.json
    assert (reply.status, made["user_id"], made["scopes"], made["expires_at"]) == (201, 5, ["read_api"], "2026-07-01")
    assert await alive(ask, made["token"])
    listed = (await ask("GET", f"{LIST}?user_id=5&state=active", TOKENS.root)).json
    assert [row["name"] for row in listed] == ["bot", "x"]
    assert "token" not in listed[1]
    assert (await ask("GET", f"{LIST}/{made['id']}", TOKENS.root)).json["active"] is True
    assert (await ask("DELETE", f"{LIST}/{made['id']}", TOKENS.root)).status == 204
    assert (await ask("DELETE", f"{LIST}/{made['id']}", TOKENS.root)).status == 400
    assert not await alive(ask, made["token"])
    assert [row["name"] for row in (await ask("GET", f"{LIST}?user_id=5&state=inactive", TOKENS.root)).json] == ["x"]


async def test_others_see_and_make_their_own_alone(ask: Any) -> None:
    assert {row["user_id"] for row in (await ask("GET", f"{LIST}?user_id=1", TOKENS.ada)).json} == {2}
    assert (await ask("GET", f"{LIST}/1", TOKENS.ada)).status == 404
    assert (await ask("POST", "/api/v4/users/3/personal_access_tokens", TOKENS.ada, data={"name": "x"})).status == 403
    assert (await ask("POST", "/api/v4/users/99/personal_access_tokens", TOKENS.root, data={})).status == 404
    assert (await ask("POST", "/api/v4/users/3/personal_access_tokens", TOKENS.root, data={"name": "x"})).status == 400


async def test_by_number_too_a_rotation_is_one(ask: Any) -> None:
    number = (await ask("GET", SELF, TOKENS.ada)).json["id"]
    assert (await ask("POST", f"{LIST}/{number}/rotate", TOKENS.ada_routable)).status == 200
    assert not await alive(ask, TOKENS.ada)
    assert (await ask("POST", f"{LIST}/{number}/rotate", TOKENS.ada_routable)).status == 401


async def test_a_groups_owner_keeps_the_tokens_of_its_service_accounts(ask: Any) -> None:
    place = "/api/v4/groups/platform/service_accounts/5/personal_access_tokens"
    made = (await ask("POST", place, TOKENS.root, data={"name": "x", "scopes": ["api"]})).json
    assert [row["name"] for row in (await ask("GET", place, TOKENS.root)).json] == ["bot", "x"]
    assert (await ask("DELETE", f"{place}/{made['id']}", TOKENS.root)).status == 204
    assert (await ask("DELETE", f"{place}/1", TOKENS.root)).status == 404
    assert (await ask("GET", place, TOKENS.ada)).status == 403
    assert (await ask("GET", place.replace("/5/", "/2/"), TOKENS.root)).status == 404
