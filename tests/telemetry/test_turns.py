"""Several writers of one sink: whole lines, in turns, whatever becomes of one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.telemetry.sinks import FileSink, StreamSink
from gateway.telemetry.turns import TurnSink

ROOT = Path(__file__).parent.parent.parent

HOLDS = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX)
print("mine", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def turns() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


@pytest.fixture
def other(turns: int) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of its turn."""
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(turns)],
        pass_fds=[turns],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout is not None
    assert held.stdin is not None
    assert held.stdout.readline() == "mine\n"
    with held.stdin, held.stdout:
        yield held
    held.kill()
    held.wait()


class Short:
    """Takes so many octets, then no more until it may."""

    def __init__(self, *takes: int | OSError) -> None:
        self.takes = list(takes)
        self.octets = b""
        self.closed = self.synced = False

    def write(self, lines: bytes) -> int:
        take = self.takes.pop(0) if self.takes else len(lines)
        if isinstance(take, OSError):
            raise take
        self.octets += lines[:take]
        return min(take, len(lines))

    def sync(self) -> None:
        self.synced = True

    def was_emptied(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def free(turns: int) -> bool:
    """Whether another process could have its turn."""
    code = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return (
        subprocess.run([sys.executable, "-c", code, str(turns)], pass_fds=[turns], stderr=subprocess.DEVNULL).returncode
        == 0
    )


def test_a_turn_ends_with_the_lines(turns: int) -> None:
    sink = TurnSink(Short(), turns)
    assert sink.write(b"one\ntwo\n") == 8
    assert free(turns)


def test_a_turn_lasts_while_a_line_is_half_written(turns: int) -> None:
    short = Short(5, OSError("full"), 3)
    sink = TurnSink(short, turns)
    assert sink.write(b"one\ntwo\n") == 5
    assert not free(turns)
    with pytest.raises(OSError, match="full"):
        sink.write(b"wo\n")
    assert not free(turns)
    assert sink.write(b"wo\n") == 3
    assert short.octets == b"one\ntwo\n"
    assert free(turns)


def test_a_sink_that_takes_nothing_keeps_nobody_waiting(turns: int) -> None:
    sink = TurnSink(Short(OSError("full")), turns)
    with pytest.raises(OSError, match="full"):
        sink.write(b"one\n")
    assert free(turns)


def test_who_is_kept_waiting_gives_up_and_then_only_looks(turns: int, other: subprocess.Popen[str]) -> None:
    """The lines go to the spool; a turn that never ends must not stop the thread that writes there."""
    slept: list[float] = []
    short = Short()
    sink = TurnSink(short, turns, patience_s=0.5, sleep=slept.append)
    with pytest.raises(BlockingIOError):
        sink.write(b"one\n")
    assert sum(slept) == pytest.approx(0.5)
    with pytest.raises(BlockingIOError):
        sink.write(b"one\n")
    assert sum(slept) == pytest.approx(0.5)
    other.kill()
    other.wait()
    assert sink.write(b"one\n") == 4
    assert short.octets == b"one\n"


def test_a_line_whose_writer_died_is_ended(turns: int, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_bytes(b'whole\n{"schema":1,"ti')
    sink = TurnSink(FileSink(str(path)), turns, path=str(path))
    assert sink.write(b"next\n") == 5
    sink.close()
    assert path.read_bytes() == b'whole\n{"schema":1,"ti\nnext\n'


CUT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from gateway.telemetry.sinks import StreamSink
from gateway.telemetry.turns import TurnSink
sink = TurnSink(StreamSink(1, stall_s=60), int(sys.argv[2]))
sink.write(b"x" * (1 << 20) + b"\\n")  # more than a pipe takes: it waits for its reader
"""


def test_of_a_file_that_cannot_be_read_the_turns_tell_whose_writer_died(turns: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, written in ((f"{tmp_path}/file/none", b"\none\n"), (f"{tmp_path}/none", b"one\n")):
        sink = Short()
        one = TurnSink(sink, turns, path=path)
        os.pwrite(turns, b"\1", 0)
        one.write(b"one\n")
        one.close()
        assert sink.octets == written


def test_a_line_in_a_pipe_whose_writer_died_is_ended(turns: int) -> None:
    """Another's line must not be read as the rest of it."""
    read, write = os.pipe()
    held = subprocess.Popen([sys.executable, "-c", CUT, str(ROOT), str(turns)], pass_fds=[turns], stdout=write)
    got = os.read(read, 1000)
    held.kill()
    held.wait()
    sink = TurnSink(StreamSink(write), turns)
    os.set_blocking(read, False)
    while got[-1:] == b"x":
        try:
            got += os.read(read, 1 << 20)
        except BlockingIOError:
            break
    assert sink.write(b"next\n") == 5
    assert sink.write(b"one\n") == 4
    sink.close()
    os.close(write)
    got += os.read(read, 1000)
    os.close(read)
    assert got.lstrip(b"x") == b"\nnext\none\n"


def test_who_leaves_in_the_middle_of_a_line_has_it_ended(turns: int) -> None:
    first = TurnSink(Short(2), turns)
    first.write(b"one\n")
    first.close()
    short = Short()
    second = TurnSink(short, turns)
    second.write(b"two\n")
    second.close()
    assert short.octets == b"\ntwo\n"


def test_where_a_line_can_not_be_ended_the_next_turn_ends_it(turns: int) -> None:
    first = TurnSink(Short(2), turns)
    first.write(b"one\n")
    first.close()
    short = Short(OSError("full"))
    second = TurnSink(short, turns)
    with pytest.raises(OSError, match="full"):
        second.write(b"two\n")
    assert free(turns)
    second.write(b"two\n")
    assert short.octets == b"\ntwo\n"


def test_of_a_pipe_with_a_name_the_turns_tell_as_well(turns: int, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    first = TurnSink(Short(2), turns, path=str(path))
    first.write(b"one\n")
    first.close()
    short = Short()
    TurnSink(short, turns, path=str(path)).write(b"two\n")
    assert short.octets == b"\ntwo\n"
    os.close(both)


def test_a_pipe_with_a_name_is_not_read(turns: int, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = TurnSink(FileSink(str(path)), turns, path=str(path))
    sink.write(b"one\n")
    sink.sync()
    sink.close()
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)


def test_closing_in_the_middle_of_a_line_ends_the_turn(turns: int) -> None:
    short = Short(2)
    sink = TurnSink(short, turns)
    sink.write(b"one\n")
    sink.close()
    assert short.closed
    assert free(turns)


def test_it_is_as_durable_as_its_sink(turns: int) -> None:
    short = Short()
    TurnSink(short, turns).sync()
    assert short.synced


def test_a_line_begun_in_a_file_that_was_emptied_begins_anew_in_the_same_turn(turns: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one = TurnSink(FileSink(str(tmp_path / "file")), turns, path=f"{tmp_path}/file")
    assert one.write(b"hal") == 3
    assert not one.was_emptied()
    os.truncate(tmp_path / "file", 0)
    assert one.was_emptied()
    assert not free(turns)
    assert one.write(b"half\n") == 5
    assert free(turns)
    assert (tmp_path / "file").read_bytes() == b"half\n"
    one.close()


WRITES = """
import sys
sys.path.insert(0, sys.argv[3])
from gateway.telemetry.sinks import FileSink, StreamSink
from gateway.telemetry.turns import TurnSink
name, turns, where = sys.argv[1], int(sys.argv[2]), sys.argv[4]
sink = FileSink(where, rotate_bytes=100_000, keep=99) if where else StreamSink(1)
sink = TurnSink(sink, turns, path=where, patience_s=30)
line = name.encode() * 9000 + b"\\n"
for _ in range(100):
    octets = line * 3
    while octets:
        octets = octets[sink.write(octets):]
sink.close()
"""


def writers(turns: int, where: str, stdout: int | None = None) -> list[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", WRITES]
    return [
        subprocess.Popen([*argv, name, str(turns), str(ROOT), where], pass_fds=[turns], stdout=stdout) for name in "abc"
    ]


def test_lines_longer_than_a_pipe_takes_at_once_stay_whole(turns: int) -> None:
    read, write = os.pipe()
    started = writers(turns, "", write)
    os.close(write)
    with open(read, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [one.wait(30) for one in started] == [0, 0, 0]
    assert sorted({(line[:1], len(line), len(set(line))) for line in lines}) == [
        (b"a", 9000, 1),
        (b"b", 9000, 1),
        (b"c", 9000, 1),
    ]
    assert len(lines) == 900


def test_a_file_that_they_rotate_themselves_loses_nothing(turns: int, tmp_path: Path) -> None:
    started = writers(turns, str(tmp_path / "audit"))
    assert [one.wait(60) for one in started] == [0, 0, 0]
    files = sorted(tmp_path.iterdir())
    assert len(files) > 20
    lines = b"".join(path.read_bytes() for path in files).splitlines()
    assert len(lines) == 900
    assert {(len(line), len(set(line))) for line in lines} == {(9000, 1)}


def test_a_writer_that_is_killed_passes_its_turn(turns: int, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    read, write = os.pipe()
    sink = TurnSink(StreamSink(write), turns, patience_s=0.0)
    assert sink.write(b"one\n") == 4
    sink.close()
    os.close(write)
    assert os.read(read, 100) == b"one\n"
    os.close(read)
