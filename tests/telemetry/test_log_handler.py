"""A log that nobody reads: who logs goes on, what is missing is reported in its place, and nothing waits at the exit."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.telemetry.log_handler import PatientHandler, handler_for

LONG = "x" * 900


class Log:
    """A handler at a pipe, without a logger in front: pytest would keep what goes through one."""

    def __init__(self, queue_bytes: int = 10_000) -> None:
        self.reading, self.writing = os.pipe()
        others = threading.enumerate()
        self.handler = PatientHandler(self.writing, queue_bytes=queue_bytes, emit_wait_s=0.05, stall_s=0.1, exit_s=0.3)
        (self._thread,) = (thread for thread in threading.enumerate() if thread.name == "log" and thread not in others)

    def say(self, *words: str) -> None:
        for one in words:
            self.handler.handle(logging.makeLogRecord({"name": "x", "msg": one}))

    def read(self, ends: str) -> list[str]:
        """Until a line ends so."""
        octets = b""
        while not octets.endswith(f"{ends}\n".encode()):
            octets += os.read(self.reading, 1 << 16)
        return octets.decode().splitlines()

    def fill(self) -> None:
        os.set_blocking(self.writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.writing, b"." * 4095 + b"\n")
        os.set_blocking(self.writing, True)

    def drain(self) -> None:
        os.set_blocking(self.reading, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(self.reading, 1 << 20)
        os.set_blocking(self.reading, True)

    def close(self) -> None:
        self.handler.close()
        with contextlib.suppress(OSError):
            os.close(self.reading)
        self._thread.join(30)  # what it had left to write would go to the next pipe of this number
        os.close(self.writing)


@pytest.fixture
def log() -> Iterator[Log]:
    one = Log()
    yield one
    one.drain()
    one.close()


def test_a_line_is_written_when_it_has_been_said(log: Log) -> None:
    """However the process ends then."""
    log.handler._emit_wait_s = 20.0  # as long as the machine takes
    os.set_blocking(log.reading, False)
    for number in range(10):
        log.say(f"line {number}")
        assert os.read(log.reading, 100) == b"line %d\n" % number
    assert log.handler.dropped == 0


def test_a_slow_reader_is_waited_for_in_a_moment_of_each_second(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is taken in less than a moment, and none is there when the next line comes: most go without a wait."""
    changed = log.handler._changed
    waits: list[float | None] = []

    def wait_for(predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        waits.append(timeout)
        return threading.Condition.wait_for(changed, predicate, timeout)

    monkeypatch.setattr(changed, "wait_for", wait_for)
    log.fill()
    slowly = threading.Event()

    def read() -> None:
        while not slowly.wait(0.03):
            os.read(log.reading, 4096)

    reader = threading.Thread(target=read)
    reader.start()
    said = 0
    until = time.monotonic() + 1.5
    while time.monotonic() < until or said < 200:
        log.say("x" * 3000)
        said += 1
        time.sleep(0.001)
    slowly.set()
    reader.join()
    assert 0 < len(waits) < said / 2


def test_who_reads_late_reads_all_of_it_in_order(log: Log) -> None:
    log.fill()
    said = [f"{number} {LONG}" for number in range(8)]
    begun = time.monotonic()
    log.say(*said)
    assert time.monotonic() - begun < 10
    os.set_blocking(log.reading, True)
    assert [line for line in log.read(said[-1]) if not line.startswith(".")] == said
    log.say("on time again")
    assert log.read("on time again") == ["on time again"]
    assert log.handler.dropped == 0


def test_what_finds_no_room_is_counted_and_reported_where_it_is_missing(log: Log) -> None:
    log.fill()
    said = [f"{number} {LONG}" for number in range(30)]
    log.say(*said)
    dropped = log.handler.dropped
    assert 0 < dropped < 30
    notice = f"{dropped} lines of this log were dropped: nobody read it"
    assert [line for line in log.read(notice) if not line.startswith(".")] == [*said[:-dropped], notice]
    log.say("on")
    assert log.read("on") == ["on"]
    assert log.handler.dropped == dropped


def test_nothing_waits_at_the_exit_for_who_does_not_read(log: Log) -> None:
    log.fill()
    log.say("last words")
    begun = time.monotonic()
    log.handler.flush()
    assert 0.1 <= time.monotonic() - begun < 10


def test_a_reader_who_left_costs_nobody_anything() -> None:
    log = Log()
    os.close(log.reading)
    log.say("one", "two")
    log.handler.flush()
    assert log.handler.dropped == 2
    log.close()


def test_another_who_holds_the_pipe_may_have_made_it_hurry() -> None:
    log = Log(1 << 20)
    os.set_blocking(log.writing, False)
    log.say("y" * 70_000, "z" * 70_000)
    assert log.read("z") == ["y" * 70_000, "z" * 70_000]
    log.close()


def test_who_says_something_after_the_end_is_counted(log: Log) -> None:
    log.handler.close()
    log.say("too late")
    assert log.handler.dropped == 1


def test_a_file_that_takes_no_more_is_reported_once_it_does_and_no_line_is_glued_to_another(tmp_path: Path) -> None:
    script = """
import logging, resource, sys
from gateway.telemetry.log_handler import handler_for
file = open(sys.argv[1], "a")
handler = handler_for(file)
def say(*words):
    for one in words:
        handler.handle(logging.makeLogRecord({"name": "x", "msg": one}))
    handler.flush()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
say("first", "second", "third")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
say("fourth", "fifth")
print(handler.dropped)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], capture_output=True, text=True, check=True)
    notice = "2 lines of this log were dropped: File too large"
    assert (tmp_path / "log").read_text().splitlines() == ["first", "seco", notice, "fourth", "fifth"]
    assert done.stdout == "2\n"


def test_only_where_somebody_reads_is_waited_for(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    primary, terminal = os.openpty()
    reading, writing = os.pipe()
    with one, other, open(tmp_path / "log", "w") as file, open(os.devnull, "w") as nothing:
        for stream in (nothing, io.StringIO()):
            assert type(handler_for(stream)) is logging.StreamHandler
        for descriptor in (one.fileno(), terminal, writing, file.fileno()):
            with open(descriptor, "w", closefd=False) as stream:
                handler = handler_for(stream)
            assert isinstance(handler, PatientHandler)
            handler.close()
    for descriptor in (primary, terminal, reading, writing):
        os.close(descriptor)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)", "raise SystemError('fatal')"])
def test_the_last_lines_are_written(end: str) -> None:
    """In their order, the interpreter's own included. Lines are waited for as long as it takes: the machine may be busy."""
    script = f"""
import logging, os, sys
from gateway.telemetry import log_handler, logging as operator_log
log_handler.PatientHandler.__init__.__kwdefaults__["emit_wait_s"] = 20.0
operator_log.configure()
for number in range(200):
    logging.getLogger("x").info("line %d.", number)
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    lines = done.stderr.splitlines()
    assert [f"line {number}." in lines[number] for number in range(200)] == [True] * 200
    assert ("SystemError: fatal" in lines[-1]) == ("fatal" in end)
    assert done.returncode in {1, 3, -9}
