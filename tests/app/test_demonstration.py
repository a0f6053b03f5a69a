"""The demo does what it says: its own words are run."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest


def heed_hangups() -> None:
    """The tests themselves may run under ``nohup``, and children inherit what is ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def started(*before: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo and what it prints; whoever leaves has told it to go."""
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "gateway", "demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_hangups,
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if "seq 30" in line:
            break
    try:
        yield process, text
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def words() -> Iterator[str]:
    """What the demo prints, while it runs."""
    with started() as (process, text):
        yield text
        process.terminate()


def run(command: str) -> str:
    assert shutil.which("curl"), "curl is part of what the tests need"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100, check=True)
    return done.stdout


def commands(words: str) -> list[str]:
    return [line.strip() for line in words.splitlines() if line.startswith("   ") and "curl" in line]


def test_a_path_with_2f(words: str) -> None:
    answer = run(commands(words)[0])
    assert answer.startswith("HTTP/1.1 200 ")
    assert '"name":"feature/login"' in answer.replace(" ", "")


def test_the_second_answer_is_a_304(words: str) -> None:
    first, second = commands(words)[1:3]
    assert run(first) == ""
    answer = run(second)
    assert answer.startswith("HTTP/1.1 304 ")
    assert re.search(r"(?im)^cache-status: .*hit", answer)


def test_metrics_and_health(words: str) -> None:
    found = re.search(r"Metrics and health: (http://[^/]+)/metrics", words)
    assert found is not None
    assert '"ready":true' in run(f"curl -s {found[1]}/readyz")
    assert "gitlab_gateway_http_requests_total" in run(f"curl -s {found[1]}/metrics")


def test_a_burst_earns_a_429(words: str) -> None:
    # Several at once: one alone is below the limit where the machine starts only few of curl a second.
    with ThreadPoolExecutor() as shells:
        codes = "".join(shells.map(run, [commands(words)[3]] * 4)).split()
    assert len(codes) == 4 * 30
    assert set(codes) == {"200", "429"}
    assert codes[0] == "200"


def test_it_ends_with_its_terminal() -> None:
    with started() as (process, _):
        process.send_signal(signal.SIGHUP)


def test_it_outlives_its_terminal_where_it_was_told_to() -> None:
    with started("nohup") as (process, text):
        process.send_signal(signal.SIGHUP)
        test_metrics_and_health(text)
        process.terminate()


def test_what_can_not_be_configured_is_refused_in_a_line() -> None:
    command = [sys.executable, "-m", "gateway", "demo", "--listen", "127.0.0.1:8090", "--admin", "127.0.0.1:8090"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = "command line: listen.admin: is the data port too: probes and metrics are not for clients\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
