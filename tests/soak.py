"""A bounded soak on loopback: ``python -m tests.soak [SECONDS]``. Mixed traffic, random faults, then many idle clients.

Clients of several kinds use a gateway in front of the demo GitLab, through a relay that is now and then slow, held or cut,
with buckets and cache in a Redis that is now and then killed or stopped. Every answer must be one that the fault explains.
At the end nothing may be left: no request, no connection, no descriptor, and no memory that grew after the warm-up.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gateway.demo.gitlab import build_demo_gitlab
from gateway.demo.seed import TOKENS
from tests.conftest import RedisServer
from tests.e2e.conftest import DEMO_SECRETS, EXTERNAL_URL, SHARED_SECRETS, shared_config
from tests.e2e.load import checks, descriptors, figure, quiet, resident_kib, until
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer, ask
from tests.fakes.line import TcpRelay

CLIENTS = 6
IDLE = 10_000
SOURCES = 8
"""Addresses the idle ones come from: a port range is finite."""

EXPLAINED = {502, 503, 504}
"""What a caller may see while GitLab is cut off; at any other time nothing but GitLab's own answers."""
OWN = {200, 201, 204, 304, 401, 404}


class Traffic:
    """Clients that send requests until they are stopped."""

    def __init__(self, gateway: GatewayProcess, key: str, seed: int) -> None:
        self.gateway = gateway
        self.key = key
        self.cut = threading.Event()
        """GitLab cannot be reached, or could not until a moment ago."""
        self.over = threading.Event()
        self.seen: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.threads = [threading.Thread(target=self._client, args=(random.Random(seed + n),)) for n in range(CLIENTS)]

    def _client(self, chance: random.Random) -> None:
        kinds = (self._read, self._read, self._write, self._big, self._vanish, self._nonsense, self._stranger)
        while not self.over.wait(0.003):
            fault = self.cut.is_set()
            try:
                status = chance.choice(kinds)(chance)
            except (OSError, AssertionError) as broken:
                if not (fault or self.cut.is_set()):
                    self.wrong.append(f"a connection ended: {broken!r:.100}")
                continue
            self.seen[status] += 1
            allowed = OWN | {400, 499} | (EXPLAINED if fault or self.cut.is_set() else set())
            if status not in allowed:
                self.wrong.append(f"answered {status}")

    def _token(self, chance: random.Random) -> str:
        return chance.choice([self.key, TOKENS.ada, TOKENS.bob])

    def _read(self, chance: random.Random) -> int:
        target = chance.choice(["/api/v4/version", "/api/v4/projects", "/api/v4/projects/platform%2Fapi", "/api/v4/user"])
        return ask(self.gateway.port, target, token=self._token(chance)).status

    def _write(self, chance: random.Random) -> int:
        body = json.dumps({"title": "soak", "description": "x" * chance.randrange(2000)}).encode()
        target = "/api/v4/projects/platform%2Fapi/issues"
        return ask(
            self.gateway.port, target, "Content-Type: application/json", method="POST", body=body, token=TOKENS.ada
        ).status

    def _big(self, chance: random.Random) -> int:
        """A long body in chunks, to a route that has no use for it."""
        size = chance.randrange(1, 300_000)
        with Peer(self.gateway.port) as peer:
            peer.send(f"PUT /api/v4/no/such/thing HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {TOKENS.ada}\r\n".encode())
            peer.send(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, b"y" * size))
            return peer.read_reply().status

    def _vanish(self, chance: random.Random) -> int:
        octets = f"GET /api/v4/projects HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {self._token(chance)}\r\n\r\n".encode()
        with Peer(self.gateway.port) as peer:
            peer.send(octets[: chance.randrange(len(octets) + 1)])
        return 499

    def _nonsense(self, chance: random.Random) -> int:
        with Peer(self.gateway.port) as peer:
            peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + chance.randbytes(30).replace(b"\n", b"") + b"\r\n\r\n")
            return peer.read_reply().status

    def _stranger(self, chance: random.Random) -> int:
        return ask(self.gateway.port, "/api/v4/version", source=f"127.8.0.{chance.randrange(1, 200)}").status


class Faults:
    """One fault at a time, each put right again."""

    def __init__(self, line: TcpRelay, redis: RedisServer, upstreams: LoopThread, traffic: Traffic) -> None:
        self.line, self.redis, self.upstreams, self.traffic = line, redis, upstreams, traffic
        self.done: Counter[str] = Counter()
        self.kinds: list[Callable[[], None]] = [self.redis_killed, self.redis_stopped, self.gitlab_slow, self.gitlab_cut]

    def one(self, chance: random.Random, lasts_s: float) -> None:
        kind = chance.choice(self.kinds)
        self.lasts_s = lasts_s
        kind()
        self.done[kind.__name__] += 1

    def _wait(self) -> None:
        self.traffic.over.wait(self.lasts_s)

    def redis_killed(self) -> None:
        self.redis.stop()
        self._wait()
        self.redis.start()

    def redis_stopped(self) -> None:
        assert self.redis.process is not None
        os.kill(self.redis.process.pid, signal.SIGSTOP)
        self._wait()
        os.kill(self.redis.process.pid, signal.SIGCONT)

    def gitlab_slow(self) -> None:
        self.line.delay_s = 0.05
        self._wait()
        self.line.delay_s = 0.0

    def gitlab_cut(self) -> None:
        self.traffic.cut.set()
        self.upstreams.run(self.line.cut())
        self._wait()
        self.upstreams.run(self.line.open())
        port, key = self.traffic.gateway.port, self.traffic.key
        until(lambda: ask(port, "/api/v4/version", token=key).status == 200, "GitLab is asked again")
        self.traffic.over.wait(0.3)  # for those who were still waiting for their answer
        self.traffic.cut.clear()


