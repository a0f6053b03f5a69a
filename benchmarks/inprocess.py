"""The gateway in this process, without sockets: what a request costs in CPU time and in calls, and nothing else.

Everything from the octets of a request to the octets of its answer is the gateway's own: edge, pipeline, cache, metrics,
audit. Sockets are missing, and so is GitLab, whose answer is there at once.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec

from gateway.app import open_key_store
from gateway.app.assembly import Assembly, assemble
from gateway.config import Config, load
from tests.test_cost import BY_THE_CLOCK, OURS, Client, GitLab

PEERS = Path(__file__).parent / "peers"
BATCH = 100
"""Requests between two readings of the clock."""

Change = Callable[[Config], Config]


class Subject:
    """One gateway in this process, with a client of its own."""

    def __init__(self, assembly: Assembly, key: str) -> None:
        self.assembly = assembly
        self.client = Client(assembly, key)
        self.client.connection.connection_made(self.client.wire)
        self._page = 0

    async def warm(self) -> None:
        """Ask until everything that is done only once has been done."""
        for _ in range(20):
            await self.hit()
            await self.miss()
            await self.project()

    async def hit(self) -> None:
        """Ask the same as before: answered from the cache."""
        await self._ask(b"platform%2Fapi/issues?page=0")

    async def miss(self) -> None:
        """Ask for another page of the same project's issues: looked up, forwarded, stored."""
        self._page += 1
        await self._ask(b"platform%%2Fapi/issues?page=%d" % self._page)

    async def project(self) -> None:
        """As ``miss``, for a project that no request named before: nothing about its path is remembered."""
        self._page += 1
        await self._ask(b"other%%2Fp%d/issues" % self._page)

    async def _ask(self, what: bytes) -> None:
        answers = self.client.wire.answers
        before = len(answers)
        self.client.connection.data_received(
            b"GET /api/v4/projects/%b HTTP/1.1\r\nHost: git.example.com\r\nUser-Agent: python-gitlab/8.0.0\r\n"
            b"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nPRIVATE-TOKEN: %b\r\n%b\r\n"
            % (what, self.client.key.encode(), self.client.lines)
        )
        while len(answers) == before:
            await asyncio.sleep(0)
        if not answers[-1].startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answered {answers[-1][:40]!r}")

    async def close(self) -> None:
        self.client.connection.connection_lost(None)
        await self.assembly.stack.aclose()

    async def cpu_us(self, kind: str) -> float:
        """Microseconds of CPU time per request, over one batch."""
        ask = getattr(self, kind)
        started = time.thread_time()
        for _ in range(BATCH):
            await ask()
        took = time.thread_time() - started
        self.client.wire.answers.clear()
        await asyncio.sleep(0)
        return took / BATCH * 1e6

    async def calls(self, kind: str) -> float:
        """Calls per request that the gateway's own code makes, as tests/test_cost.py counts them."""
        count = 0

        def note(frame: FrameType, event: str, _argument: object) -> None:
            nonlocal count
            if event in {"call", "c_call"}:
                file = frame.f_code.co_filename
                count += file.startswith(OURS) and not file.endswith(BY_THE_CLOCK)

        ask = getattr(self, kind)
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            for _ in range(20):
                await ask()
        finally:
            sys.setprofile(before)
        return round(count / 20, 1)


async def subject(
    directory: Path,
    change: Change = lambda config: config,
    template: str = "gateway.yaml",
    *,
    origin: int = 0,
    store: str = "memory:",
) -> Subject:
    """A gateway with the bench's configuration, altered by ``change``. ``directory`` is its own. ``origin`` is GitLab's
    port; 0: a fake in this process stands in for GitLab."""
    text = (PEERS / template).read_text()
    values = {"DIR": directory, "NAME": "state", "ORIGIN": origin or 9, "PORT": 0, "PORT2": 0, "STORE": store}
    cache = "memory" if store != "memory:" else "shared"
    for name, value in {**values, "CACHE": cache, "RATE": "10000000/s", "BURST": 10_000_000}.items():
        text = text.replace(f"@{name}@", str(value))
    (directory / "state").mkdir(mode=0o700, parents=True)
    given = {f"BENCH_SECRET_{letter}": secrets.token_hex(32) for letter in "ABC"} | {"BENCH_TOKEN": "a-token"}
    loaded = load(text, {**os.environ, **given}, lambda path: Path(path).read_text())
    if loaded.config is None:
        raise RuntimeError(str(loaded.problems))
    config = change(loaded.config)
    async with open_key_store(loaded.config) as keys:
        key = (await keys.key_admin.issue(keys.actor, "bench"))[0].reveal()
    assembly = await assemble(config)
    if not origin:
        assembly.gateway.stages = assembly.gateway.forward_lane.stages = msgspec.structs.replace(
            assembly.gateway.stages, upstream=GitLab()
        )
    one = Subject(assembly, key)
    await asyncio.sleep(0)
    await one.warm()
    return one


async def compared(one: Subject, base: Subject, kind: str, rounds: int) -> tuple[float, float]:
    """``one``'s CPU time per request divided by ``base``'s, and ``base``'s in microseconds: medians of the rounds, in which
    both take turns."""
    ratios, times = [], []
    for number in range(rounds):
        if number % 2:
            its, own = await base.cpu_us(kind), await one.cpu_us(kind)
        else:
            own, its = await one.cpu_us(kind), await base.cpu_us(kind)
        ratios.append(own / its)
        times.append(its)
    return statistics.median(ratios), statistics.median(times)
