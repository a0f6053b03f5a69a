"""Limits: what each caller is sent, and who may come back when."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, OWN_TOKEN, SHARED_SECRETS, Passage, demo_config, shared_config
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, Reply, ask
from tests.fakes.gitlab import response

BURST = 50


@pytest.fixture(scope="module")
def limited(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    limits = [
        {"id": "caller", "by": "caller", "rate": "600/hour", "burst": 3, "advertise": True},
        {"id": "everybody", "by": "organisation", "rate": "100000/min"},
    ]
    process = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path_factory.mktemp("limited"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


def exhaust(gateway: GatewayProcess, *fields: str, token: str) -> tuple[list[Reply], Reply]:
    """The answers before the first refusal, and that one."""
    allowed = []
    for _ in range(10):
        reply = ask(gateway.port, "/api/v4/version", *fields, token=token)
        if reply.status == 429:
            return allowed, reply
        allowed.append(reply)
    raise AssertionError("never refused")


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_a_document_is_let_come_only_where_there_is_room(
    demo: DemoGitLab, start_redis: Any, tmp_path: Path, store: str
) -> None:
    """What a GraphQL request takes stands in its body; ``100 Continue`` waits for the limits all the same."""
    limits = [{"id": "caller", "by": "caller", "rate": "60/hour", "burst": 3, "advertise": True}]
    secrets = {**DEMO_SECRETS, **SHARED_SECRETS}
    if store == "redis":
        config = shared_config(demo.url, limits=limits)
        secrets["REDIS_URL"] = start_redis().url
    else:
        config = demo_config(demo.url, limits=limits)
    gateway = GatewayProcess(config, tmp_path / "gateway", secrets)
    try:
        _ask_for_continue(gateway)
    finally:
        assert gateway.stop() == 0


def _ask_for_continue(limited: GatewayProcess) -> None:
    head = (
        "POST /api/graphql HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
        f"PRIVATE-TOKEN: {TOKENS.root_sudo}\r\nContent-Length: "
    )
    query, batch = b'{"query":"{currentUser{username}}"}', b'[{"query":"{a}"},{"query":"{b}"}]'
    for body, remaining in ((query, "2"), (batch, "0")):
        with Peer(limited.port) as peer:
            peer.send(f"{head}{len(body)}\r\n\r\n".encode())
            assert peer.read_head() == (100, [])
            peer.send(body)
            assert peer.read_reply("POST").value("RateLimit-Remaining") == remaining
    with Peer(limited.port) as peer:
        peer.send(f"{head}{len(query)}\r\n\r\n".encode())
        refused = peer.read_reply("POST")
    assert (refused.status, refused.value("RateLimit-Name"), refused.value("Connection")) == (429, "caller", "close")


def test_r62_buckets_are_per_caller_and_told_on_every_answer(limited: GatewayProcess) -> None:
    allowed, refused = exhaust(limited, token=TOKENS.bob)
    assert [reply.status for reply in allowed] == [200, 200, 200]
    assert [reply.value("RateLimit-Remaining") for reply in (*allowed, refused)] == ["2", "1", "0", "0"]
    for reply in (*allowed, refused):
        assert reply.value("RateLimit-Limit") == "10"  # a minute
        assert reply.value("RateLimit-Name") == "caller"
        assert int(reply.value("RateLimit-Reset") or "0") > time.time()
        assert (reply.value("RateLimit-Policy") or "").startswith('"caller";q=600;w=3600')
        assert (reply.value("RateLimit") or "").startswith('"caller";r=')
    assert ask(limited.port, "/api/v4/version", token=TOKENS.eve).status == 200


def test_r26_the_gateways_429_is_rack_attacks(limited: GatewayProcess) -> None:
    _, refused = exhaust(limited, token=TOKENS.ada)
    assert (refused.status, refused.body) == (429, b"Retry later\n")
    assert refused.value("Content-Type") == "text/plain"
    wait_s = int(refused.value("Retry-After") or "x")
    assert 1 <= wait_s <= 7
    assert int(refused.value("RateLimit-Reset") or "0") >= time.time() + wait_s - 2
    assert (refused.value("RateLimit-ResetTime") or "").endswith(" GMT")
    assert refused.value("X-Gateway-Error") == "rate_limited"
    _, answer = exhaust(limited, "Accept: application/json", token=TOKENS.ada)
    assert json.loads(answer.body) == {
        "message": {"error": "This endpoint has been requested too many times. Try again later."}
    }
    _, problem = exhaust(limited, "Accept: application/problem+json", token=TOKENS.ada)
    assert problem.value("Content-Type") == "application/problem+json"
    assert json.loads(problem.body)["violated-policies"] == ["caller"]


def test_r26_gitlabs_own_429_passes_with_its_numbers(passage: Passage) -> None:
    fields = [
        ("Content-Type", "text/plain"), ("RateLimit-Limit", "60"), ("RateLimit-Name", "throttle_authenticated_api"),
        ("RateLimit-Observed", "61"), ("RateLimit-Remaining", "0"), ("RateLimit-Reset", "1900000000"),
        ("RateLimit-ResetTime", "Sun, 17 Mar 2030 17:46:40 GMT"), ("Retry-After", "13"),
    ]  # fmt: skip
    reply, _ = passage("/api/v4/projects?r26", token=OWN_TOKEN, answer=response(429, b"Retry later\n", *fields))
    assert (reply.status, reply.body) == (429, b"Retry later\n")
    for name, value in fields:
        assert reply.values(name) == [value], name
    assert "x-gateway-error" not in reply.names
    body = b'{"message":{"error":"This endpoint has been requested too many times. Try again later."}}'
    reply, _ = passage("/api/v4/projects?r26", token=OWN_TOKEN, answer=response(429, body, ("Retry-After", "60")))
    assert (reply.body, reply.value("Retry-After")) == (body, "60")
    assert reply.value("RateLimit-Remaining") == "0"


def test_x24_the_probe_of_go_clients_is_told_a_limit_at_once(limited: GatewayProcess, gateway: GatewayProcess) -> None:
    for process, limit in ((limited, "10"), (gateway, "6000")):
        started = time.monotonic()
        reply = ask(process.port, "/api/v4/")
        assert time.monotonic() - started < 5.0
        assert reply.status in {401, 404}
        assert reply.value("RateLimit-Limit") == limit


def test_two_gateways_on_one_redis_admit_exactly_the_burst(
    demo: DemoGitLab, start_redis: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    redis = start_redis()
    limits = [{"id": "caller", "by": "caller", "rate": "1/hour", "burst": BURST}]
    config = shared_config(demo.url, limits=limits)
    secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": redis.url}
    directory = tmp_path_factory.mktemp("exactly")
    processes = [GatewayProcess(config, directory / str(number), secrets) for number in range(2)]
    try:
        for token in (TOKENS.ada, processes[0].new_key("bot")):
            assert rush(processes, token, 400) == {200: BURST, 429: 400 - BURST}
    finally:
        assert [process.stop() for process in processes] == [0, 0]


def rush(processes: list[GatewayProcess], token: str, requests: int) -> Counter[int]:
    """Statuses of so many requests, sent over 16 connections that start together."""
    workers = 16
    together = threading.Barrier(workers)

    def work(number: int) -> Counter[int]:
        port = processes[number % len(processes)].port
        octets = f"GET /api/v4/version HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nPRIVATE-TOKEN: {token}\r\n\r\n".encode()
        seen: Counter[int] = Counter()
        with Peer(port) as peer:
            together.wait(30)
            for _ in range(requests // workers):
                peer.send(octets)
                seen[peer.read_reply().status] += 1
        return seen

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(work, range(workers)), Counter())


def test_a_project_has_one_bucket_by_number_and_path_once_that_is_known(demo: DemoGitLab, tmp_path: Path) -> None:
    limits = [{"id": "project", "by": "project", "rate": "1/hour", "burst": 6}]
    gateway = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path / "gateway", DEMO_SECRETS)
    try:
        by_path = "/api/v4/projects/platform%2Fapi"
        reply = ask(gateway.port, by_path, token=TOKENS.ada)
        by_number = f"/api/v4/projects/{json.loads(reply.body)['id']}"
        seen = [ask(gateway.port, target, token=TOKENS.ada).status for _ in range(6) for target in (by_path, by_number)]
        assert seen == [200] * 6 + [429] * 6
    finally:
        assert gateway.stop() == 0
