"""The load at a fixed rate: each request has its moment, whether or not those before it were answered.

    python -m benchmarks.fixed_rate PORT RATE SECONDS CONNECTIONS    # the request stands in the environment, as for load.py

A closed loop asks less while it waits, and so forgets to measure what a pause did to those who would have come meanwhile
(coordinated omission). Here an answer's time counts from the moment the request was due, not from when it was sent: if the
sender itself is late, or all connections are taken, that is part of it. Moments are evenly spaced. The sender is late from
when it could have sent, having a connection that is free: that there was none is the doing of what is measured.

Each connection has been answered once before the first moment: what a new one costs is another measurement's
(connections.py), and 64 at a time would be the slowest hundredth of a short round.
"""

from __future__ import annotations

import contextlib
import functools
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
from .processes import settle
from .pythons import ROOT

CONNECTIONS = 64
_PATIENCE_S = 10.0
_READY = b"\n"


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
    """How late the sender itself was, at most, for 99 of 100: part of the times above."""
    took_s: float
    """Seconds from the first request to the last answer."""


def begin(shape: Shape, port: int, *, rate: float, seconds: float, cpu: int) -> subprocess.Popen[bytes]:
    """In a process of its own, pinned to ``cpu``; returns when its connections are made and the first moment has come."""
    sender = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fixed_rate", str(port), str(rate), str(seconds), str(CONNECTIONS)],
        env=asking(shape),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=functools.partial(settle, cpu),
    )
    assert sender.stdout is not None, "it is a pipe"
    os.read(sender.stdout.fileno(), len(_READY))  # or its end, which is for ``result_of`` to tell
    return sender


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
    """One socket, the request on it and what of its answer is here."""

    __slots__ = ("due", "got", "may_at", "socket", "want")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = self.may_at = 0.0
        self.got = b""
        self.want = -1

    def refused(self) -> bool | None:
        """After reading what is there; None: not all of it is."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise SystemExit("a connection was closed")
        if self.got:
            data = self.got + data
        if self.want < 0 and (end := data.find(b"\r\n\r\n")) >= 0:
            # Whatever the case of its initials.
            at = data.find(b"ength: ", 0, end)
            length = int(data[at + 7 : data.index(b"\r\n", at)]) if at >= 0 and data[9:12] != b"304" else 0
            self.want = end + 4 + length
        if self.want < 0 or len(data) < self.want:
            self.got = data
            return None
        self.got, self.want = b"", -1
        return data[9:10] >= b"4"


def send(port: int, rate: float, seconds: float, connections: int) -> Paced:
    """Until every request is answered; fails when answers stay out."""
    before, after = os.environ["BENCH_BEFORE"].encode(), os.environ["BENCH_AFTER"].encode()
    number, step = int(os.environ["BENCH_START"]), int(os.environ["BENCH_DISTINCT"])
    opened = {one.socket.fileno(): one for one in (_Connection(port) for _ in range(connections))}
    for one in opened.values():
        one.socket.settimeout(_PATIENCE_S)
        one.socket.send(b"%b%d%b" % (before, number, after))
        number += step
        while one.refused() is None:
            pass
        one.socket.settimeout(None)
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    free = deque(opened.values())
    times: list[float] = []
    late: list[float] = []
    sent = refused = 0
    total, interval = max(1, int(rate * seconds)), 1 / rate
    clock = time.perf_counter
    with select.epoll() as answers:
        for each in opened:
            answers.register(each, select.EPOLLIN)
        gc.disable()
        start = clock() + 0.01
        while len(times) < total:
            now = clock() - start
            if now > seconds + _PATIENCE_S:
                raise SystemExit(f"{total - len(times)} of {total} requests are not answered")
            due = sent * interval
            while due <= now and sent < total and free:
                one = free.popleft()
                one.due = due
                one.socket.send(b"%b%d%b" % (before, number, after))
                late.append(now - max(due, one.may_at))
                sent += 1
                number += step
                due = sent * interval
                now = clock() - start
            wait = max(0.0, due - now) if free and sent < total else 0.1
            # epoll's own patience is of whole milliseconds; select takes microseconds.
            if not select.select((answers,), (), (), wait)[0]:
                continue
            for number_of_it, _ in answers.poll(0):
                one = opened[number_of_it]
                answer = one.refused()
                if answer is not None:
                    one.may_at = now = clock() - start
                    times.append(now - one.due)
                    refused += answer
                    free.append(one)
        took_s = clock() - start
    times.sort()
    late.sort()

    def at(share: float) -> float:
        return times[min(total - 1, int(total * share))] * 1e3

    late_p99 = late[int(total * 0.99)]
    return Paced(total, refused, at(0.5), at(0.99), at(0.999), times[-1] * 1e3, late_p99 * 1e3, took_s)


def _go_first() -> None:
    """Before all else on its core, where it may: a sender that waits for its own origin measures that."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


if __name__ == "__main__":
    _go_first()
    made = send(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.buffer.write(msgspec.json.encode(made))
