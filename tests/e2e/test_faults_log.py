"""Whoever reads the operator's log stops reading it: a gateway serves, tells probes, and ends as if they did not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.running import ROOT
from tests.e2e.wire import ask


def fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"." * 4095 + b"\n")
    os.set_blocking(pipe, True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def ready(port: int) -> bool:
    try:
        return ask(port, "/readyz").status == 200
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_that_nobody_reads_stops_nothing(demo: DemoGitLab, redis_url: str, tmp_path: Path, workers: int) -> None:
    port, admin = free_port(), free_port()
    listen = {"address": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin}", "workers": workers}
    config = {**shared_config(demo.url), "listen": listen, "audit": {"sink": f"file:{tmp_path}/audit"}}
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({"version": 1, "state_dir": str(tmp_path / "state"), **config}))
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", str(file)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": redis_url},
        stdin=subprocess.DEVNULL,
        stderr=writing,
    )
    try:
        until = time.monotonic() + 30
        while not ready(admin):
            assert time.monotonic() < until
            time.sleep(0.05)
        fill(writing)
        process.send_signal(signal.SIGHUP)
        assert ask(port, "/api/v4/version", token=TOKENS.ada).status == 200
        said = b""
        while b"certificates reloaded" not in said:
            said += os.read(reading, 1 << 16)
        assert b"gitlab_gateway_log_dropped_total 0.0" in ask(admin, "/metrics").body
        fill(writing)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
