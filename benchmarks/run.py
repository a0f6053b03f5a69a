"""``make bench``: this gateway, a bare aiohttp proxy and peers, in interleaved rounds on one machine.

    python -m benchmarks.run [--rounds 9] [--seconds 1] [--only NAME,NAME] [--write]

Without ``--only``, latency, footprint, connections, bodies and workers are measured afterwards.

Load, origin and Redis run on one core, the target being measured on another. In each round every target is loaded in turn;
its figure is nginx's CPU time per request in that round divided by its own. Medians and spread of the rounds are reported.
Absolute times hold for one machine, so ratios are kept. ``--write`` puts them into benchmarks/results/ and
docs/performance.md.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from .load import put_under_load
from .page import replace_section, save_result
from .pythons import Python
from .targets import LOAD_CPU, Bench, Target

UNIT = "nginx"
CONCURRENCY = 64
ALONE_ROUNDS = 2
"""How many rounds also measure one request at a time: its median varies little."""
STOLEN_MOST = 0.05
"""The share of the machine's time that its host may have given to others: a run that lost more is shown, but not kept. It
is twice the most that any run had lost that was kept before this became a rule.
"""
_TRIES = 30


CLAIMS = (
    ("gateway miss", "bare aiohttp"),
    ("gateway hit", "bare aiohttp"),
    ("gateway Redis 429", "gateway Redis hit"),
    ("gateway Redis 304", "gateway Redis hit"),
    ("gateway 429", "gateway hit"),
    ("gateway 304", "gateway hit"),
    ("gateway Redis miss 20 KB", "nginx 20 KB"),
    ("gateway miss 20 KB", "nginx 20 KB"),
    ("gateway Redis miss", "nginx+Lua Redis"),
    ("gateway Redis hit", "nginx+Lua Redis hit"),
    ("gateway Redis miss", "Envoy limit"),
    ("gateway Redis miss", "Traefik Redis limit"),
    ("gateway Redis miss", "Envoy limit logged"),
    ("gateway Redis miss", "Envoy limit checked"),
    ("gateway Redis miss", "Traefik Redis limit logged"),
)
"""The pairs of targets whose CPU times per request are compared."""


class Line(msgspec.Struct):
    """One target's result. ``cpu`` is nginx's CPU time per request divided by its own in the same round, ``rate`` its rate
    divided by nginx's: more is better."""

    name: str
    does: str
    cpu: float
    cpu_spread: tuple[float, float]
    """Quartiles of the rounds."""
    rate: float
    p50: float
    p99: float
    """Its latency divided by nginx's, at 64 connections: less is better."""
    alone_us: float | None
    """With one connection: its median latency less nginx's, in microseconds."""
    alone_p99_us: float | None
    """The same for the 99th percentile."""
    peak_mib: float
    """Peak resident memory of all its processes."""


class Claim(msgspec.Struct):
    """How two targets' CPU times per request compare."""

    ratio: float
    """The second's divided by the first's: median of the rounds."""
    spread: tuple[float, float]
    """Quartiles of the rounds."""


class Result(msgspec.Struct):
    """A run, as kept in benchmarks/results/."""

    date: str
    python: Python
    """The Python that runs the gateway and the bare proxy."""
    rounds: int
    seconds: float
    load: str
    skipped: list[str]
    lines: list[Line]
    claims: dict[str, Claim]
    machine: str = ""
    """The machine's processor: others have other ratios."""
    stolen: float = 0.0
    """The share of the time that the machine wanted to run and its host gave to others: the more, the less a run says."""


class _Taken(msgspec.Struct):
    cpu_us: list[float] = []
    rate: list[float] = []
    p50_ms: list[float] = []
    p99_ms: list[float] = []
    alone_ms: list[float] = []
    alone_p99_ms: list[float] = []
    peak_kib: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement (wrk takes whole seconds)")
    parser.add_argument("--only", default="", help="names of targets, by comma; nginx is always measured")
    parser.add_argument("--alone", action=argparse.BooleanOptionalAction, default=True, help="also one request at a time")
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("bench: needs two cores, one for the load and one for what is measured")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)  # nginx's workers may run as another user
        bench = Bench(Path(directory))
        try:
            bench.start(frozenset(name for name in given.only.split(",") if name))
            for target in bench.targets:
                _check(target)
            before = _ran_and_stolen()
            taken = _measure(bench, given.rounds, given.seconds, alone=given.alone)
            ran, stolen = (now - then for now, then in zip(_ran_and_stolen(), before, strict=True))
        finally:
            bench.close()
    result = _result(bench, taken, given.rounds, given.seconds)
    result.stolen = round(stolen / max(1, ran + stolen), 4)
    print(table(result), flush=True)
    if given.write and result.stolen > STOLEN_MOST:
        raise SystemExit(
            f"bench: nothing is kept: {result.stolen:.1%} of the machine's time was stolen by its host,"
            f" and {STOLEN_MOST:.0%} is the most that a kept run may have lost"
        )
    if given.write:
        save_result("bench", result)
        replace_section("bench", table(result))
    if not given.only:
        for part in ("latency", "footprint", "connections", "bodies", "workers --rounds 8"):
            # In a process of its own, because it pins itself to a core and takes precedence over others.
            argv = [sys.executable, "-m", *f"benchmarks.{part}".split()]
            subprocess.run([*argv, "--write"] if given.write else argv, check=True)
    if given.write:
        whole = ["--keep-run"] if not given.only else []
        subprocess.run([sys.executable, "-m", "benchmarks.bars", "--write", *whole], check=True)


