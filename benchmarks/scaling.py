"""``make bench-scaling``: what a request costs as things become many, and memory over a million requests.

    python -m benchmarks.scaling [--only NAME,NAME] [--rounds 15] [--write]

In this process, without sockets (inprocess.py), a gateway with many of something and one with few take turns; the
median of the ratios of their CPU times is a point. The first point compares two gateways that are alike: its deviation from
1 is the measurement's own. Memory is watched in a process of its own, under load. ``--write`` draws docs/scaling-*.svg.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import uvloop

from gateway import routes
from gateway.config import Config
from gateway.core.limits import Limit, Scope, Take
from gateway.stores.bucket_memory import MemoryBuckets

from .chart import draw_chart
from .inprocess import Subject, compared, subject
from .load import Shape, put_under_load
from .page import ROOT, replace_section, save_result
from .targets import ISSUES, LOAD_CPU, Bench

KINDS = {"hit": "hit", "miss": "miss", "project": "miss of a project not asked for before"}
"""The kinds of request: the name that inprocess.py has for each, and words for the reader."""
REQUESTS = 1_000_000
EACH = 100_000
MISSES = EACH // 10


class Point(msgspec.Struct):
    """With ``many`` of something: CPU time per request divided by that with the fewest, and calls per request."""

    many: int
    cpu: dict[str, float]
    calls: dict[str, float]


class Chart(msgspec.Struct):
    """The points for one thing that may become many."""

    name: str
    what: str
    points: list[Point]
    growth: float
    """The largest ratio of any point beyond the first."""


class Memory(msgspec.Struct):
    """Resident memory of one gateway, after each number of requests."""

    requests: list[int]
    rss_mib: list[float]
    grown_mib: float
    """From 200,000 requests, when the cache is full, to the last."""


class Scaling(msgspec.Struct):
    """The result as kept in benchmarks/results/scaling.json."""

    date: str
    charts: list[Chart]
    memory: Memory | None


Fill = Callable[[Subject, int], Awaitable[None]]


async def _nothing(_: Subject, __: int) -> None:
    return


def _rules(many: int) -> Callable[[Config], Config]:
    """Rules that all apply to the caller; all but the last name projects that are not asked for."""

    def change(config: Config) -> Config:
        last = config.rules[0]
        (clause,) = last.allow
        others = [
            msgspec.structs.replace(
                last, id=f"r{n}", allow=(msgspec.structs.replace(clause, projects=(f"elsewhere/p{n}",)),)
            )
            for n in range(many - 1)
        ]
        return msgspec.structs.replace(config, rules=(*others, last))

    return change


def _identities(many: int) -> Callable[[Config], Config]:
    def change(config: Config) -> Config:
        one = config.identities[0]
        others = [msgspec.structs.replace(one, id=f"caller-{n}") for n in range(many - 1)]
        return msgspec.structs.replace(config, identities=(*others, one))

    return change


def _roomy(_: int) -> Callable[[Config], Config]:
    return lambda config: msgspec.structs.replace(config, cache=msgspec.structs.replace(config.cache, max_bytes=64 << 30))


def _same(_: int) -> Callable[[Config], Config]:
    return lambda config: config


async def _entries(one: Subject, many: int) -> None:
    """Fill the cache with separate entries under separate keys; they share the octets of one body, or would not fit."""
    store = one.assembly.cache_assembly.memory
    assert store is not None
    (known,) = next(iter(store._slots.values())).entries
    for number in range(many - len(store)):
        entry = msgspec.structs.replace(known)
        await store.put(
            b"%032d" % number, (entry,), 3600.0, (b"project:%d" % (number % 5000),), int(time.monotonic() * 1e6)
        )


async def _buckets(one: Subject, many: int) -> None:
    """Add other callers' buckets, none of them full; the store keeps as many as it is built to keep."""
    store = one.assembly.buckets
    assert isinstance(store, MemoryBuckets)
    limit = Limit("caller", Scope.CALLER, 1e-6, 1e7)
    for number in range(many):
        store.seed(f"caller:somebody-{number}", limit, 1.0)


