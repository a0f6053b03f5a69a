"""Latency under load: with the gateway's core busy for 70 %, first undisturbed, then beside work in the background.

    python -m benchmarks.latency [--rounds 10] [--seconds 1] [--write]

Requests come at a fixed rate, each at its moment (fixed_rate.py). The rate is found by trial and adjusted after each round,
because a shared machine is not always equally fast; only rounds in which the core was about as busy as intended count.
nginx has the same rate in the same round: what it shows is the machine's own share. Work in the background is done
again and again while requests come, far more often than in production; what it adds is p99 with it less p99 without it.

A pause of the machine itself can only make a round worse, so of several short rounds the quietest says most: that one is in
the table. Where permitted, the run takes precedence over other processes (``processes.raise_priority``).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.client
import itertools
import json
import math
import os
import secrets
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from tests.fakes.certificates import Authority

from .fixed_rate import Paced, begin, result_of
from .load import Shape, put_under_load
from .page import replace_section, save_result
from .processes import Program, free_port, raise_priority
from .pythons import Python
from .targets import ISSUES, LOAD_CPU, Bench
from .workers import wait_until_ready

SHARE = 0.7
LEAST, MOST = 0.68, 0.78
"""A round counts if the core was busy for a share between these: hardly less than ``SHARE``, or the quietest rounds would
be those with the least to do."""
_MOST_STEP = 1.25
_LEVELS = ("level: warning", "level: error")
_STEADY_S = 0.5
"""The length of an undisturbed round: as short as still has several dozen hits among its slowest hundredth."""
SERIES = 50_000
LATE_MS = 1.5
"""A sender that is later than this at p99 measures other work on the machine, not the gateway's."""
EACH_S = 1.0
"""Seconds from one piece of background work to the next."""
RELOAD_S = 5.0
"""The length of a round with a reload, which takes about half of it."""
_RELOADS = 5


class Steady(msgspec.Struct):
    """Hits or misses at their rate: of the rounds that count, the one with the least p99. Times are in milliseconds."""

    name: str
    rate: int
    busy: float
    """The share for which the gateway's core was busy in that round."""
    counted: int
    """How many rounds count."""
    asked: int
    """How many rounds there were."""
    p50_ms: float
    p99_ms: float
    ratio: float
    """p99 divided by p50."""
    middle_ratio: float
    """The same: the median of the rounds that count."""
    unit_ms: tuple[float, float]
    """nginx's p50 and p99 at the same rate, in its quietest round."""
    late_p99_ms: float
    """The sender's own lateness in that round, which is part of its times."""


class Disturbed(msgspec.Struct):
    """Hits at their rate beside one kind of work, in the round with the least p99. Times are in milliseconds."""

    work: str
    p99_ms: float
    added_ms: float
    """How much it exceeds the least p99 without the work."""
    middle_added_ms: float
    """The same for each round by itself: the median."""
    max_ms: float


class Latency(msgspec.Struct):
    """The result as kept in benchmarks/results/latency.json."""

    date: str
    python: Python
    rounds: int
    seconds: float
    steady: list[Steady]
    disturbed: list[Disturbed]


class _Gateway(Protocol):
    """A gateway whose rate can be found."""

    port: int
    program: Program
    directory: Path


class Reloaded:
    """A gateway of two workers on one core, and the way to have it reload its configuration."""

    def __init__(self, bench: Bench) -> None:
        self.port, admin = free_port(), free_port()
        self.directory = bench.directory
        stores = {"STORE": f"redis://127.0.0.1:{bench.redis}/1", "CACHE": "shared", "RATE": "10000000/s"}
        config = bench.file(
            "gateway.yaml", NAME="gateway-reloaded", PORT=self.port, PORT2=admin, BURST=10_000_000, **stores
        )
        self._file = Path(config)
        self._texts = itertools.cycle(self._file.read_text().replace("level: warning", level) for level in _LEVELS)
        self._file.write_text(next(self._texts))
        self.token, given = bench.key_for("gateway-reloaded", config)
        argv = [bench.python.path, "-m", "gateway", "serve", "--config", config, "--workers", "2"]
        self.program: Program = bench.run("gateway-reloaded", argv, self.port, env=given)
        wait_until_ready(admin)

    def reload(self) -> None:
        """Begin to replace both workers by two with another configuration."""
        self._file.write_text(next(self._texts))
        os.kill(self.program.pid, signal.SIGHUP)


