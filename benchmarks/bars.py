"""What the gateway is to achieve, compared with the kept results: the first table of docs/performance.md.

python -m benchmarks.bars [--write] [--keep-run]

``--keep-run`` puts the kept results beside those of other whole runs: a single run on a shared machine says little.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from .page import replace_section, save_result
from .run import STOLEN_MOST
from .workers import EACH, FEWER

RESULTS = Path(__file__).parent / "results"

Figure = Callable[[dict[str, Any]], float]


def _cpu(name: str) -> Figure:
    return lambda kept: float(_line(kept, name)["cpu"])


def _alone(name: str) -> Figure:
    return lambda kept: _line(kept, name)["alone_us"] / 1e3


def _line(kept: dict[str, Any], name: str) -> dict[str, Any]:
    return next(line for line in kept["bench"]["lines"] if line["name"] == name)


def _claim(name: str) -> Figure:
    return lambda kept: float(kept["bench"]["claims"][name]["ratio"])


def _steady_ratio(name: str) -> Figure:
    return lambda kept: float(next(one for one in kept["latency"]["steady"] if one["name"] == name)["ratio"])


def _worst_added(kept: dict[str, Any]) -> float:
    return float(max(one["added_ms"] for one in kept["latency"]["disturbed"]))


def _footprint(name: str) -> Figure:
    return lambda kept: float(kept["footprint"][name])


def _workers(name: str, by: str = "ratios", where: str = EACH) -> Figure:
    wanted = (name, where)

    def figure(kept: dict[str, Any]) -> float:
        cost = next(cost for cost in kept["workers"]["costs"] if (cost["name"], cost["where"]) == wanted)
        return float(statistics.median(cost[by]))

    return figure


def _memory_growth(kept: dict[str, Any]) -> float:
    return float(kept["scaling"]["memory"]["grown_mib"])


def _worst_growth(kept: dict[str, Any]) -> float:
    return float(max(chart["growth"] for chart in kept["scaling"]["charts"] if chart["name"] != "takes"))


class Bar(msgspec.Struct, frozen=True):
    """One figure to reach."""

    what: str
    figure: Figure
    way: str
    """``at least`` or ``at most``."""
    bar: float
    unit: str = ""
    run: str = ""
    """Its name in the table of whole runs; empty: it is not shown there, because it hardly differs from run to run."""

    def met(self, measured: float) -> bool:
        return measured >= self.bar if self.way == "at least" else measured <= self.bar


def _least(what: str, figure: Figure, bar: float, run: str = "") -> Bar:
    return Bar(what, figure, "at least", bar, run=run)


def _most(what: str, figure: Figure, bar: float, unit: str = "", run: str = "") -> Bar:
    return Bar(what, figure, "at most", bar, unit, run)


MISS, HIT = "gateway Redis miss", "gateway Redis hit"

BARS = (
    _least("miss, forwarded: CPU ratio to nginx", _cpu(MISS), 0.20, "miss: to nginx"),
    _least("… to nginx+Lua with Redis", _claim(f"{MISS} by nginx+Lua Redis"), 0.45, "… nginx+Lua"),
    _least("… to Envoy with local rate limit and header mutation", _claim(f"{MISS} by Envoy limit"), 1.0, "… Envoy"),
    _least(
        "… to the same Envoy with a JSON line per request, as ours",
        _claim(f"{MISS} by Envoy limit logged"),
        1.0,
        "… Envoy that logs",
    ),
    _least(
        "… to that Envoy checking keys and telling its limit, too, as ours",
        _claim(f"{MISS} by Envoy limit checked"),
        1.0,
        "… Envoy that checks, tells and logs",
    ),
    _least("… to Traefik with its Redis limiter", _claim(f"{MISS} by Traefik Redis limit"), 2.0, "… Traefik"),
    _least(
        "… to the same Traefik with a JSON line per request and metrics, as ours",
        _claim(f"{MISS} by Traefik Redis limit logged"),
        2.0,
        "… Traefik that logs",
    ),
    _least("hit, from the cache: CPU ratio to nginx", _cpu(HIT), 0.45, "hit: to nginx"),
    _least("… to nginx+Lua with cache and Redis bucket", _claim(f"{HIT} by nginx+Lua Redis hit"), 1.0, "… nginx+Lua"),
    _least("429 refused, to a hit", _claim(f"gateway Redis 429 by {HIT}"), 1.0, "429: to a hit"),
    _least("304 to the client from the cache, to a hit", _claim(f"gateway Redis 304 by {HIT}"), 1.0, "304: to a hit"),
    _least("20 KB answer, miss, to nginx's", _claim(f"{MISS} 20 KB by nginx 20 KB"), 0.27, "20 KB: to nginx"),
    _most("one at a time, miss: median over nginx's", _alone(MISS), 0.3, " ms", "miss, one at a time, ms"),
    _most("one at a time, hit: median over nginx's", _alone(HIT), 0.3, " ms", "hit, one at a time, ms"),
    _most("the core busy for 70 %, hits: p99 / p50", _steady_ratio("hit"), 5.0, run="hits: p99 / p50"),
    _most("the core busy for 70 %, misses: p99 / p50", _steady_ratio("miss"), 5.0, run="misses: p99 / p50"),
    _most("work in the background: the most it adds to p99", _worst_added, 5.0, " ms", "background, ms"),
    _most(
        "two workers with 64 connections each: CPU time per hit / one worker's with 64",
        _workers("hit"),
        1.1,
        run="two workers: a hit",
    ),
    _most("… per miss / one worker's with 64", _workers("miss"), 1.1, run="… a miss"),
    _most(
        "two workers, a core each: CPU time per hit / one worker's",
        _workers("hit", where=FEWER),
        1.1,
        run="… half as busy each: a hit",
    ),
    _most("… a miss", _workers("miss", where=FEWER), 1.1, run="… a miss"),
    _most(
        "two workers: CPU time per hit / that of two gateways with one worker each",
        _workers("hit", "beside_pair", FEWER),
        1.1,
        run="… beside two gateways: a hit",
    ),
    _most("… per miss / that of two gateways", _workers("miss", "beside_pair", FEWER), 1.1, run="… a miss"),
    _most("memory of an idle client", _footprint("client_kib"), 12.0, " KiB"),
    _most("memory after start", _footprint("rss_mib"), 80.0, " MiB"),
    _most("start to first answered request", _footprint("start_s"), 1.0, " s"),
    _most("memory over 1,000,000 requests: growth after the first 200,000", _memory_growth, 4.0, " MiB"),
    _most("cost per request, most to least: the largest growth of any chart", _worst_growth, 1.25, " times"),
)
"""A CPU ratio with a least value is the other's CPU time per request divided by the gateway's: more is better."""

RUNS_KEPT = 8


class Run(msgspec.Struct):
    """The figures of a whole run, by ``Bar.what``."""

    date: str
    figures: dict[str, float]
    stolen: float = 0.0
    """The share of the machine's time that its host gave to others (``run.Result``)."""


