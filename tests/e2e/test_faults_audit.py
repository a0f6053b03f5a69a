"""An audit that cannot be written: requests go on, and operators learn what is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.load import checks, figure, until
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import ask


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_counted_and_told(demo: DemoGitLab, tmp_path: Path) -> None:
    config = demo_config(demo.url, audit={"sink": "file:/dev/full", "on_failure": "drop"})
    gateway = GatewayProcess(config, tmp_path, DEMO_SECRETS)
    try:
        replies = [ask(gateway.port, "/api/v4/version", token=TOKENS.ada) for _ in range(20)]
        assert {reply.status for reply in replies} == {200}
        until(lambda: figure(gateway, "gitlab_gateway_audit_dropped_total") == 20, "each lost line is counted")
        assert checks(gateway)["audit"] == "degraded: lines are being lost"
        assert ask(gateway.admin_port, "/readyz").status == 200
        reports = [line for line in gateway.log.all if "audit sink fails" in line]
        assert len(reports) == 1, "once, not once a line"
    finally:
        assert gateway.stop() == 0


def test_a_reader_who_stops_reading_stalls_nobody(demo: DemoGitLab, tmp_path: Path) -> None:
    """The sink is a pipe that fills up: lines wait, nobody else does, and they all come once it is read again."""
    pipe = tmp_path / "audit"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    gateway = GatewayProcess(demo_config(demo.url, audit={"sink": f"file:{pipe}"}), tmp_path / "gateway", DEMO_SECRETS)
    try:
        long = "x" * 4000
        replies = [ask(gateway.port, f"/api/v4/version?n={n}&{long}", token=TOKENS.ada) for n in range(40)]
        assert {reply.status for reply in replies} == {200}
        until(lambda: figure(gateway, "gitlab_gateway_audit_events_total") == 40, "all are rendered")
        os.set_blocking(reader, True)
        with os.fdopen(reader, "rb") as lines:
            read = [lines.readline() for _ in range(40)]
        assert [f"n={n}&".encode() in line for n, line in enumerate(read)] == [True] * 40
        assert figure(gateway, "gitlab_gateway_audit_dropped_total") == 0
    finally:
        assert gateway.stop() == 0


def test_a_pipe_that_nobody_reads_yet_is_not_waited_for(demo: DemoGitLab, tmp_path: Path) -> None:
    """Neither at the start nor when its reader has made it anew: lines wait on disk, and come in their order."""
    pipe = tmp_path / "audit"
    os.mkfifo(pipe)
    gateway = GatewayProcess(demo_config(demo.url, audit={"sink": f"file:{pipe}"}), tmp_path / "gateway", DEMO_SECRETS)
    try:
        for number in range(2):
            assert ask(gateway.port, f"/api/v4/version?n={number}", token=TOKENS.ada).status == 200
            until(lambda: checks(gateway)["audit"] == "degraded: the sink fails, lines are spooled", "it is reported")
            gateway.log.find(lambda line: "the audit sink fails: nobody reads the pipe" in line or None)
            with open(pipe, "rb") as reader:
                assert f"n={number}".encode() in reader.readline()
                until(lambda: checks(gateway)["audit"] == "ok", "it is reported that it is over")
                pipe.unlink()
                os.mkfifo(pipe)
    finally:
        assert gateway.stop() == 0
