"""The real ``git`` and ``git-lfs`` through the gateway, against ``git http-backend``."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import ask, raw
from tests.fakes.git_gitlab import GitGitLab, peak_rss_bytes

OUTSIDE = "https://gitlab.example.com"
OWN = "glpat-of-a-person-000000"
BROKER = "glpat-of-the-broker-0000"


def run(*command: str, directory: Path, code: int = 0, **environment: str) -> str:
    """A command in a world of its own; what it wrote, both streams."""
    home = directory if directory.is_dir() else directory.parent
    done = subprocess.run(
        command,
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@example.com",
            "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@example.com",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=200,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    assert done.returncode == code, output
    return output


@pytest.fixture(scope="module")
def gitlab(upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitGitLab]:
    root = tmp_path_factory.mktemp("repositories")
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(root / "team" / "app.git"), directory=root)
    server = GitGitLab(root, OUTSIDE, {OWN, BROKER})
    upstreams.run(server.start())
    yield server
    upstreams.run(server.close())


def config(gitlab: GitGitLab, **more: Any) -> dict[str, Any]:
    return {
        "upstream": {"url": gitlab.url, "external_url": OUTSIDE},
        "identities": [{"id": name, "key": "issued"} for name in ("bot", "reader")],
        "credentials": [{"id": "broker", "token": "${env:BROKER}"}],
        "rules": [
            {"id": "bot", "for": ["bot"], "use": "broker", "allow": [{"access": "write"}]},
            {"id": "reader", "for": ["reader"], "use": "broker", "allow": [{"access": "read"}]},
        ],
        **more,
    }


@pytest.fixture(scope="module")
def gateway(gitlab: GitGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(config(gitlab), tmp_path_factory.mktemp("gateway"), {"BROKER": BROKER})
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.new_key("bot")


@pytest.fixture(autouse=True)
def _fresh(gitlab: GitGitLab) -> None:
    gitlab.requests.clear()


def address(gateway: GatewayProcess, password: str, path: str = "team/app.git") -> str:
    return f"http://oauth2:{password}@127.0.0.1:{gateway.port}/{path}"


def basic(password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"x:{password}".encode()).decode()


def commit(place: Path, name: str, data: bytes) -> None:
    (place / name).write_bytes(data)
    run("git", "add", "--all", directory=place)
    run("git", "commit", "--quiet", "--message", name, directory=place)


def test_push_clone_and_fetch_with_a_gateway_key_as_password(
    gateway: GatewayProcess, gitlab: GitGitLab, key: str, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run("git", "init", "--quiet", "--initial-branch=main", str(one), directory=tmp_path)
    commit(one, "README", b"first\n")
    run("git", "push", "--quiet", address(gateway, key), "main", directory=one)
    run("git", "clone", "--quiet", address(gateway, key), str(two), directory=tmp_path)
    commit(one, "README", b"second\n")
    run("git", "push", "--quiet", address(gateway, key), "main", directory=one)
    run("git", "fetch", "--quiet", directory=two)

    assert run("git", "show", "origin/main:README", directory=two) == "second\n"
    assert {request.password for request in gitlab.requests} == {BROKER}
    fetches = [request for request in gitlab.requests if request.path.endswith("git-upload-pack")]
    assert fetches
    assert {request.value("Git-Protocol") for request in fetches} == {"version=2"}


def test_git_is_challenged_by_the_gateway_itself(gateway: GatewayProcess, gitlab: GitGitLab) -> None:
    reply = ask(gateway.port, "/team/app.git/info/refs?service=git-upload-pack")
    assert (reply.status, reply.value("WWW-Authenticate")) == (401, 'Basic realm="GitLab"')
    assert reply.value("X-Gateway-Error") == "unauthenticated"
    assert reply.body.startswith(b"HTTP Basic: Access denied.")
    assert gitlab.requests == []


def test_a_credential_helper_is_asked_after_the_challenge(
    gateway: GatewayProcess, gitlab: GitGitLab, key: str, tmp_path: Path
) -> None:
    helper = f"!f() {{ echo username=me; echo password={key}; }}; f"
    plain = f"http://127.0.0.1:{gateway.port}/team/app.git"
    out = run("git", "-c", f"credential.helper={helper}", "ls-remote", plain, directory=tmp_path)
    assert "refs/heads" in out or out == ""
    assert {request.password for request in gitlab.requests} == {BROKER}


def test_own_tokens_pass_through_untouched(gateway: GatewayProcess, gitlab: GitGitLab, tmp_path: Path) -> None:
    run("git", "ls-remote", address(gateway, OWN), directory=tmp_path)
    assert {request.password for request in gitlab.requests} == {OWN}


def test_a_wrong_password_is_refused_as_gitlab_refuses_it(gateway: GatewayProcess, tmp_path: Path) -> None:
    out = run("git", "ls-remote", address(gateway, "glpat-of-nobody-00000000"), directory=tmp_path, code=128)
    assert "Authentication failed" in out


def test_a_reader_may_clone_but_not_push(gateway: GatewayProcess, gitlab: GitGitLab, tmp_path: Path) -> None:
    reader, place = gateway.new_key("reader"), tmp_path / "place"
    run("git", "clone", "--quiet", address(gateway, reader), str(place), directory=tmp_path)
    commit(place, "mine", b"mine\n")
    gitlab.requests.clear()
    out = run("git", "push", "--quiet", "origin", "HEAD:refs/heads/stolen", directory=place, code=128)
    assert "403" in out
    assert gitlab.requests == []


def test_an_address_without_git_leads_back_through_the_gateway(
    gateway: GatewayProcess, gitlab: GitGitLab, key: str, tmp_path: Path
) -> None:
    run("git", "ls-remote", address(gateway, key, "team/app"), directory=tmp_path)
    assert [request.path for request in gitlab.requests][:2] == ["/team/app/info/refs", "/team/app.git/info/refs"]


def test_a_zipped_request_goes_up_as_it_came(gateway: GatewayProcess, gitlab: GitGitLab, key: str) -> None:
    command = b"0014command=ls-refs\n00010009peel\n0000"
    basic = base64.b64encode(f"oauth2:{key}".encode()).decode()
    reply = ask(
        gateway.port,
        "/team/app.git/git-upload-pack",
        f"Authorization: Basic {basic}",
        "Content-Type: application/x-git-upload-pack-request",
        "Content-Encoding: gzip",
        "Git-Protocol: version=2",
        method="POST",
        body=gzip.compress(command),
    )
    assert reply.status == 200
    assert reply.body.endswith(b"0000")
    assert gitlab.requests[-1].value("Content-Encoding") == "gzip"


def test_a_chunked_push_waits_for_continue_and_streams(
    gateway: GatewayProcess, gitlab: GitGitLab, key: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    run("git", "init", "--quiet", "--initial-branch=main", str(place), directory=tmp_path)
    commit(place, "noise", os.urandom(3 << 20))
    run("git", "push", "--quiet", address(gateway, key), "HEAD:refs/heads/chunked", directory=place)
    pushed = [
        request for request in gitlab.requests if request.path.endswith("git-receive-pack") and request.method == "POST"
    ]
    assert pushed[-1].value("Transfer-Encoding") == "chunked"
    assert all(request.value("Expect") is None for request in gitlab.requests)


def test_a_refused_push_is_never_repeated(gateway: GatewayProcess, gitlab: GitGitLab, key: str) -> None:
    """A POST that fails upstream is GitLab's to have seen: once."""
    basic = base64.b64encode(f"oauth2:{key}".encode()).decode()
    ask(
        gateway.port,
        "/team/app.git/git-receive-pack",
        f"Authorization: Basic {basic}",
        "Content-Type: application/x-git-receive-pack-request",
        method="POST",
        body=b"0000",
    )
    assert len(gitlab.requests) == 1


