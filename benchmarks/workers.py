"""What a second worker costs: CPU time of all processes per request, of two workers beside one, in the same run.

    python -m benchmarks.workers [--rounds 12] [--seconds 1] [--write]

Buckets and cache are in Redis, for one worker as for two. Each round asks both, A B then B A; the CPU time is that of the
whole tree of processes, the supervisor's with it. Twice: with a core for each worker, everything else free on both; and
with both workers on one core, everything else on the other. nginx, a plain proxy with one worker and with two, is measured
in the same way: what its second worker costs is the machine's doing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .load import Shape, put_under_load
from .page import keep, put
from .processes import Program, free_port
from .pythons import Python
from .targets import ISSUES, LOAD_CPU, PROXY_CPU, Bench

_CONNECTIONS = 64
_WORKERS = (1, 2)
_PATIENCE_S = 15.0
_BOTH = frozenset({PROXY_CPU, LOAD_CPU})

EACH, SHARED = "a core each", "both on one core"


class _Places(msgspec.Struct, frozen=True):
    """Which cores there are for whom."""

    name: str
    workers: tuple[frozenset[int], ...]
    """In their order; a single one is at the first."""
    others: frozenset[int]


_PLACES = (
    _Places(EACH, (frozenset({PROXY_CPU}), frozenset({LOAD_CPU})), _BOTH),
    _Places(SHARED, (frozenset({PROXY_CPU}), frozenset({PROXY_CPU})), frozenset({LOAD_CPU})),
)
_UNIT = "nginx"


class Cost(msgspec.Struct):
    """Of one shape of request."""

    name: str
    where: str
    """``EACH`` or ``SHARED``."""
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


class _Asked(msgspec.Struct):
    program: Program
    port: int
    key: str
    workers: int
    alone: bool
    """One process, which is its own only worker."""

    def pin(self, places: _Places) -> None:
        if self.alone:
            self.program.pin(places.workers[0])
        else:
            self.program.pin(*places.workers[: self.workers], places.others)


def run(rounds: int, seconds: float) -> Result:
    """Takes twelve times ``rounds`` times ``seconds``, and twenty seconds to start."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_ground()
            gateways = [_gateway(bench, workers) for workers in _WORKERS]
            units = [_nginx(bench, workers) for workers in _WORKERS]
            costs = []
            for places in _PLACES:
                os.sched_setaffinity(0, places.others)
                for program in bench.ground:
                    program.pin(places.others)
                for name, each, distinct in (("hit", gateways, False), ("miss", gateways, True), (_UNIT, units, True)):
                    for one in each:
                        one.pin(places)
                    taken = _taken(bench, each, distinct, rounds, seconds)
                    costs.append(_cost(name, places.name, taken))
            rss = tuple(round(gateway.program.rss_kib() / 1024, 0) for gateway in gateways)
            return Result(time.strftime("%Y-%m-%d"), bench.python, _CONNECTIONS, costs, rss)
        finally:
            bench.close()


def _nginx(bench: Bench, workers: int) -> _Asked:
    program, port = bench.nginx(workers)
    return _Asked(program, port, "bench", workers, alone=False)


def _gateway(bench: Bench, workers: int) -> _Asked:
    """Once all its workers have been made: they come one after the other."""
    name, port, admin = f"workers{workers}", free_port(), free_port()
    store = f"redis://127.0.0.1:{bench.redis}/{8 + workers}"
    config = bench.file(
        "gateway.yaml", NAME=name, PORT=port, PORT2=admin, STORE=store, CACHE="shared", RATE="10000000/s", BURST=10_000_000
    )
    key, given = bench.key_for(name, config)
    argv = [bench.python.path, "-m", "gateway", "serve", "--config", config, "--workers", str(workers)]
    program = bench.run(name, argv, port, env=given)
    give_up_at = time.monotonic() + _PATIENCE_S
    while workers > 1 and program.children() < workers:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{program.children()} of {workers} workers were made")
        time.sleep(0.05)
    return _Asked(program, port, key, workers, alone=workers == 1)


def _taken(bench: Bench, asked: Sequence[_Asked], distinct: bool, rounds: int, seconds: float) -> tuple[list[float], ...]:
    """Microseconds a request of each, round by round."""
    taken: tuple[list[float], ...] = tuple([] for _ in asked)
    for number in range(rounds + 1):
        order = range(len(asked)) if number % 2 else reversed(range(len(asked)))
        for at in order:
            one = asked[at]
            shape = Shape(ISSUES, {"PRIVATE-TOKEN": one.key}, distinct=distinct)
            before = one.program.cpu_s()
            done = put_under_load(
                shape, one.port, connections=_CONNECTIONS, seconds=seconds, cpu=None, directory=bench.directory
            )
            if done.failed or done.refused:
                raise RuntimeError(f"{one.workers} workers: {done.failed} failed, {done.refused} refused")
            if number:  # the first round fills what is kept
                taken[at].append((one.program.cpu_s() - before) / done.requests * 1e6)
    return taken


def _cost(name: str, where: str, taken: tuple[list[float], ...]) -> Cost:
    one, two = taken
    ratios = tuple(round(b / a, 3) for a, b in zip(one, two, strict=True))
    medians = tuple(round(statistics.median(each), 1) for each in taken)
    return Cost(name, where, medians, tuple(round(min(each), 1) for each in taken), ratios)


def table(result: Result) -> str:
    """As Markdown."""
    rows = [
        f"| {cost.name} | {cost.where} | {cost.us[0]} µs ({cost.least[0]}) | {cost.us[1]} µs ({cost.least[1]}) |"
        f" {statistics.median(cost.ratios):.2f} | {min(cost.ratios):.2f} to {max(cost.ratios):.2f} |"
        f" {cost.least[1] / cost.least[0]:.2f} |"
        for cost in result.costs
    ]
    rounds = len(result.costs[0].ratios)
    return "\n".join(
        [
            f"{result.date}: Python {result.python}, {result.connections} connections, {rounds} rounds.",
            "",
            "| CPU time, median (least) | workers | one worker | two | two by one, median | of all rounds | of the least |",
            "|---|---|---|---|---|---|---|",
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
