"""Lists on the whole road: refused or narrowed, behind the cache, and nothing of the rest gets through."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.messages import Field, Fields, ResponseHead, first
from gateway.narrow_stage import MAX_BYTES
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from tests.fakes.world import FakeDownstream, World, world

CONFIGURATION = """\
version: 1
upstream: {url: "http://gitlab.test"}
identities: [{id: bot, key: issued}, {id: strict, key: issued}, {id: twin, key: issued}, {id: people, gitlab_token: true}]
credentials: [{id: sa, token: "${env:SA}"}]
cache: {ttl: 60s, access_ttl: 60s}
rules:
  - {id: bot, for: [bot], use: sa, allow: [{access: read, projects: {under_group: platform}, lists: filter}]}
  - {id: strict, for: [strict], use: sa, allow: [{access: read, projects: {under_group: platform}}]}
  - id: twin
    for: [twin]
    use: sa
    allow: [{access: read, projects: {under_group: [platform, finance]}, lists: filter}]
    deny: [{access: read, projects: [platform/secret]}]
"""
ITEMS = [
    {"id": number, "path_with_namespace": path, "name": path}
    for number, path in ((1, "platform/api"), (2, "finance/ledger"), (3, "platform/secret"))
]
UPSTREAM = b'W/"upstream"'
LIST: Fields = (
    (b"Content-Type", b"application/json"),
    (b"Etag", UPSTREAM),
    (b"Cache-Control", b"max-age=0, private, must-revalidate"),
    (b"X-Total", b"3"),
    (b"X-Total-Pages", b"1"),
    (b"X-Next-Page", b"2"),
    (b"Link", b'<http://gitlab.test/api/v4/projects?page=2>; rel="next", <http://gitlab.test/x>; rel="last"'),
)


class GitLab:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[UpstreamRequest] = []
        self.status = 200
        self.fields = LIST
        self.body = json.dumps(ITEMS).encode()
        self.pieces = 1

    async def __call__(self, request: UpstreamRequest, octets: bytes) -> Reply:
        self.asked.append(request)
        if first(request.fields, b"if-none-match") == UPSTREAM:
            return Reply(ResponseHead(304, self.fields), whole=b"")
        if self.pieces == 1:
            return Reply(ResponseHead(self.status, self.fields), whole=self.body)
        return Reply(ResponseHead(self.status, self.fields), chunks=self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        size = max(1, len(self.body) // self.pieces)
        for start in range(0, len(self.body), size):
            yield self.body[start : start + size]


@pytest.fixture
def gitlab() -> GitLab:
    return GitLab()


@pytest.fixture
async def made(tmp_path: Path, gitlab: GitLab) -> AsyncIterator[World]:
    async with world(tmp_path, CONFIGURATION, gitlab) as one:
        yield one


async def get(
    made: World, target: str = "/api/v4/projects", *fields: Field, caller: str = "bot", method: str = "GET"
) -> FakeDownstream:
    return await made.ask(method, target, *fields, caller=caller)


def status(down: FakeDownstream) -> int:
    assert down.answer is not None
    return down.answer.status


def shown(down: FakeDownstream) -> list[str]:
    assert status(down) == 200
    return [item["path_with_namespace"] for item in json.loads(down.written)]


def field(down: FakeDownstream, name: bytes) -> bytes | None:
    assert down.answer is not None
    return first(down.answer.fields, name.lower())


async def test_by_default_such_lists_are_refused(made: World, gitlab: GitLab) -> None:
    assert status(await get(made, caller="strict")) == 403
    assert status(await get(made, "/api/v4/search?scope=projects", caller="strict")) == 403
    assert gitlab.asked == []


async def test_each_caller_sees_their_own(made: World, gitlab: GitLab) -> None:
    assert shown(await get(made)) == ["platform/api", "platform/secret"]
    assert shown(await get(made, caller="twin")) == ["platform/api", "finance/ledger"]


async def test_a_fork_does_not_tell_what_it_was_forked_from(made: World, gitlab: GitLab) -> None:
    fork = {**ITEMS[0], "forked_from_project": {**ITEMS[1], "description": "SECRET"}}
    gitlab.body = json.dumps([fork]).encode()
    for _ in range(2):  # from GitLab, then from the cache
        assert json.loads((await get(made)).written) == [ITEMS[0]]
        assert json.loads((await get(made, caller="twin")).written) == [fork]


async def test_what_tells_of_the_rest_is_left_out(made: World) -> None:
    down = await get(made)
    for name in (b"X-Total", b"X-Total-Pages"):
        assert field(down, name) is None
    assert field(down, b"X-Next-Page") == b"2"
    link = field(down, b"Link")
    assert link is not None
    assert b'rel="next"' in link
    assert b"last" not in link
    assert field(down, b"Content-Length") == b"%d" % len(down.written)


async def test_the_cache_holds_gitlabs_own_answer(made: World, gitlab: GitLab) -> None:
    for _ in range(3):
        assert shown(await get(made)) == ["platform/api", "platform/secret"]
    assert len(gitlab.asked) == 1
    assert made.seen.exchanges[-1].cache_status == "hit"


async def test_an_etag_of_its_own(made: World, gitlab: GitLab) -> None:
    """GitLab's never comes down, the caller's never goes up, and other permits have others."""
    one, other = field(await get(made), b"ETag"), field(await get(made, caller="twin"), b"ETag")
    assert one is not None
    assert len({one, other, UPSTREAM}) == 3
    again = await get(made, "/api/v4/projects", (b"If-None-Match", one))
    assert (status(again), again.written, field(again, b"ETag")) == (304, b"", one)
    assert field(again, b"X-Total") is None
    assert status(await get(made, "/api/v4/projects", (b"If-None-Match", UPSTREAM))) == 200
    assert status(await get(made, "/api/v4/projects", (b"If-None-Match", other or b""))) == 200
    assert not [request for request in gitlab.asked if first(request.fields, b"if-none-match") not in {None, UPSTREAM}]
    gitlab.body = json.dumps(ITEMS[1:]).encode()
    changed = await get(made, "/api/v4/projects?page=2", (b"If-None-Match", one))
    assert status(changed) == 200


async def test_one_page_and_no_more(made: World, gitlab: GitLab) -> None:
    gitlab.body = json.dumps(ITEMS[1:2] * 20).encode()
    assert shown(await get(made, "/api/v4/projects?per_page=20")) == []
    assert len(gitlab.asked) == 1


async def test_neither_parts_nor_codings_are_asked_for(made: World, gitlab: GitLab) -> None:
    fields = (
        (b"Range", b"bytes=0-10"),
        (b"Accept-Encoding", b"gzip"),
        (b"If-Modified-Since", b"Sat, 21 Nov 2026 01:42:06 GMT"),
    )
    assert shown(await get(made, "/api/v4/projects", *fields)) == ["platform/api", "platform/secret"]
    (asked,) = gitlab.asked
    assert first(asked.fields, b"range") is None
    assert first(asked.fields, b"if-modified-since") is None
    assert first(asked.fields, b"accept-encoding") == b"identity"


async def test_a_head_tells_of_no_totals(made: World) -> None:
    down = await get(made, method="HEAD")
    assert (status(down), down.written) == (200, b"")
    for name in (b"X-Total", b"ETag", b"Content-Length"):
        assert field(down, name) is None


@pytest.mark.parametrize("pieces", [2, 50])
async def test_a_list_in_pieces_is_a_list(made: World, gitlab: GitLab, pieces: int) -> None:
    gitlab.pieces = pieces
    assert shown(await get(made)) == ["platform/api", "platform/secret"]


@pytest.mark.parametrize(
    ("body", "more"),
    [
        pytest.param(b"<html>finance/ledger</html>", (b"Content-Type", b"text/html"), id="another media type"),
        pytest.param(b"finance/ledger", None, id="no JSON"),
        pytest.param(b'{"finance":"ledger"}', None, id="no list"),
        pytest.param(b'[{"path":"finance/ledger"}', None, id="cut short"),
        pytest.param(gzip.compress(b"[]"), (b"Content-Encoding", b"gzip"), id="compressed all the same"),
        pytest.param(b"[" + b" " * MAX_BYTES + b"]", None, id="too long"),
        pytest.param(b"", None, id="empty"),
    ],
)
async def test_what_cannot_be_narrowed_is_not_sent(made: World, gitlab: GitLab, body: bytes, more: Field | None) -> None:
    if more is not None:
        gitlab.fields = (more, *(one for one in LIST if one[0] != more[0]))
    gitlab.body, gitlab.pieces = body, 1 if len(body) < MAX_BYTES else 20
    down = await get(made)
    assert (status(down), field(down, b"X-Gateway-Error")) == (502, b"upstream_protocol")
    assert b"finance" not in down.written


@pytest.mark.parametrize("code", [206, 203, 304])
async def test_no_other_success_passes(made: World, gitlab: GitLab, code: int) -> None:
    gitlab.status = code
    down = await get(made)
    assert status(down) == 502
    assert b"finance" not in down.written


async def test_a_redirect_passes_without_its_body(made: World, gitlab: GitLab) -> None:
    gitlab.status = 302
    down = await get(made)
    assert (status(down), field(down, b"Content-Length")) == (302, b"0")
    assert b"finance" not in down.written


async def test_gitlabs_refusals_pass(made: World, gitlab: GitLab) -> None:
    gitlab.status, gitlab.body = 403, b'{"message":"403 Forbidden"}'
    down = await get(made)
    assert (status(down), down.written) == (403, gitlab.body)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/api/v4/groups/platform/projects", 200),
        ("/api/v4/groups/Platform%2Fdeep/projects?include_subgroups=true", 200),
        ("/api/v4/groups/finance/projects", 404),
        ("/api/v4/groups/platform/projects?group_id=finance", 404),
        ("/api/v4/projects?[namespace_id]=finance", 404),
        ("/api/v4/search?scope=projects&search=x", 200),
        ("/api/v4/search?scope=blobs&search=x", 403),
        ("/api/v4/search?scope=projects&scope=users", 403),
        ("/api/v4/search", 403),
        ("/api/v4/events", 403),
        ("/api/v4/user", 403),
        ("/api/v4/projects/platform%2Fapi/forks", 200),
        ("/api/v4/projects/finance%2Fledger/forks", 404),
    ],
)
async def test_what_may_be_asked(made: World, gitlab: GitLab, target: str, code: int) -> None:
    down = await get(made, target)
    assert status(down) == code
    assert b"finance" not in down.written
    assert len(gitlab.asked) == (code == 200)


async def test_a_body_that_could_say_otherwise_is_refused(made: World, gitlab: GitLab) -> None:
    """Rack lets a form's parameters win over a query's."""
    form = (b"Content-Type", b"application/x-www-form-urlencoded")
    down = await made.ask("GET", "/api/v4/search?scope=projects", form, caller="bot", body=(b"scope=blobs",))
    assert status(down) == 403
    assert gitlab.asked == []