def _rows(many: int) -> bytes:
    """A catalogue of ``many`` rows, including the one that is asked for."""
    file = json.loads(routes.read())
    wanted = [row for row in file["operations"] if row[1] == "/api/v4/projects/:id/issues"]
    others = [row for row in file["operations"] if row not in wanted]
    copy = 0
    while len(others) < many:
        copy += 1
        others += [
            [row[0], f"/api/v4/more{copy}{row[1]}", *row[2:]] for row in file["operations"] if row[1][:8] == "/api/v4/"
        ]
    file["operations"] = [*others[: max(0, many - len(wanted))], *wanted]
    return json.dumps(file).encode()


AXES: dict[str, tuple[str, Sequence[int], Callable[[int], Callable[[Config], Config]], Fill]] = {
    "rules": ("rules, all for the caller", (1, 10, 100, 1000, 5000), _rules, _nothing),
    "identities": ("identities", (1, 100, 1000, 10_000, 100_000), _identities, _nothing),
    "catalogue": ("rows of the route catalogue", (10, 100, 1000, 2000, 10_000), _same, _nothing),
    "entries": ("cached entries", (1, 1000, 10_000, 100_000, 1_000_000), _roomy, _entries),
    "buckets": ("buckets of others", (1, 1000, 10_000, 100_000, 1_000_000), _same, _buckets),
}


async def _chart(name: str, rounds: int) -> Chart:
    what, sizes, change, fill = AXES[name]
    points: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="scaling-") as directory:
        base = await _made(name, Path(directory) / "base", sizes[0], change, fill)
        for many in sizes:
            one = await _made(name, Path(directory) / str(many), many, change, fill)
            cpu = {kind: round((await compared(one, base, kind, rounds))[0], 3) for kind in KINDS}
            points.append(Point(many, cpu, {kind: await one.calls(kind) for kind in KINDS}))
            await one.close()
            print(f"scaling: {name} {points[-1]}", flush=True)
            del one
            gc.collect()
        await base.close()
    return Chart(name, what, points, max(ratio for point in points[1:] for ratio in point.cpu.values()))


async def _made(
    name: str, directory: Path, many: int, change: Callable[[int], Callable[[Config], Config]], fill: Fill
) -> Subject:
    whole = routes.read
    if name == "catalogue":
        octets = _rows(many)
        routes.read = lambda _="": octets  # type: ignore[assignment]  # only until it has been read
    try:
        one = await subject(directory, change(many))
    finally:
        routes.read = whole
    await fill(one, many)
    await one.warm()
    return one


def _takes(rounds: int) -> Chart:
    """Take from one of many buckets after the other, in the memory store alone: Redis keeps its own in a hash table."""
    limit = Limit("caller", Scope.CALLER, 1e-6, 1e7)
    stores = {}
    for many in (1, 1000, 10_000, 100_000, 1_000_000):
        takes = [(Take(f"caller:{number}", limit),) for number in range(many)]
        store = MemoryBuckets(bound=many)
        for take in takes:
            store.take_now(take)
        stores[many] = (store, takes)
    times: dict[int, list[float]] = {many: [] for many in stores}
    for number in range(rounds):
        for many, (store, takes) in stores.items():
            picked = [takes[(number * 7919 + at * 104_729) % many] for at in range(2000)]
            started = time.thread_time()
            for take in picked:
                store.take_now(take)
            times[many].append((time.thread_time() - started) / len(picked))
    points = [
        Point(many, {"take": round(statistics.median(a / b for a, b in zip(took, times[1], strict=True)), 3)}, {})
        for many, took in times.items()
    ]
    return Chart("takes", "distinct bucket keys, a take of each in turn", points, max(p.cpu["take"] for p in points[1:]))


