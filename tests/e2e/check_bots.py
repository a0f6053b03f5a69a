"""Bots that release and renovate: ``make clients`` fetches them and runs this. ``make test`` does not collect it.

GitLab is whole here (API and repositories), calls itself by a name that leads nowhere, and everything that a bot does goes
through one gateway, Git included: whoever follows an address past it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from gateway.demo.gitlab import build_demo_gitlab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, EXTERNAL_URL, demo_config
from tests.e2e.running import ROOT, GatewayProcess, LoopThread
from tests.fakes.whole_gitlab import WholeGitLab

BOTS = ROOT / ".clients/bots/node_modules/.bin"
PROJECT = "platform/api"

RELEASING = {
    "branches": ["main"],
    "ci": False,
    "plugins": [
        "@semantic-release/commit-analyzer",
        "@semantic-release/release-notes-generator",
        ["@semantic-release/gitlab", {"assets": [{"path": "notes.txt", "label": "Notes"}]}],
    ],
}

RENOVATING = {
    "customManagers": [
        {
            "customType": "regex",
            "fileMatch": ["^versions\\.txt$"],
            "matchStrings": ["(?<depName>\\S+) (?<currentValue>\\S+)"],
            "datasourceTemplate": "gitlab-tags",
            "versioningTemplate": "semver",
        }
    ],
    "enabledManagers": ["custom.regex"],
}


@pytest.fixture
def whole(upstreams: LoopThread, tmp_path: Path) -> Iterator[WholeGitLab]:
    demo = build_demo_gitlab(external_url=EXTERNAL_URL, reveal=True)
    upstreams.run(demo.start())
    gitlab = WholeGitLab(tmp_path / "repositories", demo, EXTERNAL_URL, {TOKENS.ada})
    upstreams.run(gitlab.start())
    yield gitlab
    upstreams.run(gitlab.close())
    upstreams.run(demo.close())


@pytest.fixture
def gateway(whole: WholeGitLab, tmp_path: Path) -> Iterator[GatewayProcess]:
    """Known by a name of its own, to which addresses in JSON lead back: Renovate clones from one of them."""
    with closing(create_server(("127.0.0.1", 0))) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    config = demo_config(whole.url, listen={"address": place, "admin": "127.0.0.1:0", "public_url": f"http://{place}"})
    config["upstream"]["rewrite_json"] = True
    process = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    yield process
    assert process.stop() == 0


@pytest.fixture(params=["own", "brokered"])
def token(request: pytest.FixtureRequest, gateway: GatewayProcess) -> str:
    return TOKENS.ada if request.param == "own" else gateway.new_key("bot")


@pytest.fixture(autouse=True)
def nobodys_key_goes_up(whole: WholeGitLab, gateway: GatewayProcess) -> Iterator[None]:
    yield
    assert gateway.port
    for head in whole.requests:
        assert "ggw_" not in str(head.fields) + str(head.password), head.target


def _run(command: list[str], directory: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_semantic_release(whole: WholeGitLab, gateway: GatewayProcess, token: str, tmp_path: Path) -> None:
    """It pushes a tag, uploads an asset, publishes the release, and asks which merge requests to tell."""
    project = whole.demo.state.projects[1]
    bare = whole.seed(project, {"notes.txt": "Notes\n", ".releaserc.json": json.dumps(RELEASING)})
    work = tmp_path / "work"
    _run(["git", "clone", "--quiet", str(bare), str(work)], tmp_path)
    # Resolved from the working directory up: the plugins must be found there.
    (tmp_path / "node_modules").symlink_to(BOTS.parent)
    address = f"{gateway.url}/{PROJECT}.git"
    output = _run([str(BOTS / "semantic-release"), "--repository-url", address], work, GL_URL=gateway.url, GL_TOKEN=token)
    assert "Published GitLab release: v1.0.0" in output
    assert token not in output
    release: Any = project.releases["v1.0.0"]
    assert "begin" in release["description"]
    assert release["assets"]["links"][0]["url"].startswith(gateway.url)
    assert _run(["git", "-C", str(bare), "tag", "--list"], tmp_path).split() == ["v1.0.0"]
    assert any(one.target.endswith(b"/merge_requests") and b"/commits/" in one.target for one in whole.demo.journal)


def test_renovate(whole: WholeGitLab, gateway: GatewayProcess, token: str, tmp_path: Path) -> None:
    """A dry run in full: clones by the project's own address, looks up versions, and says what it would do."""
    project = whole.demo.state.projects[1]
    whole.seed(
        project,
        {
            "renovate.json": json.dumps(
                RENOVATING | {"packageRules": [{"matchManagers": ["custom.regex"], "registryUrls": [gateway.url]}]}
            ),
            "versions.txt": f"{PROJECT} v0.1.0\n",
        },
    )
    output = _run(
        [str(BOTS / "renovate"), PROJECT],
        tmp_path,
        RENOVATE_PLATFORM="gitlab",
        RENOVATE_ENDPOINT=f"{gateway.url}/api/v4/",
        RENOVATE_TOKEN=token,
        RENOVATE_DRY_RUN="full",
        RENOVATE_ONBOARDING="false",
        RENOVATE_BASE_DIR=str(tmp_path / "renovate"),
        LOG_FORMAT="json",
        LOG_LEVEL="debug",
    )
    assert token not in output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    said = [line["msg"] for line in lines]
    assert "DRY-RUN: Would commit files to branch renovate/platform-api-1.x" in said, said
    assert not [line for line in lines if line["level"] >= 50]
    assert any(head.target.startswith(f"/{PROJECT}.git/git-upload-pack") for head in whole.requests)
