"""Several workers as one gateway: one port, one audit, one set of figures, and no way to lose one unseen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.running import ROOT, GatewayProcess, LoopThread
from tests.e2e.test_lifecycle import LARGE, REVOKED_WITHIN_S, until
from tests.e2e.test_limits import rush
from tests.e2e.wire import Peer, ask, stranger
from tests.fakes.certificates import Authority
from tests.fakes.gitlab import Answer, FakeGitLab

LISTEN = {"address": "127.0.0.1:0", "admin": "127.0.0.1:0", "workers": 2}
BURST = 50
AGAIN_S = 30.0


class Workers(GatewayProcess):
    """A gateway of two."""

    @property
    def workers(self) -> list[int]:
        """Process ids."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def numbers(self, name: str) -> list[int]:
        """Every sample of that name."""
        return [int(float(value)) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.metrics(), re.MULTILINE)]

    def answered(self) -> int:
        return sum(self.numbers("gitlab_gateway_http_requests_total"))

    def checks(self) -> dict[str, str]:
        return dict(json.loads(ask(self.admin_port, "/readyz").body)["checks"])


Start = Callable[..., Workers]
Kind = TypeVar("Kind", bound=GatewayProcess)


@contextmanager
def starting(
    kind: type[Kind], listen: dict[str, Any], demo: DemoGitLab, redis_url: str, directory: Path
) -> Iterator[Callable[..., Kind]]:
    """Starts two workers; whatever is still there at the end is ended."""
    with ExitStack() as started:

        def begin(url: str = demo.url, **more: Any) -> Kind:
            config = {**shared_config(url), "listen": listen, **more}
            secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": redis_url}
            gateway = kind(config, directory / "gateway", secrets)
            started.callback(gateway.stop)
            return gateway

        yield begin