def soak(gateway: GatewayProcess, traffic: Traffic, faults: Faults, seconds: float, chance: random.Random) -> list[str]:
    """What is wrong."""
    for thread in traffic.threads:
        thread.start()
    started = time.monotonic()
    warm = seconds / 3
    kib_warm = 0
    while (elapsed := time.monotonic() - started) < seconds:
        if elapsed > warm and not kib_warm:
            kib_warm = resident_kib(gateway)
        faults.one(chance, min(1.5, seconds / 20))
        traffic.over.wait(min(1.5, seconds / 20))
    kib = resident_kib(gateway)
    traffic.over.set()
    for thread in traffic.threads:
        thread.join(30)
    wrong = list(traffic.wrong)
    grown = kib - kib_warm
    print(f"requests {sum(traffic.seen.values())}: {dict(sorted(traffic.seen.items()))}")
    print(f"faults {dict(faults.done)}; errors that no fault explains: {len(wrong)}")
    print(f"memory after a third of the time {kib_warm} KiB, at the end {kib} KiB: {grown:+} KiB")
    if grown > max(8192, kib_warm // 10):
        wrong.append(f"memory grew by {grown} KiB")
    if figure(gateway, 'gitlab_gateway_refusals_total{code="internal_error"}'):
        wrong.append("the gateway had faults of its own")
    return wrong


def check_idle_clients(gateway: GatewayProcess, count: int) -> list[str]:
    """So many idle connections, and what they cost."""
    quiet(gateway)
    kib = resident_kib(gateway)
    held = []
    try:
        for number in range(count):
            one = socket.create_connection(("127.0.0.1", gateway.port), 10, (f"127.9.0.{1 + number % SOURCES}", 0))
            if number % 2:
                one.sendall(b"GET /api/v4/version HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            held.append(one)
        until(lambda: figure(gateway, "gitlab_gateway_client_connections") == count, "all are let in")
        took = []
        for _ in range(200):
            started = time.monotonic()
            assert ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status == 200
            took.append(time.monotonic() - started)
        each = (resident_kib(gateway) - kib) / count
        took.sort()
        print(f"{count} connections, half of them in the middle of a head: {each:.1f} KiB each;", end=" ")
        print(f"others are answered in {took[100] * 1000:.1f} ms (median), {took[-2] * 1000:.1f} ms (99 %)")
        return [] if each < 24 and took[-2] < 1.0 else [f"{each:.1f} KiB each, {took[-2]:.3f} s"]
    finally:
        for one in held:
            one.close()
        quiet(gateway)


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    chance = random.Random(seed)
    logging.getLogger("aiohttp.server").setLevel(
        logging.CRITICAL
    )  # the demo GitLab's words about clients that were cut off
    print(f"soak: {seconds:.0f} s, seed {seed}")
    upstreams = LoopThread()
    gitlab = build_demo_gitlab(external_url=EXTERNAL_URL, reveal=True)
    upstreams.run(gitlab.start())
    line = TcpRelay(int(gitlab.url.rpartition(":")[2]))
    upstreams.run(line.open())
    redis = RedisServer()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        config = shared_config(
            f"http://127.0.0.1:{line.port}",
            limits=[{"id": "caller", "by": "caller", "rate": "1000000/min"}],
            listen={"address": "127.0.0.1:0", "admin": "127.0.0.1:0", "limits": {"request_head": "60s"}},
        )
        config["stores"]["keys"] = f"sqlite://{directory}/keys.db"
        config["upstream"] |= {"breaker": {"open_for": "1s"}, "timeouts": {"connect": "1s", "first_byte": "10s"}}
        config["cache"] = {"max_bytes": "8MiB"}
        secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": redis.url}
        gateway = GatewayProcess(config, Path(directory) / "gateway", secrets)
        try:
            traffic = Traffic(gateway, gateway.new_key("bot"), seed)
            assert ask(gateway.port, "/api/v4/version", token=traffic.key).status == 200
            before = descriptors(gateway)
            wrong = soak(gateway, traffic, Faults(line, redis, upstreams, traffic), seconds, chance)
            quiet(gateway)
            until(lambda: descriptors(gateway) <= before + 4, f"descriptors are given back: {before} before")
            until(lambda: set(checks(gateway).values()) == {"ok"}, "all is well again")
            print(f"descriptors before {before}, after {descriptors(gateway)}: nothing leaked")
            wrong += check_idle_clients(gateway, IDLE)
        finally:
            code = gateway.stop()
            redis.close()
            upstreams.run(line.cut())
            upstreams.run(gitlab.close())
            upstreams.close()
    if code:
        wrong.append(f"exit code {code}")
    for text, times in Counter(wrong).most_common(20):
        print(f"WRONG {times} times: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