class Busy:
    """The gateway that also works in the background, and the ways to make it do so."""

    def __init__(self, bench: Bench) -> None:
        self.port, self.admin = free_port(), free_port()
        self._key = secrets.token_hex(16)
        self.directory = bench.directory
        self._hook = secrets.token_hex(32)
        self._number = itertools.count(1)
        digest = hashlib.sha256(self._key.encode()).hexdigest()
        config = bench.file("gateway_busy.yaml", NAME="gateway-busy", PORT=self.port, PORT2=self.admin, ADMIN=digest)
        own = {"BENCH_HOOK": self._hook, "BENCH_SPARE": "glpat-not-a-token"}
        self.token, given = bench.key_for("gateway-busy", config, own)
        Authority(bench.directory).issue("pair")
        argv = [bench.python.path, "-m", "benchmarks.busy_gateway", config, str(SERIES)]
        argv.append(f"http://127.0.0.1:{bench.origin}/jwks")
        self.program: Program = bench.run("gateway-busy", argv, self.port, env=given, patience_s=60)
        self._purge()  # until a hook has come, nothing is reused without asking

    def works(self) -> list[tuple[str, Callable[[], None]]]:
        """The kinds of background work: each one's name, and the function that starts it."""
        return [
            (f"metrics scraped, {SERIES:,} series", self._scrape),
            ("an issuer's ten keys fetched, a token checked", functools.partial(self._signal, signal.SIGUSR1)),
            ("an upstream token rotated", self._rotate),
            ("a purge by a hook", self._purge),
            ("certificates read again (SIGHUP)", functools.partial(self._signal, signal.SIGHUP)),
        ]

    def _signal(self, number: int) -> None:
        os.kill(self.program.pid, number)

    def _scrape(self) -> None:
        if self._ask("GET", "/metrics").count(b"\n") < SERIES:
            raise RuntimeError("the exposition lacks series")

    def _rotate(self) -> None:
        self._ask("POST", "/-/credentials/rotate", {"credential": "spare"})

    def _purge(self) -> None:
        hook = {"object_kind": "push", "event_name": "push", "ref": "refs/heads/main", "project_id": next(self._number)}
        hook["project"] = {"id": hook["project_id"], "path_with_namespace": f"some/{hook['project_id']}"}
        headers = {"X-Gitlab-Token": self._hook, "X-Gitlab-Event": "Push Hook"}
        self._ask("POST", "/-/gateway/hooks", hook, port=self.port, headers=headers)

    def _ask(
        self, method: str, path: str, body: object = None, *, port: int = 0, headers: dict[str, str] | None = None
    ) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.admin, timeout=30)
        given = {"Content-Type": "application/json", **(headers or {"PRIVATE-TOKEN": self._key})}
        connection.request(method, path, json.dumps(body) if body is not None else None, given)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{path}: {answer.status} {read!r:.200}")
        return read


def run(rounds: int, seconds: float) -> Latency:
    """Measure. Takes a dozen times ``rounds`` times ``seconds``, and a minute and a half to start and for reloads."""
    os.sched_setaffinity(0, {LOAD_CPU})
    raise_priority()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_base_programs()
            return _measure(bench, rounds, seconds)
        finally:
            bench.close()


def _measure(bench: Bench, rounds: int, seconds: float) -> Latency:
    busy = Busy(bench)
    own = {"PRIVATE-TOKEN": busy.token}
    unit = bench.targets[0]
    shapes = {"hit": Shape(ISSUES, own), "miss": Shape(ISSUES, own, distinct=True)}
    steady = [_steady(name, unit.port, busy, shape, 2 * rounds) for name, shape in shapes.items()]
    disturbed = _disturbed(busy, shapes["hit"], steady[0].rate, rounds, seconds)
    disturbed.append(_reloads(Reloaded(bench)))
    return Latency(time.strftime("%Y-%m-%d"), bench.python, rounds, seconds, steady, disturbed)


class _Round(msgspec.Struct, frozen=True):
    """One round of the gateway at a rate."""

    rate: float
    paced: Paced
    busy: float
    """The share for which its core was busy, by the CPU time of all its threads."""

    @property
    def counts(self) -> bool:
        return LEAST <= self.busy <= MOST

    def next_rate(self) -> float:
        """Half way to the rate that would have met ``SHARE``: part of the deviation is this round's alone."""
        return self.rate * min(_MOST_STEP, max(1 / _MOST_STEP, math.sqrt(SHARE / self.busy)))


def _round(busy: _Gateway, shape: Shape, rate: float, seconds: float) -> _Round:
    with begin(shape, busy.port, rate=rate, seconds=seconds, cpu=LOAD_CPU) as sender:
        used = busy.program.cpu_s()
        paced = _answered(sender)
        return _Round(rate, paced, (busy.program.cpu_s() - used) / paced.took_s)


def _rate(busy: _Gateway, shape: Shape) -> float:
    """Find the rate that keeps the gateway's core busy for ``SHARE`` of the time.

    Requests that come one by one cost more than in a closed loop, where a turn of the event loop serves many: ``SHARE`` of
    a closed loop's rate would take a larger share of the core.
    """
    able = []
    for _ in range(3):
        load = put_under_load(shape, busy.port, connections=64, seconds=1, cpu=LOAD_CPU, directory=busy.directory)
        able.append(load.requests / load.seconds)
    rate = statistics.median(able[1:]) * SHARE
    for _ in range(5):
        rate = _round(busy, shape, rate, _STEADY_S).next_rate()
    return rate


