"""The load at a fixed rate: each request is due at its moment, whether or not those before it were answered.

    python -m benchmarks.fixed_rate PORT RATE SECONDS CONNECTIONS    # the request stands in the environment, as for load.py

A closed loop asks less while it waits, and so fails to measure what a pause does to the requests that would have come
meanwhile (coordinated omission). Here the time of an answer counts from the moment when the request was due, not from when
it was sent: it includes any delay of the sender itself, and any wait for a free connection. Moments are evenly spaced. The
sender's own lateness counts from when it could have sent, once a connection was free: if none was, that is the doing of
what is measured.

Each connection has been answered once before the first moment: what a new connection costs is measured elsewhere
(connections.py), and 64 at a time would be the slowest hundredth of a short round. A connection whose answer says that it
is the last is replaced by a new one, for the next request.
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

from .load import Shape, client_environment
from .processes import set_up_child
from .pythons import ROOT

CONNECTIONS = 64
_PATIENCE_S = 10.0
_READY = b"\n"


class Paced(msgspec.Struct, frozen=True):
    """The result of a load at a fixed rate. Times are in milliseconds."""

    requests: int
    refused: int
    """Answers of status 400 and above."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    late_p99_ms: float
    """How late the sender itself was, 99th percentile: part of the times above."""
    took_s: float
    """Seconds from the first request to the last answer."""


def begin(shape: Shape, port: int, *, rate: float, seconds: float, cpu: int) -> subprocess.Popen[bytes]:
    """Begin a load in a process of its own, pinned to ``cpu``; returns once its connections are made and it starts."""
    sender = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fixed_rate", str(port), str(rate), str(seconds), str(CONNECTIONS)],
        env=client_environment(shape),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=functools.partial(set_up_child, cpu),
    )
    assert sender.stdout is not None, "it is a pipe"
    os.read(sender.stdout.fileno(), len(_READY))  # or end of file, which ``result_of`` reports
    return sender


def result_of(sender: subprocess.Popen[bytes]) -> Paced:
    """Wait until the load is over, and return its result.

    Raises:
        RuntimeError: The sender failed: not every request was answered, for example.
    """
    output, _ = sender.communicate(timeout=120)
    if sender.returncode:
        raise RuntimeError("the sender at a fixed rate failed")
    return msgspec.json.decode(output, type=Paced)


class _Connection:
    """One socket, the request on it, and what has arrived of its answer."""

    __slots__ = ("closing", "due", "got", "may_at", "socket", "want")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = self.may_at = 0.0
        self.got = b""
        self.want = -1
        self.closing = False
        """Whether the latest answer was the last on this connection."""

    def refused(self) -> bool | None:
        """Read what is there; returns whether the answer is a refusal, None while it is incomplete."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise SystemExit("a connection was closed")
        if self.got:
            data = self.got + data
        if self.want < 0 and (end := data.find(b"\r\n\r\n")) >= 0:
            # The end of Content-Length, whatever the case of its initials.
            at = data.find(b"ength: ", 0, end)
            length = int(data[at + 7 : data.index(b"\r\n", at)]) if at >= 0 and data[9:12] != b"304" else 0
            self.want = end + 4 + length
        if self.want < 0 or len(data) < self.want:
            self.got = data
            return None
        self.got, self.want = b"", -1
        self.closing = b"\nConnection: close\r" in data
        return data[9:10] >= b"4"


def send(port: int, rate: float, seconds: float, connections: int) -> Paced:
    """Send every request at its moment, until all are answered; fails when answers do not come."""
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
            # epoll's own timeout is in whole milliseconds; select's is in microseconds.
            if not select.select((answers,), (), (), wait)[0]:
                continue
            for number_of_it, _ in answers.poll(0):
                one = opened[number_of_it]
                answer = one.refused()
                if answer is None:
                    continue
                now = clock() - start
                times.append(now - one.due)
                refused += answer
                if one.closing:
                    answers.unregister(number_of_it)
                    one.socket.close()
                    del opened[number_of_it]
                    one = _Connection(port)
                    opened[one.socket.fileno()] = one
                    answers.register(one.socket, select.EPOLLIN)
                    now = clock() - start
                one.may_at = now
                free.append(one)
        took_s = clock() - start
    times.sort()
    late.sort()

    def at(share: float) -> float:
        return times[min(total - 1, int(total * share))] * 1e3

    late_p99 = late[int(total * 0.99)]
    return Paced(total, refused, at(0.5), at(0.99), at(0.999), times[-1] * 1e3, late_p99 * 1e3, took_s)


def _set_realtime() -> None:
    """Run before everything else on this core, where permitted: a sender that has to wait for the origin measures that."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


if __name__ == "__main__":
    _set_realtime()
    result = send(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.buffer.write(msgspec.json.encode(result))
