"""The first moments of a process: signals that come before it can hear them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.demo.gitlab import DemoGitLab
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.load import until
from tests.e2e.running import ROOT, Lines

Start = Callable[[int], "subprocess.Popen[str]"]


@pytest.fixture
def start(demo: DemoGitLab, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts so many workers, and waits only until a SIGHUP is kept; whatever is still there at the end is ended."""
    with ExitStack() as started:

        def begin(workers: int) -> subprocess.Popen[str]:
            listen = {"address": "127.0.0.1:0", "admin": "127.0.0.1:0", "workers": workers}
            audit = {"sink": f"file:{tmp_path}/audit"}
            config = {"version": 1, "state_dir": str(tmp_path / "state"), **shared_config(demo.url), "listen": listen}
            file = tmp_path / "gateway.yaml"
            file.write_text(json.dumps({**config, "audit": audit}))
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(file)],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], **DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": redis_url},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=heed_interrupts,
            )
            started.callback(process.wait)
            started.callback(process.kill)
            until(lambda: keeps_hangups(process.pid), "one that comes is kept")
            return process

        yield begin


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def keeps_hangups(pid: int) -> bool:
    (mask,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:")]
    return bool(int(mask.split()[1], 16) & 1)


@pytest.mark.parametrize(
    ("workers", "heeded"), [(1, "the configuration is not read again"), (2, "the configuration is as it was")]
)
def test_a_hangup_during_the_start_is_heeded_behind_it(start: Start, workers: int, heeded: str) -> None:
    process = start(workers)
    process.send_signal(signal.SIGHUP)
    lines = Lines(process.stderr)
    lines.find(lambda line: heeded in line or None)
    assert "serving http" in "".join(lines.all)
    until(lambda: not keeps_hangups(process.pid), "they are let through")  # a thread's creation blocks all for a moment
    process.send_signal(signal.SIGHUP)
    lines.find(lambda line: heeded in line or None, start=len(lines.all))
    process.terminate()
    assert process.wait(20) == 0
    lines.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_end_that_is_asked_for_during_the_start_is_quiet(start: Start, workers: int, number: signal.Signals) -> None:
    process = start(workers)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode in {-number, 0}  # by the signal itself; a moment later drained
    assert "Traceback" not in said
