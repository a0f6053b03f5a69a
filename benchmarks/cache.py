"""What the cache saves: bots that poll the demo GitLab, which has 40 ms of latency. ``make bench-cache``.

200 bots share a service token. They ask for projects (Zipf over 10,000) and for pages of their issues and merge requests,
and every hundredth request is a change: half of the changes go through the gateway, half go past it and are announced by a
hook. The same requests in the same order run once without a cache and once with it. Loopback only, bounded in time.

Offline, a longer trace of the same kind compares the memory store's policy with plain LRU at the same size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from gateway.core.cache_entry import Entry
from gateway.demo.gitlab import build_demo_gitlab
from gateway.demo.seed import TOKENS, seed
from gateway.stores.cache_memory import MemoryCacheStore

PROJECTS, BOTS, LATENCY_S, WRITES = 10_000, 200, 0.040, 0.01
PAUSE_S = 1.0
"""The pause between two requests of a bot: all bots make less than 200 requests per second, so that it is latency that is
measured."""
SECRET = "benchmark-hook-token"
_SERVING = re.compile(r"serving .* on (127\.0\.0\.1:\d+), admin on (127\.0\.0\.1:\d+)")


class Step(NamedTuple):
    """One request of the trace."""

    method: str
    target: str
    project: int
    behind: bool = False


def trace(numbers: list[int], length: int, seed_of: int = 1) -> list[Step]:
    """The steps of bots that poll by Zipf's law (exponent 1), pages included."""
    dice = random.Random(seed_of)
    weights = [1 / rank for rank in range(1, len(numbers) + 1)]
    steps = []
    for number in dice.choices(numbers, weights, k=length):
        below, kind = f"/api/v4/projects/{number}", dice.random()
        if kind < WRITES:
            steps.append(Step("PUT", below, number, dice.random() < 0.5))
        elif kind < 0.55:
            steps.append(Step("GET", below, number))
        else:
            what = "issues" if kind < 0.8 else "merge_requests"
            steps.append(Step("GET", f"{below}/{what}?per_page=20&page={dice.choice((1, 1, 1, 2, 3))}", number))
    return steps


# The offline comparison


async def hit_ratios(numbers: list[int], length: int, share: float) -> dict[str, float]:
    """Hit ratios of our policy and of LRU, with room for ``share`` of all that is requested.

    A tenth of the requests is a scan that walks through everything once, as an inventory does.
    """
    dice = random.Random(2)
    scan = iter(range(length))
    keys = [
        f"scan {next(scan)}" if dice.random() < 0.1 else step.target
        for step in trace(numbers, length, 3)
        if step.method == "GET"
    ]
    entry = Entry(200, b"OK", ((b"Content-Type", b"application/json"),), b"x" * 2000, 0.0, 0.0, 0.0)
    capacity = int(len(set(keys)) * share)
    size = entry.size_bytes + 50
    ours, hits = MemoryCacheStore(capacity * size, lambda: 1.0), 0
    lru: OrderedDict[str, None] = OrderedDict()
    lru_hits = 0
    for key in keys:
        name = key.encode().ljust(50)
        lookup = await ours.get(name, ())
        if lookup.entries:
            hits += 1
        else:
            await ours.put(name, (entry,), 3600.0, (), lookup.stamp)
        if key in lru:
            lru_hits += 1
            lru.move_to_end(key)
        else:
            lru[key] = None
            if len(lru) > capacity:
                lru.popitem(last=False)
    return {"room": share, "s3_fifo": round(hits / len(keys), 4), "lru": round(lru_hits / len(keys), 4)}


# The live run


def _serve_demo(port: Any) -> None:
    async def serve() -> None:
        demo = build_demo_gitlab(items=PROJECTS, latency_s=LATENCY_S)
        await demo.start()
        port.send(demo.url)
        await asyncio.Event().wait()

    asyncio.run(serve())


class Run(NamedTuple):
    """One pass over the trace."""

    answer_s: list[float]
    statuses: dict[int, int]
    upstream: float
    cache_bytes: float
    cache_entries: float


