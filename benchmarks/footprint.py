"""What the gateway takes before it does anything: time to its first answer, memory after start, memory of an idle client.

    python -m benchmarks.footprint [--starts 7] [--clients 4000] [--write]

A start is timed from the creation of the process to the first 200 read from the traffic port, with a file of keys, a
catalogue and an audit file, on a core of its own. An idle client has made one request and keeps its connection.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from .load import Shape, ask
from .page import replace_section, save_result
from .processes import Program, free_port
from .pythons import Python
from .targets import ISSUES, LOAD_CPU, Bench

_PATIENCE_S = 30.0


class Footprint(msgspec.Struct):
    """The result as kept in benchmarks/results/footprint.json."""

    date: str
    python: Python
    starts: int
    start_s: float
    """From the creation of the process to the first 200: median."""
    start_cpu_s: float
    """CPU time used until then: median."""
    rss_mib: float
    """Resident memory after the first answer: median."""
    clients: int
    client_kib: float
    """Resident memory that an idle client adds."""
    bare_client_kib: float
    """The same for the bare aiohttp proxy."""


def run(starts: int, clients: int) -> Footprint:
    """Measure. Takes some four seconds per start at most, and ten for the clients."""
    os.sched_setaffinity(0, {LOAD_CPU})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_base_programs()
            return _measure(bench, starts, clients)
        finally:
            bench.close()


def _measure(bench: Bench, starts: int, clients: int) -> Footprint:
    took, cpu, rss = [], [], []
    port = free_port()
    config = bench.gateway_file("start", port)
    key, given = bench.key_for("start", config)
    shape = Shape(ISSUES, {"PRIVATE-TOKEN": key})
    argv = [bench.python.path, "-m", "gateway", "serve", "--config", config]
    for number in range(starts + 1):  # the first may find no compiled files, and is not counted
        program = bench.begin("start", argv, env=given)
        seconds = _first_answer(program, port, shape)
        cpu_s, kib = program.cpu_s(), program.rss_kib()
        last = number == starts
        each = _idle(program, port, shape, clients) if last else 0.0
        program.stop()
        if number:
            took.append(seconds)
            cpu.append(cpu_s)
            rss.append(kib / 1024)
    bare, bare_port = bench.bare()
    _first_answer(bare, bare_port, shape)
    return Footprint(
        time.strftime("%Y-%m-%d"),
        bench.python,
        starts,
        round(statistics.median(took), 2),
        round(statistics.median(cpu), 2),
        round(statistics.median(rss), 1),
        clients,
        round(each, 1),
        round(_idle(bare, bare_port, shape, clients), 1),
    )


def _first_answer(program: Program, port: int, shape: Shape) -> float:
    """Seconds from the start of the program to its first answer.

    Raises:
        RuntimeError: No answer came in time.
    """
    while (elapsed := time.monotonic() - program.started_at) < _PATIENCE_S:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)):
                time.sleep(0.002)
                continue
            ask(client, shape)
            return time.monotonic() - program.started_at
    raise RuntimeError(f"no answer after {elapsed:.0f} s")


def _idle(program: Program, port: int, shape: Shape, clients: int) -> float:
    """KiB that each of ``clients`` idle clients adds beyond a first hundred, which fill memory that is kept anyway."""
    held = []
    try:
        before = 0
        for number in range(100 + clients):
            if number == 100:
                before = program.rss_kib()
            one = socket.create_connection(("127.0.0.1", port), 10)
            held.append(one)
            ask(one, shape)
        return (program.rss_kib() - before) / clients
    finally:
        for one in held:
            one.close()


def table(result: Footprint) -> str:
    """The result as Markdown."""
    return "\n".join(
        [
            f"{result.date}: Python {result.python}, {result.starts} starts, {result.clients} idle clients.",
            "",
            "| | |",
            "|---|---|",
            f"| process start to first answered request, median | {result.start_s:.2f} s |",
            f"| CPU time of that | {result.start_cpu_s:.2f} s |",
            f"| resident memory after it | {result.rss_mib:.0f} MiB |",
            f"| an idle client that has asked once, user-space memory | {result.client_kib:.1f} KiB |",
            f"| the same at the bare aiohttp proxy | {result.bare_client_kib:.1f} KiB |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--clients", type=int, default=4000)
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    result = run(given.starts, given.clients)
    print(table(result))
    if given.write:
        save_result("footprint", result)
        replace_section("footprint", table(result))


if __name__ == "__main__":
    main()
