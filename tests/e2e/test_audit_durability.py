"""What is in the audit when the gateway is killed, when its disk is full, and when its file is rotated."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.load import Load, checks, figure, until
from tests.e2e.running import ROOT, GatewayProcess
from tests.e2e.wire import Peer, ask

ISSUE = "/api/v4/projects/platform%2Fapi/issues?title=x"


def audited(tmp_path: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "log").mkdir(exist_ok=True)
    return {"sink": f"file:{tmp_path}/log/audit", "chain": True, **more}


def events(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def verified(gateway: GatewayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "audit", "verify", *arguments, "--config", str(gateway.file)],
        cwd=ROOT,
        env=gateway.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kill(gateway: GatewayProcess) -> None:
    gateway.process.kill()
    gateway.process.wait(60)


# Killed


@pytest.mark.parametrize("moment", range(3))
def test_a_killed_gateway_loses_the_last_moment_alone(demo: DemoGitLab, tmp_path: Path, moment: int) -> None:
    """What was answered earlier than 50 ms before is written. The machine's own pauses, as the client saw them, on top."""
    gateway = GatewayProcess(demo_config(demo.url, audit=audited(tmp_path)), tmp_path / "gateway", DEMO_SECRETS)
    answered: list[tuple[float, str]] = []
    with Peer(gateway.port) as peer:
        for _ in range(150 + 7 * moment):
            peer.send(b"GET /api/v4/version HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: %b\r\n\r\n" % TOKENS.ada.encode())
            reply = peer.read_reply()
            answered.append((time.monotonic(), reply.request_id))
    kill(gateway)
    killed = time.monotonic()
    pauses = [later - earlier for earlier, later in itertools.pairwise([*(at for at, _ in answered), killed])]
    file = tmp_path / "log" / "audit"
    if torn := file.read_bytes().rpartition(b"\n")[2]:
        os.truncate(file, file.stat().st_size - len(torn))  # Linux ends a killed process's write between two pages
    there = [event["request_id"] for event in events(file) if "request_id" in event]
    assert there == [request_id for _, request_id in answered][: len(there)], "a beginning of it, without a hole"
    lost = [at for at, _ in answered[len(there) :]]
    assert all(killed - at <= 0.05 + 10 * max(pauses) for at in lost)
    assert verified(gateway, str(file), "--open").returncode == 0
    gateway.stop()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A GitLab that takes a request and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


