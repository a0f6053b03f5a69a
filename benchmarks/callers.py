"""What a request costs when many callers take turns, each with a key of its own, and when a proxy marks each request.

    python -m benchmarks.callers [--rounds 9] [--write]

In this process, without sockets (inprocess.py). Half of what is remembered of request heads and callers is kept for
certain while others come: beyond some 4,000 callers in turn, nothing of one is remembered when it comes again. Each caller
asks before anything is measured. A gateway with many callers and one with a single caller take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from gateway.app import open_key_store
from gateway.config import Config

from .inprocess import Subject, subject
from .page import replace_section, save_result

SIZES = (1, 100, 1000, 4000, 8000)
KINDS = ("hit", "miss")
_BEHIND_S = 0.1
"""In which the audit of earlier requests is written: a part of its cost, not of the next one's."""


class Row(msgspec.Struct):
    """``many`` callers: CPU time per request divided by that of one caller whose requests nobody marks."""

    many: int
    plain: dict[str, float]
    marked: dict[str, float]
    """With an ``X-Request-Id`` and a ``traceparent`` that differ each time."""


class Result(msgspec.Struct):
    """As kept in benchmarks/results/callers.json."""

    date: str
    us: dict[str, float]
    """Of the single caller: microseconds per request."""
    rows: list[Row]


class Callers:
    """Callers of one gateway, who take turns."""

    def __init__(self, one: Subject, keys: list[str]) -> None:
        self.one = one
        self._keys = itertools.cycle(keys)
        self._marks = itertools.count(1)

    async def ask(self, kind: str, *, marked: bool) -> None:
        client = self.one.client
        client.key = next(self._keys)
        number = next(self._marks)
        mark = b"X-Request-Id: %032x\r\ntraceparent: 00-%032x-%016x-01\r\n" % (number, number, number)
        client.lines = mark if marked else b""
        await getattr(self.one, kind)()

    async def cpu_us(self, kind: str, many: int, *, marked: bool) -> float:
        """Microseconds of CPU time per request, over ``many``."""
        started = time.thread_time()
        for _ in range(many):
            await self.ask(kind, marked=marked)
        await asyncio.sleep(_BEHIND_S)
        took = time.thread_time() - started
        self.one.client.wire.answers.clear()
        return took / many * 1e6


def _with_callers(many: int, configs: list[Config]) -> Callable[[Config], Config]:
    """A change of the configuration: an identity for each caller, and one rule for all."""

    def change(config: Config) -> Config:
        one, rule = config.identities[0], config.rules[0]
        others = tuple(msgspec.structs.replace(one, id=f"caller-{number}") for number in range(many))
        names = (*rule.for_, *(other.id for other in others))
        configs.append(
            msgspec.structs.replace(
                config, identities=(one, *others), rules=(msgspec.structs.replace(rule, for_=names), *config.rules[1:])
            )
        )
        return configs[0]

    return change


async def _started(directory: Path, many: int) -> Callers:
    configs: list[Config] = []
    one = await subject(directory, _with_callers(many, configs))
    async with open_key_store(configs[0]) as session:
        keys = [(await session.key_admin.issue(session.actor, f"caller-{number}"))[0].reveal() for number in range(many)]
    callers = Callers(one, keys)
    for marked in (False, True):
        for _ in range(2 * many):
            await callers.ask("hit", marked=marked)
    return callers


async def run(rounds: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="callers-") as directory:
        base = await _started(Path(directory) / "base", 1)
        rows, single = [], {kind: list[float]() for kind in KINDS}
        for many in SIZES:
            callers = await _started(Path(directory) / str(many), many)
            row = Row(many, {}, {})
            for kind, marked in itertools.product(KINDS, (False, True)):
                ratios = []
                for number in range(rounds + 1):
                    its = await base.cpu_us(kind, 500, marked=False)
                    own = await callers.cpu_us(kind, max(500, many), marked=marked)
                    if number:  # in the first, each caller is met again
                        ratios.append(own / its)
                        single[kind].append(its)
                (row.marked if marked else row.plain)[kind] = round(statistics.median(ratios), 2)
            rows.append(row)
            print(f"callers: {row}", flush=True)
            await callers.one.close()
            del callers
            gc.collect()
        await base.one.close()
    return Result(time.strftime("%Y-%m-%d"), {kind: round(statistics.median(of), 1) for kind, of in single.items()}, rows)


def table(result: Result) -> str:
    """The result as Markdown."""
    return "\n".join(
        [
            f"{result.date}: CPU time per request, divided by that of one caller whose requests nobody marks"
            f" ({result.us['hit']} µs per hit, {result.us['miss']} µs per stored miss, in process).",
            "",
            "| callers in turn | hit | stored miss | hit, marked | stored miss, marked |",
            "|---|---|---|---|---|",
            *(
                f"| {row.many:,} | {' | '.join(f'{of[kind]:.2f}' for of in (row.plain, row.marked) for kind in KINDS)} |"
                for row in result.rows
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    gc.set_threshold(20_000, 20, 100)  # as the gateway does
    result = uvloop.run(run(given.rounds))
    print(table(result))
    if given.write:
        save_result("callers", result)
        replace_section("callers", table(result))


if __name__ == "__main__":
    main()
