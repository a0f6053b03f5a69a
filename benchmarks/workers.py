"""What a second worker costs: CPU time of all processes per request, of two workers beside one, in the same run.

    python -m benchmarks.workers [--rounds 12] [--seconds 1] [--write]

Buckets and cache are in Redis, for one worker as for two. Each round measures all, in alternating order; the CPU time is
that of the whole process tree, including the supervisor. All is measured with a core for each worker and everything else
free to use both, and with both workers on one core and everything else on the other; each worker has 64 connections, so
that two have as much to do each as one has. With a core for each, it is also measured with 64 in all: then a turn of each
worker's event loop serves half as many, which makes a request dearer for one worker, too.

Two gateways of one worker each, which know nothing of each other, have the same load: what two workers cost compared with
these is the price of sharing one gateway; the rest is the machine's. nginx, a plain proxy, is measured in the same way.
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
from .page import replace_section, save_result
from .processes import Program, free_port
from .pythons import Python
from .targets import ISSUES, LOAD_CPU, PROXY_CPU, Bench

_CONNECTIONS = 64
"""Of one worker; two have as many each, or together."""
_LOADS = 2
"""How many processes make the load, each with its share of the connections: the same for whatever is measured."""
_PATIENCE_S = 15.0
_BOTH = frozenset({PROXY_CPU, LOAD_CPU})

EACH, FEWER, SHARED = "a core each", "a core each, 64 connections in all", "both on one core"


class _Placement(msgspec.Struct, frozen=True):
    """Which processes run on which cores."""

    name: str
    workers: tuple[frozenset[int], ...]
    """The cores of each worker in order; a single worker has the first."""
    others: frozenset[int]
    connections: int
    """Of two workers together."""


_PLACEMENTS = (
    _Placement(EACH, (frozenset({PROXY_CPU}), frozenset({LOAD_CPU})), _BOTH, 2 * _CONNECTIONS),
    _Placement(FEWER, (frozenset({PROXY_CPU}), frozenset({LOAD_CPU})), _BOTH, _CONNECTIONS),
    _Placement(SHARED, (frozenset({PROXY_CPU}), frozenset({PROXY_CPU})), frozenset({LOAD_CPU}), 2 * _CONNECTIONS),
)
_UNIT = "nginx"


class Cost(msgspec.Struct):
    """What one kind of request costs. ``us`` and ``least`` are for one worker, two workers, two gateways of one each."""

    name: str
    where: str
    """``EACH``, ``FEWER`` or ``SHARED``."""
    us: tuple[float, ...]
    """Microseconds of CPU time per request: medians."""
    least: tuple[float, ...]
    """The same in the round that was disturbed least."""
    ratios: tuple[float, ...]
    """For each round: the cost of two workers divided by that of one."""
    beside_pair: tuple[float, ...]
    """For each round: the cost of two workers divided by that of two gateways."""


class Result(msgspec.Struct):
    """The result as kept in benchmarks/results/workers.json."""

    date: str
    python: Python
    connections: int
    costs: list[Cost]
    rss_mib: tuple[float, ...]
    """Resident memory of all processes after the run: with one worker, with two."""


class _Subject(msgspec.Struct):
    """A gateway or an nginx that is measured."""

    program: Program
    port: int
    key: str
    workers: int
    alone: bool
    """Whether it is one process, which is its own only worker."""

    def pin(self, placement: _Placement, first: int) -> None:
        """Pin its processes to cores; ``first`` is the place of its first worker."""
        if self.alone:
            self.program.pin(placement.workers[first])
        else:
            self.program.pin(*placement.workers[: self.workers], placement.others)


_Side = tuple[_Subject, ...]
"""What is under load at the same time: one gateway or nginx, or two side by side."""


def run(rounds: int, seconds: float) -> Result:
    """Measure. Takes twenty-seven times ``rounds`` times ``seconds``, and twenty seconds to start."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_base_programs()
            gateways = _sides(_gateway(bench, 1, 1), _gateway(bench, 2, 2), _gateway(bench, 3, 1), _gateway(bench, 4, 1))
            units = _sides(_nginx(bench, 1, 1), _nginx(bench, 2, 2), _nginx(bench, 3, 1), _nginx(bench, 4, 1))
            costs = []
            for placement in _PLACEMENTS:
                os.sched_setaffinity(0, placement.others)
                for program in bench.base_programs:
                    program.pin(placement.others)
                for name, sides, distinct in (("hit", gateways, False), ("miss", gateways, True), (_UNIT, units, True)):
                    for side in sides:
                        for place, one in enumerate(side):
                            one.pin(placement, place)
                    loads = (_CONNECTIONS, placement.connections, placement.connections)
                    taken = _measure_rounds(bench, sides, loads, distinct, rounds, seconds)
                    costs.append(_cost(name, placement.name, taken))
            rss = tuple(round(side[0].program.rss_kib() / 1024, 0) for side in gateways[:2])
            return Result(time.strftime("%Y-%m-%d"), bench.python, _CONNECTIONS, costs, rss)
        finally:
            bench.close()


