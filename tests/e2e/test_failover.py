"""Redis is another server from one moment to the next, as Sentinels or a cluster tell: nobody gets an error for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from gateway.demo.gitlab import DemoGitLab
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.load import Load, checks, quiet, until
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import ask
from tests.fakes.redis_cluster import migrate_slot, start_divided_cluster
from tests.fakes.redis_sentinel import NAME, Sentinel, start_pair


def gateway_on(demo: DemoGitLab, url: str, directory: Path) -> GatewayProcess:
    config = shared_config(
        demo.url, limits=[{"id": "caller", "by": "caller", "rate": "1000000/min"}], cache={"ttl": "100ms"}
    )
    return GatewayProcess(config, directory / "gateway", {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": url})


@pytest.fixture
def watched(demo: DemoGitLab, start_redis: Callable[..., Any], tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A gateway with all that can be shared behind a Sentinel."""
    primary, replica = start_pair(start_redis)
    sentinel = Sentinel(tmp_path / "sentinel", primary.port)
    until(lambda: len(sentinel.ask("SENTINEL", "REPLICAS", NAME)) == 1, "the replica is known")
    url = f"redis+sentinel://127.0.0.1:1,{sentinel.place}/{NAME}/1"
    gateway = gateway_on(demo, url, tmp_path)
    try:
        yield SimpleNamespace(gateway=gateway, sentinel=sentinel, primary=primary, replica=replica)
        assert gateway.stop() == 0
    finally:
        gateway.stop()
        sentinel.close()


def key_ids(gateway: GatewayProcess) -> set[str]:
    return {line.split()[0] for line in gateway.command("keys", "list").stdout.splitlines()}


def test_a_failover_that_an_operator_asks_for(watched: SimpleNamespace) -> None:
    """The old primary goes on as one for ten seconds: a key revoked meanwhile would live on for whoever stayed there."""
    gateway, sentinel = watched.gateway, watched.sentinel
    key, first = gateway.new_key("bot"), key_ids(gateway)
    other = gateway.new_key("bot")
    (ending,) = key_ids(gateway) - first
    with Load(gateway, "/api/v4/version", "/api/v4/projects", token=key) as load:
        load.more(40)
        until(lambda: sentinel.ask("SENTINEL", "FAILOVER", NAME) in {True, b"OK"}, "a failover")
        until(lambda: sentinel.primary() == watched.replica.port, "another primary")
        gateway.command("keys", "revoke", ending)
        until(lambda: ask(gateway.port, "/api/v4/version", token=other).status == 401, "the key has ended")
        load.more(40)
        until(lambda: set(checks(gateway).values()) == {"ok"}, "all stores are well")
        load.more(40)
    assert load.statuses == {200: len(load.answers)}
    assert load.broken == 0
    with redis.Redis(port=watched.replica.port, db=1) as client:
        names = {connected["name"] for connected in client.client_list()}
        assert {f"gitlab-gateway:gitlab-gateway-{store}" for store in ("buckets", "cache", "keys", "changes")} <= names


def test_a_primary_that_dies(watched: SimpleNamespace) -> None:
    gateway = watched.gateway
    key = gateway.new_key("bot")
    with Load(gateway, "/api/v4/version", "/api/v4/projects", token=key) as load:
        load.more(40)
        watched.primary.stop()
        until(lambda: any(state.startswith("degraded: ") for state in checks(gateway).values()), "readiness tells")
        load.more(40)
        until(lambda: set(checks(gateway).values()) == {"ok"}, "the replica took over")
        load.more(40)
    assert load.statuses == {200: len(load.answers)}
    assert load.broken == 0
    quiet(gateway)


def test_a_cluster_whose_nodes_share_the_stores(demo: DemoGitLab, start_redis: Callable[..., Any], tmp_path: Path) -> None:
    """Limits at one node, all else at another; then the limits' slot goes there, too."""
    owner, other = start_divided_cluster(start_redis, "{gw}")
    gateway = gateway_on(demo, f"redis+cluster://127.0.0.1:{other.port}", tmp_path)
    try:
        key = gateway.new_key("bot")
        with Load(gateway, "/api/v4/version", "/api/v4/projects", token=key) as load:
            load.more(40)
            assert set(checks(gateway).values()) == {"ok"}
            migrate_slot("{gw}", owner, other)
            load.more(40)
            until(lambda: set(checks(gateway).values()) == {"ok"}, "the slot was followed")
            with redis.Redis(port=other.port) as client:
                until(lambda: client.exists("{gw}:gateways") == 1, "limits are counted there")
            load.more(40)
        assert load.statuses == {200: len(load.answers)}
        assert load.broken == 0
        quiet(gateway)
    finally:
        assert gateway.stop() == 0