def test_a_change_is_on_disk_before_gitlab_hears_of_it(silent: socket.socket, tmp_path: Path) -> None:
    """Killed while GitLab holds the request: the line is there, and says what went up."""
    config = {
        "upstream": {"url": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        "identities": [{"id": "anyone", "anonymous": True}],
        "audit": audited(tmp_path, durability="before_write"),
    }
    gateway = GatewayProcess(config, tmp_path / "gateway")
    tried, _ = silent.accept()  # at the start, to see whether GitLab can be reached
    tried.close()
    with Peer(gateway.port) as peer:
        peer.send(b"POST /api/v4/projects HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        held, _ = silent.accept()
        held.settimeout(30)
        head = b""
        while b"\r\n\r\n" not in head:
            head += held.recv(65536)
        kill(gateway)
        held.close()
    (forwarding,) = [event for event in events(tmp_path / "log" / "audit") if event.get("event") == "forwarding"]
    assert f"\r\nX-Request-Id: {forwarding['request_id']}\r\n".encode() in head
    assert (forwarding["method"], forwarding["target"], forwarding["identity"]) == ("POST", "/api/v4/projects", "anyone")
    assert "status" not in forwarding
    assert verified(gateway, str(tmp_path / "log" / "audit"), "--open").returncode == 0
    gateway.stop()


def test_a_read_is_not_waited_for(demo: DemoGitLab, tmp_path: Path) -> None:
    config = demo_config(demo.url, audit=audited(tmp_path, durability="before_write"))
    gateway = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    read = ask(gateway.port, "/api/v4/version", token=TOKENS.ada)
    written = ask(gateway.port, ISSUE, method="POST", token=TOKENS.ada)
    assert (read.status, written.status) == (200, 201)
    assert gateway.stop() == 0
    lines = [(event["request_id"], event.get("event")) for event in events(tmp_path / "log" / "audit") if "peer" in event]
    assert sorted(lines, key=lambda one: one[0]) == [
        (read.request_id, None),
        (written.request_id, "forwarding"),
        (written.request_id, None),
    ]


# A sink that fails


def test_what_the_disk_did_not_take_comes_when_it_is_back(demo: DemoGitLab, tmp_path: Path) -> None:
    """In order, the chain whole, and readiness and metrics report it meanwhile."""
    gateway = GatewayProcess(demo_config(demo.url, audit=audited(tmp_path)), tmp_path / "gateway", DEMO_SECRETS)
    log, away = tmp_path / "log", tmp_path / "away"
    asked = [ask(gateway.port, "/api/v4/version", token=TOKENS.ada).request_id]
    until(lambda: figure(gateway, "gitlab_gateway_audit_events_total") == 1, "it is rendered")
    log.rename(away)
    for target, method in (("/api/v4/version", "GET"), (ISSUE, "POST")) * 5:
        reply = ask(gateway.port, target, method=method, token=TOKENS.ada)
        assert reply.status < 300
        asked.append(reply.request_id)
    until(lambda: figure(gateway, "gitlab_gateway_audit_spool_bytes") > 3000, "they wait on disk")
    assert figure(gateway, "gitlab_gateway_audit_failing") == 1
    assert checks(gateway)["audit"] == "degraded: the sink fails, lines are spooled"
    log.mkdir()
    until(lambda: figure(gateway, "gitlab_gateway_audit_failing") == 0, "it takes lines again")
    assert figure(gateway, "gitlab_gateway_audit_spool_bytes") == 0
    assert checks(gateway)["audit"] == "ok"
    asked.append(ask(gateway.port, "/api/v4/version", token=TOKENS.ada).request_id)
    assert gateway.stop() == 0
    files = (away / "audit", log / "audit")
    assert [event["request_id"] for event in events(*files) if "request_id" in event] == asked
    assert verified(gateway, *map(str, files)).stderr.endswith(": whole\n")


@pytest.mark.parametrize(("policy", "reads"), [("spool_then_block", 200), ("spool_then_block_all", 503)])
def test_without_room_nothing_is_changed(demo: DemoGitLab, tmp_path: Path, policy: str, reads: int) -> None:
    audit = audited(tmp_path, on_failure=policy, spool="66KiB")
    gateway = GatewayProcess(demo_config(demo.url, audit=audit), tmp_path / "gateway", DEMO_SECRETS)
    log, away = tmp_path / "log", tmp_path / "away"
    log.rename(away)
    until(
        lambda: (
            ask(gateway.port, ISSUE, method="POST", token=TOKENS.ada).status == 503
            and figure(gateway, "gitlab_gateway_audit_blocked") == 1
        ),
        "there is no room",
    )
    assert checks(gateway)["audit"] == "degraded: there is no room for lines, requests are refused"
    refused = ask(gateway.port, ISSUE, method="POST", token=TOKENS.ada)
    assert (refused.status, refused.value("X-Gateway-Error")) == (503, "audit_unavailable")
    assert refused.value("Retry-After") == "5"
    assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == reads
    log.mkdir()
    until(lambda: figure(gateway, "gitlab_gateway_audit_blocked") == 0, "there is room again")
    until(
        lambda: ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == 200,
        "a first line is written, then all is well",
    )
    assert ask(gateway.port, ISSUE, method="POST", token=TOKENS.ada).status == 201
    assert gateway.stop() == 0
    assert verified(gateway, str(away / "audit"), str(log / "audit")).returncode == 0


def test_a_killed_gateway_leaves_its_spool_to_the_next(demo: DemoGitLab, tmp_path: Path) -> None:
    config = demo_config(demo.url, audit=audited(tmp_path))
    gateway = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    (tmp_path / "log").rename(tmp_path / "away")
    asked = [ask(gateway.port, ISSUE, method="POST", token=TOKENS.ada).request_id for _ in range(3)]
    state = tmp_path / "gateway" / "state"
    until(lambda: any(asked[-1].encode() in file.read_bytes() for file in state.glob("*.spool")), "they wait on disk")
    kill(gateway)
    gateway.stop()
    (tmp_path / "log").mkdir()
    second = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    asked.append(ask(second.port, "/api/v4/version", token=TOKENS.ada).request_id)
    assert second.stop() == 0
    files = (tmp_path / "away" / "audit", tmp_path / "log" / "audit")
    assert [event["request_id"] for event in events(*files) if "request_id" in event] == asked
    assert verified(second, *map(str, files), "--open").returncode == 0
    assert not list((tmp_path / "gateway" / "state").glob("*.spool"))


def test_a_reader_who_left_is_a_sink_that_fails(demo: DemoGitLab, tmp_path: Path) -> None:
    """Standard output is a pipe whose reader is gone."""
    pipe = tmp_path / "audit"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    config = demo_config(demo.url, audit={"sink": f"file:{pipe}", "chain": True})
    gateway = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    os.close(reader)
    asked = [ask(gateway.port, "/api/v4/version", token=TOKENS.ada).request_id for _ in range(5)]
    until(lambda: figure(gateway, "gitlab_gateway_audit_spool_bytes") > 1000, "they wait on disk")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    until(lambda: figure(gateway, "gitlab_gateway_audit_failing") == 0, "somebody reads again")
    assert gateway.stop() == 0
    with os.fdopen(reader, "rb") as lines:
        written = [json.loads(line) for line in lines.read().splitlines()]
    assert [event["request_id"] for event in written if "request_id" in event] == asked


# Rotation


def test_a_chain_goes_on_through_rotations(demo: DemoGitLab, tmp_path: Path) -> None:
    """By size, by a rename, and by the next process."""
    config = demo_config(demo.url, audit=audited(tmp_path, rotate={"size": "20KiB", "keep": 50}))
    gateway = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    log = tmp_path / "log"
    with Load(gateway, "/api/v4/version", token=TOKENS.ada) as load:
        load.more(200)
        (log / "audit").rename(log / "renamed")
        load.more(50)
    assert set(load.statuses) == {200}
    assert gateway.stop() == 0
    second = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    assert ask(second.port, "/api/v4/version", token=TOKENS.ada).status == 200
    assert second.stop() == 0
    begins = {file: events(file)[0] for file in log.iterdir()}
    (first,) = [event["chain"] for event in begins.values() if event["seq"] == 0 and "after" not in event]
    files = sorted(begins, key=lambda file: (begins[file]["chain"] != first, begins[file]["seq"]))
    assert len(files) > 4
    assert all(file.stat().st_size <= 20 << 10 for file in files)
    assert verified(second, *map(str, files)).stderr.endswith(": whole\n")
    assert sum("request_id" in event for event in events(*files)) == len(load.answers) + 1
