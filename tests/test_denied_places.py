"""Each way to what a deny by project hides that names it nowhere in its path, walked through the whole road."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.messages import Field, Fields, ResponseHead, first
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from tests.fakes.world import OWN, FakeDownstream, World, world

CONFIGURATION = """\
version: 1
upstream: {url: "http://gitlab.test"}
identities: [{id: bot, key: issued}, {id: people, gitlab_token: true}, {id: anyone, anonymous: true}]
credentials: [{id: sa, token: "${env:SA}"}]
cache: {ttl: 60s, access_ttl: 60s}
rules:
  - id: all-but-the-ledger
    for: [bot]
    use: sa
    allow: [{access: write}]
  - id: hidden
    for: [bot, people, anyone, passthrough]
    deny: [{projects: [finance/ledger]}, {projects: {under_group: secret}}]
"""
JSON: Field = (b"Content-Type", b"application/json")
ITEMS = [
    {"id": number, "path_with_namespace": path}
    for number, path in ((1, "platform/api"), (2, "finance/ledger"), (3, "secret/x"))
]
LIST: Fields = (JSON, (b"Etag", b'W/"upstream"'), (b"X-Total", b"3"))


class GitLab:
    """Says which project each number is, lists them all, and keeps what else it was asked."""

    def __init__(self) -> None:
        self.asked: list[UpstreamRequest] = []

    async def __call__(self, request: UpstreamRequest, octets: bytes) -> Reply:
        path = request.target.partition(b"?")[0].removeprefix(b"/api/v4/")
        known = {b"projects/42": (42, "platform/api"), b"projects/43": (43, "finance/ledger"), b"groups/6": (6, "finance")}
        if request.method == "GET" and path in known:
            number, full = known[path]
            place = {"id": number, "path_with_namespace": full, "full_path": full}
            return Reply(ResponseHead(200, (JSON,)), whole=json.dumps(place).encode())
        self.asked.append(request)
        return Reply(ResponseHead(200, LIST), whole=json.dumps(ITEMS).encode())


@pytest.fixture
def gitlab() -> GitLab:
    return GitLab()


@pytest.fixture
async def made(tmp_path: Path, gitlab: GitLab) -> AsyncIterator[World]:
    async with world(tmp_path, CONFIGURATION, gitlab) as one:
        yield one


def shown(down: FakeDownstream) -> list[str]:
    assert down.status == 200, down.written
    return [item["path_with_namespace"] for item in json.loads(down.written)]


GRAPHQL = '{"query":"{ project(fullPath: \\"finance/ledger\\") { id } }"}'
CONAN = "/api/v4/packages/conan/v1/conans/p/1.0/finance+ledger/stable"


@pytest.mark.parametrize("caller", ["bot", OWN])
@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", "/api/graphql", GRAPHQL),
        ("POST", "/api/graphql", '{"query":"mutation { issueMove(input: {}) { errors } }"}'),
        ("GET", "/api/graphql?query=%7Ba%7D", ""),
        ("POST", "/api/glql", GRAPHQL),
        ("POST", "/api/v4/glql", '{"glql_yaml":"project = \\"finance/ledger\\""}'),
        ("POST", "/api/v4/mcp", "{}"),
        ("POST", "/api/v4/orbit/query", "{}"),
        ("POST", "/api/v4/markdown", '{"text":"finance/ledger#1","gfm":true}'),
        ("GET", "/api/v4/issues/990", ""),
        ("GET", "/api/v4/issues_statistics?scope=all", ""),
        ("GET", "/api/v4/search?scope=blobs&search=a", ""),
        ("GET", "/api/v4/search?search=a", ""),
        ("GET", "/api/v4/search?scope=issues&scope=blobs&search=a", ""),
        ("GET", "/api/v4/groups/platform/-/search?scope=issues&search=a", ""),
        ("GET", "/api/v4/events", ""),
        ("GET", "/api/v4/todos", ""),
        ("GET", "/api/v4/users/7/events", ""),
        ("GET", "/api/v4/users/7/memberships", ""),
        ("GET", "/api/v4/users/7/project_deploy_keys", ""),
        ("GET", "/api/v4/personal_access_tokens/self/associations", ""),
        ("POST", "/api/v4/users/7/personal_access_tokens", '{"name":"x","scopes":["api"]}'),
        ("POST", "/api/v4/personal_access_tokens/self/rotate", ""),
        ("GET", "/api/v4/keys?fingerprint=x", ""),
        ("GET", "/api/v4/snippets/9/raw", ""),
        ("GET", "/api/v4/vulnerabilities/9", ""),
        ("GET", f"{CONAN}/download_urls", ""),
        ("GET", "/api/v4/packages/maven/finance/ledger/app/1.0/app-1.0.jar", ""),
        ("GET", "/api/v4/packages/npm/@finance%2Fledger", ""),
        ("POST", "/api/v4/groups", '{"name":"x","path":"x","parent_id":6}'),
        ("POST", "/api/v4/projects", '{"name":"x","namespace_id":6}'),
        ("POST", "/api/v4/projects/import", '{"path":"x"}'),
        ("POST", "/api/v4/bulk_imports", '{"entities":[{"destination_namespace":"finance"}]}'),
        ("POST", "/api/v4/import/github", '{"target_namespace":"finance"}'),
        ("POST", "/api/v4/projects/42/ci/lint", '{"content":"include: {project: finance/ledger, file: x.yml}"}'),
        ("GET", "/api/v4/projects/platform%2Fapi/issues/1/links", ""),
        ("POST", "/api/v4/projects/platform%2Fapi/runners", '{"runner_id":9}'),
        ("POST", "/api/v4/projects/platform%2Fapi/deploy_keys/9/enable", ""),
        ("PUT", "/api/v4/projects/platform%2Fapi/labels/bug/promote", ""),
        ("PUT", "/api/v4/projects/platform%2Fapi/labels/promote?name=bug", ""),
        ("POST", "/api/v4/projects/platform%2Fapi/milestones/3/promote", ""),
        ("GET", "/api/v4/groups/platform/related_epic_links", ""),
        ("GET", "/api/v4/groups/platform", ""),
        ("POST", "/api/v4/jobs/request", "{}"),
        ("GET", "/api/v4/brand_new", ""),
    ],
)
async def test_what_may_reach_it_is_refused(
    made: World, gitlab: GitLab, method: str, target: str, body: str, caller: str
) -> None:
    fields = (JSON,) if body else ()
    down = await made.ask(method, target, *fields, caller=caller, body=(body.encode(),) if body else None)
    assert down.status in {403, 404}
    assert made.last.code in {"forbidden", "project_unknown"}
    assert gitlab.asked == []
    assert b"ledger" not in down.written


async def test_a_registrys_token_names_its_repository_in_the_query(made: World, gitlab: GitLab) -> None:
    basic: Field = (b"Authorization", b"Basic YTpi")
    down = await made.ask(
        "GET", "/jwt/auth?service=container_registry&scope=repository:finance/ledger:pull", basic, caller=None
    )
    assert (down.status, made.last.code, made.last.rule) == (403, "forbidden", "hidden")
    assert gitlab.asked == []


async def test_a_refusal_says_whether_it_is_about_the_place_or_the_operation(made: World) -> None:
    """404 hides a place that was named; where none was, there is none to hide."""
    assert (await made.ask("GET", "/api/v4/projects/finance%2Fledger/issues", caller="bot")).status == 404
    assert (await made.ask("GET", "/api/v4/projects/43/issues", caller="bot")).status == 404
    assert (await made.ask("GET", "/api/v4/events", caller="bot")).status == 403
    assert (await made.ask("POST", "/api/v4/projects/42/ci/lint", caller="bot")).status == 403


@pytest.mark.parametrize("caller", ["bot", OWN])
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/api/v4/version"),
        ("GET", "/api/v4/metadata"),
        ("GET", "/api/v4/user"),
        ("GET", "/api/v4/user/keys"),
        ("PUT", "/api/v4/user/status"),
        ("GET", "/api/v4/users?username=ada"),
        ("GET", "/api/v4/users/7"),
        ("GET", "/api/v4/templates/licenses/mit"),
        ("GET", "/api/v4/broadcast_messages"),
        ("GET", "/api/v4/avatar?email=a@example.com"),
        ("GET", "/api/v4/application/statistics"),
        ("GET", "/api/v4/projects/platform%2Fapi/issues"),
        ("GET", "/api/v4/groups/platform/issues"),
        ("POST", "/api/v4/projects/platform%2Fapi/issues"),
    ],
)
async def test_what_belongs_to_no_place_or_another_goes_on(
    made: World, gitlab: GitLab, method: str, target: str, caller: str
) -> None:
    assert (await made.ask(method, target, caller=caller)).status == 200
    assert len(gitlab.asked) == 1


async def test_a_number_is_the_project_that_gitlab_says(made: World, gitlab: GitLab) -> None:
    assert (await made.ask("GET", "/api/v4/projects/42/issues", caller="bot")).status == 200
    assert (await made.ask("GET", "/api/v4/issues?project_id=43", caller="bot")).status == 404
    assert shown(await made.ask("GET", "/api/v4/projects?namespace_id=platform", caller="bot")) == ["platform/api"]


@pytest.mark.parametrize("caller", ["bot", OWN, None])
async def test_lists_are_sent_without_it(made: World, gitlab: GitLab, caller: str | None) -> None:
    for target in ("/api/v4/projects", "/api/v4/users/7/projects", "/api/v4/search?scope=projects&search=a"):
        down = await made.ask("GET", target, caller=caller)
        assert shown(down) == ["platform/api"]
        assert first(down.answer.fields if down.answer else (), b"x-total") is None
    assert shown(await made.ask("GET", "/api/v4/groups/platform/projects", caller=caller)) == ["platform/api"]
    refused = await made.ask("GET", "/api/v4/groups/finance/projects", caller=caller)
    assert (refused.status, made.last.code) == (404, "project_unknown")
    assert all(first(request.fields, b"accept-encoding") == b"identity" for request in gitlab.asked)


@pytest.mark.parametrize("caller", ["bot", OWN])
async def test_a_list_that_is_stored_is_filtered_each_time(made: World, gitlab: GitLab, caller: str) -> None:
    """Whichever lane answers: by the road, by what it learnt, from the cache, and for what the caller holds already."""
    down = made.down("GET", "/api/v4/projects", caller=caller)
    for _ in range(4):
        down = down.repeated()
        assert made.gateway.try_answer(down.head, lambda *_: None) is None  # type: ignore[arg-type]
        await made.gateway.handle(down)
        assert shown(down) == ["platform/api"]
    assert len(gitlab.asked) == 1
    etag = down.field("ETag").encode()
    again = await made.ask("GET", "/api/v4/projects", (b"If-None-Match", etag), caller=caller)
    assert (again.status, again.written) == (304, b"")
    assert shown(await made.ask("GET", "/api/v4/projects", (b"If-None-Match", b'W/"upstream"'), caller=caller)) == [
        "platform/api"
    ]
