"""A new configuration while requests are served: all of it or nothing, and nobody notices but by what it says."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.running import LoopThread
from tests.e2e.test_lifecycle import LARGE, until
from tests.e2e.test_workers import Workers, _refuses, _state, both, starting
from tests.e2e.wire import Peer, Reply, ask
from tests.fakes.certificates import Authority
from tests.fakes.gitlab import Answer, FakeGitLab

IDLE_S = 3.0
"""For the next request on a connection: so long may a worker that is replaced be waited for."""
LISTEN = {
    "address": "127.0.0.1:0",
    "admin": "127.0.0.1:0",
    "workers": 2,
    "limits": {"idle": f"{IDLE_S:g}s", "request_head": f"{IDLE_S:g}s"},
}
SOON_S = 60.0
_MANY = 8
VERSION = f"GET /api/v4/version HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {TOKENS.ada}\r\n\r\n".encode()


class Reloading(Workers):
    """Two workers, and the file that they were configured from."""

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def change(self, **more: Any) -> None:
        """The file, with these keys instead."""
        self.write(json.dumps({**json.loads(self.file.read_text()), **more}))

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def count(self, result: str) -> int:
        found = re.search(
            rf'^gitlab_gateway_config_reloads_total{{result="{result}"}} (\S+)$', self.metrics(), re.MULTILINE
        )
        assert found is not None
        return int(float(found[1]))

    def reloaded(self, result: str = "applied") -> None:
        """SIGHUP, and until that is what became of it."""
        before = self.count(result)
        self.hang_up()
        until(lambda: self.count(result) == before + 1, SOON_S)

    def settled(self, count: int = 2) -> None:
        """Until nobody is left but that many workers."""
        until(lambda: len(self.workers) == count, SOON_S)


class Clients:
    """Threads that ask one request after the other, each over a connection that it keeps as long as it may."""

    def __init__(self, port: int, *pauses_s: float) -> None:
        self.asked = 0
        self.closed = 0
        """Answers that ended their connection."""
        self.failures: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(pause_s,), daemon=True) for pause_s in pauses_s]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, pause_s: float) -> None:
        while not self._over.is_set():
            try:
                if pause_s < 0:  # a connection for each request
                    self._tell(ask(self._port, "/api/v4/version", token=TOKENS.ada))
                    self._over.wait(0.005)
                    continue
                with Peer(self._port) as peer:
                    self._ask_over(peer, pause_s)
            except (OSError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    def _ask_over(self, peer: Peer, pause_s: float) -> None:
        while not self._over.is_set():
            peer.send(VERSION)
            if self._tell(peer.read_reply()):
                return
            if pause_s:
                self._over.wait(pause_s)

    def _tell(self, reply: Reply) -> bool:
        """Whether it was the last of its connection."""
        closes = (reply.value("Connection") or "").lower() == "close"
        with self._lock:
            self.asked += 1
            self.closed += closes
        if reply.status != 200:
            self.failures.append(f"{reply.status} {reply.body!r}")
        return closes


Start = Callable[..., Reloading]


@pytest.fixture
def start(demo: DemoGitLab, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    with starting(Reloading, LISTEN, demo, redis_url, tmp_path) as begin:
        yield begin


def limited(rate: int) -> list[dict[str, Any]]:
    """A limit that tells every answer which configuration it was made by, and refuses nobody."""
    return [{"id": "all", "by": "caller", "rate": f"{rate}/s", "burst": 1_000_000, "advertise": True}]


def rate_of(reply: Reply) -> int:
    found = re.search(r"q=(\d+)", reply.value("RateLimit-Policy") or "")
    assert found is not None, reply.fields
    return int(found[1])


def told_rate(gateway: Reloading) -> int:
    return rate_of(ask(gateway.port, "/api/v4/version", token=TOKENS.ada))


def test_no_request_fails_while_another_configuration_takes_over(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    gateway = start(limits=limited(200_001), audit={"sink": f"file:{file}", "chain": True})
    before = gateway.workers
    # Some without a pause, some that are idle when their worker is replaced, one for nearly as long as it may be.
    with Clients(gateway.port, *[-1.0] * 4, *[0.0] * 4, *[0.05] * 6, 0.7, 1.3, 0.8 * IDLE_S) as clients:
        until(lambda: clients.asked > 200, SOON_S)
        gateway.change(limits=limited(200_002))
        gateway.reloaded()
        assert {told_rate(gateway) for _ in range(20)} == {200_002}
        gateway.settled()
        seen = clients.asked
        until(lambda: clients.asked > seen + 200, SOON_S)
    assert clients.failures == []
    assert clients.closed > 0
    assert set(before).isdisjoint(gateway.workers)
    assert gateway.checks()["workers"] == "ok"
    assert gateway.numbers("gitlab_gateway_worker_up") == [1, 1]
    # What those before had counted is counted still, to the last request.
    until(lambda: gateway.answered() == clients.asked + 20, SOON_S)
    assert gateway.stop() == 0
    requests = [line for line in map(json.loads, file.read_bytes().splitlines()) if "request_id" in line]
    assert len({line["request_id"] for line in requests}) == len(requests) == clients.asked + 20
    assert len({line["chain"] for line in requests}) == 4
    assert "whole" in gateway.command("audit", "verify", str(file)).stderr


def _no_yaml(gateway: Reloading) -> str:
    gateway.write("version: 1\nupstream: [\n")
    return r"gateway\.yaml:\d+: "


def _unknown_key(gateway: Reloading) -> str:
    gateway.change(limmits=[])
    return r"gateway\.yaml:\d+: limmits: "


def _missing_secret(gateway: Reloading) -> str:
    gateway.change(
        credentials=[{"id": "ada", "token": "${file:/nowhere/token}"}, {"id": "root", "token": "${env:SUDO}", "sudo": True}]
    )
    return r"credentials\[0\]\.token: names the file /nowhere/token, which can't be read"


def _no_authority(gateway: Reloading) -> str:
    (gateway.directory / "ca.pem").write_text("no certificate\n")
    upstream = json.loads(gateway.file.read_text())["upstream"]
    gateway.change(upstream={**upstream, "ca_file": str(gateway.directory / "ca.pem")})
    return r"upstream\.ca_file: holds no PEM certificate"


def _gone(gateway: Reloading) -> str:
    gateway.file.unlink()
    return r"No such file or directory"


def _other_port(gateway: Reloading) -> str:
    gateway.change(listen={**LISTEN, "address": "127.0.0.1:1"}, stores={"shared": "redis://127.0.0.1:1/0"})
    return r"only a restart can change listen\.address, stores\.keys, stores\.credentials, stores\.shared"


@pytest.mark.parametrize("bad", [_no_yaml, _unknown_key, _missing_secret, _no_authority, _gone, _other_port])
def test_a_bad_configuration_changes_nothing(start: Start, bad: Callable[[Reloading], str]) -> None:
    gateway = start(limits=limited(200_001))
    before, good = gateway.workers, gateway.file.read_text()
    with Clients(gateway.port, *[0.0] * 2, 0.1) as clients:
        words = bad(gateway)
        gateway.reloaded("failed")
        gateway.log.find(lambda line: ("error" in line and re.search(words, json.loads(line)["event"])) or None)
        gateway.log.find(lambda line: "the previous one stays in force" in line or None)
        assert gateway.workers == before
        assert gateway.numbers("gitlab_gateway_config_reload_failing") == [1]
        assert gateway.checks()["configuration"].startswith("degraded")
        assert ask(gateway.admin_port, "/readyz").status == 200
        assert told_rate(gateway) == 200_001
        gateway.write(good)
        gateway.reloaded("unchanged")
        assert gateway.numbers("gitlab_gateway_config_reload_failing") == [0]
        assert gateway.workers == before
    assert (clients.failures, clients.closed) == ([], 0)


def test_workers_that_cannot_start_take_nobodys_place(start: Start, tmp_path: Path) -> None:
    """The loader finds nothing wrong; only who would serve it does."""
    gateway = start(limits=limited(200_001))
    before = gateway.workers
    (gateway.directory / "token").write_text("glpat-GitLabKnowsNothingOfIt")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    upstream = json.loads(gateway.file.read_text())["upstream"]
    with Clients(gateway.port, *[0.0] * 2, 0.1) as clients:
        for change in (
            {"audit": {"sink": f"file:{tmp_path}/nowhere/audit"}},
            {
                "credentials": [
                    {"id": "ada", "token": "${file:token}"},
                    {"id": "root", "token": "${env:SUDO}", "sudo": True},
                ]
            },
            {"upstream": {**upstream, "url": "https://127.0.0.1:9", "ca_file": str(tmp_path / "ca.pem")}},
        ):
            good = gateway.file.read_text()
            gateway.change(**change, limits=limited(200_002))
            gateway.reloaded("failed")
            gateway.settled()
            gateway.write(good)
        gateway.log.find(lambda line: "GitLab refuses" in line or "GitLab does not" in line or None)
    assert clients.failures == []
    assert gateway.workers == before
    assert told_rate(gateway) == 200_001
    gateway.log.find(lambda line: "the new configuration is not applied" in line or None)


def test_a_token_that_was_dead_before_stops_no_reload(demo: DemoGitLab, start: Start) -> None:
    """Nor does it keep a worker that ended from being started again."""
    gateway = start(limits=limited(200_001))
    demo.state.tokens[TOKENS.root_sudo].revoked = True
    try:
        gateway.change(limits=limited(200_002))
        gateway.reloaded()
        assert told_rate(gateway) == 200_002
        gateway.settled()
        before = gateway.workers
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(gateway.workers) - set(before)) == 1 and gateway.checks()["workers"] == "ok", SOON_S)
        assert gateway.checks()["credential root"] == "degraded: GitLab refuses it"
    finally:
        demo.state.tokens[TOKENS.root_sudo].revoked = False


def test_a_token_of_undeclared_power_keeps_no_worker_from_being_started_again(demo: DemoGitLab, start: Start) -> None:
    """As one that could not be asked about when the gateway started: the others serve on, without it."""
    gateway = start(limits=limited(200_001))
    token = demo.state.tokens[TOKENS.ada]
    scopes, token.scopes = token.scopes, (*token.scopes, "sudo")
    try:
        before = gateway.workers
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(gateway.workers) - set(before)) == 1 and gateway.checks()["workers"] == "ok", 15)
        assert "credential ada" in gateway.checks()
    finally:
        token.scopes = scopes


def test_signals_that_come_together_are_one_reload_or_two(start: Start) -> None:
    gateway = start(limits=limited(200_001))
    gateway.change(limits=limited(200_002))
    ends_at = time.monotonic() + SOON_S
    while not gateway.count("applied"):  # so that all of them come while the first one's reload is under way, however fast
        assert time.monotonic() < ends_at
        gateway.hang_up()
        for pid in gateway.workers:  # as `systemctl kill --signal=HUP` does, those that are just being started among them
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        time.sleep(0.02)
    gateway.settled()
    assert told_rate(gateway) == 200_002
    assert (gateway.count("applied"), gateway.count("failed")) == (1, 0)
    assert gateway.count("unchanged") <= 2


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.9, 2.0])
def test_sigterm_ends_a_reload(start: Start, after_s: float) -> None:
    gateway = start(limits=limited(200_001))
    gateway.change(limits=limited(200_002))
    gateway.hang_up()
    time.sleep(after_s)
    workers = gateway.workers
    gateway.process.terminate()
    assert gateway.process.wait(20) == 0
    assert {_state(pid) for pid in workers} <= {"", "Z"}
    assert _refuses(gateway.port)


def test_a_request_in_progress_goes_on_at_the_worker_that_has_it(start: Start, upstreams: LoopThread) -> None:
    gitlab = FakeGitLab()
    upstreams.run(gitlab.__aenter__())
    rest = asyncio.Event()
    gitlab.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000005\r\n\r\n" + LARGE, rest, b"-last"))
    try:
        gateway = start(gitlab.url, identities=[{"id": "anyone", "anonymous": True}], credentials=[], rules=[])
        before = gateway.workers
        with Peer(gateway.port) as peer:
            peer.send(b"GET /api/v4/projects/1/jobs/1/artifacts HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _ = peer.read_head()
            assert (status, peer.read_exactly(len(LARGE))) == (200, LARGE)
            gateway.change(listen={**LISTEN, "workers": 3})
            gateway.reloaded()
            gateway.settled(4)
            assert len(set(gateway.workers) & set(before)) == 1
            upstreams.call(rest.set)
            assert peer.read_exactly(5) == b"-last"
        gateway.settled(3)
        assert gateway.numbers("gitlab_gateway_worker_up") == [1, 1, 1]
    finally:
        upstreams.run(gitlab.__aexit__(None, None, None))


def test_new_certificates_alone_replace_nobody(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old, new = authority.issue("old"), authority.issue("new")
    tls = {"cert_file": str(old.cert), "key_file": str(old.key)}
    gateway = start(listen={**LISTEN, "address": "[::1]:0", "tls": tls})
    before = gateway.workers
    old.cert.write_bytes(new.cert.read_bytes())
    old.key.write_bytes(new.key.read_bytes())
    gateway.reloaded("unchanged")
    assert gateway.workers == before
    gateway.change(listen={**LISTEN, "address": "[::1]:0"})
    gateway.reloaded("failed")
    gateway.log.find(lambda line: "only a restart can change listen.tls" in line or None)


@pytest.mark.timeout(400)
def test_many_reloads_leave_nothing_behind(start: Start, redis_url: str) -> None:
    quick = {"idle": "1s", "request_head": "1s"}  # a worker that is replaced is gone sooner
    gateway = start(limits=limited(200_000), listen={**LISTEN, "limits": quick})
    with redis.Redis.from_url(redis_url) as client:

        def held() -> tuple[int, int, int]:
            """Processes, the supervisor's descriptors, connections to Redis."""
            descriptors = os.listdir(f"/proc/{gateway.process.pid}/fd")
            return len(gateway.workers), len(descriptors), int(client.info("clients")["connected_clients"])

        gateway.reloaded("unchanged")  # so that threads, and what they hold, are there
        before = held()
        with Clients(gateway.port, -1.0, *[0.01] * 2, *[0.1] * 4, 0.3) as clients:
            for number in range(1, _MANY + 1):
                gateway.change(limits=limited(200_000 + number))
                gateway.reloaded()
                assert len(gateway.workers) <= 8
            gateway.settled()
            assert told_rate(gateway) == 200_000 + _MANY
        assert clients.failures == []
        until(lambda: held() == before, SOON_S)
    assert gateway.count("applied") == _MANY
    assert gateway.stop() == 0


