"""What a request over a connection of its own costs, such as curl's: CPU time beside one over a kept connection.

    python -m benchmarks.connections [--rounds 5] [--requests 1000] [--write]

One client on the other core makes one request after the other; opening and closing the connection is part of what is
timed. Targets take turns in each round. nginx, a plain proxy, is the unit of measure.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .load import Shape, ask
from .page import replace_section, save_result
from .processes import Program
from .pythons import Python
from .targets import ISSUE, ISSUES, LOAD_CPU, Bench

_OWN, _KEPT = "own", "kept"
_KNOWN = 200
"""Requests made before anything is timed, over connections of each kind."""


class Cost(msgspec.Struct):
    """What requests cost at one target."""

    name: str
    own: float
    """CPU time per request over a connection of its own, divided by nginx's in the same round: median."""
    kept: float
    """The same over a kept connection."""
    own_by_kept: float
    """The target's CPU time per request over a connection of its own, divided by that over a kept one: median."""


class Result(msgspec.Struct):
    """The result as kept in benchmarks/results/connections.json."""

    date: str
    python: Python
    rounds: int
    requests: int
    costs: list[Cost]


class _Subject:
    """One target, with a client that sends it requests."""

    def __init__(self, program: Program, port: int, shape: Shape) -> None:
        self._program = program
        self._address = ("127.0.0.1", port)
        self._shape = shape
        self._numbers = itertools.count(1)
        self._kept = socket.create_connection(self._address, 10)

    def cost_us(self, how: str, requests: int) -> float:
        """Microseconds of CPU time per request."""
        before = self._program.cpu_s()
        for _ in range(requests):
            number = next(self._numbers) if self._shape.distinct else 1
            with self._connection(how) as client:
                ask(client, self._shape, number)
        return (self._program.cpu_s() - before) / requests * 1e6

    def close(self) -> None:
        self._kept.close()

    @contextlib.contextmanager
    def _connection(self, how: str) -> Iterator[socket.socket]:
        if how == _KEPT:
            yield self._kept
        else:
            with socket.create_connection(self._address, 10) as client:
                yield client


def run(rounds: int, requests: int) -> Result:
    """Measure. Takes some seconds per round and target."""
    os.sched_setaffinity(0, {LOAD_CPU})
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_base_programs()
            return _measure(bench, rounds, requests)
        finally:
            bench.close()


def _measure(bench: Bench, rounds: int, requests: int) -> Result:
    with contextlib.ExitStack() as stack:
        subjects = {}
        for name, (program, port, headers), path, distinct in _targets(bench):
            subjects[name] = _Subject(program, port, Shape(path, headers, distinct=distinct))
            stack.callback(subjects[name].close)
            for how in (_KEPT, _OWN):
                subjects[name].cost_us(how, _KNOWN)
        taken: dict[tuple[str, str], list[float]] = defaultdict(list)
        ways = list(itertools.product(subjects, (_OWN, _KEPT)))
        for number in range(rounds):
            for name, how in ways if number % 2 else reversed(ways):
                taken[name, how].append(subjects[name].cost_us(how, requests))
    nginx = next(iter(subjects))
    costs = []
    for name in subjects:
        own, kept = (
            statistics.median([mine / unit for mine, unit in zip(taken[name, how], taken[nginx, how], strict=True)])
            for how in (_OWN, _KEPT)
        )
        both = [mine / other for mine, other in zip(taken[name, _OWN], taken[name, _KEPT], strict=True)]
        costs.append(Cost(name, round(own, 2), round(kept, 2), round(statistics.median(both), 2)))
    return Result(time.strftime("%Y-%m-%d"), bench.python, rounds, requests, costs)


def _targets(bench: Bench) -> Iterator[tuple[str, tuple[Program, int, dict[str, str]], str, bool]]:
    """Yield each target's name; its program, port and request headers; the path; whether each request asks for another."""
    yield "nginx", (*bench.nginx(), {"PRIVATE-TOKEN": "bench"}), ISSUES, True
    yield "bare aiohttp", (*bench.bare(), {"PRIVATE-TOKEN": "bench"}), ISSUES, True
    program, port, key = bench.gateway("connections", STORE="memory:", CACHE="memory")
    gateway = (program, port, {"PRIVATE-TOKEN": key})
    yield "gateway miss", gateway, ISSUES, True
    yield "gateway new path", gateway, ISSUE, True
    yield "gateway hit", gateway, ISSUES, False


def table(result: Result) -> str:
    """The result as Markdown."""
    return "\n".join(
        [
            f"{result.date}: Python {result.python}, {result.rounds} rounds of {result.requests} requests, one at a time.",
            "",
            "| CPU time per request | own connection / nginx's | kept connection / nginx's | own / kept |",
            "|---|---|---|---|",
            *(f"| {cost.name} | {cost.own:.2f} | {cost.kept:.2f} | {cost.own_by_kept:.2f} |" for cost in result.costs),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    result = run(given.rounds, given.requests)
    print(table(result))
    if given.write:
        save_result("connections", result)
        replace_section("connections", table(result))


if __name__ == "__main__":
    main()
