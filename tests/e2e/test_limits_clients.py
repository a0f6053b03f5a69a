"""Real clients and the published formulas of others, each driven at three times its limit: none loses a request.

Those that read the headers slow down by them; those that never retry are absorbed.
"""

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

import gitlab as python_gitlab
import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.running import ROOT, GatewayProcess
from tests.e2e.wire import Reply, ask

RATE = 5  # a second
BURST = 5
SECONDS = 3
REQUESTS = RATE * SECONDS * 3


@pytest.fixture(scope="module")
def limited(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    limits = [{"id": "caller", "by": "caller", "rate": f"{RATE * 60}/min", "burst": BURST, "advertise": True}]
    process = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path_factory.mktemp("driven"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def absorbing(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    limits = [{"id": "caller", "by": "caller", "rate": f"{RATE * 60}/min", "burst": BURST, "absorb": "30s"}]
    process = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path_factory.mktemp("absorbing"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


def driven(work: Any, at_once: int = 8) -> float:
    """``work`` for every request, as fast as may be: far above the limit. How long it took."""
    started = time.monotonic()
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(work, range(REQUESTS)))  # raises what any of them raised
    return time.monotonic() - started


def test_python_gitlab_slows_down_by_the_headers(limited: GatewayProcess) -> None:
    def work(_: int) -> None:
        with python_gitlab.Gitlab(limited.url, private_token=TOKENS.bob) as client:
            assert client.version()[0] != "unknown"

    # A client that waits whole seconds needs longer than the limit; none may fail.
    assert driven(work, at_once=3) >= (REQUESTS - BURST) / RATE - 0.5
    assert 'gitlab_gateway_limit_decisions_total{limit="caller",outcome="refused"}' in limited.metrics()


GITBEAKER = """
import { Gitlab } from "@gitbeaker/rest";
const [url, token, count] = process.argv.slice(1);
const api = new Gitlab({ host: url, token });
const asked = Array.from({ length: Number(count) }, () => api.Metadata.show());
const answered = await Promise.allSettled(asked);
console.log(JSON.stringify(answered.map((one) => (one.status === "fulfilled" ? 200 : String(one.reason)))));
"""


def test_gitbeaker_is_absorbed(absorbing: GatewayProcess) -> None:
    """It reads no header, and its ten retries are over within 256 ms (``delay(2 ** i * 0.25)`` counts milliseconds)."""
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "--input-type=module", "-e", GITBEAKER, absorbing.url, TOKENS.ada, str(REQUESTS)],
        cwd=ROOT / "tests" / "e2e",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [200] * REQUESTS


class GoClient:
    """client-go's arithmetic (gitlab.go, ``configureLimiter`` and ``rateLimitBackoff``), which terraform and glab share.

    Before its first request it asks ``/api/v4/`` without a token, and lets itself two thirds of the ``RateLimit-Limit``
    there, a third of it at once. A 429 is tried again, five times, after the second that ``RateLimit-Reset`` names.
    """

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.token = token
        probe = ask(port, "/api/v4/")
        limit = int(probe.value("RateLimit-Limit") or "0") / 60
        self.rate = limit * 0.66
        self.burst = max(1, int(limit * 0.33))

    def get(self, target: str) -> Reply:
        for _ in range(6):
            reply = ask(self.port, target, token=self.token)
            if reply.status != 429 and reply.status < 500:
                return reply
            reset = int(reply.value("RateLimit-Reset") or "0")
            time.sleep(max(0.1, reset - time.time()))
        return reply


def test_the_go_probe_is_told_a_rate_that_is_never_refused(limited: GatewayProcess) -> None:
    client = GoClient(limited.port, TOKENS.eve)
    assert client.rate == pytest.approx(RATE * 0.66)
    assert client.burst <= BURST


def test_go_clients_that_ignore_their_limiter_finish_by_reset_alone(limited: GatewayProcess) -> None:
    client = GoClient(limited.port, TOKENS.eve)

    def work(_: int) -> None:
        assert client.get("/api/v4/version").status == 200

    driven(work, at_once=3)


def test_clients_that_never_retry_are_absorbed(absorbing: GatewayProcess) -> None:
    """As ruby-gitlab and ``glab api``."""

    def work(_: int) -> None:
        assert ask(absorbing.port, "/api/v4/version", token=TOKENS.bob).status == 200

    assert driven(work) >= (REQUESTS - BURST) / RATE - 0.5
    assert "gitlab_gateway_limit_absorbed_total" in absorbing.metrics()


def test_a_caller_may_ask_to_be_absorbed(limited: GatewayProcess) -> None:
    key = limited.new_key("bot")

    def work(_: int) -> None:
        assert ask(limited.port, "/api/v4/version", "Prefer: wait=30", token=key).status == 200

    driven(work)


def test_npm_says_why_it_was_refused(demo: DemoGitLab, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not to be had here")
    limits = [{"id": "caller", "by": "caller", "rate": "1/hour", "burst": 1}]
    process = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path / "gateway", DEMO_SECRETS)
    try:
        assert ask(process.port, "/api/v4/version", token=TOKENS.bob).status == 200
        address = f"{process.url}/api/v4/projects/1/packages/npm/"
        secret = f"{address.removeprefix('http:')}:_authToken={TOKENS.bob}"
        (tmp_path / ".npmrc").write_text(f"@acme:registry={address}\n{secret}\nfetch-retries=0\nupdate-notifier=false\n")
        done = subprocess.run(
            [npm, "view", "@acme/lib"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "429 Too Many Requests" in done.stderr
        assert "requested too many times. Try again later." in done.stderr
    finally:
        process.stop()