def test_lines_that_replaced_workers_left_on_disk_are_written(start: Start, tmp_path: Path) -> None:
    """The audit's pipe has no reader until they are gone."""
    pipe = tmp_path / "audit"
    os.mkfifo(pipe)
    gateway = start(audit={"sink": f"file:{pipe}", "chain": True})
    asked = both(gateway)
    gateway.change(limits=limited(200_002))
    gateway.reloaded()
    gateway.settled()
    found = b""
    with open(pipe, "rb") as record:
        while found.count(b'"GET /api/v4/version"') < asked:
            found += record.readline()
        until(lambda: gateway.numbers("gitlab_gateway_audit_spool_bytes") == [0], SOON_S)
        assert gateway.stop() == 0
        found += record.read()
    (tmp_path / "record").write_bytes(found)
    requests = [line for line in map(json.loads, found.splitlines()) if line.get("operation") == "GET /api/v4/version"]
    assert len({line["request_id"] for line in requests}) == len(requests) == asked
    assert "whole" in gateway.command("audit", "verify", str(tmp_path / "record")).stderr


def test_what_an_admin_key_may_do_is_what_the_new_configuration_says(start: Start) -> None:
    key = "an-admin-key-of-some-length"

    def admin(*may: str) -> dict[str, Any]:
        return {"keys": [{"id": "wall", "sha256": hashlib.sha256(key.encode()).hexdigest(), "may": may}]}

    gateway = start(limits=limited(200_001), admin=admin("read"))
    fields = f"PRIVATE-TOKEN: {key}", "Content-Type: application/json"
    body = b'{"limit": "all", "subject": "x", "pause": true}'

    def statuses() -> tuple[int, int]:
        return (
            ask(gateway.admin_port, "/-/config", *fields).status,
            ask(gateway.admin_port, "/-/limits", *fields, method="POST", body=body).status,
        )

    def refused_by() -> set[int]:
        """The workers that refused a change."""
        warnings = [line for line in gateway.log.all if "refused POST /-/limits, lacks the permission `limits`" in line]
        return {json.loads(line)["worker"] for line in warnings}

    def once_more_refused() -> bool:
        assert statuses() == (200, 403)
        return len(refused_by()) == 2

    until(once_more_refused, SOON_S)
    gateway.change(admin=admin("limits"))
    gateway.reloaded()
    assert {statuses() for _ in range(10)} == {(403, 200)}
    assert gateway.stop() == 0
    assert key not in "".join(gateway.log.all)
