"""`gitlab-gateway credentials` against a running gateway."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import app
from gateway.admin_client import KEY
from gateway.app.serving import Serving
from gateway.broker.rotator import TokenRotator
from gateway.cli import main
from gateway.config import load
from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import PERSONAL_PREFIX, TOKENS

ADMIN = "an-admin-key-of-some-length"
HASH = hashlib.sha256(ADMIN.encode()).hexdigest()
WALL = "the-admin-key-of-a-dashboard"


@pytest.fixture
async def gitlab() -> AsyncIterator[DemoGitLab]:
    gitlab = build_demo_gitlab(items=0)
    await gitlab.start()
    yield gitlab
    await gitlab.close()


@pytest.fixture
async def served(gitlab: DemoGitLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
    monkeypatch.setenv(KEY, ADMIN)
    end = gitlab.state.today() + datetime.timedelta(days=40)
    bot = gitlab.state.mint(gitlab.state.users[5], "first", ("api",), PERSONAL_PREFIX, end).value
    text = (
        f"version: 1\nupstream: {{url: '{gitlab.url}'}}\nidentities: [{{id: k, key: issued}}]\n"
        "listen: {address: '127.0.0.1:0', admin: '127.0.0.1:0'}\n"
        f"admin: {{keys: [{{id: ops, sha256: {HASH}}}, "
        f"{{id: wall, sha256: {hashlib.sha256(WALL.encode()).hexdigest()}, may: [read]}}]}}\n"
        "credentials:\n  - {id: readers, pool: [{token: '${env:BOT}'}], rotate: {manager: admin, overlap: 0s}}\n"
        "  - {id: admin, token: '${env:ROOT}'}\n"
        "rules: [{id: r, for: [k], use: readers, allow: [{access: write}]}]\n"
        f"state_dir: {tmp_path}\naudit: {{sink: 'file:{tmp_path}/audit'}}\n"
    )
    loaded = load(text, {"BOT": bot, "ROOT": TOKENS.root}, lambda path: Path(path).read_text())
    assert loaded.config is not None, loaded.problems
    async with app.serving(loaded.config) as running:
        yield running


async def command(served: Serving, *arguments: str) -> int:
    return await asyncio.to_thread(main, ["credentials", *arguments, "--admin", served.admin_place])


async def test_what_is_there_is_listed_and_one_is_replaced(
    served: Serving, gitlab: DemoGitLab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command(served, "list") == 0
    first, second = capsys.readouterr().out.splitlines()
    end = gitlab.state.today() + datetime.timedelta(days=40)
    assert first.split() == ["readers/1", "accepted", "ends", end.isoformat(), "configured", "rotates:", "manager"]
    assert second.split() == ["admin", "accepted", "ends", "never", "or", "unknown", "configured", "rotates:", "no"]
    assert await command(served, "rotate", "readers/1") == 0
    shown = capsys.readouterr().out
    assert "version 2" in shown
    assert "step: settling" in shown
    assert await command(served, "list", "--json") == 0
    listed = capsys.readouterr().out
    assert [one["id"] for one in json.loads(listed)["credentials"]] == ["readers/1", "admin"]
    for value in gitlab.state.tokens:
        assert value not in shown + listed


@pytest.mark.parametrize(("count", "shown"), [(2, "2"), (None, "unknown")])
async def test_what_needs_a_former_key_is_said(
    served: Serving,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    count: int | None,
    shown: str,
) -> None:
    monkeypatch.setattr(TokenRotator, "under_decryption_keys", count)  # as if its store held them
    assert await command(served, "list") == 0
    said = f"records encrypted under one of `secrets.decryption_keys`: {shown}"
    assert capsys.readouterr().out.splitlines()[2:] == [said]


async def test_what_can_t_be_done_is_said(
    served: Serving, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await command(served, "rotate", "admin") == 2
    assert "not configured to rotate" in capsys.readouterr().err
    monkeypatch.setenv(KEY, WALL)
    assert await command(served, "list") == 0
    assert await command(served, "rotate", "readers/1") == 2
    assert "refused: 403 Forbidden: the admin key `wall` lacks the permission `credentials`" in capsys.readouterr().err
    monkeypatch.setenv(KEY, "another")
    assert await command(served, "list") == 2
    assert "401" in capsys.readouterr().err


async def test_nobody_there_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert await asyncio.to_thread(main, ["credentials", "list", "--admin", "127.0.0.1:9"]) == 1
    assert "failed" in capsys.readouterr().err
