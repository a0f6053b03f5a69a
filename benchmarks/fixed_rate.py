"""The load at a fixed rate: each request has its moment, whether or not those before it were answered.

    python -m benchmarks.fixed_rate PORT RATE SECONDS CONNECTIONS    # the request stands in the environment, as for load.py

A closed loop asks less while it waits, and so forgets to measure what a pause did to those who would have come meanwhile
(coordinated omission). Here an answer's time counts from the moment the request was due, not from when it was sent: if the
sender itself is late, or all connections are taken, that is part of it. Moments are evenly spaced.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque

import msgspec

from .load import Shape, asking
from .pythons import ROOT

CONNECTIONS = 64
_PATIENCE_S = 10.0


class Paced(msgspec.Struct, frozen=True):
    """What came of it. Times in milliseconds."""

    requests: int
    refused: int
    """Answers of status 400 and above."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    late_p99_ms: float
    """How late the sender was, at most, for 99 of 100: part of the times above."""


def begin(shape: Shape, port: int, *, rate: float, seconds: float, cpu: int) -> subprocess.Popen[bytes]:
    """In a process of its own, pinned to ``cpu``."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fixed_rate", str(port), str(rate), str(seconds), str(CONNECTIONS)],
        env=asking(shape),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )


def result_of(sender: subprocess.Popen[bytes]) -> Paced:
    """When it is done.

    Raises:
        RuntimeError: Not every request was answered.
    """
    told, _ = sender.communicate(timeout=120)
    if sender.returncode:
        raise RuntimeError("the sender at a fixed rate failed")
    return msgspec.json.decode(told, type=Paced)


class _Connection:
    """One socket and the request on it."""

    __slots__ = ("due", "got", "socket", "want")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.got = b""
        self.want = -1

    def fileno(self) -> int:
        return self.socket.fileno()

    def is_answered(self) -> bool:
        """After reading what is there."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise SystemExit("a connection was closed")
        self.got = data = self.got + data
        if self.want < 0:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return False
            at = data.lower().find(b"content-length:", 0, end)
            length = int(data[at + 15 : data.index(b"\r\n", at)]) if at >= 0 and data[9:12] != b"304" else 0
            self.want = end + 4 + length
        return len(data) >= self.want


def send(port: int, rate: float, seconds: float, connections: int) -> Paced:
    """Until every request is answered; fails when answers stay out."""
    before, after = os.environ["BENCH_BEFORE"].encode(), os.environ["BENCH_AFTER"].encode()
    number, step = int(os.environ["BENCH_START"]), int(os.environ["BENCH_DISTINCT"])
    free = deque(_Connection(port) for _ in range(connections))
    asked: set[_Connection] = set()
    times: list[float] = []
    late: list[float] = []
    sent = refused = 0
    total, interval = max(1, int(rate * seconds)), 1 / rate
    gc.disable()
    start = time.perf_counter() + 0.01
    while len(times) < total:
        now = time.perf_counter() - start
        if now > seconds + _PATIENCE_S:
            raise SystemExit(f"{total - len(times)} of {total} requests are not answered")
        while sent < total and free and sent * interval <= now:
            one = free.popleft()
            one.due = sent * interval
            late.append(time.perf_counter() - start - one.due)
            one.socket.send(b"%b%d%b" % (before, number, after))
            asked.add(one)
            sent += 1
            number += step
        wait = max(0.0, sent * interval - (time.perf_counter() - start)) if free and sent < total else 0.1
        for one in select.select(asked, (), (), wait)[0]:
            if one.is_answered():
                times.append(time.perf_counter() - start - one.due)
                refused += one.got[9:10] >= b"4"
                one.got, one.want = b"", -1
                asked.discard(one)
                free.append(one)
    times.sort()
    late.sort()

    def at(share: float) -> float:
        return times[min(total - 1, int(total * share))] * 1e3

    return Paced(total, refused, at(0.5), at(0.99), at(0.999), times[-1] * 1e3, late[int(total * 0.99)] * 1e3)


if __name__ == "__main__":
    made = send(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.buffer.write(msgspec.json.encode(made))
