"""The first moments of a process: signals that come before it can handle them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from gateway.demo.gitlab import DemoGitLab
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.load import until
from tests.e2e.running import ROOT, Lines

Start = Callable[..., "subprocess.Popen[str]"]
FIRST = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
"""Before a command: it is the first process, as in a container."""


@pytest.fixture
def start(demo: DemoGitLab, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts so many workers, and waits only until a SIGHUP is kept; whatever is still there at the end is ended. What
    stands ``before`` the command has it started as its one child."""
    with ExitStack() as started:

        def begin(workers: int, before: tuple[str, ...] = (), url: str = demo.url, **more: object) -> subprocess.Popen[str]:
            listen = {"address": "127.0.0.1:0", "admin": "127.0.0.1:0", "workers": workers}
            audit = {"sink": f"file:{tmp_path}/audit"}
            config = {"version": 1, "state_dir": str(tmp_path / "state"), **shared_config(url), "listen": listen}
            file = tmp_path / "gateway.yaml"
            file.write_text(json.dumps({**config, "audit": audit, **more}))
            process = subprocess.Popen(
                [*before, sys.executable, "-m", "gateway", "serve", "--config", str(file)],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], **DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": redis_url},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=heed_interrupts,
            )
            started.callback(process.wait)
            started.callback(process.kill)
            if before:
                until(lambda: child_of(process.pid) > 0, "it is started")
                started.callback(kill, child_of(process.pid))
            until(lambda: keeps_hangups(child_of(process.pid) if before else process.pid), "one that comes is kept")
            return process

        yield begin


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def child_of(pid: int) -> int:
    """0: none yet."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().strip() or 0)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def keeps_hangups(pid: int) -> bool:
    (mask,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:")]
    return bool(int(mask.split()[1], 16) & 1)


@pytest.mark.parametrize(
    ("workers", "heeded"), [(1, "the configuration is not: that needs"), (2, "the configuration has not changed")]
)
def test_a_hangup_during_the_start_is_heeded_behind_it(start: Start, workers: int, heeded: str) -> None:
    process = start(workers)
    process.send_signal(signal.SIGHUP)
    lines = Lines(process.stderr)
    lines.find(lambda line: heeded in line or None)
    assert "serving http" in "".join(lines.all)
    process.send_signal(signal.SIGHUP)
    lines.find(lambda line: heeded in line or None, start=len(lines.all))
    process.terminate()
    assert process.wait(60) == 0
    lines.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_end_that_is_asked_for_during_the_start_is_quiet(start: Start, workers: int, number: signal.Signals) -> None:
    process = start(workers)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in {-number, 0}  # by the signal itself; a moment later drained
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_end_that_is_asked_for_waits_for_no_gitlab(
    start: Start, workers: int, number: signal.Signals, tmp_path: Path
) -> None:
    """It is asked about credentials, and does not answer for as long as it is waited for."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(30)
        process = start(
            workers,
            url=f"http://127.0.0.1:{mute.getsockname()[1]}",
            audit={"sink": f"file:{tmp_path}/audit", "chain": True},
        )
        asking, _ = mute.accept()
        with asking:
            process.send_signal(number)
            _, said = process.communicate(timeout=40)
    assert process.returncode == 0
    assert "told to stop before it served" in said
    assert "serving http" not in said
    assert "Traceback" not in said
    assert [json.loads(line)["event"] for line in (tmp_path / "audit").read_text().splitlines()] == [
        "chain_opened",
        "chain_closed",
    ]


@pytest.mark.skipif(
    shutil.which(FIRST[0]) is None or subprocess.run([*FIRST, "true"], check=False, capture_output=True).returncode != 0,
    reason="no process may have processes of its own numbering here",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_process_of_a_container_ends_too(start: Start, workers: int, number: signal.Signals) -> None:
    """The system gives it no signal that it has no handler for."""
    process = start(workers, FIRST)
    os.kill(child_of(process.pid), number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in {128 + number, 0}, said  # a moment later drained
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_signalled_again_and_again_it_ends_as_signalled_twice(start: Start, workers: int, number: signal.Signals) -> None:
    """The last signals find a process whose loop is gone."""
    process = start(workers)
    lines = Lines(process.stderr)
    lines.find(lambda line: "serving http" in line or None)
    while process.poll() is None:
        process.send_signal(number)
    lines.join()
    assert process.returncode == 0
    assert "Traceback" not in "".join(lines.all)