def _kept() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def _measured() -> dict[str, float]:
    """The figures for which there are results, by ``Bar.what``."""
    kept, found = _kept(), {}
    for bar in BARS:
        with contextlib.suppress(KeyError, StopIteration, TypeError):  # TypeError: the run has no such figure
            found[bar.what] = bar.figure(kept)
    return found


def table() -> str:
    """The bars as Markdown; one without a result says so."""
    measured = _measured()
    rows = ["| what | bar | measured | met |", "|---|---|---|---|"]
    for bar in BARS:
        target, found = f"{bar.way} {bar.bar:g}{bar.unit}", measured.get(bar.what)
        if found is None:
            rows.append(f"| {bar.what} | {target} | not yet | |")
        else:
            rows.append(f"| {bar.what} | {target} | {found:.2f}{bar.unit} | {'yes' if bar.met(found) else '**no**'} |")
    return "\n".join(rows)


def keep_run() -> list[Run]:
    """Append the kept results as a run to benchmarks/results/runs.json; returns the runs that it keeps."""
    path = RESULTS / "runs.json"
    runs = msgspec.json.decode(path.read_bytes(), type=list[Run]) if path.exists() else []
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    runs.append(Run(today, _measured(), _kept()["bench"]["stolen"]))
    save_result("runs", runs[-RUNS_KEPT:])
    return runs[-RUNS_KEPT:]


def runs_table(runs: list[Run]) -> str:
    """Runs as Markdown, one column per run, the latest first; figures that fall short are bold."""
    shown = [bar for bar in BARS if bar.run]
    rows = [f"| | bar | {' | '.join(run.date[5:] for run in reversed(runs))} |", f"|---|---|{'---|' * len(runs)}"]
    for bar in shown:
        cells = []
        for run in reversed(runs):
            found = run.figures.get(bar.what)
            text = "" if found is None else f"{found:.2f}"
            cells.append(text if found is None or bar.met(found) else f"**{text}**")
        rows.append(f"| {bar.run} | {'≥' if bar.way == 'at least' else '≤'} {bar.bar:g} | {' | '.join(cells)} |")
    stolen = " | ".join(f"{run.stolen:.1%}" for run in reversed(runs))
    rows.append(f"| machine time stolen by the host | ≤ {STOLEN_MOST:.0%} | {stolen} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    if "--write" in sys.argv:
        replace_section("bars", table())
    if "--keep-run" in sys.argv:
        replace_section("runs", runs_table(keep_run()))
