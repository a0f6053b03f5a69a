"""What a second worker costs: CPU time of all processes per request, of two workers beside one, in the same run.

    python -m benchmarks.workers [--rounds 12] [--seconds 1] [--write]

Both gateways on one core, load, origin and Redis on another, buckets and cache in Redis. Each round asks both, A B then
B A; the CPU time is that of the whole tree of processes, the supervisor's with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from .load import Shape, put_under_load
from .page import keep, put
from .processes import Program, free_port
from .pythons import Python
from .targets import ISSUES, LOAD_CPU, Bench

_CONNECTIONS = 64
_WORKERS = (1, 2)


class Cost(msgspec.Struct):
    """Of one shape of request."""

    name: str
    us: tuple[float, ...]
    """Microseconds of CPU a request with one worker, with two: medians."""
    least: tuple[float, ...]
    """The same of the round that was disturbed least."""
    ratios: tuple[float, ...]
    """Of each round: two workers by one."""


class Result(msgspec.Struct):
    """As kept in benchmarks/results/workers.json."""

    date: str
    python: Python
    connections: int
    costs: list[Cost]
    rss_mib: tuple[float, ...]
    """Of all processes after the run, with one worker, with two."""


def run(rounds: int, seconds: float) -> Result:
    """Takes four times ``rounds`` times ``seconds``, and ten seconds to start."""
    os.sched_setaffinity(0, {LOAD_CPU})
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_ground()
            gateways = [_gateway(bench, workers) for workers in _WORKERS]
            costs = [
                _cost(bench, gateways, name, distinct, rounds, seconds)
                for name, distinct in (("hit", False), ("miss", True))
            ]
            rss = tuple(round(program.rss_kib() / 1024, 0) for program, _, _ in gateways)
            return Result(time.strftime("%Y-%m-%d"), bench.python, _CONNECTIONS, costs, rss)
        finally:
            bench.close()


def _gateway(bench: Bench, workers: int) -> tuple[Program, int, str]:
    """The program, its port, and a key."""
    name, port, admin = f"workers{workers}", free_port(), free_port()
    store = f"redis://127.0.0.1:{bench.redis}/{8 + workers}"
    config = bench.file(
        "gateway.yaml", NAME=name, PORT=port, PORT2=admin, STORE=store, CACHE="shared", RATE="10000000/s", BURST=10_000_000
    )
    key, given = bench.key_for(name, config)
    argv = [bench.python.path, "-m", "gateway", "serve", "--config", config, "--workers", str(workers)]
    return bench.run(name, argv, port, env=given), port, key


def _cost(
    bench: Bench, gateways: list[tuple[Program, int, str]], name: str, distinct: bool, rounds: int, seconds: float
) -> Cost:
    taken: list[list[float]] = [[] for _ in gateways]
    for number in range(rounds + 1):
        order = range(len(gateways)) if number % 2 else reversed(range(len(gateways)))
        for at in order:
            program, port, key = gateways[at]
            shape = Shape(ISSUES, {"PRIVATE-TOKEN": key}, distinct=distinct)
            before = program.cpu_s()
            done = put_under_load(
                shape, port, connections=_CONNECTIONS, seconds=seconds, cpu=LOAD_CPU, directory=bench.directory
            )
            if done.failed or done.refused:
                raise RuntimeError(f"{name}: {done.failed} failed, {done.refused} refused")
            if number:  # the first round fills what is kept
                taken[at].append((program.cpu_s() - before) / done.requests * 1e6)
    one, two = taken
    ratios = tuple(round(b / a, 3) for a, b in zip(one, two, strict=True))
    medians = tuple(round(statistics.median(each), 1) for each in taken)
    return Cost(name, medians, tuple(round(min(each), 1) for each in taken), ratios)


def table(result: Result) -> str:
    """As Markdown."""
    rows = [
        f"| {cost.name} | {cost.us[0]} µs ({cost.least[0]}) | {cost.us[1]} µs ({cost.least[1]}) |"
        f" {statistics.median(cost.ratios):.2f} | {min(cost.ratios):.2f} to {max(cost.ratios):.2f} |"
        f" {cost.least[1] / cost.least[0]:.2f} |"
        for cost in result.costs
    ]
    rounds = len(result.costs[0].ratios)
    return "\n".join(
        [
            f"{result.date}: Python {result.python}, {result.connections} connections, {rounds} rounds.",
            "",
            "| CPU time, median (least) | one worker | two | two by one, median | of all rounds | of the least |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Resident after the run: {result.rss_mib[0]:.0f} MiB with one worker, {result.rss_mib[1]:.0f} MiB"
            " with two and their supervisor together.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    result = run(given.rounds, given.seconds)
    print(table(result))
    if given.write:
        keep("workers", result)
        put("workers", table(result))


if __name__ == "__main__":
    main()
