"""Upstream credentials, wired: what the configuration makes of them, what is reported of them, and what is written down."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.app.assembly import Assembly, assemble
from gateway.app.readings import readiness, readings
from gateway.broker.static import CredentialsRefused
from gateway.config import Config, load
from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import PERSONAL_PREFIX, TOKENS

KEYS = {"PEPPER": "c7" * 32, "KEY": "5b" * 32, "AUDIT": "e9" * 32}


@pytest.fixture
async def gitlab() -> AsyncIterator[DemoGitLab]:
    gitlab = build_demo_gitlab(items=0)
    await gitlab.start()
    yield gitlab
    await gitlab.close()


def minted(gitlab: DemoGitLab, days: int) -> str:
    end = gitlab.state.today() + datetime.timedelta(days=days)
    return gitlab.state.mint(gitlab.state.users[5], "first", ("api",), PERSONAL_PREFIX, end).value


def configured(
    gitlab: DemoGitLab, directory: Path, token: str, rotate: str, stores: str = "", former: str = "[]", **more: str
) -> Config:
    text = (
        f"version: 1\nupstream: {{url: '{gitlab.url}'}}\nidentities: [{{id: k, key: issued}}]\n"
        f"credentials: [{{id: bot, token: '${{env:BOT}}', rotate: {rotate}}}, {{id: admin, token: '${{env:ROOT}}'}}]\n"
        "rules: [{id: r, for: [k], use: bot, allow: [{access: write}]}]\n"
        "secrets: {pepper: '${env:PEPPER}', encryption_key: '${env:KEY}', audit_key: '${env:AUDIT}', "
        f"decryption_keys: {former}}}\n"
        f"state_dir: {directory}\naudit: {{sink: 'file:{directory}/audit'}}\n{stores}"
    )
    loaded = load(text, {"BOT": token, "ROOT": TOKENS.root, **KEYS, **more}, lambda path: Path(path).read_text())
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return loaded.config


def upstream_credentials(parts: Assembly) -> Any:
    assert parts.credentials is not None
    return parts.credentials


def figures(parts: Assembly, name: str) -> dict[str, float]:
    return {one.labels["credential"]: one.value for one in readings(parts) if one.name == name}


@pytest.mark.parametrize("shared", [False, True], ids=["SQLite", "Redis"])
async def test_a_rotation_asked_for_survives_a_restart_and_is_written_down(
    gitlab: DemoGitLab, tmp_path: Path, start_redis: Callable[..., Any], shared: bool
) -> None:
    token = minted(gitlab, 100)
    stores = "stores: {credentials: '${env:REDIS}'}\n" if shared else ""
    config = configured(
        gitlab,
        tmp_path,
        token,
        "{manager: admin, overlap: 0s}",
        stores,
        REDIS=start_redis("--appendonly", "yes").url if shared else "",
    )
    parts = await assemble(config)
    async with parts.stack:
        shown = await upstream_credentials(parts).rotate("admin:abc", "127.0.0.1", "bot")
        assert (shown["id"], shown["accepted"], shown["step"]) == ("bot", True, "settling")
        used = parts.tokens.token("bot").reveal()  # type: ignore[union-attr]  # it has some
        assert used != token
        assert used not in json.dumps(upstream_credentials(parts).list()) + json.dumps(shown)
        assert [one["id"] for one in upstream_credentials(parts).list()["credentials"]] == ["bot", "admin"]
        with pytest.raises(ValueError, match="not configured to rotate"):
            await upstream_credentials(parts).rotate("admin:abc", "127.0.0.1", "admin")
    again = await assemble(config)
    async with again.stack:
        assert again.tokens is not None
        assert again.tokens.token("bot").reveal() == used
        with pytest.raises(ValueError, match="not one of those configured"):
            await upstream_credentials(again).rotate("admin:abc", "127.0.0.1", "glpat-pasted-in-the-wrong-place")
    assert "glpat-" not in (tmp_path / "audit").read_text()
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    audited = [
        (line["operation"], line["principal"], line["status"]) for line in lines if "/-/credentials" in line["target"]
    ]
    assert audited[:3] == [
        ("rotated", "gateway", 200),
        ("credential rotation asked for", "admin:abc", 200),
        ("credential rotation asked for", "admin:abc", 400),
    ]
    assert {line["upstream_credential"] for line in lines if line["operation"] == "rotated"} == {"bot"}
    for value in (token, used, TOKENS.root):
        assert value not in (tmp_path / "audit").read_text()


async def test_another_encryption_key_refuses_to_start(gitlab: DemoGitLab, tmp_path: Path) -> None:
    token = minted(gitlab, 100)
    parts = await assemble(configured(gitlab, tmp_path, token, "{manager: admin}"))
    async with parts.stack:
        await upstream_credentials(parts).rotate("admin:abc", "", "bot")
    with pytest.raises(CredentialsRefused, match="encryption_key"):
        await assemble(configured(gitlab, tmp_path, token, "{manager: admin}", KEY="6c" * 32))
    again = await assemble(configured(gitlab, tmp_path, token, "{manager: admin}"))
    await again.stack.aclose()


async def test_with_the_former_key_it_starts_and_says_until_when_that_is_needed(gitlab: DemoGitLab, tmp_path: Path) -> None:
    token = minted(gitlab, 100)
    parts = await assemble(configured(gitlab, tmp_path, token, "{manager: admin}"))
    async with parts.stack:
        await upstream_credentials(parts).rotate("admin:abc", "", "bot")
        assert parts.tokens is not None
        used = parts.tokens.token("bot")
    former = {"former": "['${env:FORMER}']", "FORMER": KEYS["KEY"], "KEY": "6c" * 32}
    changed = await assemble(configured(gitlab, tmp_path, token, "{manager: admin}", **former))
    async with changed.stack:
        assert changed.tokens is not None
        assert changed.tokens.token("bot") == used
        await upstream_credentials(changed).rotator.tick()
        assert upstream_credentials(changed).list()["under_decryption_keys"] == 0
    again = await assemble(configured(gitlab, tmp_path, token, "{manager: admin}", KEY="6c" * 32))
    await again.stack.aclose()


def nears(days: int, check: str | None) -> bool:
    """Tells of an end ``days`` from today's midnight: in the first hour of a day that is ``days``, rounded."""
    return check is not None and bool(re.fullmatch(rf"degraded: expires in ({days - 1}\.\d|{days}\.0) days", check))


