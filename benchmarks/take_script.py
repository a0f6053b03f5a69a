"""What the script that takes from buckets costs Redis itself, by the number of requests that one call decides.

    python -m benchmarks.take_script [--beside OTHER.lua] [--write]

Needs redis-server; takes twenty seconds. Times are Redis's own account of a call (``commandstats``: the script alone,
without reading the call or writing the answer), the least of several rounds, as ratios to the smallest script that could
hold a bucket: it asks the time, reads one key and writes it. A request takes from two buckets, its caller's and
everybody's. With ``--beside``, another version of the script is called in turns with it, and both are reported.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.core.limits import Limit, Scope, Take, Takes
from gateway.stores.bucket_script import BatchItem, Script, TakePacker, decisions
from gateway.stores.redis_link import Argument, RedisLink

from .page import replace_section, save_result
from .processes import Program, free_port

_ROUNDS = 12
_CALLS = 400
_CALLER = Limit("caller", Scope.IDENTITY, 1000.0, 1e6)
_EVERYBODY = Limit("everybody", Scope.ORGANISATION, 1000.0, 1e6)


_LEAST = Script("""
redis.call('TIME')
local held = redis.call('GET', KEYS[1]) or '0123456789abcdef'
redis.call('SET', KEYS[1], held, 'PX', 60000)
return held
""")


class Call(msgspec.Struct, frozen=True):
    """One call of the script, which decides ``requests`` requests."""

    requests: int
    callers: int


CALLS = (Call(1, 1), Call(2, 1), Call(8, 1), Call(25, 1), Call(25, 25), Call(128, 1), Call(128, 128))


class Row(msgspec.Struct, frozen=True):
    """What one call costs, divided by the cost of the smallest script."""

    call: Call
    ratio: float
    beside: float | None
    """The other script's ratio."""


def _turn(call: Call) -> list[BatchItem]:
    each = [Takes([Take(f"{{gw}}:{n}", _CALLER), Take("{gw}:everybody", _EVERYBODY)]) for n in range(call.callers)]
    return [BatchItem(each[n % call.callers]) for n in range(call.requests)]


async def _cost_us(link: RedisLink, *command: Argument) -> float:
    """Microseconds per call, by Redis's account of many calls."""
    await link.execute("FLUSHALL")
    await link.execute("CONFIG", "RESETSTAT")
    for _ in range(_CALLS):
        await link.execute(*command)
    stats = await link.execute("INFO", "commandstats")
    assert isinstance(stats, bytes)
    name = str(command[0]).lower().encode()
    (line,) = (line for line in stats.split() if line.startswith(b"cmdstat_%b:" % name))
    return float(line.partition(b"usec_per_call=")[2].partition(b",")[0])


async def measure(port: int, scripts: Sequence[Script]) -> list[Row]:
    """Measure each call with each of the scripts, in alternating order."""
    link = RedisLink.from_url(f"redis://127.0.0.1:{port}/0", timeout_s=5.0, name="bench")
    try:
        for script in (_LEAST, *scripts):
            await link.execute("SCRIPT", "LOAD", script.text)
        rows = []
        for call in CALLS:
            turn = _turn(call)
            arguments = TakePacker().arguments(turn)
            await link.execute("FLUSHALL")
            found = decisions(turn, await link.execute("EVALSHA", scripts[0].sha, *arguments))
            assert all(decision.allowed for decision in found)
            commands = [("EVALSHA", _LEAST.sha, 1, "{gw}:0"), *(("EVALSHA", one.sha, *arguments) for one in scripts)]
            costs = [float("inf")] * len(commands)
            for number in range(_ROUNDS):
                for at in range(len(commands)) if number % 2 else reversed(range(len(commands))):
                    costs[at] = min(costs[at], await _cost_us(link, *commands[at]))
            unit, *others = costs
            ratios = [round(us / unit, 1) for us in others]
            rows.append(Row(call, ratios[0], ratios[1] if len(ratios) > 1 else None))
        return rows
    finally:
        await link.close()


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    compared = rows[0].beside is not None
    head = "| requests per call | callers | call / smallest script | request / smallest script |" + (
        " the other's call |" if compared else ""
    )
    lines = [head, "|---|---|---|---|" + ("---|" if compared else "")]
    for row in rows:
        call = row.call
        line = f"| {call.requests} | {call.callers} | {row.ratio:.1f} | {row.ratio / call.requests:.2f} |"
        lines.append(line + (f" {row.beside:.1f} |" if compared else ""))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="OTHER.lua", help="another text of the script, asked in turns")
    parser.add_argument("--write", action="store_true", help="keep the result, and renew its table in docs/performance.md")
    given = parser.parse_args()
    scripts = [Script.named("take.lua")]
    if given.beside is not None:
        scripts.append(Script(given.beside.read_text()))
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-take-") as directory:
        argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory]
        server = Program(argv, cpu=0, log=Path(directory, "redis.log"), cwd=Path(directory))
        try:
            server.wait_for_port(port)
            rows = asyncio.run(measure(port, scripts))
        finally:
            server.stop()
    print(table(rows))
    if given.write and given.beside is None:
        save_result("take_script", rows)
        replace_section("take-script", table(rows))


if __name__ == "__main__":
    main()
