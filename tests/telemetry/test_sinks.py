"""Where audit lines go: what is taken, what is not, and files that are rotated under the gateway's hands."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from gateway.core.audit_chain import Chain, chain_key
from gateway.telemetry.sinks import FileSink, StreamSink, open_sink, read_tail

# Streams


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_standard_streams_stay_open(name: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sink = open_sink(name)
    assert sink.write(b"line\n") == 5
    sink.sync()
    sink.close()
    assert not getattr(sys, name).closed
    assert getattr(capfdbinary.readouterr(), name.removeprefix("std")) == b"line\n"


@pytest.mark.parametrize("reopen", [True, False])
def test_a_reader_who_stops_reading_is_found_out(reopen: bool) -> None:
    """What the pipe took stays taken; nothing is written twice and nothing is lost."""
    reading, writing = os.pipe()
    sink = StreamSink(writing, stall_s=0.01, reopen=reopen)
    lines = b"".join(b"line %06d\n" % number for number in range(50_000))
    taken = sink.write(lines)
    assert 0 < taken < len(lines)
    with pytest.raises(BlockingIOError):
        sink.write(lines[taken:])
    read = b""
    while len(read) < len(lines):
        read += os.read(reading, 1 << 16)
        if taken < len(lines):
            try:
                taken += sink.write(lines[taken:])
            except BlockingIOError:
                continue
    assert read == lines
    os.close(reading)
    os.close(writing)


def test_a_closed_pipe_is_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        StreamSink(writing).write(b"line\n")
    os.close(writing)


def test_there_is_nothing_to_sync_in_a_pipe() -> None:
    reading, writing = os.pipe()
    StreamSink(writing).sync()
    os.close(reading)
    os.close(writing)
    with pytest.raises(OSError, match="Bad file"):
        StreamSink(writing)


def test_other_holders_of_the_pipe_are_left_as_they_are() -> None:
    reading, writing = os.pipe()
    sink = StreamSink(writing, stall_s=0.01)
    assert sink.write(b"x" * 1_000_000) == 65_536
    assert os.get_blocking(writing)
    sink.close()
    assert os.fstat(writing)
    os.close(reading)
    os.close(writing)


def test_a_socket_is_written_in_pieces() -> None:
    one, other = socket.socketpair()
    with one, other:
        sink = StreamSink(one.fileno(), stall_s=0.01)
        lines = b"line\n" * 2000
        assert sink.write(lines) == len(lines)
        assert other.recv(len(lines), socket.MSG_WAITALL) == lines
        endless = b"x" * 10_000_000
        assert 0 < sink.write(endless) < len(endless)
        sink.close()


# Files


def test_a_file_is_private_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for line in (b"one\n", b"two\n"):
        sink = open_sink(f"file:{path}")
        assert sink.write(line) == 4
        sink.sync()
        sink.close()
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        open_sink(f"file:{tmp_path}/nowhere/audit.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_an_error() -> None:
    sink = FileSink("/dev/full")
    with pytest.raises(OSError) as raised:
        sink.write(b"line\n")
    assert raised.value.errno == errno.ENOSPC
    sink.close()


def test_a_renamed_file_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    sink = FileSink(str(path))
    sink.write(b"one\n")
    path.rename(tmp_path / "audit-20270115")
    sink.write(b"two\n")
    path.unlink()
    sink.write(b"three\n")
    sink.close()
    assert (tmp_path / "audit-20270115").read_bytes() == b"one\n"
    assert path.read_bytes() == b"three\n"


def test_a_file_cut_to_nothing_is_written_on(tmp_path: Path) -> None:
    """logrotate's ``copytruncate``."""
    path = tmp_path / "audit"
    sink = FileSink(str(path))
    sink.write(b"one\n")
    os.truncate(path, 0)
    sink.write(b"two\n")
    sink.close()
    assert path.read_bytes() == b"two\n"


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_emptied_or_removed_within_a_line_holds_whole_lines_from_then_on(tmp_path: Path, removed: bool) -> None:
    path = tmp_path / "audit"
    sink = FileSink(str(path))
    sink.write(b"one\nhal")
    assert not sink.was_emptied()
    if removed:
        path.unlink()
    else:
        os.truncate(path, 0)
    assert sink.was_emptied()
    sink.write(b"half\n")
    assert path.read_bytes() == b"half\n"
    sink.close()