@pytest.mark.parametrize("days", [200, 6, 1])
async def test_an_end_that_comes_near_is_reported(gitlab: DemoGitLab, tmp_path: Path, days: int) -> None:
    parts = await assemble(configured(gitlab, tmp_path, minted(gitlab, days), "{manager: admin, before: 1s, lifetime: 2d}"))
    async with parts.stack:
        left = figures(parts, "gitlab_gateway_credential_expires_seconds")
        assert left["admin"] == math.inf
        assert (days - 1) * 86_400 <= left["bot"] <= days * 86_400
        ready = readiness(parts)
        assert ready.ready
        found = ready.checks.get("credential bot")
        assert found is None if days == 200 else nears(days, found)
        assert figures(parts, "gitlab_gateway_credential_rotation_failing") == {"bot": 0.0, "admin": 0.0}


async def test_a_rotation_that_fails_is_reported(gitlab: DemoGitLab, tmp_path: Path) -> None:
    token = minted(gitlab, 5)
    gitlab.state.tokens[token].scopes = ("read_api",)  # before its own first round, which comes when it will
    parts = await assemble(configured(gitlab, tmp_path, token, "{}", ROOT=TOKENS.ada))
    async with parts.stack:
        await upstream_credentials(parts).rotator.tick()
        assert figures(parts, "gitlab_gateway_credential_rotation_failing")["bot"] == 1.0
        assert "rotation fails: the token may not replace itself" in readiness(parts).checks["credential bot"]


async def test_a_lost_successor_is_reported_and_does_not_stop_the_next_start(gitlab: DemoGitLab, tmp_path: Path) -> None:
    token = minted(gitlab, 5)
    config = configured(gitlab, tmp_path, token, "{}")
    answer = gitlab._answer

    async def cut(incoming: Any, extra: Any) -> Any:
        answered = await answer(incoming, extra)
        if incoming.path.endswith("/self/rotate"):
            incoming.transport.abort()
        return answered

    gitlab._answer = cut  # type: ignore[method-assign]  # the network's own failing
    parts = await assemble(config)
    async with parts.stack:
        await upstream_credentials(parts).rotator.tick()
        assert figures(parts, "gitlab_gateway_credential_rotation_failing")["bot"] == 1.0
    again = await assemble(config)
    async with again.stack:
        check = readiness(again).checks["credential bot"]
        assert "GitLab refuses it" in check
        assert "GitLab may have replaced the token and the new one was not received" in check


async def test_a_store_that_is_away_does_not_stop_the_start(
    gitlab: DemoGitLab, tmp_path: Path, start_redis: Callable[..., Any]
) -> None:
    server = start_redis()
    stores = "stores: {credentials: '${env:REDIS}'}\n"
    config = configured(gitlab, tmp_path, minted(gitlab, 100), "{manager: admin}", stores, REDIS=server.url)
    server.stop()
    parts = await assemble(config)
    async with parts.stack:
        with pytest.raises(ValueError, match="can't be rotated now"):
            await upstream_credentials(parts).rotate("admin:abc", "", "bot")


async def test_what_only_watches_opens_no_store(gitlab: DemoGitLab, tmp_path: Path) -> None:
    text = (
        f"version: 1\nupstream: {{url: '{gitlab.url}'}}\nidentities: [{{id: k, key: issued}}]\n"
        "credentials: [{id: bot, token: '${env:BOT}'}]\n"
        "rules: [{id: r, for: [k], use: bot, allow: [{access: write}]}]\n"
        f"state_dir: {tmp_path}\naudit: {{sink: 'file:{tmp_path}/audit'}}\n"
    )
    loaded = load(text, {"BOT": minted(gitlab, 3)}, lambda path: Path(path).read_text())
    assert loaded.config is not None
    parts = await assemble(loaded.config)
    async with parts.stack:
        assert not (tmp_path / "credentials.db").exists()
        assert nears(3, readiness(parts).checks["credential bot"])