def _memory() -> Memory:
    """Watch a gateway with 32 MiB of cache, nine hits to a miss: the cache is full after some 150,000 requests."""
    os.sched_setaffinity(0, {LOAD_CPU})
    counts, sizes = [0], []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_base_programs()
            program, port, key = bench.gateway("million")
            own = {"PRIVATE-TOKEN": key}
            shapes = ((Shape(ISSUES, own, distinct=True), MISSES), (Shape(ISSUES, own), EACH))
            sizes.append(program.rss_kib() / 1024)
            while counts[-1] < REQUESTS:
                done = 0
                for shape, goal in shapes:
                    while done < goal:
                        load = put_under_load(
                            shape, port, connections=64, seconds=1, cpu=LOAD_CPU, directory=bench.directory
                        )
                        if load.failed or load.refused:
                            raise RuntimeError(f"memory: {load}")
                        done += load.requests
                counts.append(counts[-1] + done)
                sizes.append(program.rss_kib() / 1024)
                print(f"scaling: {counts[-1]:,} requests, {sizes[-1]:.1f} MiB", flush=True)
        finally:
            bench.close()
    full = next(size for count, size in zip(counts, sizes, strict=True) if count >= 2 * EACH)
    return Memory(counts, [round(size, 1) for size in sizes], round(sizes[-1] - full, 1))


def table(result: Scaling) -> str:
    """The result as Markdown."""
    rows = [
        f"{result.date}: CPU time per request / the smallest's, median of rounds in turns; in brackets, calls per request.",
        "",
        f"| of | many | {' | '.join(KINDS.values())} |",
        "|---|---|---|---|---|",
    ]
    for chart in result.charts:
        for point in chart.points:
            cells = [f"{point.cpu[kind]:.2f} ({point.calls[kind]:.0f})" if kind in point.cpu else "" for kind in KINDS]
            if "take" in point.cpu:
                cells = [f"{point.cpu['take']:.2f}: one take, nothing else", "", ""]
            rows.append(f"| {chart.what} | {point.many:,} | {' | '.join(cells)} |")
    if result.memory is not None:
        rows += ["", "| requests | resident, MiB |", "|---|---|"]
        rows += [
            f"| {count:,} | {size:.1f} |" for count, size in zip(result.memory.requests, result.memory.rss_mib, strict=True)
        ]
    rows += ["", *(f"![{chart.what}](scaling-{chart.name}.svg)" for chart in result.charts)]
    return "\n".join(rows)


def _with_kept(result: Scaling) -> Scaling:
    """The result, with the kept values for what this run left out."""
    path = ROOT / "benchmarks/results/scaling.json"
    if not path.exists():
        return result
    kept = msgspec.json.decode(path.read_bytes(), type=Scaling)
    charts = {chart.name: chart for chart in (*kept.charts, *result.charts)}
    order = [*AXES, "takes"]
    return Scaling(
        result.date, sorted(charts.values(), key=lambda chart: order.index(chart.name)), result.memory or kept.memory
    )


def draw(result: Scaling) -> None:
    """Draw each chart as docs/scaling-NAME.svg."""
    for chart in result.charts:
        kinds = list(chart.points[0].cpu)
        series = {KINDS.get(kind, kind): [(float(point.many), point.cpu[kind]) for point in chart.points] for kind in kinds}
        title = f"CPU time per request: {chart.what}"
        svg = draw_chart(title, f"number of {chart.what}", "times the smallest's", series, top=2.0)
        (ROOT / "docs" / f"scaling-{chart.name}.svg").write_text(svg)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"of {', '.join([*AXES, 'takes', 'memory'])}, by comma")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the result, draw the charts")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name] or [*AXES, "takes", "memory"]
    gc.set_threshold(20_000, 20, 100)  # as the gateway does
    charts = [uvloop.run(_chart(name, given.rounds)) for name in AXES if name in wanted]
    if "takes" in wanted:
        charts.append(_takes(given.rounds))
    gc.collect()
    result = Scaling(time.strftime("%Y-%m-%d"), charts, _memory() if "memory" in wanted else None)
    print(table(result))
    if given.write:
        result = _with_kept(result)
        save_result("scaling", result)
        replace_section("scaling", table(result))
        draw(result)


if __name__ == "__main__":
    main()
