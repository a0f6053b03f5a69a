"""What ``check --ask-gitlab`` finds out, from a GitLab at a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.app.credential_check import CredentialCheck, ask_gitlab
from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import TOKENS
from tests.fakes.world import ENVIRONMENT, configured

GONE = "http://127.0.0.1:9"


@pytest.fixture
async def gitlab() -> AsyncIterator[DemoGitLab]:
    demo = build_demo_gitlab()
    await demo.start()
    yield demo
    await demo.close()


class Check:
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._set = monkeypatch.setitem

    async def __call__(self, url: str, credentials: str, **tokens: str) -> CredentialCheck:
        for name, token in tokens.items():
            self._set(ENVIRONMENT, name, token)
        text = (
            f"version: 1\nupstream: {{url: '{url}'}}\nidentities: [{{id: reader, key: issued}}]\n"
            f"credentials: [{credentials}]\n"
            "rules: [{id: reads, for: [reader], use: sa, allow: [{access: read}]}]\n"
        )
        return await asyncio.to_thread(ask_gitlab, configured(text, self._directory))


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    return Check(tmp_path, monkeypatch)


async def test_what_gitlab_takes(gitlab: DemoGitLab, check: Check) -> None:
    assert await check(gitlab.url, "{id: sa, token: '${env:ONE}'}", ONE=TOKENS.bot) == CredentialCheck()


async def test_every_problem_is_told_and_no_secret(gitlab: DemoGitLab, check: Check) -> None:
    credentials = "{id: sa, token: '${env:ONE}'}, {id: sb, token: '${env:TWO}'}, {id: sc, token: '${env:THREE}'}"
    found = await check(gitlab.url, credentials, ONE="glpat-nobody-knows-this", TWO=TOKENS.bot, THREE=TOKENS.root_sudo)
    assert found.problems[0] == "credential `sa` is not accepted by GitLab"
    assert "credential `sc` has the scope" in found.problems[1]
    assert len(found.problems) == 2
    assert "glpat" not in repr(found)


async def test_a_dead_member_of_a_pool_that_works_is_told(gitlab: DemoGitLab, check: Check) -> None:
    pool = "{id: sa, pool: [{token: '${env:ONE}'}, {token: '${env:TWO}'}]}"
    found = await check(gitlab.url, pool, ONE=TOKENS.bot, TWO="glpat-nobody-knows-this")
    assert found == CredentialCheck(warnings=("credential `sa/2` is not accepted by GitLab",), complete=False)
    found = await check(gitlab.url, pool + ", {id: sb, token: '${env:THREE}'}", THREE="glpat-nor-this-one")
    assert found.problems == ("credential `sb` is not accepted by GitLab",)
    assert found.warnings == ("credential `sa/2` is not accepted by GitLab",)


async def test_what_is_not_gitlab_has_not_taken_any(gitlab: DemoGitLab, check: Check) -> None:
    found = await check(f"{gitlab.url}/elsewhere", "{id: sa, token: '${env:ONE}'}", ONE=TOKENS.bot)
    assert (found.problems, found.complete) == ((), False)
    assert "can't be asked about tokens" in found.warnings[0]


async def test_a_gitlab_that_is_away_has_not_taken_any(check: Check) -> None:
    found = await check(GONE, "{id: sa, token: '${env:ONE}'}", ONE=TOKENS.bot)
    assert (found.problems, found.complete) == ((), False)
    assert "is not checked yet" in found.warnings[0]


async def test_a_rotated_one_is_not_asked_about_but_gitlab_must_be_there(gitlab: DemoGitLab, check: Check) -> None:
    """What is configured may be dead for months: its successors are in the store."""
    rotated = "{id: sa, token: '${env:ONE}', rotate: {}}"
    left_out = ("credential `sa` is rotated: its token in use is not asked about",)
    assert await check(gitlab.url, rotated, ONE="glpat-dead-for-months") == CredentialCheck(warnings=left_out)
    away = CredentialCheck(("GitLab can't be reached at 127.0.0.1:9 (upstream_refused)",), left_out, complete=False)
    assert await check(GONE, rotated, ONE=TOKENS.bot) == away
