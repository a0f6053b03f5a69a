"""A replica takes over from the Redis that held the buckets: nobody gets an error, and at most one burst more passes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.load import checks, until
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.test_limits import rush
from tests.e2e.wire import ask
from tests.fakes.line import TcpRelay

BURST = 20
REQUESTS = 160


def command(server: Any, *words: str) -> Any:
    with redis.Redis(port=server.port) as client:
        return client.execute_command(*words)


def in_step(replica: Any, primary: Any) -> bool:
    with redis.Redis(port=replica.port) as there, redis.Redis(port=primary.port) as here:
        copied, wanted = there.info("replication"), here.info("replication")
        return bool(
            copied.get("master_link_status") == "up" and copied["slave_repl_offset"] >= wanted["master_repl_offset"]
        )


def takes_of(server: Any) -> int:
    """Script calls by hash: takes, not probes."""
    with redis.Redis(port=server.port) as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.mark.parametrize("lag", ["in_step", "behind"])
def test_at_most_one_burst_more_is_admitted_after_a_failover(
    demo: DemoGitLab, start_redis: Any, upstreams: LoopThread, tmp_path: Path, lag: str
) -> None:
    """Replication is asynchronous: a replica that is behind knows nothing of what was taken last, in the worst case of
    the whole burst. Two gateways, so that what each remembers can't hide what both are given."""
    primary, replica = start_redis(), start_redis()
    command(replica, "REPLICAOF", "127.0.0.1", str(primary.port))
    until(lambda: in_step(replica, primary), "the replica is in step")
    line = TcpRelay(primary.port)
    upstreams.run(line.open())
    config = shared_config(demo.url, limits=[{"id": "caller", "by": "caller", "rate": "1/hour", "burst": BURST}])
    config["stores"]["keys"] = f"sqlite://{tmp_path}/keys.db"
    secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": f"redis://127.0.0.1:{line.port}/0"}
    processes = [GatewayProcess(config, tmp_path / str(number), secrets) for number in range(2)]
    try:
        if lag == "behind":
            command(replica, "REPLICAOF", "NO", "ONE")
        before = rush(processes, TOKENS.ada, REQUESTS)
        assert set(before) == {200, 429}
        assert before[200] >= BURST, "the bucket is empty; on a busy machine a gateway may have decided some by itself"
        if lag == "in_step":
            until(lambda: in_step(replica, primary), "the replica is in step")
        upstreams.run(line.cut())
        primary.stop()
        during = rush(processes, TOKENS.ada, REQUESTS)
        command(replica, "REPLICAOF", "NO", "ONE")
        line.to_port = replica.port
        upstreams.run(line.open())
        for process in processes:
            until(lambda process=process: set(checks(process).values()) == {"ok"}, "the replica is asked")  # type: ignore[misc]
        after = Counter[int]()
        for process in processes:  # each remembers for a second that the caller was refused
            asked = takes_of(replica)

            def reached(port: int = process.port, asked: int = asked) -> bool:
                after[ask(port, "/api/v4/version", token=TOKENS.ada).status] += 1
                return takes_of(replica) > asked

            until(reached, "the replica decides")
        after += rush(processes, TOKENS.ada, REQUESTS)
        assert set(during) | set(after) <= {200, 429}
        assert during[200] + after[200] <= (BURST if lag == "behind" else 0)
        assert lag == "in_step" or after[200] > 0, "a replica that was behind admits again: else this shows nothing"
    finally:
        assert [process.stop() for process in processes] == [0, 0]
        upstreams.run(line.cut())