@pytest.mark.parametrize(("error", "gone"), [(errno.ESTALE, True), (errno.EIO, False)])
def test_a_network_that_does_not_tell_of_a_file_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, gone: bool
) -> None:
    """It is asked by the audit's thread, which must live; a stale handle is that of a file removed elsewhere."""
    sink = FileSink(str(tmp_path / "audit"))
    sink.write(b"hal")

    def fstat(_: int) -> os.stat_result:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        assert sink.was_emptied() is gone
    sink.close()


def test_only_files_are_emptied(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    unread = FileSink(str(pipe))
    assert not unread.was_emptied()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    read = FileSink(str(pipe))
    pipe.unlink()
    assert not read.was_emptied()
    for sink in (unread, read):
        sink.close()
    os.close(reader)


def test_a_line_is_never_spread_over_two_files(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    sink = FileSink(str(path), rotate_bytes=4, keep=3)
    sink.write(b"on")
    path.rename(tmp_path / "moved")
    sink.write(b"e\n")
    sink.write(b"two\n")
    sink.close()
    assert (tmp_path / "moved").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


def test_a_file_that_is_gone_with_its_directory_is_an_error_until_that_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    sink = FileSink(str(directory / "audit"))
    sink.write(b"one\n")
    directory.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        sink.write(b"two\n")
    directory.mkdir()
    sink.write(b"two\n")
    sink.close()
    assert (directory / "audit").read_bytes() == b"two\n"


def test_a_file_that_grew_is_rotated_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    sink = FileSink(str(path), rotate_bytes=10, keep=2)
    for number in range(7):
        sink.write(b"line %d\n" % number)
    sink.close()
    kept = [(tmp_path / f"audit{end}").read_bytes() for end in (".2", ".1", "")]
    assert kept == [b"line 4\n", b"line 5\n", b"line 6\n"]
    assert len(list(tmp_path.iterdir())) == 3


def test_files_move_up_as_far_as_there_are_any(tmp_path: Path) -> None:
    """A number of files that stands for all of them costs no more than those that are there."""
    path = tmp_path / "audit"
    (tmp_path / "audit.4").write_bytes(b"behind one that somebody took away\n")
    sink = FileSink(str(path), rotate_bytes=10, keep=999_999_999)
    for number in range(4):
        sink.write(b"line %d\n" % number)
    sink.close()
    kept = [(tmp_path / f"audit{end}").read_bytes() for end in (".4", ".3", ".2", ".1", "")]
    assert kept == [b"behind one that somebody took away\n", b"line 0\n", b"line 1\n", b"line 2\n", b"line 3\n"]


def test_a_disk_that_became_read_only_has_not_kept_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ext4 does on its first error (``errors=remount-ro``)."""

    def fsync(_: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    sink = FileSink(str(tmp_path / "audit"), durable=lambda: True)
    sink.write(b"line\n")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Read-only"):
        sink.sync()
    sink.close()


@pytest.mark.parametrize("by", ["itself", "another"])
@pytest.mark.parametrize("durable", [True, False])
def test_what_was_written_before_a_rotation_is_synced_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, durable: bool
) -> None:
    """Where anybody is promised that it is."""
    path = tmp_path / "audit"
    sink = open_sink(f"file:{path}", rotate_bytes=6 if by == "itself" else 0, durable=lambda: durable)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    if by == "itself":
        assert sink.write(b"one\ntwo\n") == 8
    else:
        sink.write(b"one\n")
        path.rename(tmp_path / "audit.1")
        sink.write(b"two\n")
    sink.sync()
    sink.close()
    assert (tmp_path / "audit.1").read_bytes() == b"one\n"
    assert ((tmp_path / "audit.1").stat().st_ino in synced) is durable
    assert path.stat().st_ino in synced


@pytest.mark.parametrize("often", [1, 999])
def test_a_file_that_could_not_be_synced_when_it_was_left_fails_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, often: int
) -> None:
    """Linux says once that it lost something: asked again, all is well. Of a file that is gone it says nothing else."""
    fails = [OSError(errno.EIO, os.strerror(errno.EIO))] * often
    sink = FileSink(str(tmp_path / "audit"), rotate_bytes=6, durable=lambda: True)
    sink.write(b"one\n")
    left = (tmp_path / "audit").stat().st_ino

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == left and fails:
            raise fails.pop()

    monkeypatch.setattr(os, "fsync", fsync)
    before = os.listdir("/proc/self/fd")
    assert sink.write(b"two\n") == 4
    assert len(fails) == often - 1
    with pytest.raises(OSError, match="Input/output"):
        sink.sync()
    sink.sync()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    sink.close()


@pytest.mark.parametrize("when", [1, 2])
def test_a_file_that_opens_and_says_no_more_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """As on a network's file system, whose server goes between the two; the next try begins anew."""
    path = tmp_path / "audit"
    sink = FileSink(str(path))
    sink.write(b"one\n")
    path.rename(tmp_path / "audit.1")
    before = os.listdir("/proc/self/fd")
    asked, real = [0], os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        asked[0] += 1
        if asked[0] == when:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(OSError, match="Stale"):
        sink.write(b"two\n")
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert sink.write(b"two\n") == 4
    assert len(os.listdir("/proc/self/fd")) == len(before)
    sink.close()
    assert (path.read_bytes(), (tmp_path / "audit.1").read_bytes()) == (b"two\n", b"one\n")


def test_a_new_files_name_outlives_a_power_cut_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    open_sink(f"file:{tmp_path}/audit").close()
    assert synced == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("begins", ["at the start", "rotated"])
def test_a_sync_fails_while_a_new_files_name_may_not_outlive_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """Asked again each time: a file without its name is lost, however often it was synced."""
    real, fails = os.fsync, [True] * 2

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and fails:
            fails.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    if begins == "rotated":
        sink = FileSink(str(tmp_path / "audit"), rotate_bytes=6, durable=lambda: True)
        sink.write(b"one\n")
        sink.sync()
        monkeypatch.setattr(os, "fsync", fsync)
    else:
        monkeypatch.setattr(os, "fsync", fsync)
        sink = FileSink(str(tmp_path / "audit"), rotate_bytes=6, durable=lambda: True)
    sink.write(b"two\n")
    with pytest.raises(OSError, match="Input/output"):
        sink.sync()
    sink.sync()
    sink.close()


@pytest.mark.parametrize("says", [errno.EINVAL, errno.EACCES])
def test_a_directory_that_cannot_be_synced_keeps_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: int
) -> None:
    """Its file system knows of no such thing, or it may be passed through, and not read."""
    fsync, opens = os.fsync, os.open

    def sync(descriptor: int) -> None:
        if says == errno.EINVAL and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(says, os.strerror(says))
        fsync(descriptor)

    def begin(path: str, flags: int, mode: int = 0o777) -> int:
        if says == errno.EACCES and flags & os.O_DIRECTORY:
            raise OSError(says, os.strerror(says))
        return opens(path, flags, mode)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "open", begin)
    sink = FileSink(str(tmp_path / "audit"), durable=lambda: True)
    sink.write(b"one\n")
    sink.sync()
    sink.close()