@pytest.mark.timeout(300)
def test_a_big_pack_passes_in_little_memory(gitlab: GitGitLab, tmp_path: Path) -> None:
    """Some 120 MB that do not compress, up and down, through a gateway that has seen nothing else."""
    directory = tmp_path / "gateway"
    gateway = GatewayProcess(config(gitlab), directory, {"BROKER": BROKER})
    try:
        key = gateway.new_key("bot")
        run("git", "ls-remote", address(gateway, key), directory=tmp_path)
        before = peak_rss_bytes(gateway.process.pid)
        place = tmp_path / "place"
        run("git", "init", "--quiet", "--initial-branch=main", str(place), directory=tmp_path)
        for setting in ("core.compression=0", "core.bigFileThreshold=1m", "gc.auto=0"):
            run("git", "config", *setting.split("="), directory=place)
        commit(place, "noise", os.urandom(120 << 20))
        run("git", "push", "--quiet", address(gateway, key), "HEAD:refs/heads/big", directory=place)
        down = tmp_path / "down"
        run(
            "git",
            "clone",
            "--quiet",
            "--bare",
            "--branch=big",
            "--single-branch",
            address(gateway, key),
            str(down),
            directory=tmp_path,
        )
        grown = peak_rss_bytes(gateway.process.pid) - before
        assert grown < 32 << 20, f"{grown >> 20} MiB"
    finally:
        gateway.stop()