@pytest.fixture
def start(demo: DemoGitLab, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    with starting(Workers, LISTEN, demo, redis_url, tmp_path) as begin:
        yield begin


def both(gateway: Workers) -> int:
    """Asks, a connection each time, until both workers have answered; how often."""
    for asked in range(1, 1001):
        assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == 200
        if asked % 10 == 0 and all(gateway.numbers("gitlab_gateway_worker_requests_total")):
            return asked
    raise AssertionError("one worker has answered a thousand requests, and the other none")


@pytest.mark.parametrize("where", ["file", "stdout", "rotated"])
def test_requests_figures_and_record_are_those_of_one(start: Start, where: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit: dict[str, Any] = {"sink": "stdout" if where == "stdout" else f"file:{file}", "chain": True}
    if where == "rotated":
        audit["rotate"] = {"size": "4KiB", "keep": 1000}
    gateway = start(audit=audit)
    asked = both(gateway)
    assert gateway.answered() == asked
    assert sum(gateway.numbers("gitlab_gateway_worker_requests_total")) == asked
    assert sum(gateway.numbers("gitlab_gateway_http_request_duration_seconds_count")) == asked
    # Rendered in batches, twenty a second.
    until(lambda: gateway.numbers("gitlab_gateway_audit_events_total") == [asked], 20.0)
    assert gateway.numbers("gitlab_gateway_build_info") == [1]
    assert gateway.numbers("gitlab_gateway_worker_up") == [1, 1]
    assert gateway.checks()["workers"] == "ok"
    assert gateway.stop() == 0
    if where == "stdout":
        file.write_text("".join(gateway.audit.all))
    files = sorted(tmp_path.glob("audit.jsonl*"), key=lambda one: -int(one.suffix[1:]) if one.suffix != ".jsonl" else 0)
    assert (len(files) > 1) is (where == "rotated")
    lines = [json.loads(line) for one in files for line in one.read_bytes().splitlines()]
    requests = [line for line in lines if line.get("operation") == "GET /api/v4/version"]
    assert len(requests) == len({line["request_id"] for line in requests}) == asked
    assert len({line["chain"] for line in requests}) == 2
    assert "whole" in gateway.command("audit", "verify", *map(str, files)).stderr


def test_a_limit_is_exact_across_workers(start: Start) -> None:
    gateway = start(limits=[{"id": "caller", "by": "caller", "rate": "1/hour", "burst": BURST}])
    key = gateway.new_key("bot")
    assert rush([gateway], key, 400) == {200: BURST, 429: 400 - BURST}
    (refused,) = [
        int(float(value))
        for value in re.findall(
            r'^gitlab_gateway_refusals_total{code="rate_limited"} (\S+)$', gateway.metrics(), re.MULTILINE
        )
    ]
    assert refused == 400 - BURST


@pytest.mark.parametrize("keys", ["redis", "sqlite"])
def test_a_revoked_key_ends_at_every_worker(start: Start, keys: str, tmp_path: Path) -> None:
    stores = {"shared": "${env:REDIS_URL}"}
    if keys == "sqlite":
        stores["keys"] = f"sqlite://{tmp_path}/gateway/state/keys.db"
    gateway = start(stores=stores)
    key = gateway.new_key("bot")
    source = stranger()
    both(gateway)
    octets = f"GET /api/v4/version HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {key}\r\n\r\n".encode()

    def statuses() -> set[int]:
        """Over connections that stay where they were accepted."""
        found = set()
        for peer in peers:
            peer.send(octets)
            found.add(peer.read_reply().status)
        return found

    with ExitStack() as open_peers:
        peers = [open_peers.enter_context(Peer(gateway.port, source)) for _ in range(12)]
        assert statuses() == {200}
        (record,) = json.loads(gateway.command("keys", "list", "bot", "--json").stdout)
        gateway.command("keys", "revoke", record["id"])
        until(lambda: 200 not in statuses(), REVOKED_WITHIN_S)
        assert statuses() <= {401, 429}, "one that hears of it first has counted its failed logins by now"


def test_either_worker_tells_what_both_have_done(start: Start) -> None:
    key = "an-admin-key-of-some-length"
    hashed = hashlib.sha256(key.encode()).hexdigest()
    gateway = start(
        admin={"keys": [{"id": "ops", "sha256": hashed}]},
        limits=[{"id": "caller", "by": "caller", "rate": "1000/s", "burst": 1000, "advertise": True}],
    )
    policies = set()
    bot = gateway.new_key("bot")
    ids: dict[str, str] = {}
    asked = 0
    while len(ids) < 2:
        reply = ask(gateway.port, "/api/v4/version", token=bot)
        asked += 1
        assert (reply.status, asked < 1000) == (200, True)
        ids[reply.request_id.partition("-")[0]] = reply.request_id
        policies.add(reply.value("RateLimit-Policy"))
    (policy,) = policies
    assert policy is not None
    assert "pk=" in policy  # a caller's partition is called the same by both
    shown = f"Authorization: Bearer {key}"
    for _ in range(4):  # whichever worker it comes to
        for request_id in ids.values():
            body = json.dumps({"request_id": request_id}).encode()
            explained = ask(
                gateway.admin_port, "/-/explain", shown, "Content-Type: application/json", method="POST", body=body
            )
            assert explained.status == 200, explained.body
            assert json.loads(explained.body)["request"]["request_id"] == request_id
        top = json.loads(ask(gateway.admin_port, "/-/limits/top", shown).body)
        assert [(one["caller"], one["asked"]) for one in top["callers"]] == [("bot", asked)]


def test_a_worker_that_is_killed_is_started_again(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    gateway = start(audit={"sink": f"file:{file}", "chain": True})
    asked = both(gateway)
    before = gateway.answered()
    assert before == asked
    first, second = gateway.workers
    written = gateway.file.rename(tmp_path / "elsewhere")  # what is read again is what was read
    os.kill(second, signal.SIGKILL)
    gateway.log.find(lambda line: "killed by SIGKILL" in line or None)
    for _ in range(20):
        assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == 200
    # What the dead worker had counted must not be forgotten.
    until(lambda: gateway.answered() == before + 20, AGAIN_S)
    until(lambda: gateway.checks()["workers"] == "ok", AGAIN_S)
    assert sum(gateway.numbers("gitlab_gateway_worker_restarts_total")) == 1
    assert first in gateway.workers
    assert second not in gateway.workers
    both(gateway)
    assert gateway.stop() == 0
    written.rename(gateway.file)
    assert "whole" in gateway.command("audit", "verify", str(file), "--open").stderr


def test_sigterm_lets_a_request_in_progress_end(start: Start, upstreams: LoopThread) -> None:
    gitlab = FakeGitLab()
    upstreams.run(gitlab.__aenter__())
    rest = asyncio.Event()
    gitlab.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000005\r\n\r\n" + LARGE, rest, b"-last"))
    try:
        gateway = start(gitlab.url, identities=[{"id": "anyone", "anonymous": True}], credentials=[], rules=[])
        with Peer(gateway.port) as peer:
            peer.send(b"GET /api/v4/projects/1/jobs/1/artifacts HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _ = peer.read_head()
            assert (status, peer.read_exactly(len(LARGE))) == (200, LARGE)
            gateway.process.terminate()
            until(lambda: _refuses(gateway.port), 20.0)
            assert gateway.process.poll() is None
            upstreams.call(rest.set)
            assert peer.read_exactly(5) == b"-last"
        assert gateway.process.wait(20) == 0
    finally:
        upstreams.run(gitlab.__aexit__(None, None, None))


def _refuses(port: int) -> bool:
    try:
        with Peer(port):
            return False
    except ConnectionError:
        return True


def test_all_processes_may_be_told_to_end_at_once(start: Start) -> None:
    """As a supervisor of units does that signals every process of one: the notice lasts all the same."""
    gateway = start(listen={**LISTEN, "drain": {"notice": "1h"}})
    for pid in (*gateway.workers, gateway.process.pid):
        os.kill(pid, signal.SIGTERM)
    gateway.log.find(lambda line: ("draining" in line and "gateway.workers" in line) or None)
    until(lambda: ask(gateway.admin_port, "/readyz").status == 503, 20.0)
    reply = ask(gateway.port, "/api/v4/version", token=TOKENS.ada)
    assert (reply.status, reply.value("Connection")) == (200, "close")
    gateway.process.terminate()
    assert gateway.process.wait(30) == 0


def test_no_worker_outlives_its_supervisor(start: Start) -> None:
    gateway = start()
    workers = gateway.workers
    assert len(workers) == 2
    gateway.process.kill()
    gateway.log.find(lambda line: "the supervisor is gone" in line or None)
    until(lambda: {_state(pid) for pid in workers} <= {"", "Z"}, AGAIN_S)


def _state(pid: int) -> str:
    """As `ps` tells it: T is stopped, Z is dead and not yet waited for; empty: it is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_certificates_are_read_again_by_all(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old, new = authority.issue("old"), authority.issue("new")
    listen = {**LISTEN, "address": "[::1]:0", "tls": {"cert_file": str(old.cert), "key_file": str(old.key)}}
    gateway = start(listen=listen)
    assert {_certificate(gateway.port, authority) for _ in range(10)} == {"old"}
    old.cert.write_bytes(new.cert.read_bytes())
    old.key.write_bytes(new.key.read_bytes())
    gateway.process.send_signal(signal.SIGHUP)
    for number in (0, 1):
        gateway.log.find(lambda line: ("certificates reloaded" in line and f'"worker": {number}' in line) or None)  # noqa: B023
    assert {_certificate(gateway.port, authority) for _ in range(10)} == {"new"}
    assert gateway.stop() == 0


def _certificate(port: int, authority: Authority) -> str:
    """Whose it is that is shown at that port of ``::1``."""
    context = ssl.create_default_context(cafile=str(authority.file))
    with (
        socket.create_connection(("::1", port), 20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        shown: Any = tls.getpeercert()
        return str(dict(pair[0] for pair in shown["subject"])["commonName"])


def test_one_that_hangs_holds_up_nobody(start: Start) -> None:
    gateway = start()
    both(gateway)
    before = gateway.answered()
    hung = gateway.workers[1]
    os.kill(hung, signal.SIGSTOP)
    try:
        until(lambda: _state(hung) == "T", AGAIN_S)
        for _ in range(10):
            assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == 200
        assert gateway.answered() == before + 10
        assert gateway.checks()["workers"] == "degraded: 1 of 2 do not answer"
        assert ask(gateway.admin_port, "/readyz").status == 200
    finally:
        os.kill(hung, signal.SIGCONT)
    until(lambda: gateway.checks()["workers"] == "ok", AGAIN_S)


def test_what_keeps_it_from_starting_is_logged_once(start: Start, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as refused:
        start(audit={"sink": f"file:{tmp_path}/nowhere/audit.jsonl"})
    said = str(refused.value)
    assert said.count("No such file or directory") == 1
    assert "the gateway does not start" in said


def test_what_workers_cannot_share_is_refused(demo: DemoGitLab, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--upstream", demo.url, "--workers", "2"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "stores.shared: is memory, which 2 workers can't share" in done.stderr