def _check(target: Target) -> None:
    """Wait until a target answers as it should. Its second answer counts: that is the one measured of a cache or limit."""
    for _ in range(_TRIES):
        answered = _ask(target)
        if answered == (target.shape.status, True):
            return
        time.sleep(0.1)  # Traefik listens before it has read its routes
    raise RuntimeError(f"{target.name} answers {answered[0]} instead of {target.shape.status}")


def _ask(target: Target) -> tuple[int, bool]:
    """Ask twice; returns the second answer's status, and whether it is whole."""
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
        connection.request("GET", target.shape.path + "1", headers=target.shape.headers)
        answer = connection.getresponse()
        status, size = answer.status, len(answer.read())
        connection.close()
    return status, status != 200 or size >= 1000


def _measure(bench: Bench, rounds: int, seconds: float, *, alone: bool) -> dict[str, _Taken]:
    taken = {target.name: _Taken() for target in bench.targets}
    for turn in range(-1, rounds):  # the first turn warms up and is not counted
        print(f"bench: round {turn + 1} of {rounds}", file=sys.stderr)
        # In alternating order: what one leaves behind, such as the audit's last lines, is then paid for by different ones.
        for target in bench.targets if turn % 2 else reversed(bench.targets):
            one = taken[target.name]
            cpu_s = target.program.cpu_s()
            load = put_under_load(
                target.shape,
                target.port,
                connections=CONCURRENCY,
                seconds=seconds,
                cpu=LOAD_CPU,
                directory=bench.directory,
            )
            cpu_s = target.program.cpu_s() - cpu_s
            wrong = load.requests - load.refused if target.shape.status >= 400 else load.refused
            if load.failed or wrong or not load.requests:
                raise RuntimeError(f"{target.name}: {load}")
            one.peak_kib = max(one.peak_kib, target.program.peak_kib())
            if turn < 0:
                continue
            one.cpu_us.append(cpu_s / load.requests * 1e6)
            one.rate.append(load.requests / load.seconds)
            one.p50_ms.append(load.p50_ms)
            one.p99_ms.append(load.p99_ms)
            if alone and turn < ALONE_ROUNDS:
                single = put_under_load(
                    target.shape, target.port, connections=1, seconds=seconds, cpu=LOAD_CPU, directory=bench.directory
                )
                one.alone_ms.append(single.p50_ms)
                one.alone_p99_ms.append(single.p99_ms)
    return taken


def _result(bench: Bench, taken: dict[str, _Taken], rounds: int, seconds: float) -> Result:
    unit = taken[UNIT]
    lines = []
    for target in bench.targets:
        one = taken[target.name]
        cpu = _ratios(unit.cpu_us, one.cpu_us)
        lines.append(
            Line(
                target.name,
                target.does,
                round(statistics.median(cpu), 3),
                _quartiles(cpu),
                round(statistics.median(_ratios(one.rate, unit.rate)), 3),
                round(statistics.median(_ratios(one.p50_ms, unit.p50_ms)), 2),
                round(statistics.median(_ratios(one.p99_ms, unit.p99_ms)), 2),
                _over_us(unit.alone_ms, one.alone_ms),
                _over_us(unit.alone_p99_ms, one.alone_p99_ms),
                round(one.peak_kib / 1024, 1),
            )
        )
    claims = {}
    for first, second in CLAIMS:
        if first in taken and second in taken:
            ratios = _ratios(taken[second].cpu_us, taken[first].cpu_us)
            claims[f"{first} by {second}"] = Claim(round(statistics.median(ratios), 2), _quartiles(ratios))
    return Result(
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        bench.python,
        rounds,
        seconds,
        "wrk" if shutil.which("wrk") else "benchmarks/load.py",
        bench.skipped,
        lines,
        claims,
        _machine(),
    )


def _machine() -> str:
    """The processor's name and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return round(low, 3), round(high, 3)


def _over_us(unit_ms: list[float], own_ms: list[float]) -> float | None:
    """How much longer a target takes than nginx, in microseconds: the median of the rounds."""
    over = [own - its for its, own in zip(unit_ms, own_ms, strict=True)]
    return round(statistics.median(over) * 1e3) if over else None


def _ratios(over: list[float], under: list[float]) -> list[float]:
    return [one / other for one, other in zip(over, under, strict=True)]


def _ran_and_stolen() -> tuple[int, int]:
    """Ticks of all cores since the machine's start: spent working, and wanted but given to others (proc_stat(5))."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0, 0  # not Linux
    user, nice, system, _, _, irq, softirq, stolen, *_ = ticks
    return user + nice + system + irq + softirq, stolen


def table(result: Result) -> str:
    """The result as Markdown."""
    rows = [
        f"{result.date}: {result.machine}; Python {result.python}, {result.rounds} rounds of {result.seconds:.0f} s, "
        f"load: {result.load}. Of the machine's time {result.stolen:.1%} was stolen by its host.",
        "",
        "| target | does | CPU ratio (quartiles) | requests/s ratio | p50, p99 / nginx's "
        "| c=1: p50, p99, µs over nginx's | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in result.lines:
        alone = "" if line.alone_us is None else f"{line.alone_us:+.0f}, {line.alone_p99_us:+.0f}"
        rows.append(
            f"| {line.name} | {line.does} | {line.cpu:.2f} ({line.cpu_spread[0]:.2f}-{line.cpu_spread[1]:.2f}) "
            f"| {line.rate:.2f} | {line.p50:.1f}, {line.p99:.1f} | {alone} | {line.peak_mib:.0f} |"
        )
    rows += ["", "| CPU time per request: the second's / the first's | median (quartiles) |", "|---|---|"]
    for name, claim in result.claims.items():
        rows.append(f"| {name} | {claim.ratio:.2f} ({claim.spread[0]:.2f}-{claim.spread[1]:.2f}) |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