# LFS


@pytest.fixture
def lfs(gateway: GatewayProcess, key: str, tmp_path: Path) -> Path:
    """A repository whose ``*.bin`` are kept in LFS, and its remote."""
    place = tmp_path / "lfs"
    run("git", "init", "--quiet", "--initial-branch=main", str(place), directory=tmp_path)
    run("git", "lfs", "install", "--local", directory=place)
    run("git", "lfs", "track", "*.bin", "--lockable", directory=place)
    run("git", "remote", "add", "origin", address(gateway, key), directory=place)
    return place


def test_lfs_moves_objects_both_ways(
    gateway: GatewayProcess, gitlab: GitGitLab, key: str, lfs: Path, tmp_path: Path
) -> None:
    data = os.urandom(2 << 20)
    commit(lfs, "big.bin", data)
    run("git", "push", "origin", "HEAD:refs/heads/lfs", directory=lfs)
    assert any(request.method == "PUT" for request in gitlab.requests)
    assert {request.password for request in gitlab.requests} == {BROKER}

    down = tmp_path / "down"
    run(
        "git",
        "clone",
        "--quiet",
        "--branch=lfs",
        address(gateway, key),
        str(down),
        directory=tmp_path,
        GIT_LFS_SKIP_SMUDGE="1",
    )
    run("git", "lfs", "install", "--local", directory=down)
    run("git", "lfs", "pull", directory=down)
    assert (down / "big.bin").read_bytes() == data


def test_who_may_read_fetches_objects_and_stores_none(
    gateway: GatewayProcess, gitlab: GitGitLab, lfs: Path, tmp_path: Path
) -> None:
    reader = address(gateway, gateway.new_key("reader"))
    commit(lfs, "read.bin", b"of LFS\n")
    run("git", "push", "origin", "HEAD:refs/heads/read", directory=lfs)
    down = tmp_path / "down"
    run("git", "clone", "--quiet", "--branch=read", reader, str(down), directory=tmp_path, GIT_LFS_SKIP_SMUDGE="1")
    run("git", "lfs", "install", "--local", directory=down)
    run("git", "lfs", "pull", directory=down)
    assert (down / "read.bin").read_bytes() == b"of LFS\n"

    gitlab.requests.clear()
    commit(lfs, "written.bin", b"none of LFS\n")
    refused = run("git", "lfs", "push", reader, "HEAD", directory=lfs, code=2)
    assert "403" in refused or "forbidden" in refused.lower()
    assert not any(request.method == "PUT" for request in gitlab.requests)


def test_lfs_locks(gateway: GatewayProcess, gitlab: GitGitLab, lfs: Path) -> None:
    commit(lfs, "locked.bin", b"x" * 1000)
    run("git", "push", "origin", "HEAD:refs/heads/locks", directory=lfs)
    run("git", "lfs", "lock", "locked.bin", directory=lfs)
    assert "locked.bin" in run("git", "lfs", "locks", directory=lfs)
    run("git", "lfs", "unlock", "locked.bin", directory=lfs)
    assert gitlab.locks == []


