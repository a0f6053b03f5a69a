"""Redis fails in every way it can, under load: nobody gets an error, nobody waits, and operators see it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from gateway.demo.gitlab import DemoGitLab
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.load import Load, checks, figure, quiet, until
from tests.e2e.running import ROOT, GatewayProcess, LoopThread
from tests.e2e.wire import ask
from tests.fakes.certificates import Authority
from tests.fakes.line import TcpRelay

STALL_S = 6.0
"""No answer takes longer: 50 ms for buckets, twice 100 ms for the cache, and what a busy machine adds."""
STORES = ("gitlab-gateway-buckets", "gitlab-gateway-cache")


@pytest.fixture(scope="module")
def world(
    demo: DemoGitLab, redis_server: Any, upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """A gateway on a Redis of its own behind a line of its own; its keys are in SQLite."""
    server = type(redis_server)()
    line = TcpRelay(server.port)
    upstreams.run(line.open())
    directory = tmp_path_factory.mktemp("faults")
    limits = [{"id": "caller", "by": "caller", "rate": "1000000/min"}]
    config = shared_config(demo.url, limits=limits, cache={"ttl": "100ms"})  # copies and leases are in it, too
    config["stores"]["keys"] = f"sqlite://{directory}/keys.db"
    secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": f"redis://127.0.0.1:{line.port}/0"}
    gateway = GatewayProcess(config, directory / "gateway", secrets)
    try:
        key = gateway.new_key("bot")
        yield SimpleNamespace(gateway=gateway, redis=server, line=line, key=key, upstreams=upstreams)
        assert gateway.stop() == 0
    finally:
        gateway.stop()
        upstreams.run(line.cut())
        server.close()


class _Fault:
    """How Redis goes bad, and how it is put right."""

    def __init__(self, breaks: Callable[[Any], object], mends: Callable[[Any], object], seen_by: str = STORES[0]) -> None:
        self.breaks = breaks
        self.mends = mends
        self.seen_by = seen_by


def _commands(world: Any, *commands: tuple[str, ...]) -> None:
    with redis.Redis(port=world.redis.port) as client:
        for command in commands:
            client.execute_command(*command)


def _fill(world: Any) -> None:
    _commands(world, ("CONFIG", "SET", "maxmemory-policy", "noeviction"), ("CONFIG", "SET", "maxmemory", "1"))


FAULTS = {
    "killed_and_restarted": _Fault(lambda w: w.redis.stop(), lambda w: w.redis.start()),
    "reset_and_unreachable": _Fault(lambda w: w.upstreams.run(w.line.cut()), lambda w: w.upstreams.run(w.line.open())),
    "slow_by_100_ms": _Fault(lambda w: setattr(w.line, "delay_s", 0.1), lambda w: setattr(w.line, "delay_s", 0.0)),
    "half_open": _Fault(lambda w: w.upstreams.call(w.line.hold), lambda w: w.upstreams.call(w.line.release)),
    "stopped": _Fault(
        lambda w: os.kill(w.redis.process.pid, signal.SIGSTOP), lambda w: os.kill(w.redis.process.pid, signal.SIGCONT)
    ),
    "paused_for_two_seconds": _Fault(lambda w: _commands(w, ("CLIENT", "PAUSE", "2000", "ALL")), lambda _: None),
    "full": _Fault(_fill, lambda w: _commands(w, ("CONFIG", "SET", "maxmemory", "0"))),
    "read_only": _Fault(
        lambda w: _commands(w, ("REPLICAOF", "127.0.0.1", "1")), lambda w: _commands(w, ("REPLICAOF", "NO", "ONE"))
    ),
    "without_its_password": _Fault(
        lambda w: _commands(
            w, ("CONFIG", "SET", "requirepass", "new"), ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        ),
        lambda w: redis.Redis(port=w.redis.port, password="new").config_set("requirepass", ""),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nobody_notices_that_redis_is(world: SimpleNamespace, fault: str) -> None:
    gateway, this = world.gateway, FAULTS[fault]
    store = f"store {this.seen_by}"
    targets = ("/api/v4/version", "/api/v4/projects/platform%2Fapi", "/api/v4/projects")
    with Load(gateway, *targets, token=world.key) as load:
        load.more(40)
        until(lambda: checks(gateway)[store] == "ok", "a healthy start")
        failures = figure(gateway, f'gitlab_gateway_store_failures_total{{store="{this.seen_by}"}}')
        this.breaks(world)
        try:
            until(lambda: checks(gateway)[store].startswith("degraded: "), "readiness tells")
            assert figure(gateway, f'gitlab_gateway_store_up{{store="{this.seen_by}"}}') == 0
            load.more(200)
        finally:
            this.mends(world)
        load.more(20)
        until(lambda: set(checks(gateway).values()) == {"ok"}, "recovery without a restart")
        load.more(40)
    assert load.statuses == {200: len(load.answers)}
    assert load.broken == 0
    assert load.slowest_s < STALL_S
    assert figure(gateway, f'gitlab_gateway_store_failures_total{{store="{this.seen_by}"}}') > failures
    quiet(gateway)


def test_nobody_waits_for_a_redis_that_is_paused_for_ten_seconds(
    demo: DemoGitLab, start_redis: Any, tmp_path: Path
) -> None:
    """The limiter alone is on Redis, so that no other wait can hide one of its own."""
    server = start_redis()
    config = shared_config(demo.url, limits=[{"id": "caller", "by": "caller", "rate": "1000000/min"}])
    config["stores"]["keys"] = f"sqlite://{tmp_path}/keys.db"
    config["cache"] = {"mode": "off"}
    gateway = GatewayProcess(config, tmp_path / "gateway", {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": server.url})
    try:
        with Load(gateway, "/api/v4/version", token=gateway.new_key("bot"), pause_s=0.02) as load:
            load.more(40)
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                over = time.monotonic() + 10.0
                until(lambda: time.monotonic() >= over, "ten seconds")
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            until(lambda: set(checks(gateway).values()) == {"ok"}, "recovery without a restart")
            load.more(40)
        assert load.statuses == {200: len(load.answers)}
        assert len(load.answers) > 200
        assert load.broken == 0
        assert load.slowest_s < STALL_S
        quiet(gateway)
    finally:
        assert gateway.stop() == 0


def test_scripts_that_redis_forgot_are_sent_again(world: SimpleNamespace) -> None:
    with Load(world.gateway, "/api/v4/version", token=world.key) as load:
        load.more(40)
        for _ in range(5):
            _commands(world, ("SCRIPT", "FLUSH"))
            load.more(20)
    assert load.statuses == {200: len(load.answers)}
    assert set(checks(world.gateway).values()) == {"ok"}


def test_values_of_another_kind_are_no_errors(world: SimpleNamespace) -> None:
    """Somebody else's values under the gateway's names: a miss, a bypass, never an error."""
    with Load(world.gateway, "/api/v4/version", "/api/v4/projects", token=world.key) as load:
        load.more(40)
        with redis.Redis(port=world.redis.port) as client:
            names = list(client.scan_iter("*"))
            assert names
            with client.pipeline(transaction=True) as at_once:
                for name in names:
                    at_once.delete(name)
                    at_once.rpush(name, "other")
                at_once.execute()
        load.more(200)
        with redis.Redis(port=world.redis.port) as client:
            client.flushall()
        load.more(40)
    assert load.statuses == {200: len(load.answers)}


@pytest.mark.parametrize(("policy", "statuses"), [("closed", {503}), ("open", {200})])
def test_buckets_fail_as_configured(
    demo: DemoGitLab, start_redis: Any, tmp_path: Path, policy: str, statuses: set[int]
) -> None:
    server = start_redis()
    config = shared_config(demo.url, limits=[{"id": "caller", "by": "caller", "rate": "1000/hour"}])
    config["stores"] |= {"keys": f"sqlite://{tmp_path}/keys.db", "on_error": {"buckets": policy}}
    gateway = GatewayProcess(config, tmp_path / "gateway", {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": server.url})
    try:
        key = gateway.new_key("bot")
        assert ask(gateway.port, "/api/v4/version", token=key).status == 200
        server.stop()
        replies = [ask(gateway.port, "/api/v4/version", token=key) for _ in range(10)]
        assert {reply.status for reply in replies} == statuses
        if policy == "closed":
            assert {reply.value("X-Gateway-Error") for reply in replies} == {"limiter_unavailable"}
            assert all(int(reply.value("Retry-After") or 0) >= 1 for reply in replies)
        server.start()
        until(lambda: ask(gateway.port, "/api/v4/version", token=key).status == 200, "buckets are back")
    finally:
        assert gateway.stop() == 0


@pytest.mark.parametrize("policy", ["last_known_good", "closed"])
def test_keys_fail_as_configured(demo: DemoGitLab, start_redis: Any, tmp_path: Path, policy: str) -> None:
    server = start_redis()
    config = shared_config(demo.url)
    config["stores"]["on_error"] = {"keys": policy}
    gateway = GatewayProcess(config, tmp_path / "gateway", {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": server.url})
    try:
        seen, unseen = gateway.new_key("bot"), gateway.new_key("bot")
        assert ask(gateway.port, "/api/v4/version", token=seen).status == 200
        server.stop()
        if policy == "last_known_good":
            replies = [ask(gateway.port, "/api/v4/version", token=seen) for _ in range(5)]
            assert {reply.status for reply in replies} == {200}
        else:
            until(lambda: ask(gateway.port, "/api/v4/version", token=seen).status == 503, "what was known has passed")
        refused = ask(gateway.port, "/api/v4/version", token=unseen)
        assert (refused.status, refused.value("X-Gateway-Error")) == (503, "identity_unavailable")
        assert int(refused.value("Retry-After") or 0) >= 1
        assert checks(gateway)["store gitlab-gateway-keys"].startswith("degraded: ")
        assert figure(gateway, 'gitlab_gateway_refusals_total{code="identity_unavailable"}') >= 1
        assert ask(gateway.port, "/api/v4/version", token="ggw_nobody").status == 401  # no store is asked about a typo
    finally:
        assert gateway.stop() == 0


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "another-authority"])
def test_redis_by_tls(demo: DemoGitLab, start_redis: Any, tmp_path: Path, trusted: bool) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_redis(
        *("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(authority.file)),
        *("--tls-cert-file", str(pair.cert), "--tls-key-file", str(pair.key)),
    )
    anchor = authority if trusted else Authority(tmp_path, "stranger")
    config = shared_config(demo.url)
    config["stores"]["keys"] = f"sqlite://{tmp_path}/keys.db"
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={anchor.file}"
    gateway = GatewayProcess(config, tmp_path / "gateway", {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": url})
    try:
        key = gateway.new_key("bot")
        state = "ok" if trusted else "degraded: SSLCertVerificationError"
        until(lambda: checks(gateway)[f"store {STORES[0]}"] == state, "the buckets' store is reported")
        assert ask(gateway.port, "/api/v4/projects", token=key).status == 200
    finally:
        assert gateway.stop() == 0


def test_a_certificate_that_cannot_be_read_ends_the_start_in_words(demo: DemoGitLab, tmp_path: Path) -> None:
    url = f"rediss://:s3cr3t@127.0.0.1:1/0?ssl_ca_certs={tmp_path}/none.pem"
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({"version": 1, **shared_config(demo.url)}))
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(file)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert f"failed: ssl_ca_certs of the Redis URL names {tmp_path}/none.pem, which holds no certificate" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "s3cr3t" not in ended.stderr
