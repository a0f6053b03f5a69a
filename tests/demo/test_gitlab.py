"""The demo as a server: what GitLab's middleware does, and real clients working against it."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gitlab as python_gitlab
import pytest
import requests

from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import TOKENS

ROOT = Path(__file__).parent.parent.parent
NESTED = "/api/v4/projects/platform%2Ftools%2Fdeploy%2Frunner-images"


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[DemoGitLab]:
    demo = build_demo_gitlab(**options)
    await demo.start()
    yield demo
    await demo.close()


async def fetch(url: str, **options: Any) -> requests.Response:
    return await asyncio.to_thread(requests.get, url, timeout=20, **options)


async def test_the_journal_holds_the_request_as_it_arrived(gitlab: DemoGitLab) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gitlab.url.rpartition(":")[2]))
    target = b"/api/v4/projects/open%2fhandbook?b=%5B%5d&a;c&&d="
    writer.write(
        b"GET " + target + b" HTTP/1.1\r\nHost: x\r\npRIVATE-token: abc\r\nX: 1\r\nX: 2\r\nConnection: close\r\n\r\n"
    )
    await reader.read()
    writer.close()
    (recorded,) = gitlab.journal
    assert recorded.line == b"GET " + target + b" HTTP/1.1"
    assert recorded.method == "GET"
    assert recorded.target == target
    assert recorded.headers[1] == (b"pRIVATE-token", b"abc")
    assert recorded.values("x") == [b"1", b"2"]


async def test_the_journal_can_be_read_and_hides_tokens(ask: Any) -> None:
    await ask("GET", "/api/v4/user?private_token=" + TOKENS.bob, TOKENS.ada)
    reply = await ask("GET", "/-/demo/requests")
    assert reply.json[0]["line"].startswith("GET /api/v4/user")
    assert TOKENS.ada.encode() not in reply.body
    assert TOKENS.bob.encode() not in reply.body


async def test_tests_may_see_tokens_in_the_journal() -> None:
    async with running(reveal=True) as demo:
        await fetch(f"{demo.url}/api/v4/user", headers={"PRIVATE-TOKEN": TOKENS.ada})
        shown = await fetch(f"{demo.url}/-/demo/requests")
    assert TOKENS.ada in shown.text


async def test_every_answer_carries_gitlabs_headers(ask: Any) -> None:
    first, second = await ask("GET", "/api/v4/user", TOKENS.ada), await ask("GET", "/api/v4/user", TOKENS.ada)
    assert first.headers["Vary"] == "Origin"
    assert first.headers["Cache-Control"] == "max-age=0, private, must-revalidate"
    assert first.headers["Content-Type"] == "application/json"
    assert json.loads(first.headers["X-Gitlab-Meta"]) == {"correlation_id": first.headers["X-Request-Id"], "version": "1"}
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]
    assert re.fullmatch(r"[0-9]+\.[0-9]{6}", first.headers["X-Runtime"])
    assert "RateLimit-Limit" not in first.headers


async def test_a_known_validator_earns_a_304(ask: Any) -> None:
    reply = await ask("GET", "/api/v4/projects?per_page=2")
    assert re.fullmatch(r'W/"[0-9a-f]{32}"', reply.headers["ETag"])
    again = await ask("GET", "/api/v4/projects?per_page=2", headers={"If-None-Match": reply.headers["ETag"][2:]})
    assert again.status == 304
    assert again.body == b""
    assert again.headers["ETag"] == reply.headers["ETag"]
    assert again.headers["Link"] == reply.headers["Link"]
    assert "Content-Type" not in again.headers


async def test_a_validator_changes_with_what_it_validates(ask: Any) -> None:
    target = "/api/v4/projects/platform%2Fapi/issues/1"
    tag = (await ask("GET", target, TOKENS.ada)).headers["ETag"]
    await ask("PUT", target, TOKENS.ada, data={"title": "New"})
    assert (await ask("GET", target, TOKENS.ada, {"If-None-Match": tag})).status == 200


async def test_head_is_get_without_its_body(ask: Any) -> None:
    get, head = await ask("GET", "/api/v4/projects"), await ask("HEAD", "/api/v4/projects")
    assert head.body == b""
    assert head.headers["Content-Length"] == str(len(get.body))
    assert head.headers["X-Total"] == get.headers["X-Total"]


@pytest.mark.parametrize(
    ("method", "target", "status", "body"),
    [
        pytest.param("GET", "/api/v4/nothing", 404, b'{"error":"404 Not Found"}', id="unknown route"),
        pytest.param("GET", "/api/v4/", 404, b'{"error":"404 Not Found"}', id="the probe of Go clients"),
        pytest.param("GET", "/api/v4/projects/open/handbook", 404, b'{"error":"404 Not Found"}', id="decoded path"),
        pytest.param(
            "GET", "/api/v3/projects", 410, b'{"error":"API V3 is no longer supported. Use API V4 instead."}', id="v3"
        ),
        pytest.param("PATCH", "/api/v4/projects", 405, b'{"error":"405 Not Allowed"}', id="wrong method"),
        pytest.param("GET", "/api/v4/projects/%00", 400, b"Bad Request", id="NUL"),
        pytest.param("GET", "/api/v4/projects/%ff", 400, b"Bad Request", id="not UTF-8"),
        pytest.param("GET", "/api/v4/x%2F..%2Fy", 400, b"Potential path traversal attempt detected.", id="traversal"),
        pytest.param("GET", "/x" * 51, 414, b"Request-URI Too Long: path exceeds maximum depth", id="depth"),
    ],
)
async def test_what_no_route_answers(ask: Any, method: str, target: str, status: int, body: bytes) -> None:
    reply = await ask(method, target)
    assert (reply.status, reply.body) == (status, body)


async def test_a_broken_body_is_a_400(ask: Any) -> None:
    reply = await ask("POST", "/api/v4/projects", TOKENS.ada, {"Content-Type": "application/json"}, b"{")
    assert (reply.status, reply.body) == (400, b"Bad Request")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({"X-HTTP-Method-Override": "DELETE"}, b"", id="header"),
        pytest.param({"X_Http_Method_Override": "delete"}, b"", id="underscores"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, b"_method=DELETE", id="form"),
    ],
)
async def test_a_post_turns_into_what_it_asks_for(ask: Any, headers: dict[str, str], body: bytes) -> None:
    """So that a gateway which lets an override through is found out."""
    target = "/api/v4/projects/platform%2Fapi/issues/3"
    assert (await ask("POST", target, TOKENS.ada, headers, body)).status == 204
    assert (await ask("GET", target, TOKENS.ada)).status == 404


async def test_a_json_body_overrides_nothing(ask: Any) -> None:
    target = "/api/v4/projects/platform%2Fapi/issues/3"
    assert (await ask("POST", target, TOKENS.ada, data={"_method": "DELETE"})).status == 405


async def test_preflight_needs_no_token(ask: Any) -> None:
    reply = await ask("OPTIONS", "/api/v4/projects", headers={"Origin": "https://app.example.com"})
    assert reply.status == 200
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert "X-Request-Id" in reply.headers["Access-Control-Expose-Headers"]


async def test_its_own_throttle_answers_as_rack_attack() -> None:
    async with running(per_minute=1, now=lambda: 1_000_000_010.0) as demo:
        allowed, refused = [await fetch(f"{demo.url}/api/v4/user", headers={"PRIVATE-TOKEN": TOKENS.ada}) for _ in range(2)]
    assert (allowed.status_code, allowed.headers["RateLimit-Remaining"]) == (200, "0")
    assert (refused.status_code, refused.text) == (429, "Retry later\n")
    assert refused.headers["RateLimit-Reset"] == "1000000020"
    assert refused.headers["Retry-After"] == "10"
    assert refused.headers["RateLimit-ResetTime"] == "Sun, 09 Sep 2001 01:47:00 GMT"


async def test_links_are_made_from_its_external_url() -> None:
    async with running(external_url="https://git.example.com") as demo:
        listed = await fetch(f"{demo.url}/api/v4/projects?per_page=1")
    assert all(link["url"].startswith("https://git.example.com/api/v4/") for link in listed.links.values())
    assert listed.json()[0]["web_url"].startswith("https://git.example.com/")


async def test_latency_is_waited_for() -> None:
    async with running(latency_s=0.05) as demo:
        reply = await fetch(f"{demo.url}/api/v4/projects")
    assert reply.elapsed.total_seconds() >= 0.05


async def test_it_asks_for_a_body_that_waits(gitlab: DemoGitLab) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gitlab.url.rpartition(":")[2]))
    writer.write(
        f"PUT {NESTED}/packages/generic/p/1/f HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {TOKENS.ada}\r\n"
        "Content-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode()
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ok")
    assert b"201 Created" in await reader.read()
    writer.close()


# Real clients


def use_python_gitlab(url: str) -> None:
    with python_gitlab.Gitlab(url, private_token=TOKENS.ada) as client:
        client.auth()
        assert client.user is not None
        assert client.user.username == "ada"

        listed = client.projects.list(iterator=True, per_page=10)
        assert len({project.id for project in listed}) == listed.total == 49
        keyset = client.projects.list(iterator=True, pagination="keyset", order_by="id", sort="asc", per_page=7)
        assert [project.id for project in keyset] == list(range(1, 50))

        project = client.projects.get("platform/tools/deploy/runner-images")
        assert project.branches.get("release/1.0+hotfix").name == "release/1.0+hotfix"
        assert project.tags.get("rel/2.0").name == "rel/2.0"
        assert len(project.repository_tree(recursive=True, get_all=True)) == 15
        for path in ("src/deep/er/than/usual.txt", "src/a+b.txt", "docs/über uns.md", "docs/[x]?#.txt", "docs/100%.txt"):
            assert project.files.get(path, ref="main").file_path == path
        assert project.files.raw("image.bin", ref="main") == bytes(range(256))
        made = project.files.create(
            {"file_path": "new/ä b.txt", "branch": "feature/login", "content": "1", "commit_message": "Add"}
        )
        made.content = "2"
        made.save(branch="feature/login", commit_message="Change")
        assert project.files.get("new/ä b.txt", ref="feature/login").decode() == b"2"
        made.delete(branch="feature/login", commit_message="Remove")
        branch = project.branches.create({"branch": "a/b/c", "ref": "main"})
        branch.delete()

        issue = project.issues.create({"title": "Found", "labels": ["bug", "x"]})
        issue.title = "Fixed"
        issue.state_event = "close"
        issue.save()
        issue.notes.create({"body": "Well done"})
        assert project.issues.get(issue.iid).state == "closed"
        assert [note.body for note in issue.notes.list(get_all=True)] == ["Well done"]
        issue.delete()
        with pytest.raises(python_gitlab.GitlabGetError, match="404"):
            project.issues.get(issue.iid)

        sent = project.upload("hello.txt", filedata=b"hello")
        assert sent["markdown"] == f"[hello.txt]({sent['url']})"
        received = io.BytesIO()
        project.generic_packages.download("stream", "1.0.0", "1000000.bin", streamed=True, action=received.write)
        assert received.getvalue() == (bytes(range(256)) * 3907)[:1_000_000]
        assert project.repository_archive()
        project.mergerequests.create({"source_branch": "feature/login", "target_branch": "main", "title": "Merge"})
        variable = project.variables.create({"key": "K", "value": "v"})
        variable.delete()


async def test_python_gitlab_works_against_it(gitlab: DemoGitLab) -> None:
    await asyncio.to_thread(use_python_gitlab, gitlab.url)


GITBEAKER = """
import { Gitlab } from "@gitbeaker/rest";
const api = new Gitlab({ host: process.argv[2], token: process.argv[3] });
const project = "platform/tools/deploy/runner-images";
const all = await api.Projects.all({ perPage: 20 });
const branch = await api.Branches.show(project, "release/1.0+hotfix");
const file = await api.RepositoryFiles.show(project, "docs/[x]?#.txt", "main");
const issue = await api.Issues.create(project, "From Node");
const edited = await api.Issues.edit(project, issue.iid, { title: "Edited" });
await api.Issues.remove(project, issue.iid);
console.log(JSON.stringify([all.length, branch.name, file.file_path, edited.title]));
"""


async def test_gitbeaker_works_against_it(gitlab: DemoGitLab) -> None:
    node = shutil.which("node")
    assert node is not None
    process = await asyncio.create_subprocess_exec(
        node, "--input-type=module", "-", gitlab.url, TOKENS.ada,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT / "tests/e2e",
    )  # fmt: skip
    output, errors = await asyncio.wait_for(process.communicate(GITBEAKER.encode()), 60)
    assert process.returncode == 0, errors.decode()
    assert json.loads(output) == [49, "release/1.0+hotfix", "docs/[x]?#.txt", "Edited"]


async def test_it_runs_alone_and_ends_cleanly() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.demo", "127.0.0.1:0", stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    output = await asyncio.wait_for(process.stdout.readuntil(b"/user'\n"), 20)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert b"curl" in output


@pytest.mark.parametrize(
    ("place", "words"), [("127.0.0.1:{port}", "address already in use"), ("gitlab", "usage: "), ("127.0.0.1:99999", "port")]
)
def test_where_it_cannot_run_it_says_so_in_a_line(place: str, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = place.format(port=taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "gateway.demo", place], capture_output=True, text=True, cwd=ROOT, timeout=30, check=False
        )
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("method", "target", "data", "status"),
    [
        pytest.param("GET", f"/api/v4/projects/{'9' * 5000}", None, 404, id="a number no id can be"),
        pytest.param("GET", f"/api/v4/users/{'9' * 5000}", None, 404, id="nor a user's"),
        pytest.param("GET", f"{NESTED}/issues/{'9' * 5000}", None, 400, id="nor an issue's"),
        pytest.param("GET", f"/api/v4/projects?{'a' + '[b]' * 5000}=1", None, 400, id="deep parameters"),
        pytest.param("GET", f"{NESTED}/repository/files/a%0d%0aX%3A1?ref=main", None, 400, id="a header in a path"),
        pytest.param("POST", f"{NESTED}/repository/branches?branch=a%0Ab&ref=main", None, 400, id="a line end in a branch"),
        pytest.param("POST", "/api/v4/projects", {"name": "n", "visibility": "odd"}, 400, id="unknown visibility"),
        pytest.param(
            "POST",
            f"{NESTED}/repository/files/n",
            {"branch": "main", "content": "é", "encoding": "base64", "commit_message": "m"},
            400,
            id="broken base64",
        ),
        pytest.param("GET", "/api/v4/projects/%70latform%2flegacy-api", None, 301, id="a moved project, oddly encoded"),
    ],
)
async def test_odd_requests_are_answered_too(ask: Any, method: str, target: str, data: object, status: int) -> None:
    assert (await ask(method, target, TOKENS.ada, data=data)).status == status
