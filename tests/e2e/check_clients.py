"""Clients that not every machine has: ``make clients`` fetches them and runs this. ``make test`` does not collect it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.load import figure
from tests.e2e.running import ROOT, GatewayProcess

QUESTIONS = {b"/api/v4/personal_access_tokens/self", b"/oauth/token/info", b"/api/v4/job"}
GLAB = shutil.which("glab") or str(ROOT / ".clients/usr/bin/glab")
NESTED = "platform%2Ftools%2Fdeploy%2Frunner-images"

RUBY = """
require 'gitlab'
require 'json'
client = Gitlab.client(endpoint: ENV['ENDPOINT'], private_token: ENV['TOKEN'])
issues = client.issues('platform/api', per_page: 20, state: 'all').auto_paginate.map(&:iid)
made = client.create_issue('platform/api', 'From Ruby', description: 'x')
client.edit_issue('platform/api', made.iid, title: 'Edited')
missing = begin
  client.project('no/such')
rescue Gitlab::Error::NotFound => error
  error.response_status
end
puts JSON.dump(
  issues: issues, edited: client.issue('platform/api', made.iid).title, missing: missing,
  nested: client.project('platform/tools/deploy/runner-images').path_with_namespace
)
"""


@pytest.fixture(params=["own", "brokered"])
def token(request: pytest.FixtureRequest, bot_key: str) -> str:
    return TOKENS.ada if request.param == "own" else bot_key


@pytest.fixture
def journal(demo: DemoGitLab) -> Iterator[None]:
    """Nobody went round the gateway, and nobody's key went up."""
    before = len(demo.journal)
    yield
    seen: list[Any] = list(demo.journal)[before:]
    assert seen
    for one in seen:
        assert one.values("via") == [b"1.1 gateway"] or one.target in QUESTIONS, one.line
        assert not any(value.startswith(b"ggw_") for _, value in one.headers), one.line


def _run(command: list[str], directory: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "LANG": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("journal")
def test_ruby_gitlab(gateway: GatewayProcess, token: str, tmp_path: Path) -> None:
    output = _run(["ruby", "-e", RUBY], tmp_path, ENDPOINT=f"{gateway.url}/api/v4", TOKEN=token)
    found = json.loads(output.splitlines()[-1])
    assert len(found["issues"]) == len(set(found["issues"])) > 20
    assert (found["edited"], found["missing"]) == ("Edited", 404)
    assert found["nested"] == "platform/tools/deploy/runner-images"


@pytest.fixture
def glab(gateway: GatewayProcess, token: str, tmp_path: Path) -> Any:
    return _glab(gateway, token, tmp_path)


def _glab(gateway: GatewayProcess, token: str, tmp_path: Path) -> Any:
    host = f"127.0.0.1:{gateway.port}"
    (tmp_path / "config.yml").write_text(
        f"check_update: false\nhosts:\n  {host}:\n    token: {token}\n    api_host: {host}\n    api_protocol: http\n"
    )
    os.chmod(tmp_path / "config.yml", 0o600)

    def run(*arguments: str) -> str:
        return _run([GLAB, *arguments], tmp_path, GLAB_CONFIG_DIR=str(tmp_path), GITLAB_HOST=host, NO_COLOR="1")

    return run


@pytest.mark.usefixtures("journal")
def test_glab(glab: Any) -> None:
    output = glab("api", "--paginate", "projects/platform%2Fapi/issues?per_page=20&state=all")
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(output.rstrip()):  # one array a page
        page, at = decoder.raw_decode(output, at)
        found += [issue["iid"] for issue in page]
    assert len(found) == len(set(found)) > 20
    assert json.loads(glab("api", f"projects/{NESTED}"))["path"] == "runner-images"
    made = json.loads(glab("api", "-X", "POST", "projects/platform%2Fapi/issues", "-f", "title=From glab"))
    assert made["title"] == "From glab"
    assert f"#{made['iid']}" in glab("issue", "list", "--repo", "platform/api", "--per-page", "100")


# Beyond their limit: `glab api` and ruby-gitlab never try again, so they are let wait; glab's commands read the headers

RATE, BURST, REQUESTS = 5, 5, 40
ABSORBED = "gitlab_gateway_limit_absorbed_total"

RUBY_DRIVEN = """
require 'gitlab'
asked = 4.times.map do
  Thread.new do
    client = Gitlab.client(endpoint: ENV['ENDPOINT'], private_token: ENV['TOKEN'])
    10.times.map { client.user.username }
  end
end
puts asked.flat_map(&:value).length
"""


@pytest.fixture(scope="module")
def absorbing(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    limits = [{"id": "caller", "by": "caller", "rate": f"{RATE * 60}/min", "burst": BURST, "absorb": "30s"}]
    process = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path_factory.mktemp("absorbing"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


def test_ruby_gitlab_is_absorbed(absorbing: GatewayProcess, tmp_path: Path) -> None:
    started, before = time.monotonic(), figure(absorbing, ABSORBED)
    output = _run(["ruby", "-e", RUBY_DRIVEN], tmp_path, ENDPOINT=f"{absorbing.url}/api/v4", TOKEN=TOKENS.bob)
    assert output.split() == [str(REQUESTS)]
    assert time.monotonic() - started >= (REQUESTS - BURST) / RATE - 0.5
    assert figure(absorbing, ABSORBED) > before


def test_glab_api_is_absorbed(absorbing: GatewayProcess, tmp_path: Path) -> None:
    glab = _glab(absorbing, TOKENS.ada, tmp_path)
    started, before = time.monotonic(), figure(absorbing, ABSORBED)
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(lambda _: json.loads(glab("api", "user"))["username"], range(REQUESTS)))
    assert names == ["ada"] * REQUESTS
    assert time.monotonic() - started >= (REQUESTS - BURST) / RATE - 0.5
    assert figure(absorbing, ABSORBED) > before


def test_glabs_commands_slow_down_by_the_headers(demo: DemoGitLab, tmp_path: Path) -> None:
    limits = [{"id": "caller", "by": "caller", "rate": f"{RATE * 60}/min", "burst": BURST, "advertise": True}]
    gateway = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path / "gateway", DEMO_SECRETS)
    try:
        glab = _glab(gateway, TOKENS.ada, tmp_path)
        with ThreadPoolExecutor(3) as threads:
            outputs = list(threads.map(lambda _: glab("issue", "list", "--repo", "platform/api"), range(REQUESTS // 2)))
        assert len(outputs) == REQUESTS // 2
        assert all("#" in one for one in outputs)
        assert figure(gateway, 'gitlab_gateway_limit_decisions_total{limit="caller",outcome="refused"}') > 0
    finally:
        assert gateway.stop() == 0
