"""Issues and what is around them."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from gateway.demo.seed import TOKENS

PROJECT = "/api/v4/projects/platform%2Fapi"
ISSUES = f"{PROJECT}/issues"


async def test_issues_are_listed_newest_first(ask: Any) -> None:
    reply = await ask("GET", f"{ISSUES}?per_page=3", TOKENS.ada)
    assert [issue["iid"] for issue in reply.json] == [25, 24, 23]
    assert (await ask("GET", f"{ISSUES}?search=ISSUE%2025", TOKENS.ada)).headers["X-Total"] == "1"


async def test_ones_own_issues_across_projects(ask: Any) -> None:
    assert (await ask("GET", "/api/v4/issues", TOKENS.ada)).headers["X-Total"] == "33"
    assert (await ask("GET", "/api/v4/issues", TOKENS.bob)).headers["X-Total"] == "0"
    assert (await ask("GET", "/api/v4/issues?scope=all", TOKENS.bob)).headers["X-Total"] == "33"
    assert (await ask("GET", "/api/v4/issues")).status == 401


async def test_the_cursor_visits_each_once(ask: Any) -> None:
    seen, target = [], f"{ISSUES}?pagination=keyset&per_page=10"
    while target:
        page = await ask("GET", target, TOKENS.ada)
        seen += [issue["iid"] for issue in page.json]
        link = re.fullmatch(r'<[^>]*?(/api[^>]*)>; rel="next"', page.headers.get("Link", ""))
        target = link[1] if link else ""
        if link:
            assert base64.b64decode(page.headers["X-Next-Cursor"])
    assert seen == list(range(25, 0, -1))


async def test_a_cursor_that_is_none_is_refused(ask: Any) -> None:
    assert (await ask("GET", f"{ISSUES}?pagination=keyset&cursor=!", TOKENS.ada)).status == 400


async def test_an_issue_comes_changes_and_goes(ask: Any) -> None:
    made = await ask("POST", ISSUES, TOKENS.bob, data={"title": "T", "description": "D", "labels": "a, b"})
    assert (made.status, made.json["iid"], made.json["labels"]) == (201, 26, ["a", "b"])
    one = f"{ISSUES}/26"
    change = {"title": "U", "description": "E", "labels": ["c"], "state_event": "close"}
    closed = (await ask("PUT", one, TOKENS.bob, data=change)).json
    assert (closed["title"], closed["description"], closed["labels"], closed["state"]) == ("U", "E", ["c"], "closed")
    assert (await ask("GET", f"{ISSUES}?state=closed", TOKENS.bob)).headers["X-Total"] == "1"
    assert (await ask("PUT", one, TOKENS.bob, data={"state_event": "reopen"})).json["closed_at"] is None
    assert (await ask("DELETE", one, TOKENS.bob)).status == 403
    assert (await ask("DELETE", one, TOKENS.ada)).status == 204
    assert (await ask("DELETE", one, TOKENS.ada)).body == b'{"message":"404 Issue Not Found"}'


@pytest.mark.parametrize(
    ("since", "status"),
    [("Thu, 01 Jan 2015 00:00:00 GMT", 412), ("Fri, 01 Jan 2027 00:00:00 GMT", 204), ("no date", 204)],
)
async def test_a_condition_guards_a_delete(ask: Any, since: str, status: int) -> None:
    reply = await ask("DELETE", f"{ISSUES}/1", TOKENS.ada, {"If-Unmodified-Since": since})
    assert reply.status == status
    assert (b"412 Precondition Failed" in reply.body) is (status == 412)


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        ({}, 400, b'{"error":"title is missing"}'),
        ({"title": "x" * 256}, 400, b'{"message":{"title":["is too long (maximum is 255 characters)"]}}'),
    ],
)
async def test_a_title_is_checked(ask: Any, data: dict[str, str], status: int, body: bytes) -> None:
    reply = await ask("POST", ISSUES, TOKENS.ada, data=data)
    assert (reply.status, reply.body) == (status, body)


async def test_spam_is_a_409_until_the_captcha_is_solved(ask: Any) -> None:
    refused = await ask("POST", ISSUES, TOKENS.ada, data={"title": "spam"})
    assert (refused.status, refused.json["needs_captcha_response"]) == (409, True)
    solved = await ask(
        "POST", ISSUES, TOKENS.ada, {"X-GitLab-Captcha-Response": "r", "X-GitLab-Spam-Log-Id": "42"}, data={"title": "spam"}
    )
    assert solved.status == 201


async def test_an_issue_by_what_is_no_number(ask: Any) -> None:
    assert (await ask("GET", f"{ISSUES}/x", TOKENS.ada)).status == 400
    assert (await ask("GET", f"{ISSUES}/999", TOKENS.ada)).status == 404


async def test_notes(ask: Any) -> None:
    assert (await ask("POST", f"{ISSUES}/1/notes", TOKENS.bob, data={"body": "hello"})).json["body"] == "hello"
    assert len((await ask("GET", f"{ISSUES}/1/notes", TOKENS.bob)).json) == 1
    assert (await ask("GET", f"{ISSUES}/1", TOKENS.bob)).json["user_notes_count"] == 1


async def test_merge_requests(ask: Any) -> None:
    target = f"{PROJECT}/merge_requests"
    data = {"source_branch": "feature/login", "target_branch": "main", "title": "M"}
    assert (await ask("POST", target, TOKENS.bob, data=data)).json["iid"] == 1
    assert (await ask("POST", target, TOKENS.bob, data=data)).status == 409
    assert (await ask("POST", target, TOKENS.bob, data=data | {"source_branch": "none"})).status == 400
    assert (await ask("GET", f"{target}/1", TOKENS.bob)).json["title"] == "M"
    assert (await ask("GET", target, TOKENS.bob)).headers["X-Total"] == "1"
    assert (await ask("GET", f"{target}/2", TOKENS.bob)).body == b'{"message":"404 Merge Request Not Found"}'


async def test_uploads(ask: Any) -> None:
    body = b'--B\r\nContent-Disposition: form-data; name="file"; filename="f.txt"\r\n\r\nhi\r\n--B--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    sent = await ask("POST", f"{PROJECT}/uploads", TOKENS.bob, kind, body)
    assert sent.json["markdown"] == f"[f.txt]({sent.json['url']})"
    assert (await ask("POST", f"{PROJECT}/uploads", TOKENS.bob)).body == b'{"error":"file is missing"}'


async def test_a_trigger_token_is_no_users(ask: Any) -> None:
    target = f"{PROJECT}/trigger/pipeline"
    ran = await ask("POST", target, data={"token": TOKENS.trigger, "ref": "main", "variables": {"A": "1"}})
    assert (ran.status, ran.json["variables"]) == (201, {"A": "1"})
    assert (await ask("POST", target, data={"token": TOKENS.ada, "ref": "main"})).status == 404
    encoded = f"{PROJECT}/ref/feature%2Flogin/trigger/pipeline"
    assert (await ask("POST", f"{encoded}?token={TOKENS.trigger}&ref=main")).status == 201


async def test_what_is_not_json(ask: Any) -> None:
    reply = await ask("GET", f"{PROJECT}/jobs/1/trace", TOKENS.ada)
    assert reply.headers["Content-Type"] == "text/plain"
    assert (await ask("POST", "/api/v4/markdown", TOKENS.ada, data={"text": "hi"})).json == {"html": '<p dir="auto">hi</p>'}


async def test_a_runner_finds_no_job(ask: Any) -> None:
    reply = await ask("POST", "/api/v4/jobs/request", data={"token": "glrt-x"})
    assert (reply.status, reply.body, reply.headers["X-GitLab-Last-Update"]) == (204, b"", "0")
    assert (await ask("POST", "/api/v4/jobs/request", data={})).status == 401
