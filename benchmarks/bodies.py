"""What large bodies cost, such as clones, artifacts and packages: CPU time per mebibyte relative to nginx's, down and up.

    python -m benchmarks.bodies [--rounds 7] [--mebibytes 64] [--write]

One client runs on the other core, beside the origin, and moves one body after the other, each over a connection of its own.
Targets take turns in each round. nginx is the unit of measure; it is set up so that it does not write bodies to disk.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from .page import replace_section, save_result
from .processes import Program, free_port
from .pythons import Python
from .targets import LOAD_CPU, Bench

_MEBI = 1 << 20
_PATIENCE_S = 60.0
_DOWN = "GET /api/v4/projects/42/jobs/1/artifacts"
_UP = "PUT /api/v4/projects/42/packages/generic/firmware/1/image.bin"


class Cost(msgspec.Struct):
    """What bodies cost at one target, one way."""

    name: str
    way: str
    """``down`` or ``up``."""
    cpu: float
    """nginx's CPU time per mebibyte divided by the target's in the same round, median: 2 means half the cost."""
    quartiles: tuple[float, float]
    rate: float
    """Mebibytes per second, divided by nginx's: median."""
    peak_mib: float
    """Peak resident memory of all its processes, read at the end."""


class Result(msgspec.Struct):
    """The result as kept in benchmarks/results/bodies.json."""

    date: str
    python: Python
    rounds: int
    mebibytes: int
    costs: list[Cost]


class _Target(msgspec.Struct):
    name: str
    program: Program
    port: int
    key: str = "bench"


def run(rounds: int, mebibytes: int) -> Result:
    """Measure. Takes a second or two per round."""
    os.sched_setaffinity(0, {LOAD_CPU})
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            origin = [sys.executable, "-m", "benchmarks.body_origin", str(bench.origin), str(mebibytes * _MEBI)]
            bench.run("bodies-origin", origin, bench.origin, cpu=LOAD_CPU)
            return _measure(bench, list(_targets(bench)), rounds, mebibytes)
        finally:
            bench.close()


def _targets(bench: Bench) -> Iterator[_Target]:
    port, large = free_port(), free_port()
    program = bench.run("bodies", ["nginx", "-c", bench.file("nginx_bodies.conf", PORT=port, PORT2=large)], large)
    yield _Target("nginx", program, port)
    yield _Target("nginx, large buffers", program, large)
    port = free_port()
    config = bench.file("gateway_bodies.yaml", NAME="gateway", PORT=port, PORT2=free_port())
    key, given = bench.key_for("gateway", config)
    argv = [bench.python.path, "-m", "gateway", "serve", "--config", config]
    yield _Target("gateway", bench.run("gateway", argv, port, env=given), port, key)
    for peer in bench.start_plain():
        yield _Target(peer.name, peer.program, peer.port)


def _measure(bench: Bench, targets: list[_Target], rounds: int, mebibytes: int) -> Result:
    ways: dict[str, Callable[[_Target, int], None]] = {"down": _down, "up": _up}
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(-1, rounds):  # the first turn warms up and is not counted
        for target in targets if turn % 2 else reversed(targets):
            for way, move in ways.items():
                cpu_s, began_at = target.program.cpu_s(), time.monotonic()
                move(target, mebibytes)
                if turn >= 0:
                    took[target.name, way].append(time.monotonic() - began_at)
                    spent[target.name, way].append(target.program.cpu_s() - cpu_s)
    costs = []
    for way in ways:
        for target in targets:
            cpu = _ratios(spent["nginx", way], spent[target.name, way])
            low, _, high = statistics.quantiles(cpu, n=4)
            rate = statistics.median(_ratios(took["nginx", way], took[target.name, way]))
            peak = round(target.program.peak_kib() / 1024, 1)
            spread = (round(low, 2), round(high, 2))
            costs.append(Cost(target.name, way, round(statistics.median(cpu), 2), spread, round(rate, 2), peak))
    return Result(time.strftime("%Y-%m-%d"), bench.python, rounds, mebibytes, costs)


def _ratios(unit: list[float], own: list[float]) -> list[float]:
    return [its / mine for its, mine in zip(unit, own, strict=True)]


def _down(target: _Target, mebibytes: int) -> None:
    """Download a body. Raises RuntimeError where not all of it arrived."""
    with socket.create_connection(("127.0.0.1", target.port), _PATIENCE_S) as client:
        client.sendall(_head(_DOWN, target.key, "Connection: close\r\n"))
        buffer, first, count = bytearray(_MEBI), b"", 0
        while got := client.recv_into(buffer):
            first = first or bytes(buffer[: min(got, 100)])
            count += got
    if not first.startswith(b"HTTP/1.1 200 ") or count < mebibytes * _MEBI:
        raise RuntimeError(f"{target.name}: {count} octets, {first!r}")


def _up(target: _Target, mebibytes: int) -> None:
    """Upload a body. Raises RuntimeError where it was not accepted."""
    with socket.create_connection(("127.0.0.1", target.port), _PATIENCE_S) as client:
        client.sendall(_head(_UP, target.key, f"Content-Length: {mebibytes * _MEBI}\r\n"))
        piece = bytes(_MEBI)
        for _ in range(mebibytes):
            client.sendall(piece)
        answer = client.recv(1 << 16)
    if not answer.startswith(b"HTTP/1.1 201 "):
        raise RuntimeError(f"{target.name}: {answer[:200]!r}")


def _head(what: str, key: str, more: str) -> bytes:
    return f"{what} HTTP/1.1\r\nHost: git.example.com\r\nPRIVATE-TOKEN: {key}\r\n{more}\r\n".encode()


def table(result: Result) -> str:
    """The result as Markdown."""
    costs = {(cost.name, cost.way): cost for cost in result.costs}
    rows = [
        f"{result.date}: Python {result.python}, {result.rounds} rounds of {result.mebibytes} MiB each way.",
        "",
        "| | down: CPU ratio (quartiles) | MiB/s ratio | up: CPU ratio (quartiles) | MiB/s ratio | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(cost.name for cost in result.costs):
        cells = []
        for way in ("down", "up"):
            cost = costs[name, way]
            cells += [f"{cost.cpu:.2f} ({cost.quartiles[0]:.2f}-{cost.quartiles[1]:.2f})", f"{cost.rate:.2f}"]
        rows.append(f"| {name} | {' | '.join(cells)} | {costs[name, 'up'].peak_mib:.0f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mebibytes", type=int, default=64, help="of each body")
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    result = run(given.rounds, given.mebibytes)
    print(table(result))
    if given.write:
        save_result("bodies", result)
        replace_section("bodies", table(result))


if __name__ == "__main__":
    main()