def _steady(name: str, unit: int, busy: Busy, shape: Shape, wanted: int) -> Steady:
    """Measure until ``wanted`` rounds count, in at most twice as many rounds."""
    rate = _rate(busy, shape)
    counted: list[_Round] = []
    busies: list[float] = []
    its: list[Paced] = []
    while len(counted) < wanted and len(busies) < 2 * wanted:
        one = _round(busy, shape, rate, _STEADY_S)
        its.append(_paced(shape, unit, rate, _STEADY_S))
        busies.append(one.busy)
        rate = one.next_rate()
        if one.counts:
            counted.append(one)
    if not counted:
        shares = ", ".join(f"{share:.2f}" for share in busies)
        raise RuntimeError(f"{name}: the core was never busy for {SHARE:.0%}, but {shares}: a restless machine")
    best, unit_best = min(counted, key=lambda one: one.paced.p99_ms), _quietest(its)
    return Steady(
        name,
        round(best.rate),
        round(best.busy, 2),
        len(counted),
        len(busies),
        round(best.paced.p50_ms, 2),
        round(best.paced.p99_ms, 2),
        round(best.paced.p99_ms / best.paced.p50_ms, 1),
        round(statistics.median(one.paced.p99_ms / one.paced.p50_ms for one in counted), 1),
        (round(unit_best.p50_ms, 2), round(unit_best.p99_ms, 2)),
        round(best.paced.late_p99_ms, 2),
    )


def _quietest(rounds: list[Paced]) -> Paced:
    return min(rounds, key=lambda one: one.p99_ms)


def _paced(
    shape: Shape,
    port: int,
    rate: float,
    seconds: float,
    beside: Callable[[], None] | None = None,
    *,
    each_s: float = EACH_S,
) -> Paced:
    with begin(shape, port, rate=rate, seconds=seconds, cpu=LOAD_CPU) as sender:
        if beside is not None:
            time.sleep(EACH_S / 2)
        while beside is not None and sender.poll() is None:
            again_at = time.monotonic() + each_s
            beside()
            time.sleep(max(0.0, again_at - time.monotonic()))
        return _answered(sender)


def _answered(sender: subprocess.Popen[bytes]) -> Paced:
    paced = result_of(sender)
    if paced.refused:
        raise RuntimeError(f"refused: {paced}")
    return paced


def _disturbed(busy: Busy, shape: Shape, rate: int, rounds: int, seconds: float) -> list[Disturbed]:
    works = busy.works()
    without: list[Paced] = []
    beside: dict[str, list[Paced]] = {work: [] for work, _ in works}
    for _ in range(rounds):
        without.append(_paced(shape, busy.port, rate, seconds))
        for work, act in works:
            beside[work].append(_paced(shape, busy.port, rate, seconds, act))
    return [_added(work, paced, without) for work, paced in beside.items()]


def _reloads(reloaded: Reloaded) -> Disturbed:
    """Hits at their rate while the workers are replaced, once in ``RELOAD_S`` seconds, and while they are not."""
    shape = Shape(ISSUES, {"PRIVATE-TOKEN": reloaded.token})
    rate = _rate(reloaded, shape)
    without, beside = [], []
    for _ in range(_RELOADS):
        without.append(_paced(shape, reloaded.port, rate, RELOAD_S))
        beside.append(_paced(shape, reloaded.port, rate, RELOAD_S, reloaded.reload, each_s=RELOAD_S))
    return _added(f"a reload, once in {RELOAD_S:g} s; two workers", beside, without)


def _added(work: str, beside: list[Paced], without: list[Paced]) -> Disturbed:
    best = _quietest(beside)
    added = [one.p99_ms - other.p99_ms for one, other in zip(beside, without, strict=True)]
    return Disturbed(
        work,
        round(best.p99_ms, 2),
        round(best.p99_ms - _quietest(without).p99_ms, 2),
        round(statistics.median(added), 2),
        round(best.max_ms, 1),
    )


def table(result: Latency) -> str:
    """The result as Markdown."""
    rows = [
        f"{result.date}: Python {result.python}, rounds of {_STEADY_S:.1f} s; beside works {result.rounds} of "
        f"{result.seconds:.0f} s.",
        "",
        "| | core busy (rounds that count, of all) | requests/s | p50, ms | p99, ms | p99 / p50 (median)"
        " | nginx's p50, p99 | sender late |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {one.name} | {one.busy:.0%} ({one.counted}, {one.asked}) | {one.rate} | {one.p50_ms:.2f} | {one.p99_ms:.2f} "
        f"| {one.ratio:.1f} ({one.middle_ratio:.1f}) "
        f"| {one.unit_ms[0]:.2f}, {one.unit_ms[1]:.2f} | {one.late_p99_ms:.2f} |"
        for one in result.steady
    ]
    rows += ["", "| hits beside, once a second | p99, ms | added to p99, ms (median) | longest, ms |", "|---|---|---|---|"]
    rows += [
        f"| {one.work} | {one.p99_ms:.2f} | {one.added_ms:+.2f} ({one.middle_added_ms:+.2f}) | {one.max_ms:.1f} |"
        for one in result.disturbed
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    result = run(given.rounds, given.seconds)
    print(table(result))
    if max(one.late_p99_ms for one in result.steady) > LATE_MS:
        print("latency: the sender was too late to tell anything: a busy machine. Not kept.")
    elif given.write:
        save_result("latency", result)
        replace_section("latency", table(result))


if __name__ == "__main__":
    main()
