"""Names that need encoding, and files whose facts travel in headers."""

from __future__ import annotations

import base64
import io
import tarfile
from typing import Any

import pytest
from gitlab.utils import EncodedId

from gateway.demo.seed import BRANCHES, FILES, TAGS, TOKENS

REPOSITORY = "/api/v4/projects/platform%2Fapi/repository"


def enc(name: str) -> str:
    return str(EncodedId(name))


@pytest.mark.parametrize("name", BRANCHES)
async def test_branches_by_encoded_name(ask: Any, name: str) -> None:
    reply = await ask("GET", f"{REPOSITORY}/branches/{enc(name)}", TOKENS.ada)
    assert reply.json["name"] == name
    assert reply.json["commit"]["title"] == f"Start {name}"


async def test_a_decoded_slash_is_another_route(ask: Any) -> None:
    assert (await ask("GET", f"{REPOSITORY}/branches/feature/login", TOKENS.ada)).body == b'{"error":"404 Not Found"}'


async def test_branches_come_and_go(ask: Any) -> None:
    target = f"{REPOSITORY}/branches"
    assert (await ask("POST", f"{target}?branch=a/b&ref=main", TOKENS.bob)).json["name"] == "a/b"
    assert (await ask("POST", f"{target}?branch=a/b&ref=main", TOKENS.bob)).body == b'{"message":"Branch already exists"}'
    assert (await ask("POST", f"{target}?branch=c&ref=none", TOKENS.bob)).status == 400
    assert (await ask("GET", f"{target}?search=a/b", TOKENS.bob)).headers["X-Total"] == "1"
    assert (await ask("DELETE", f"{target}/a%2Fb", TOKENS.bob)).status == 204
    for method in ("GET", "DELETE"):
        assert (await ask(method, f"{target}/a%2Fb", TOKENS.bob)).body == b'{"message":"404 Branch Not Found"}'


@pytest.mark.parametrize("name", TAGS)
async def test_tags_by_encoded_name(ask: Any, name: str) -> None:
    assert (await ask("GET", f"{REPOSITORY}/tags/{enc(name)}", TOKENS.ada)).json["name"] == name


async def test_tags_are_listed(ask: Any) -> None:
    assert [tag["name"] for tag in (await ask("GET", f"{REPOSITORY}/tags", TOKENS.ada)).json] == sorted(TAGS)
    assert (await ask("GET", f"{REPOSITORY}/tags/none", TOKENS.ada)).status == 404


async def test_trees(ask: Any) -> None:
    top = (await ask("GET", f"{REPOSITORY}/tree", TOKENS.ada)).json
    assert {(entry["path"], entry["type"]) for entry in top} >= {("README.md", "blob"), ("src", "tree")}
    deep = (await ask("GET", f"{REPOSITORY}/tree?path=src&recursive=true", TOKENS.ada)).json
    assert [entry["path"] for entry in deep if entry["type"] == "tree"] == ["src/deep", "src/deep/er", "src/deep/er/than"]
    assert (await ask("GET", f"{REPOSITORY}/tree?path=none", TOKENS.ada)).status == 404
    assert (await ask("GET", f"{REPOSITORY}/tree?ref=none", TOKENS.ada)).status == 404


async def test_commits(ask: Any) -> None:
    listed = (await ask("GET", f"{REPOSITORY}/commits?ref_name=feature%2Flogin", TOKENS.ada)).json
    assert [commit["title"] for commit in listed] == ["Start feature/login", "Initial commit"]
    for name in (listed[1]["id"], listed[1]["short_id"], "HEAD", "main"):
        assert (await ask("GET", f"{REPOSITORY}/commits/{name}", TOKENS.ada)).json["id"] == listed[1]["id"]
    assert (await ask("GET", f"{REPOSITORY}/commits/{listed[0]['id']}", TOKENS.ada)).json["title"] == "Start feature/login"
    for name in ("none", "abc"):
        assert (await ask("GET", f"{REPOSITORY}/commits/{name}", TOKENS.ada)).status == 404
    assert (await ask("GET", f"{REPOSITORY}/commits?ref_name=none", TOKENS.ada)).status == 404


