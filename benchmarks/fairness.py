"""One caller at fifty times the pace of each of fifty polite ones, before a GitLab of fixed capacity: what do these notice?

    python -m benchmarks.fairness [--seconds 15] [--out benchmarks/results/fairness.json]

Four runs: GitLab at full speed or slowed to a tenth, with the abuser and without. The gateway and GitLab are processes of
their own on loopback; callers are open loops (each asks when its time has come, whether or not it was answered). It judges
shares and ratios, never absolute speed. Takes some two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.connection
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parent.parent
POLITE = 50
EVERY_S = 2.0
FACTOR = 50
PLACES = 20
SERVICE_S = 0.05
_READY = re.compile(r"serving .* on 127\.0\.0\.1:(\d+), admin")


class Outcome(msgspec.Struct):
    """What one run brought the polite callers, and how much the abuser got."""

    asked: int
    succeeded: int
    p50_s: float
    p99_s: float
    abuser_asked: int
    abuser_succeeded: int


# GitLab of fixed capacity


def gitlab(ready: multiprocessing.connection.Connection, service_s: float) -> None:
    """Serve ``PLACES`` requests at a time, ``service_s`` each; further ones wait inside, as they do before Puma."""
    asyncio.run(_gitlab(ready, service_s))


async def _gitlab(ready: multiprocessing.connection.Connection, service_s: float) -> None:
    places = asyncio.Semaphore(PLACES)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                token = re.search(rb"(?i)private-token: bench-(\d+)", head)
                if b"personal_access_tokens/self" in head.split(b"\r\n", 1)[0]:
                    user = token[1].decode() if token else "0"
                    body = b'{"id":%s,"user_id":%s,"active":true,"revoked":false,"scopes":["api"]}' % (
                        user.encode(),
                        user.encode(),
                    )
                else:
                    async with places:
                        await asyncio.sleep(service_s)
                    body = b'{"id":1}'
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Gitlab-Meta: {}\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


# Callers


async def ask(port: int, token: str, fresh: int) -> tuple[int, float]:
    """Make one request on a connection of its own; returns its status (0: none) and how long it took."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /api/v4/projects/%d HTTP/1.1\r\nHost: 127.0.0.1\r\nPRIVATE-TOKEN: %s\r\nConnection: close\r\n\r\n"
                % (fresh, token.encode())
            )
            status = int((await reader.readline()).split()[1])
            await reader.read()
            writer.close()
    except (OSError, TimeoutError, IndexError):
        return 0, time.monotonic() - started
    return status, time.monotonic() - started


async def caller(port: int, number: int, every_s: float, until: float, found: list[tuple[int, float]]) -> None:
    """Ask every ``every_s``, as an open loop."""
    at = time.monotonic() + every_s * (number % POLITE) / POLITE
    fresh = number * 1_000_000
    async with asyncio.TaskGroup() as tasks:

        async def once(target: int) -> None:
            found.append(await ask(port, f"bench-{number}", target))

        while at < until:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            fresh += 1
            tasks.create_task(once(fresh))
            at += every_s


async def drive(port: int, seconds: float, abused: bool) -> Outcome:
    """Let the callers ask for ``seconds``, after one request of each that makes it known to the gateway."""
    await asyncio.gather(*[ask(port, f"bench-{number}", 1) for number in range(1, POLITE + 2)])
    until = time.monotonic() + seconds
    polite: list[tuple[int, float]] = []
    abuser: list[tuple[int, float]] = []
    loops = [caller(port, number, EVERY_S, until, polite) for number in range(1, POLITE + 1)]
    if abused:
        loops.append(caller(port, POLITE + 1, EVERY_S / FACTOR, until, abuser))
    await asyncio.gather(*loops)
    times = sorted(took for _, took in polite)
    return Outcome(
        asked=len(polite),
        succeeded=sum(status == 200 for status, _ in polite),
        p50_s=round(times[len(times) // 2], 4),
        p99_s=round(times[int(len(times) * 0.99)], 4),
        abuser_asked=len(abuser),
        abuser_succeeded=sum(status == 200 for status, _ in abuser),
    )


# One run


def run(service_s: float, seconds: float, abused: bool) -> Outcome:
    """One run, with a fresh gateway before a fresh GitLab."""
    ours, theirs = multiprocessing.Pipe()
    upstream = multiprocessing.Process(target=gitlab, args=(theirs, service_s), daemon=True)
    upstream.start()
    with tempfile.TemporaryDirectory(prefix="gateway-fairness-") as directory:
        try:
            return _run(ours.recv(), Path(directory), seconds, abused)
        finally:
            upstream.terminate()
            upstream.join(10)


def _run(upstream_port: int, directory: Path, seconds: float, abused: bool) -> Outcome:
    config: dict[str, Any] = {
        "version": 1,
        "upstream": {"url": f"http://127.0.0.1:{upstream_port}", "max_in_flight": 2 * PLACES},
        "listen": {"address": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "state_dir": str(directory / "state"),
        "identities": [{"id": "people", "gitlab_token": True, "verify": {"ttl": "1h"}}],
        "limits": [{"id": "caller", "by": "caller", "rate": "60/min", "burst": 5, "advertise": True}],
        "audit": {"sink": f"file:{directory / 'audit'}"},
    }
    file = directory / "gateway.yaml"
    file.write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", str(file)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            serving = _READY.search(line)
            if serving is not None:
                return asyncio.run(drive(int(serving[1]), seconds, abused))
        raise RuntimeError("the gateway did not start")
    finally:
        process.terminate()
        process.communicate(timeout=40)


def main() -> int:
    """Run, print and keep the results; returns 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "fairness.json")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    kept = True
    for name, service_s in (("well", SERVICE_S), ("slowed to a tenth", SERVICE_S * 10)):
        without = run(service_s, arguments.seconds, abused=False)
        beside = run(service_s, arguments.seconds, abused=True)
        ratio = round(beside.p99_s / without.p99_s, 2)
        good = beside.succeeded == beside.asked and without.succeeded == without.asked and ratio <= 1.5
        kept = kept and good
        report[name] = {
            "without the abuser": msgspec.to_builtins(without),
            "beside the abuser": msgspec.to_builtins(beside),
            "polite success": round(beside.succeeded / beside.asked, 4),
            "p99 ratio": ratio,
            "kept": good,
        }
        print(f"GitLab {name}: polite success {beside.succeeded}/{beside.asked}, p99 ratio {ratio}")
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