async def play(steps: list[Step], demo: str, gateway: str, admin: str, *, hooks: bool) -> Run:
    """Let the bots work through the trace, each always taking the next step."""
    answer_s: list[float] = []
    statuses: dict[int, int] = {}
    queue = iter(steps)
    token = {"PRIVATE-TOKEN": TOKENS.root}
    connector = aiohttp.TCPConnector(limit=BOTS + 10)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:

        async def hook(number: int) -> None:
            body = {"object_kind": "push", "project_id": number, "at": time.monotonic()}
            headers = {"X-Gitlab-Token": SECRET}
            async with client.post(f"http://{gateway}/-/gateway/hooks", json=body, headers=headers) as answer:
                assert answer.status == 200, answer.status

        async def bot(wait_s: float) -> None:
            await asyncio.sleep(wait_s)
            for step in queue:
                base = demo if step.behind else f"http://{gateway}"
                body = {"description": f"{time.monotonic()}"} if step.method == "PUT" else None
                started = time.perf_counter()
                async with client.request(step.method, base + step.target, headers=token, json=body) as answer:
                    await answer.read()
                    statuses[answer.status] = statuses.get(answer.status, 0) + 1
                if not step.behind:
                    answer_s.append(time.perf_counter() - started)
                elif hooks:
                    await hook(step.project)
                await asyncio.sleep(PAUSE_S)

        if hooks:
            await hook(steps[0].project)
        await asyncio.gather(*(bot(number / BOTS * PAUSE_S) for number in range(BOTS)))
        async with client.get(f"http://{admin}/metrics") as answer:
            metrics = (await answer.read()).decode()

    def total(name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if re.match(name + r"[ {]", line))

    return Run(
        answer_s,
        statuses,
        total("gitlab_gateway_upstream_responses_total"),
        total("gitlab_gateway_cache_bytes"),
        total("gitlab_gateway_cache_entries"),
    )


def live(steps: list[Step], *, cached: bool) -> Run:
    """One pass, with a fresh demo and a fresh gateway."""
    here, there = multiprocessing.Pipe()
    demo = multiprocessing.Process(target=_serve_demo, args=(there,), daemon=True)
    demo.start()
    url = here.recv()
    cache: dict[str, object] = {"mode": "off"}
    if cached:
        cache = {"ttl": "60s", "hooks": {"secret": "${env:HOOK_SECRET}", "hold": "1s"}}
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "gateway.yaml"
        config.write_text(
            json.dumps(
                {
                    "version": 1,
                    "upstream": {"url": url},
                    "listen": {"address": "127.0.0.1:0", "admin": "127.0.0.1:0"},
                    "state_dir": place + "/state",
                    "cache": cache,
                    "audit": {"sink": f"file:{place}/audit"},
                }
            )
        )
        environment = {**os.environ, "HOOK_SECRET": SECRET}
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        gateway = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            assert gateway.stderr is not None
            found = None
            while found is None:
                line = gateway.stderr.readline()
                assert line, "the gateway did not start"
                found = _SERVING.search(line)
            return asyncio.run(play(steps, url, found[1], found[2], hooks=cached))
        finally:
            gateway.terminate()
            gateway.wait(30)
            demo.terminate()
            demo.join(10)


def _run_figures(run: Run) -> dict[str, object]:
    ordered = sorted(run.answer_s)
    return {
        "requests": len(ordered),
        "statuses": {str(status): count for status, count in sorted(run.statuses.items())},
        "upstream_requests": int(run.upstream),
        "median_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2),
    }


def main() -> None:
    """Print the result as JSON, and keep it where ``--keep`` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--trace", type=int, default=200_000, help="requests of the offline comparison")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    numbers = sorted(seed(PROJECTS).projects)[:PROJECTS]
    random.Random(4).shuffle(numbers)
    steps = trace(numbers, given.requests)
    without, with_it = live(steps, cached=False), live(steps, cached=True)
    requests = len(with_it.answer_s)
    result = {
        "bots": BOTS,
        "projects": PROJECTS,
        "latency_ms": LATENCY_S * 1000,
        "writes": WRITES,
        "without": _run_figures(without),
        "with": _run_figures(with_it),
        "saved_upstream": round(1 - with_it.upstream / without.upstream, 4),
        "answered_without_upstream": round(1 - with_it.upstream / requests, 4),
        "bytes_per_entry": round(with_it.cache_bytes / max(1, with_it.cache_entries)),
        "entries": int(with_it.cache_entries),
        "offline": [asyncio.run(hit_ratios(numbers, given.trace, share)) for share in (0.02, 0.05, 0.1, 0.2)],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.keep is not None:
        given.keep.write_text(text + "\n")


if __name__ == "__main__":
    main()
