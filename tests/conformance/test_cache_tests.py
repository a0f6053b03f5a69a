"""The public suite for HTTP caches (npm's http-cache-tests 0.4.5) against a gateway with ``cache.mode: shared``.

What fails is named here with its reason, and nothing else may fail. A test that failed is asked once more by itself: the
suite measures freshness in seconds, and a busy machine can sleep through them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import GatewayProcess

HERE = Path(__file__).parent
SUITE = HERE / "node_modules" / "http-cache-tests"

AGE = "RFC 9111 §5.1: an Age that can't be read is ignored; of several the first counts"
STALE_CLOSE = "passed by nobody: the 502 that the directive demands is not the 200 that the test waits for"

REQUIRED_FAILURES = {
    "age-parse-nonnumeric": AGE,
    "age-parse-negative": AGE,
    "age-parse-float": AGE,
    "age-parse-prefix-twoline": AGE,
    "age-parse-dup-0": AGE,
    "age-parse-dup-0-twoline": AGE,
    "age-parse-dup-old": AGE,
    "stale-close-must-revalidate": STALE_CLOSE,
    "stale-close-proxy-revalidate": STALE_CLOSE,
    "stale-close-no-cache": STALE_CLOSE,
    "stale-close-s-maxage=2": STALE_CLOSE,
}
OPTIONAL_FAILURES = {
    "conditional-lm-fresh-no-lm": "RFC 9111 §4.3.2: without Last-Modified its Date decides, and that is later",
    "partial-store-partial-reuse-partial-absent": "the stored piece is an octet shorter than its Content-Range says",
    "partial-store-partial-reuse-partial-suffix": "as above",
    "partial-store-partial-complete": "RFC 9111 §3.4: pieces without a strong validator may not be joined",
}


def free_port() -> int:
    """One that is free at every address: the suite's origin listens on all of them."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The suite's own origin."""
    if not SUITE.is_dir() or shutil.which("node") is None:
        pytest.fail("the conformance suite is missing: `.ci/setup test` installs it", pytrace=False)
    settings = {"protocol": "http", "pidfile": str(tmp_path_factory.mktemp("origin") / "pid")}
    for _ in range(10):
        port = free_port()
        process = subprocess.Popen(
            ["node", "server/server.mjs"],
            cwd=SUITE,
            env={**os.environ, **{f"npm_config_{name}": value for name, value in {**settings, "port": str(port)}.items()}},
            stdout=subprocess.DEVNULL,
        )
        if listens(process, port):
            break
    else:
        pytest.fail("the suite's origin does not start", pytrace=False)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(10)


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it does; False: it ended, for somebody else was quicker to take the port."""
    deadline = time.monotonic() + 20
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return True
    return False


@pytest.fixture(scope="module")
def gateway(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    config = {"upstream": {"url": origin}, "cache": {"mode": "shared", "stale_if_error": "10m"}}
    process = GatewayProcess(config, tmp_path_factory.mktemp("shared"))
    yield process
    assert process.stop() == 0


def run(gateway: GatewayProcess, test: str = "") -> dict[str, object]:
    """Results by test id: true, or what went wrong."""
    settings = {"npm_config_base": gateway.url, "npm_config_id": test, "npm_package_config_id": test}
    ran = subprocess.run(
        ["node", "--no-warnings", "cli.mjs"],
        cwd=SUITE,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    if test:
        return {test: "✅" in ran.stdout.splitlines()[-1] or ran.stdout}
    return dict(json.loads(ran.stdout))


@pytest.fixture(scope="module")
def results(gateway: GatewayProcess) -> dict[str, bool]:
    return {test: result is True for test, result in run(gateway).items()}


@pytest.fixture(scope="module")
def kinds() -> dict[str, str]:
    listed = subprocess.run(["node", "scores.mjs"], cwd=HERE, capture_output=True, text=True, timeout=30, check=True)
    return dict(json.loads(listed.stdout))


@pytest.mark.parametrize(
    ("kind", "explained"), [("required", REQUIRED_FAILURES), ("optimal", OPTIONAL_FAILURES)], ids=["required", "optimal"]
)
def test_what_fails_is_explained(
    gateway: GatewayProcess, results: dict[str, bool], kinds: dict[str, str], kind: str, explained: dict[str, str]
) -> None:
    failed = {test for test, is_kind in kinds.items() if is_kind == kind and not results[test]}
    unexplained = {test for test in failed - set(explained) if run(gateway, test)[test] is not True}
    assert not unexplained
    assert not set(explained) - failed, "better than said: say so"


def test_the_scores(
    results: dict[str, bool], kinds: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    scores = {
        kind: (sum(results[test] for test in kinds if kinds[test] == kind), sum(each == kind for each in kinds.values()))
        for kind in ("required", "optimal", "check")
    }
    shown = ", ".join(f"{kind} {passed}/{of}" for kind, (passed, of) in scores.items())
    record_property("score", f"http-cache-tests 0.4.5, cache.mode shared: {shown}")
    assert {kind: of for kind, (_, of) in scores.items()} == {"required": 165, "optimal": 95, "check": 90}
    assert scores["required"][0] >= 165 - 20
    assert scores["optimal"][0] >= 85