@pytest.mark.parametrize("path", FILES)
async def test_files_by_encoded_path(ask: Any, path: str) -> None:
    target = f"{REPOSITORY}/files/{enc(path)}"
    shown = await ask("GET", f"{target}?ref=main", TOKENS.ada)
    assert base64.b64decode(shown.json["content"]) == FILES[path]
    raw = await ask("GET", f"{target}/raw?ref=main", TOKENS.ada)
    assert raw.body == FILES[path]
    assert raw.headers["Cache-Control"] == "max-age=0, private, must-revalidate, no-store, no-cache"
    head = await ask("HEAD", f"{target}?ref=main", TOKENS.ada)
    assert head.body == b""
    facts = {
        name: value for name, value in shown.headers.items() if name.startswith("X-Gitlab-") and name != "X-Gitlab-Meta"
    }
    assert facts == {name: head.headers[name] for name in facts}
    assert len(facts) == 10
    assert facts["X-Gitlab-File-Path"].encode("latin-1").decode() == path


@pytest.mark.parametrize("path", ["a%252Fb", "%252e%252e%252fx"])
async def test_paths_encoded_twice_are_refused(ask: Any, path: str) -> None:
    reply = await ask("GET", f"{REPOSITORY}/files/{path}?ref=main", TOKENS.ada)
    assert (reply.status, reply.body) == (400, b'{"error":"file_path should be a valid file path"}')


async def test_files_come_change_and_go(ask: Any) -> None:
    target = f"{REPOSITORY}/files/x%2Fy.txt"
    change = {"branch": "main", "content": "MQ==", "encoding": "base64", "commit_message": "m"}
    assert (await ask("PUT", target, TOKENS.bob, data=change)).status == 400
    assert (await ask("POST", target, TOKENS.bob, data=change)).json == {"file_path": "x/y.txt", "branch": "main"}
    assert (await ask("POST", target, TOKENS.bob, data=change)).status == 400
    assert (await ask("PUT", target, TOKENS.bob, data=change | {"content": "2", "encoding": "text"})).status == 200
    assert (await ask("GET", f"{target}/raw", TOKENS.bob)).body == b"2"
    assert (await ask("DELETE", target, TOKENS.bob, data=change)).status == 204
    assert (await ask("DELETE", target, TOKENS.bob, data=change)).status == 400
    assert (await ask("GET", target, TOKENS.bob)).body == b'{"message":"404 File Not Found"}'
    assert (await ask("POST", target, TOKENS.bob, data=change | {"branch": "none"})).status == 400
    assert (await ask("POST", target, TOKENS.bob, data={"branch": "main"})).body == b'{"error":"content is missing"}'


async def test_archives_have_a_strong_validator_of_their_own(ask: Any) -> None:
    reply = await ask("GET", f"{REPOSITORY}/archive", TOKENS.ada)
    assert reply.headers["Content-Disposition"] == 'attachment; filename="api-main.tar"'
    assert not reply.headers["ETag"].startswith("W/")
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
        assert len(tar.getnames()) == len(FILES)
    again = await ask("GET", f"{REPOSITORY}/archive", TOKENS.ada, {"If-None-Match": "W/" + reply.headers["ETag"]})
    assert again.status == 304
    assert (await ask("GET", f"{REPOSITORY}/archive?sha=none", TOKENS.ada)).status == 404


async def test_a_commits_merge_requests(ask: Any) -> None:
    tip = (await ask("GET", f"{REPOSITORY}/commits/feature%2Flogin", TOKENS.ada)).json["id"]
    target = f"{REPOSITORY}/commits/{tip}/merge_requests"
    assert (await ask("GET", target, TOKENS.ada)).json == []
    form = {"source_branch": "feature/login", "target_branch": "main", "title": "Login"}
    made = await ask("POST", f"{REPOSITORY.removesuffix('/repository')}/merge_requests", TOKENS.ada, data=form)
    assert (await ask("GET", target, TOKENS.ada)).json == [made.json]
    assert (await ask("GET", target.replace(tip, "0" * 40), TOKENS.ada)).status == 404