def batch(gateway: GatewayProcess, password: str) -> Any:
    basic = base64.b64encode(f"oauth2:{password}".encode()).decode()
    asked = {"operation": "download", "objects": [{"oid": "a" * 64, "size": 3}]}
    reply = ask(
        gateway.port,
        "/team/app.git/info/lfs/objects/batch",
        f"Authorization: Basic {basic}",
        "Accept: application/vnd.git-lfs+json",
        "Content-Type: application/vnd.git-lfs+json",
        method="POST",
        body=json.dumps(asked).encode(),
    )
    assert reply.status == 200
    assert BROKER not in reply.body.decode()
    assert base64.b64encode(f"oauth2:{BROKER}".encode()).decode() not in reply.body.decode()
    return json.loads(reply.body)["objects"][0]["actions"]["download"], basic


def test_a_batch_answer_holds_the_callers_own_credential_and_leads_back(gateway: GatewayProcess, key: str) -> None:
    action, basic = batch(gateway, key)
    assert action["header"]["Authorization"] == f"Basic {basic}"
    assert action["href"].startswith(f"{gateway.url}/team/app.git/gitlab-lfs/objects/")


def test_a_batch_answer_to_an_own_token_is_gitlabs_but_for_the_address(gateway: GatewayProcess) -> None:
    action, basic = batch(gateway, OWN)
    assert action["header"]["Authorization"] == f"Basic {basic}"
    assert action["href"].startswith(f"{gateway.url}/")


def test_anonymous_access_is_gitlabs_to_refuse_when_configured(gitlab: GitGitLab, tmp_path: Path) -> None:
    more = {"identities": [{"id": "anyone", "anonymous": True}], "credentials": [], "rules": []}
    gateway = GatewayProcess(config(gitlab, **more), tmp_path / "gateway")
    try:
        reply = ask(gateway.port, "/team/app.git/info/refs?service=git-upload-pack")
        assert (reply.status, reply.value("WWW-Authenticate")) == (401, 'Basic realm="GitLab"')
        assert reply.value("X-Gateway-Error") is None
        assert len([request for request in gitlab.requests if request.path.endswith("info/refs")]) == 1
    finally:
        gateway.stop()


def test_the_same_octets_twice_are_two_pushes(gateway: GatewayProcess) -> None:
    """Nothing of Git is ever answered from the cache."""
    reply = raw(gateway.port, b"GET /team/app.git/HEAD HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reply.status == 401


def test_go_is_told_where_a_modules_repository_is(gitlab: GitGitLab, tmp_path: Path) -> None:
    """`go get` with a gateway key in `.netrc`. Without Basic credentials GitLab tells of `group/sub`, which is none."""
    (gitlab.root / "group" / "sub" / "lib.git").mkdir(parents=True)
    allow = {"access": "read", "projects": {"under_group": "group"}}
    made = config(gitlab)
    made["identities"].append({"id": "lib", "key": "issued"})
    made["rules"].append({"id": "lib", "for": ["lib"], "use": "broker", "allow": [allow]})
    process = GatewayProcess(made, tmp_path / "gateway", {"BROKER": BROKER})
    try:
        for key in (process.new_key("reader"), process.new_key("lib")):
            for path in ("group/sub/lib", "group/sub/lib/v2/pkg"):
                reply = ask(process.port, f"/{path}?go-get=1", basic(key), "User-Agent: Go-http-client/1.1")
                assert reply.status == 200
                assert b'"gitlab.example.com/group/sub/lib git https://gitlab.example.com/group/sub/lib.git"' in reply.body
                assert gitlab.requests[-1].password == BROKER
        asked = ask(process.port, "/group/sub/lib?go-get=1")
        assert (asked.status, asked.value("WWW-Authenticate")) == (401, 'Basic realm="GitLab"')
    finally:
        assert process.stop() == 0


def test_git_never_tries_again_and_so_is_let_wait(gitlab: GitGitLab, tmp_path: Path) -> None:
    """What docs/limits.md says of it: the same clone with and without ``absorb``, each beyond its burst."""
    caller = {"id": "caller", "by": "caller", "rate": "60/min", "burst": 1}
    for number, limit in enumerate([caller, caller | {"absorb": "10s"}]):
        process = GatewayProcess(config(gitlab, limits=[limit]), tmp_path / f"gateway{number}", {"BROKER": BROKER})
        try:
            password = process.new_key("reader")
            code = 0 if "absorb" in limit else 128
            output = run("git", "clone", address(process, password), "c", directory=tmp_path, code=code)
            assert ("429" in output) == bool(code)
        finally:
            assert process.stop() == 0