def test_a_file_that_is_renamed_while_it_is_to_be_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just behind the look at it: no file grows past its size for that."""
    path = tmp_path / "audit"
    sink = FileSink(str(path), rotate_bytes=20, keep=5)
    sink.write(b"first line 15\n")
    look = os.stat

    def look_and_rename(*given: object) -> os.stat_result:
        found = look(*given)  # type: ignore[arg-type]
        monkeypatch.undo()
        path.rename(tmp_path / "renamed")
        return found

    monkeypatch.setattr("gateway.telemetry.sinks.os.stat", look_and_rename)
    sink.write(b"second line 16\n")
    sink.write(b"third line 15\n")
    sink.close()
    assert (tmp_path / "renamed").read_bytes() == b"first line 15\n"
    assert (tmp_path / "audit.1").read_bytes() == b"second line 16\n"
    assert path.read_bytes() == b"third line 15\n"


def test_lines_that_come_together_are_parted_where_a_file_is_full(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    sink = FileSink(str(path), rotate_bytes=10, keep=5)
    lines = b"aaa\nbbb\nccc\n0123456789abcdef\nddd\n"
    assert sink.write(lines) == len(lines)
    sink.close()
    files = [tmp_path / f"audit.{number}" for number in (3, 2, 1)] + [path]
    assert [file.read_bytes() for file in files] == [b"aaa\nbbb\n", b"ccc\n", b"0123456789abcdef\n", b"ddd\n"]


def test_what_cannot_be_rotated_is_written_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit"
    (tmp_path / "audit.1").mkdir()
    (tmp_path / "audit.1" / "occupied").touch()
    sink = FileSink(str(path), rotate_bytes=5, keep=1)
    for _ in range(3):
        sink.write(b"line\n")
    assert path.read_bytes() == b"line\n" * 3
    assert caplog.text.count("cannot be rotated") == 1
    (tmp_path / "audit.1" / "occupied").unlink()
    (tmp_path / "audit.1").rmdir()
    sink.write(b"line\n")
    sink.close()
    assert (path.read_bytes(), (tmp_path / "audit.1").read_bytes()) == (b"line\n", b"line\n" * 3)


# Pipes with a name


def read_all(reading: int) -> bytes:
    octets = os.read(reading, 1 << 20)
    os.close(reading)
    return octets


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    os.mkfifo(path)
    sink = open_sink(f"file:{path}")
    for doing in (lambda: sink.write(b"one\n"), sink.sync):
        with pytest.raises(OSError, match="nobody reads the pipe"):
            doing()
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert sink.write(b"one\n") == 4
    sink.sync()
    sink.close()
    assert read_all(reading) == b"one\n"
    FileSink(str(path)).close()


@pytest.mark.parametrize("torn", [False, True])
def test_a_pipe_that_is_made_anew_is_opened_anew(tmp_path: Path, torn: bool) -> None:
    path = tmp_path / "audit"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = FileSink(str(path), stall_s=0.01)
    sink.write(b"one\ntw" if torn else b"one\n")
    os.close(reading)
    path.unlink()
    for _ in range(2):
        with pytest.raises((BrokenPipeError, FileNotFoundError)):
            sink.write(b"o\n")
    assert not path.exists(), "no file in its place: whoever reads makes it anew"
    os.mkfifo(path)
    with pytest.raises(OSError, match="nobody reads the pipe"):
        sink.write(b"o\n")
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert sink.write(b"o\n") == 2
    sink.close()
    assert read_all(reading) == b"o\n"


def test_a_socket_with_a_name_is_no_sink(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "audit"))
        with pytest.raises(OSError, match="No such device or address"):
            FileSink(str(tmp_path / "audit"))


# How a file ends


def test_the_end_of_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "audit"
    for nothing in ("stdout", f"file:{file}", "file:/dev/null"):
        tail = read_tail(nothing)
        assert (tail.line, tail.torn, tail.mac) == (b"", b"", "")
    chain = Chain(chain_key(b"k" * 32), "0" * 16)
    lines = [chain.link(b'{"a":1}'), chain.link(b'{"a":"%b"}' % (b"x" * 300_000)), chain.link(b'{"a":2}')]
    file.write_bytes(b"\n".join(lines) + b'\n{"torn')
    tail = read_tail(f"file:{file}")
    assert (tail.line, tail.torn) == (lines[-1], b'{"torn')
    assert tail.mac == chain.head.rpartition(":")[2]


def test_just_after_a_rotation_the_end_is_that_of_the_file_before(tmp_path: Path) -> None:
    (tmp_path / "audit").touch()
    (tmp_path / "audit.1").write_bytes(b"one\ntwo\n")
    assert read_tail(f"file:{tmp_path}/audit").line == b"two"


def test_a_line_that_was_cut_is_ended_where_it_began(tmp_path: Path) -> None:
    """However large the file is, and though it has another name by now."""
    file, before = tmp_path / "audit", tmp_path / "audit.1"
    file.write_bytes(b"o" * 100 + b"\nha")
    tail = read_tail(f"file:{file}")
    assert (tail.torn, tail.torn_in) == (b"ha", str(file))
    sink = FileSink(str(file), rotate_bytes=100, torn_in=tail.torn_in)
    assert sink.write(b"lf\n") == 3
    sink.close()
    assert file.read_bytes() == b"o" * 100 + b"\nhalf\n"
    file.write_bytes(b"one\nha")
    file.rename(before)
    tail = read_tail(f"file:{file}")
    assert (tail.line, tail.torn, tail.torn_in) == (b"one", b"ha", str(before))
    sink = FileSink(str(file), torn_in=tail.torn_in)
    assert sink.write(b"lf\n") == 3
    assert sink.write(b"next\n") == 5
    sink.close()
    assert (before.read_bytes(), file.read_bytes()) == (b"one\nhalf\n", b"next\n")


def test_a_file_that_holds_no_whole_line_yet_follows_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "audit.1").write_bytes(b"one\ntwo\n")
    (tmp_path / "audit").write_bytes(b"thr")
    tail = read_tail(f"file:{tmp_path}/audit")
    assert (tail.line, tail.torn, tail.torn_in) == (b"two", b"thr", str(tmp_path / "audit"))
