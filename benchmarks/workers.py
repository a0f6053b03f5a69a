"""What a second worker costs: CPU time of all processes per request, of two workers beside one, in the same run.

    python -m benchmarks.workers [--rounds 12] [--seconds 1] [--write]

Buckets and cache are in Redis, for one worker as for two. Each round asks all, to and fro; the CPU time is that of the
whole tree of processes, the supervisor's with it. Twice: with a core for each worker, everything else free on both; and
with both workers on one core, everything else on the other.

Two workers ask more of the machine than one: both cores are full, and each worker's share of the connections is half as
many to serve in one turn. Two gateways of one worker each, which know nothing of each other, do just that, too. So what
two workers cost beside them is what sharing a gateway costs; the rest is the machine's. nginx, a plain proxy, is measured
in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .load import Shape, begin, result_of
from .page import keep, put
from .processes import Program, free_port
from .pythons import Python
from .targets import ISSUES, LOAD_CPU, PROXY_CPU, Bench

_CONNECTIONS = 64
_LOADS = 2
"""Processes that put the load, each with its share of the connections: as many for whoever is asked."""
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
    """Of one shape of request. Tuples: one worker, two, two gateways of one each."""

    name: str
    where: str
    """``EACH`` or ``SHARED``."""
    us: tuple[float, ...]
    """Microseconds of CPU a request: medians."""
    least: tuple[float, ...]
    """The same of the round that was disturbed least."""
    ratios: tuple[float, ...]
    """Of each round: two workers by one."""
    beside_pair: tuple[float, ...]
    """Of each round: two workers by two gateways."""


class Result(msgspec.Struct):
    """As kept in benchmarks/results/workers.json."""

    date: str
    python: Python
    connections: int
    costs: list[Cost]
    rss_mib: tuple[float, ...]
    """Of all processes after the run, with one worker, with two."""


class _Asked(msgspec.Struct):
    """A gateway or an nginx."""

    program: Program
    port: int
    key: str
    workers: int
    alone: bool
    """One process, which is its own only worker."""

    def pin(self, places: _Places, first: int) -> None:
        """``first``: the place of its first worker."""
        if self.alone:
            self.program.pin(places.workers[first])
        else:
            self.program.pin(*places.workers[: self.workers], places.others)


_Side = tuple[_Asked, ...]
"""What is asked in one go: one of them, or two side by side."""


def run(rounds: int, seconds: float) -> Result:
    """Takes eighteen times ``rounds`` times ``seconds``, and twenty seconds to start."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_ground()
            gateways = _sides(_gateway(bench, 1, 1), _gateway(bench, 2, 2), _gateway(bench, 3, 1), _gateway(bench, 4, 1))
            units = _sides(_nginx(bench, 1, 1), _nginx(bench, 2, 2), _nginx(bench, 3, 1), _nginx(bench, 4, 1))
            costs = []
            for places in _PLACES:
                os.sched_setaffinity(0, places.others)
                for program in bench.ground:
                    program.pin(places.others)
                for name, sides, distinct in (("hit", gateways, False), ("miss", gateways, True), (_UNIT, units, True)):
                    for side in sides:
                        for place, one in enumerate(side):
                            one.pin(places, place)
                    taken = _taken(bench, sides, distinct, rounds, seconds)
                    costs.append(_cost(name, places.name, taken))
            rss = tuple(round(side[0].program.rss_kib() / 1024, 0) for side in gateways[:2])
            return Result(time.strftime("%Y-%m-%d"), bench.python, _CONNECTIONS, costs, rss)
        finally:
            bench.close()


def _sides(one: _Asked, two: _Asked, *pair: _Asked) -> tuple[_Side, ...]:
    return (one,), (two,), pair


def _nginx(bench: Bench, number: int, workers: int) -> _Asked:
    program, port = bench.nginx(workers, name=f"nginx{number}")
    return _Asked(program, port, "bench", workers, alone=False)


def _gateway(bench: Bench, number: int, workers: int) -> _Asked:
    """Once all its workers serve: they come one after the other."""
    name, port, admin = f"workers{number}", free_port(), free_port()
    store = f"redis://127.0.0.1:{bench.redis}/{8 + number}"
    config = bench.file(
        "gateway.yaml", NAME=name, PORT=port, PORT2=admin, STORE=store, CACHE="shared", RATE="10000000/s", BURST=10_000_000
    )
    key, given = bench.key_for(name, config)
    argv = [bench.python.path, "-m", "gateway", "serve", "--config", config, "--workers", str(workers)]
    program = bench.run(name, argv, port, env=given)
    give_up_at = time.monotonic() + _PATIENCE_S
    while not _is_ready(admin):
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{workers} workers do not all serve")
        time.sleep(0.05)
    return _Asked(program, port, key, workers, alone=workers == 1)


def _is_ready(admin: int) -> bool:
    """All workers serve."""
    asked = http.client.HTTPConnection("127.0.0.1", admin, timeout=_PATIENCE_S)
    with contextlib.closing(asked), contextlib.suppress(OSError):
        asked.request("GET", "/readyz")
        return asked.getresponse().status == 200
    return False


def _taken(bench: Bench, sides: Sequence[_Side], distinct: bool, rounds: int, seconds: float) -> tuple[list[float], ...]:
    """Microseconds a request of each, round by round."""
    taken: tuple[list[float], ...] = tuple([] for _ in sides)
    for number in range(rounds + 1):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        for at in order:
            used_us = _used_us(bench, sides[at], distinct, seconds)
            if number:  # the first round fills what is kept
                taken[at].append(used_us)
    return taken


def _used_us(bench: Bench, side: _Side, distinct: bool, seconds: float) -> float:
    """Of CPU time, by all of the side, a request."""
    before = sum(one.program.cpu_s() for one in side)
    begun = []
    for number in range(_LOADS):
        one = side[number % len(side)]
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": one.key}, distinct=distinct)
        share = _CONNECTIONS // _LOADS
        begun.append(begin(shape, one.port, connections=share, seconds=seconds, cpu=None, directory=bench.directory))
    loads = [result_of(each) for each in begun]
    if any(one.failed or one.refused for one in loads):
        raise RuntimeError(f"not all were answered: {loads}")
    return (sum(one.program.cpu_s() for one in side) - before) / sum(one.requests for one in loads) * 1e6


def _cost(name: str, where: str, taken: tuple[list[float], ...]) -> Cost:
    one, two, pair = taken
    medians = tuple(round(statistics.median(each), 1) for each in taken)
    least = tuple(round(min(each), 1) for each in taken)
    return Cost(name, where, medians, least, _by(two, one), _by(two, pair))


def _by(these: Sequence[float], those: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(this / that, 3) for this, that in zip(these, those, strict=True))


def table(result: Result) -> str:
    """As Markdown."""
    rows = [
        f"| {cost.name} | {cost.where} | {' | '.join(_told(cost, at) for at in range(3))} |"
        f" {_spread(cost.ratios)} | {_spread(cost.beside_pair)} |"
        for cost in result.costs
    ]
    rounds = len(result.costs[0].ratios)
    return "\n".join(
        [
            f"{result.date}: Python {result.python}, {result.connections} connections, {rounds} rounds.",
            "",
            "| CPU time, median (least) | workers | one worker | two | two gateways of one | two by one (of all rounds)"
            " | two by two gateways |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Resident after the run: {result.rss_mib[0]:.0f} MiB with one worker, {result.rss_mib[1]:.0f} MiB"
            " with two and their supervisor together.",
        ]
    )


def _told(cost: Cost, at: int) -> str:
    return f"{cost.us[at]} µs ({cost.least[at]})"


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


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
