"""The load: wrk, or a small client of our own where wrk is missing. Kept connections, each a closed loop."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from .processes import set_up_child

HEADERS = {
    "Host": "git.example.com",
    "User-Agent": "python-gitlab/8.0.0",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
}

_WRK = """
local n = tonumber(os.getenv("BENCH_START"))
local before, after = os.getenv("BENCH_BEFORE"), os.getenv("BENCH_AFTER")
local distinct = os.getenv("BENCH_DISTINCT") == "1"
local whole = before .. "1" .. after
request = function()
    if not distinct then return whole end
    n = n + 1
    return before .. n .. after
end
done = function(summary, latency)
    local e = summary.errors
    io.write(string.format('{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"failed":%d,"refused":%d}\\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        e.connect + e.read + e.write + e.timeout, e.status))
end
"""

_PATIENCE_S = 30.0


class Shape(msgspec.Struct, frozen=True):
    """The requests. ``path`` ends where the number of the request is appended."""

    path: str
    headers: dict[str, str] = {}
    distinct: bool = False
    """Whether each request asks for something else, so that neither a cache nor collapsing helps."""
    status: int = 200

    def octets(self) -> tuple[str, str]:
        """The text of the request before and after its number."""
        lines = [f"{name}: {value}\r\n" for name, value in {**HEADERS, **self.headers}.items()]
        return f"GET {self.path}", f" HTTP/1.1\r\n{''.join(lines)}\r\n"


def ask(client: socket.socket, shape: Shape, number: int = 1) -> None:
    """Make one request, and read its answer, whose body is at least 1,000 octets.

    Raises:
        RuntimeError: The answer's status is not 200.
    """
    before, after = shape.octets()
    client.settimeout(_PATIENCE_S)
    client.sendall(f"{before}{number}{after}".encode())
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < 1000:
        more = client.recv(1 << 16)
        if not more:
            break
        data += more
    if not data.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"answered {data[:40]!r}")


class Load(msgspec.Struct, frozen=True):
    """The result of a load."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int
    refused: int
    """Answers of status 400 and above."""


_STARTS = itertools.count(1)


def client_environment(shape: Shape) -> dict[str, str]:
    """The environment of a client of ours: this process's, and the request."""
    before, after = shape.octets()
    return {
        **os.environ,
        "BENCH_BEFORE": before,
        "BENCH_AFTER": after,
        "BENCH_DISTINCT": "1" if shape.distinct else "0",
        # So that no two rounds request the same.
        "BENCH_START": str(next(_STARTS) * 10_000_000),
    }


def begin(
    shape: Shape, port: int, *, connections: int, seconds: float, cpu: int | None, directory: Path
) -> subprocess.Popen[str]:
    """Begin a load in a process of its own, pinned to ``cpu``; None: on the cores of this process. For ``result_of``."""
    environment = client_environment(shape)
    if shutil.which("wrk"):
        script = directory / "load.lua"
        if not script.exists():  # another load may be about to read it
            script.write_text(_WRK)
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    else:
        argv = [sys.executable, "-m", "benchmarks.load", str(port), str(connections), str(seconds)]
    return subprocess.Popen(
        argv,
        env=environment,
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=functools.partial(set_up_child, cpu),
    )


def result_of(load: subprocess.Popen[str]) -> Load:
    """Wait until a load is over, and return its result.

    Raises:
        RuntimeError: The load failed.
    """
    output, _ = load.communicate(timeout=120)
    if load.returncode:
        raise RuntimeError(f"{load.args!r} failed")
    return msgspec.json.decode(output.splitlines()[-1], type=Load)


def put_under_load(shape: Shape, port: int, *, connections: int, seconds: float, cpu: int | None, directory: Path) -> Load:
    """Run one load to its end; arguments as for ``begin``."""
    return result_of(begin(shape, port, connections=connections, seconds=seconds, cpu=cpu, directory=directory))


# Our own client: slower than wrk, so that only CPU time and the figures at c=1 hold with it


class _Worker(asyncio.Protocol):
    def __init__(self, times: list[float]) -> None:
        self._times = times
        self._start = int(os.environ["BENCH_START"])
        self._pieces = (os.environ["BENCH_BEFORE"].encode(), os.environ["BENCH_AFTER"].encode())
        self._distinct = os.environ["BENCH_DISTINCT"] == "1"
        self._data = b""
        self._sent_at = 0.0
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._start += self._distinct
        self._sent_at = time.perf_counter()
        self._transport.write(b"%b%d%b" % (self._pieces[0], self._start, self._pieces[1]))

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, blank, body = self._data.partition(b"\r\n\r\n")
        if not blank:
            return
        status = int(head[9:12])
        length = 0
        if status != 304:
            at = head.lower().index(b"content-length:")
            length = int(head[at + 15 :].partition(b"\r\n")[0])
        if len(body) >= length:
            self._times.append(time.perf_counter() - self._sent_at)
            self.refused += status >= 400
            self._data = b""
            self._ask()


async def _main(port: int, connections: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []
    started = time.perf_counter()
    opened = [await loop.create_connection(lambda: _Worker(times), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.sleep(seconds)
    took = time.perf_counter() - started
    refused = 0
    for transport, worker in opened:
        refused += worker.refused
        transport.abort()
    times.sort()
    middle, late = times[len(times) // 2] * 1e3, times[len(times) * 99 // 100] * 1e3
    print(json.dumps(msgspec.to_builtins(Load(len(times), took, middle, late, 0, refused))))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
