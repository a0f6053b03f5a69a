"""What the gateway is to reach, held against the kept results: the first table of docs/performance.md.

python -m benchmarks.bars [--write]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .page import put
from .workers import EACH

RESULTS = Path(__file__).parent / "results"

Figure = Callable[[dict[str, Any]], float]


def _cpu(name: str) -> Figure:
    return lambda kept: float(_line(kept, name)["cpu"])


def _alone(name: str) -> Figure:
    return lambda kept: _line(kept, name)["alone_us"] / 1e3


def _line(kept: dict[str, Any], name: str) -> dict[str, Any]:
    return next(line for line in kept["bench"]["lines"] if line["name"] == name)


def _claim(name: str) -> Figure:
    return lambda kept: float(kept["bench"]["claims"][name])


def _steady(name: str) -> Figure:
    return lambda kept: float(next(one for one in kept["latency"]["steady"] if one["name"] == name)["ratio"])


def _worst_added(kept: dict[str, Any]) -> float:
    return float(max(one["added_ms"] for one in kept["latency"]["disturbed"]))


def _foot(name: str) -> Figure:
    return lambda kept: float(kept["footprint"][name])


def _workers(name: str) -> Figure:
    wanted = (name, EACH)

    def figure(kept: dict[str, Any]) -> float:
        cost = next(cost for cost in kept["workers"]["costs"] if (cost["name"], cost["where"]) == wanted)
        return float(statistics.median(cost["ratios"]))

    return figure


def _grown(kept: dict[str, Any]) -> float:
    return float(kept["scaling"]["memory"]["grown_mib"])


def _worst_growth(kept: dict[str, Any]) -> float:
    return float(max(chart["growth"] for chart in kept["scaling"]["charts"] if chart["name"] != "takes"))


BARS: tuple[tuple[str, Figure, str, float, str], ...] = (
    ("miss, forwarded: CPU ratio to nginx", _cpu("gateway Redis miss"), "at least", 0.20, ""),
    ("… to nginx+Lua with Redis", _claim("gateway Redis miss by nginx+Lua Redis"), "at least", 0.45, ""),
    (
        "… to Envoy with local rate limit and header mutation",
        _claim("gateway Redis miss by Envoy limit"),
        "at least",
        1.0,
        "",
    ),
    (
        "… to the same Envoy with a JSON line a request, as ours",
        _claim("gateway Redis miss by Envoy limit logged"),
        "at least",
        1.0,
        "",
    ),
    ("… to Traefik with its Redis limiter", _claim("gateway Redis miss by Traefik Redis limit"), "at least", 2.0, ""),
    (
        "… to the same Traefik with a JSON line a request and metrics, as ours",
        _claim("gateway Redis miss by Traefik Redis limit logged"),
        "at least",
        2.0,
        "",
    ),
    ("hit, from the cache: CPU ratio to nginx", _cpu("gateway Redis hit"), "at least", 0.45, ""),
    ("… to nginx+Lua with cache and Redis bucket", _claim("gateway Redis hit by nginx+Lua Redis hit"), "at least", 1.0, ""),
    ("429 refused, to a hit", _claim("gateway Redis 429 by gateway Redis hit"), "at least", 1.0, ""),
    ("304 to the client from the cache, to a hit", _claim("gateway Redis 304 by gateway Redis hit"), "at least", 1.0, ""),
    ("20 KB answer, miss, to nginx's", _claim("gateway Redis miss 20 KB by nginx 20 KB"), "at least", 0.27, ""),
    ("one at a time, miss: median over nginx's", _alone("gateway Redis miss"), "at most", 0.3, " ms"),
    ("one at a time, hit: median over nginx's", _alone("gateway Redis hit"), "at most", 0.3, " ms"),
    ("the core busy for 70 %, hits: p99 by p50", _steady("hit"), "at most", 5.0, ""),
    ("the core busy for 70 %, misses: p99 by p50", _steady("miss"), "at most", 5.0, ""),
    ("work in the background: the most it adds to p99", _worst_added, "at most", 5.0, " ms"),
    ("two workers, a core each: CPU time a hit by one worker's", _workers("hit"), "at most", 1.1, ""),
    ("… a miss", _workers("miss"), "at most", 1.1, ""),
    ("memory of an idle client", _foot("client_kib"), "at most", 12.0, " KiB"),
    ("memory after start", _foot("rss_mib"), "at most", 80.0, " MiB"),
    ("start to first answered request", _foot("start_s"), "at most", 1.0, " s"),
    ("memory over 1,000,000 requests: growth after the first 200,000", _grown, "at most", 4.0, " MiB"),
    ("cost a request, most to least: the largest growth of any chart", _worst_growth, "at most", 1.25, " times"),
)
"""What, its figure, which way it is meant, the bar, a unit. Ratios of CPU time a request: more is better."""


def table() -> str:
    """As Markdown; what has no result is said to have none."""
    kept = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    rows = ["| what | bar | measured | met |", "|---|---|---|---|"]
    for what, figure, way, bar, unit in BARS:
        try:
            measured = figure(kept)
        except (KeyError, StopIteration, TypeError):  # TypeError: a run without that figure
            rows.append(f"| {what} | {way} {bar:g}{unit} | not yet | |")
            continue
        met = measured >= bar if way == "at least" else measured <= bar
        rows.append(f"| {what} | {way} {bar:g}{unit} | {measured:.2f}{unit} | {'yes' if met else '**no**'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    if "--write" in sys.argv:
        put("bars", table())
