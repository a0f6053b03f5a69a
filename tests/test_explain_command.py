"""``gitlab-gateway explain --request``, against a gateway that serves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import app
from gateway.admin_client import KEY
from gateway.app.serving import Serving
from gateway.cli import main
from gateway.config import load

ADMIN = "an-admin-key-of-some-length"
WALL = "the-admin-key-of-a-dashboard"


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
    monkeypatch.setenv(KEY, ADMIN)
    text = (
        "version: 1\nupstream: {url: 'http://127.0.0.1:1'}\nidentities: [{id: anyone, anonymous: true}]\n"
        "listen: {address: '127.0.0.1:0', admin: '127.0.0.1:0'}\n"
        f"admin: {{keys: [{{id: ops, sha256: {sha256(ADMIN)}}}, {{id: wall, sha256: {sha256(WALL)}, may: [read]}}]}}\n"
        "limits: [{id: caller, by: caller, rate: 1/min, burst: 1}]\n"
        f"state_dir: {tmp_path}\naudit: {{sink: 'file:{tmp_path}/audit'}}\n"
    )
    loaded = load(text, {}, lambda path: Path(path).read_text())
    assert loaded.config is not None, loaded.problems
    async with app.serving(loaded.config) as running:
        yield running


async def request(served: Serving, target: bytes = b"/api/v4/version") -> str:
    """The id of a request that was answered."""
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    return answer.partition("X-Gateway-Request-Id: ")[2].partition("\r\n")[0]


async def command(served: Serving, *arguments: str) -> int:
    return await asyncio.to_thread(main, ["explain", *arguments, "--admin", served.admin_place])


async def test_what_was_done_and_what_would_be_done_now(served: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    await request(served)
    refused = await request(served)
    assert await command(served, "--request", refused) == 0
    was, now = capsys.readouterr().out.split("\n\n")
    head, *facts = was.splitlines()
    assert head == "What was done, in the words of the audit:"
    told = dict(line.split(maxsplit=1) for line in facts)
    assert told["request_id"] == refused
    assert told["operation"] == "GET /api/v4/version"
    assert (told["status"], told["code"], told["limit"]) == ("429", "rate_limited", "caller")
    assert told["principal"] == "anonymous:127.0.0.1"
    head, *stages = now.splitlines()
    assert head == "What each stage would do now:"
    assert stages[0] == "target      forwarded as /api/v4/version"
    assert any(line.startswith("bucket      caller of anonymous:127.0.0.1: 0") for line in stages)


async def test_a_request_without_a_known_target_has_no_stages(served: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command(served, "--request", await request(served, b"/api/v4/../x")) == 0
    was, now = capsys.readouterr().out.split("\n\n")
    assert "code                 bad_target\n" in was
    assert now == "What would be done now can't be said: its caller or its target was never known.\n"


async def test_what_a_caller_sent_does_not_move_the_terminal(served: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does what it decodes to, which is in the cache's tags."""
    assert await command(served, "--request", await request(served, b"/api/v4/projects/x%1B%5B2J%2Fe%E2%80%AE")) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "target               /api/v4/projects/x%1B%5B2J%2Fe%E2%80%AE\n" in shown
    assert r"x\x1b[2j/e\u202e" in shown


async def test_what_can_t_be_told_is_said(
    served: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def said(key: str) -> str:
        monkeypatch.setenv(KEY, key)
        assert await command(served, "--request", "r-of-yesterday") == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        return shown.err

    assert "refused: request_id: is not one of the last 2000 requests at this gateway; look for older" in await said(ADMIN)
    assert "lacks the permission `explain`" in await said(WALL)
    assert f"401 Unauthorized: the key in {KEY} is not one of `admin.keys`" in await said("another")
    assert f"401 Unauthorized: {KEY} is empty" in await said("")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--as", "anyone"], "--as"),
        (["GET", "/"], "METHOD, TARGET"),
        (
            ["--as", "anyone", "--caller", "user:1", "--upstream", "http://127.0.0.1:9", "GET"],
            "--as, --caller, --upstream, METHOD",
        ),
    ],
)
def test_what_a_request_has_is_not_given_twice(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--request", "r-1", *arguments], [*arguments, "--request", "r-1"]):
        assert main(["explain", *words]) == 2
        assert capsys.readouterr().err.endswith(f"leave out {named}\n")


def test_a_hypothetical_request_is_given_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "GET"]) == 2
    assert "the following arguments are required: --as, TARGET" in capsys.readouterr().err
    words = ["GET", "--upstream", "http://127.0.0.1:9", "/api/v4/version", "--as", "people"]
    assert main(["explain", *words]) == 0
    assert capsys.readouterr().out.startswith("target      forwarded as /api/v4/version")