def _sides(one: _Subject, two: _Subject, *pair: _Subject) -> tuple[_Side, ...]:
    return (one,), (two,), pair


def _nginx(bench: Bench, number: int, workers: int) -> _Subject:
    program, port = bench.nginx(workers, name=f"nginx{number}")
    return _Subject(program, port, "bench", workers, alone=False)


def _gateway(bench: Bench, number: int, workers: int) -> _Subject:
    """Start a gateway, and wait until all its workers serve: they start one after the other."""
    name, port, admin = f"workers{number}", free_port(), free_port()
    store = f"redis://127.0.0.1:{bench.redis}/{8 + number}"
    config = bench.file(
        "gateway.yaml", NAME=name, PORT=port, PORT2=admin, STORE=store, CACHE="shared", RATE="10000000/s", BURST=10_000_000
    )
    key, given = bench.key_for(name, config)
    argv = [bench.python.path, "-m", "gateway", "serve", "--config", config, "--workers", str(workers)]
    program = bench.run(name, argv, port, env=given)
    wait_until_ready(admin)
    return _Subject(program, port, key, workers, alone=workers == 1)


def wait_until_ready(admin: int) -> None:
    """Wait until all workers serve. Raises RuntimeError if they do not in time."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while not _is_ready(admin):
        if time.monotonic() > give_up_at:
            raise RuntimeError("the workers do not all serve")
        time.sleep(0.05)


def _is_ready(admin: int) -> bool:
    """Whether all workers serve."""
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=_PATIENCE_S)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def _measure_rounds(
    bench: Bench, sides: Sequence[_Side], loads: Sequence[int], distinct: bool, rounds: int, seconds: float
) -> tuple[list[float], ...]:
    """Microseconds of CPU time per request of each side, round by round; ``loads``: how many connections each has."""
    taken: tuple[list[float], ...] = tuple([] for _ in sides)
    for number in range(rounds + 1):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        for at in order:
            used_us = _used_us(bench, sides[at], loads[at], distinct, seconds)
            if number:  # the first round only fills what is kept
                taken[at].append(used_us)
    return taken


def _used_us(bench: Bench, side: _Side, connections: int, distinct: bool, seconds: float) -> float:
    """Microseconds of CPU time per request, used by all processes of a side."""
    before = sum(one.program.cpu_s() for one in side)
    begun = []
    for number in range(_LOADS):
        one = side[number % len(side)]
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": one.key}, distinct=distinct)
        share = connections // _LOADS
        begun.append(begin(shape, one.port, connections=share, seconds=seconds, cpu=None, directory=bench.directory))
    loads = [result_of(each) for each in begun]
    if any(one.failed or one.refused for one in loads):
        raise RuntimeError(f"not all were answered: {loads}")
    return (sum(one.program.cpu_s() for one in side) - before) / sum(one.requests for one in loads) * 1e6


def _cost(name: str, where: str, taken: tuple[list[float], ...]) -> Cost:
    one, two, pair = taken
    medians = tuple(round(statistics.median(each), 1) for each in taken)
    least = tuple(round(min(each), 1) for each in taken)
    return Cost(name, where, medians, least, _ratios(two, one), _ratios(two, pair))


def _ratios(these: Sequence[float], those: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(this / that, 3) for this, that in zip(these, those, strict=True))


def table(result: Result) -> str:
    """The result as Markdown."""
    rows = [
        f"| {cost.name} | {cost.where} | {' | '.join(_time_text(cost, at) for at in range(3))} |"
        f" {_spread(cost.ratios)} | {_spread(cost.beside_pair)} |"
        for cost in result.costs
    ]
    rounds = len(result.costs[0].ratios)
    return "\n".join(
        [
            f"{result.date}: Python {result.python}, {result.connections} connections for each worker unless said"
            f" otherwise, {rounds} rounds.",
            "",
            "| CPU time, median (least) | workers | one worker | two | two gateways of one | two / one (of all rounds)"
            " | two / two gateways |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Resident after the run: {result.rss_mib[0]:.0f} MiB with one worker, {result.rss_mib[1]:.0f} MiB"
            " with two and their supervisor together.",
        ]
    )


def _time_text(cost: Cost, at: int) -> str:
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
        save_result("workers", result)
        replace_section("workers", table(result))


if __name__ == "__main__":
    main()
