"""What waits on disk: in order, bounded, and taken up by the next process."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.core.audit_chain import Chain, chain_key
from gateway.telemetry.sinks import Tail
from gateway.telemetry.spool import Spool


def line(number: int) -> bytes:
    return b'{"schema":1,"request_id":"r-%d"}\n' % number


def spool(directory: Path, *octets: bytes) -> Spool:
    one = Spool(directory, 1 << 20)
    for some in octets:
        one.append(some)
    return one


def next_process(directory: Path, tail: Tail) -> bytes:
    """What it writes, beside a sink that ends like that."""
    one = Spool(directory, 1 << 20)
    one.claim()
    octets = one.resume(tail) + one.peek()
    one.close()
    return octets


def test_first_in_first_out(tmp_path: Path) -> None:
    one = spool(tmp_path, b"ab", b"cd")
    assert (one.waiting_bytes, one.used_bytes, one.peek()) == (4, 4, b"abcd")
    one.advance(3)
    assert (one.waiting_bytes, one.used_bytes, one.peek()) == (1, 4, b"d")
    one.append(b"e")
    one.sync()
    assert one.peek() == b"de"
    one.advance(2)
    assert (one.waiting_bytes, one.used_bytes, one.peek()) == (0, 5, b"")
    one.empty()
    assert (one.waiting_bytes, one.used_bytes, one.peek()) == (0, 0, b"")
    one.close()


def test_nothing_is_made_before_it_is_needed_nor_left_behind(tmp_path: Path) -> None:
    one = Spool(tmp_path, 10)
    one.claim()
    one.sync()
    one.close()
    assert list(tmp_path.iterdir()) == []
    one.append(b"x")
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    one.advance(1)
    one.empty()
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_what_the_sink_may_not_have_for_good_is_left_to_the_next_process(tmp_path: Path) -> None:
    one = spool(tmp_path, line(1))
    one.advance(len(line(1)))
    one.append(line(2)[4:], line(2)[:4])
    one.advance(len(line(2)) - 4)
    one.close()
    assert next_process(tmp_path, Tail()) == line(1) + line(2)
    assert next_process(tmp_path, Tail(line(1)[:-1])) == line(2)


def test_what_the_sink_may_have_lost_waits_once_more_before_there_is_room(tmp_path: Path) -> None:
    one = spool(tmp_path, line(1))
    one.doubt()
    assert not one.doubted, "it has nothing of it"
    one.advance(len(line(1)))
    one.doubt()
    one.append(line(2))
    one.advance(len(line(2)))
    one.empty()
    assert one.peek() == line(1) + line(2)
    one.advance(one.waiting_bytes)
    one.empty()
    assert (one.used_bytes, one.doubted) == (0, False)
    one.append(line(3))
    one.advance(len(line(3)))
    one.doubt()
    os.truncate(tmp_path / "audit-0.spool", 0)
    one.detect_truncation()
    assert (one.used_bytes, one.doubted) == (0, False)
    one.close()


def test_that_the_sink_may_have_lost_some_of_it_is_known_to_the_next_process(tmp_path: Path) -> None:
    """Who finds it in the sink's file reads what the system may have no more than in memory."""
    one = spool(tmp_path, line(1), line(2))
    one.advance(one.waiting_bytes)
    one.doubt()
    one.close()
    two = Spool(tmp_path, 1 << 20)
    two.claim()
    two.resume(Tail(line(2)[:-1]))
    assert (two.waiting_bytes, two.doubted) == (0, True)
    two.empty()
    assert two.peek() == line(1) + line(2)
    two.close()  # killed before it was written again
    three = Spool(tmp_path, 1 << 20)
    three.claim()
    three.resume(Tail(line(2)[:-1]))
    assert (three.waiting_bytes, three.doubted) == (0, True)
    three.empty()
    three.advance(three.waiting_bytes)
    three.empty()
    assert (three.used_bytes, three.doubted) == (0, False)
    assert stat.S_IMODE((tmp_path / "audit-0.spool").stat().st_mode) == 0o600
    three.close()


def test_that_the_sink_may_have_lost_some_of_it_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = spool(tmp_path, line(1))
    one.advance(one.waiting_bytes)
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: on_disk.append(stat.S_IMODE(os.fstat(descriptor).st_mode)))
    one.doubt()
    assert on_disk[0] == 0o1600
    one.close()


def test_a_line_that_the_sink_lost_from_the_middle_is_written_again(tmp_path: Path) -> None:
    """A disk that fails need not lose what was written last: with a page of the file, a line before that is gone."""
    spool(tmp_path, *map(line, range(5))).close()
    assert next_process(tmp_path, Tail(line(3)[:-1], before=frozenset({line(1)[:-1]}))) == line(2) + line(3) + line(4)
    assert next_process(tmp_path, Tail(line(3)[:-1], before=frozenset({line(2)[:-1]}))) == line(4)


def test_one_whose_owner_was_killed_while_it_made_room_is_in_no_doubt(tmp_path: Path) -> None:
    kept = tmp_path / "audit-0.spool"
    kept.touch(0o600)
    kept.chmod(0o1600)
    one = spool(tmp_path, line(1))
    assert not one.doubted
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    one.close()


def test_its_name_outlives_a_power_cut_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    one = spool(tmp_path, line(1), line(2))
    one.sync()
    assert synced == [tmp_path / "audit-0.spool", tmp_path]
    one.close()


def test_nothing_is_promised_while_its_name_may_not_outlive_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fails = os.fsync, [True, True]

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and fails:
            fails.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    one = spool(tmp_path, line(1))
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            one.sync()
    one.sync()
    one.close()


def test_where_no_directory_can_be_synced_it_is_kept_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    one = spool(tmp_path, line(1))
    assert one.peek() == line(1)
    one.close()


def test_much_of_it_comes_in_pieces(tmp_path: Path) -> None:
    one = spool(tmp_path, b"x" * (3 << 20))
    sizes = []
    while piece := one.peek():
        sizes.append(len(piece))
        one.advance(len(piece))
    assert sizes == [1 << 20] * 3
    one.close()


def test_what_a_process_left_is_taken_up(tmp_path: Path) -> None:
    first = spool(tmp_path, line(1))
    first.close()
    second = Spool(tmp_path, 1 << 20)
    second.claim()
    assert second.peek() == line(1)
    second.append(line(2))
    assert second.peek() == line(1) + line(2)
    second.close()


def test_an_empty_one_hides_none_behind_it(tmp_path: Path) -> None:
    """A process that was killed leaves one."""
    (tmp_path / "audit-0.spool").touch()
    (tmp_path / "audit-1.spool").write_bytes(line(1))
    one = Spool(tmp_path, 1 << 20)
    one.claim()
    assert one.peek() == line(1)
    one.close()


def test_one_that_another_removes_a_moment_before_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audit-0.spool").write_bytes(line(0))
    (tmp_path / "audit-1.spool").write_bytes(line(1))
    really = os.open

    def late(path: Path, flags: int, mode: int = 0o777) -> int:
        path.unlink()
        return really(path, flags, mode)

    monkeypatch.setattr(os, "open", late)
    one = Spool(tmp_path, 1 << 20)
    one.claim()
    assert one.waiting_bytes == 0


def test_each_process_has_its_own(tmp_path: Path) -> None:
    first, second = spool(tmp_path, b"first"), spool(tmp_path, b"second")
    third = Spool(tmp_path, 10)
    third.claim()
    assert (first.peek(), second.peek(), third.waiting_bytes) == (b"first", b"second", 0)
    first.close()
    third.claim()
    assert third.peek() == b"first"
    for one in (second, third):
        one.close()


def test_looking_at_anothers_leaves_no_descriptor_open(tmp_path: Path) -> None:
    other, one = spool(tmp_path, line(1)), Spool(tmp_path, 10)
    before = os.listdir("/proc/self/fd")
    one.claim()
    assert os.listdir("/proc/self/fd") == before
    other.close()


def test_one_that_cannot_be_removed_is_left_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = spool(tmp_path, line(1))
    spool(tmp_path, line(2)).close()
    one.advance(len(line(1)))

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "unlink", refuse)
    one.claim()
    assert one.peek() == line(2)
    one.close()


def test_there_is_an_end_to_them(tmp_path: Path) -> None:
    held = [spool(tmp_path, b"x") for _ in range(128)]
    with pytest.raises(BlockingIOError):
        spool(tmp_path, b"x")
    for one in held:
        one.close()


def test_without_a_directory_nothing_is_kept() -> None:
    one = Spool(None, 10)
    one.claim()
    with pytest.raises(FileNotFoundError):
        one.append(b"x")
    one.close()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Nor does it keep anything from being kept: the next name is as good."""
    (tmp_path / "audit-0.spool").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "audit-1.spool").symlink_to("audit-1.spool")
    one = spool(tmp_path, b"x\n")
    assert (tmp_path / "audit-2.spool").read_bytes() == b"x\n"
    (tmp_path / "audit-2.spool").unlink()
    assert one.detect_truncation() == 0
    assert (tmp_path / "audit-2.spool").read_bytes() == b"x\n"
    one.close()
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_no_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo("audit-0.spool")
    before = os.listdir("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("audit-1.spool")
        (tmp_path / "audit-2.spool").mkdir()
        one = spool(tmp_path, line(1))
        assert one.peek() == (tmp_path / "audit-3.spool").read_bytes() == line(1)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    one.close()


def test_where_no_name_is_ours_the_error_says_why(tmp_path: Path) -> None:
    for number in range(128):
        (tmp_path / f"audit-{number}.spool").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        spool(tmp_path, b"x")


def test_a_directory_that_may_not_be_written_to_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refused(path: Path, *_: object) -> int:
        asked.append(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError):
        spool(tmp_path, b"x")
    assert len(asked) == 1


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file grows beyond 1,000 octets: what a write cannot do, it does in part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_what_does_not_fit_is_not_kept_in_part(tmp_path: Path) -> None:
    one = spool(tmp_path, line(1))
    with pytest.raises(OSError, match="too large"):
        one.append(b"x" * 2000)
    assert one.peek() == line(1)
    assert os.stat(tmp_path / "audit-0.spool").st_size == len(line(1))
    one.append(line(2))
    assert one.peek() == line(1) + line(2)
    one.close()


def test_a_line_that_the_sink_has_begun_is_kept_whole(tmp_path: Path) -> None:
    """What the sink takes of it from now on is known by nothing but the sink's end."""
    one = Spool(tmp_path, 1 << 20)
    one.append(line(1)[4:] + line(2), line(1)[:4])
    one.append(line(3), b"that is known already")
    assert one.peek() == line(1)[4:] + line(2) + line(3)
    one.advance(3)
    one.close()
    for tail in (Tail(line(0)[:-1], line(1)[:4]), Tail(b"", line(1)[:7])):
        two = Spool(tmp_path, 1 << 20)
        two.claim()
        assert two.resume(tail) == b""
        assert two.peek() == line(1)[len(tail.torn) :] + line(2) + line(3)
        two.close()


def test_what_another_left_is_not_taken_up_in_the_middle_of_a_line(tmp_path: Path) -> None:
    one = Spool(tmp_path, 1 << 20)
    one.claim()
    spool(tmp_path, line(1)).close()
    one.append(line(3)[4:], line(3)[:4])
    assert one.peek() == line(3)[4:]
    assert (tmp_path / "audit-0.spool").read_bytes() == line(1)
    one.close()


# A process that died while it wrote them


@pytest.mark.parametrize(
    ("tail", "first", "rest"),
    [
        pytest.param(Tail(), b"", line(1) + line(2), id="an empty file"),
        pytest.param(Tail(line(0)[:-1]), b"", line(1) + line(2), id="none of them"),
        pytest.param(Tail(line(1)[:-1]), b"", line(2), id="one of them"),
        pytest.param(Tail(line(2)[:-1]), b"", b"", id="all of them"),
        pytest.param(Tail(line(0)[:-1], line(1)[:9]), b"", line(1)[9:] + line(2), id="a part of the first"),
        pytest.param(Tail(line(1)[:-1], line(2)[:9]), b"", line(2)[9:], id="one and a part"),
        pytest.param(Tail(b"", line(1)[:9]), b"", line(1)[9:] + line(2), id="a part alone"),
        pytest.param(Tail(line(0)[:-1], b'{"schema":1,"x'), b"\n", line(1) + line(2), id="a part of another"),
        pytest.param(Tail(line(2)[:-1], b"{"), b"\n", b"", id="all, and a part of another"),
    ],
)
def test_nothing_is_written_twice_and_no_line_spoils_another(tmp_path: Path, tail: Tail, first: bytes, rest: bytes) -> None:
    spool(tmp_path, line(1), line(2)).close()
    one = Spool(tmp_path, 1 << 20)
    one.claim()
    assert one.resume(tail) == first
    assert one.peek() == rest
    one.close()


@pytest.mark.parametrize(
    ("tail", "first", "rest"),
    [
        pytest.param(Tail(line(0)[:-1]), b"", line(1) + line(2)[:20] + b"\n", id="none of it is in the sink"),
        pytest.param(Tail(line(0)[:-1], line(1)[:9]), b"", line(1)[9:] + line(2)[:20] + b"\n", id="a part is"),
        pytest.param(Tail(line(1)[:-1], line(2)[:9]), b"", line(2)[9:20] + b"\n", id="a part of its end is"),
        pytest.param(Tail(line(1)[:-1], line(2)[:20]), b"", b"\n", id="all of it is"),
        pytest.param(Tail(line(2)[:20]), b"", b"", id="all of it is, and was ended"),
    ],
)
def test_an_end_cut_short_swallows_no_line(tmp_path: Path, tail: Tail, first: bytes, rest: bytes) -> None:
    spool(tmp_path, line(1), line(2)[:20]).close()
    one = Spool(tmp_path, 1 << 20)
    one.claim()
    assert one.resume(tail) == first
    one.append(line(3))
    assert one.peek() == rest + line(3)
    one.close()


@pytest.mark.parametrize(
    ("size", "gone", "rest"), [(0, 64, b""), (32, 64, b""), (40, 56, line(2)[:8] + b"\n"), (64, 32, line(2)), (96, 0, b"")]
)
def test_what_somebody_cut_is_not_waited_for(tmp_path: Path, size: int, gone: int, rest: bytes) -> None:
    one = spool(tmp_path, line(1), line(2), line(3))
    one.advance(len(line(1)))
    os.truncate(tmp_path / "audit-0.spool", size)
    assert one.detect_truncation() == gone
    one.append(line(4))
    assert one.peek() == (rest if gone else line(2) + line(3)) + line(4)
    assert one.detect_truncation() == 0
    one.close()
    assert one.detect_truncation() == 0


@pytest.mark.parametrize("size", [0, 10])
def test_behind_a_cut_in_what_the_sink_has_lines_begin_anew(tmp_path: Path, size: int) -> None:
    """The next process reads from the file's beginning."""
    one = spool(tmp_path, line(1), line(2))
    one.advance(len(line(1)))
    os.truncate(tmp_path / "audit-0.spool", size)
    assert (one.detect_truncation(), one.used_bytes) == (len(line(2)), 0)
    one.append(line(3))
    one.close()
    assert next_process(tmp_path, Tail(line(1)[:-1])) == line(3)


def test_a_line_that_was_cut_is_ended_as_soon_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = spool(tmp_path, line(1), line(2))
    os.truncate(tmp_path / "audit-0.spool", 40)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as there:
        there.setattr(os, "write", full)
        assert one.detect_truncation() == 24
        with pytest.raises(OSError, match="No space"):
            one.append(line(3))
    one.append(line(3))
    one.append(line(4))
    assert one.peek() == line(1) + line(2)[:8] + b"\n" + line(3) + line(4)
    one.close()
    assert next_process(tmp_path, Tail()) == line(1) + line(2)[:8] + b"\n" + line(3) + line(4)


@pytest.mark.parametrize("waits", [line(1), b""])
def test_what_could_not_be_kept_nor_taken_back_is_not_gone_on_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bytes
) -> None:
    one = spool(tmp_path, waits)
    write = os.write
    took = []

    def some(descriptor: int, octets: bytes) -> int:
        if took:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        took.append(write(descriptor, octets[:7]))
        return 7

    def none(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as there:
        there.setattr(os, "write", some)
        there.setattr(os, "ftruncate", none)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                one.append(line(2)[4:], line(2)[:4])
    one.append(line(2)[4:], line(2)[:4])
    assert one.peek() == (line(1) + line(2)[4:] if waits else line(2)[4:])
    one.close()
    assert next_process(tmp_path, Tail()) == (line(1) + line(2)[4:] if waits else line(2))


def test_the_rest_of_a_line_goes_to_its_beginning(tmp_path: Path) -> None:
    one = spool(tmp_path, line(1)[9:] + line(2))
    assert one.resume(Tail(line(0)[:-1], line(1)[:9])) == b""
    assert one.peek() == line(1)[9:] + line(2)
    one.close()


def test_the_chain_continues_after_the_last_of_them(tmp_path: Path) -> None:
    chain = Chain(chain_key(b"k" * 32), "0" * 16)
    one = spool(tmp_path, chain.link(b'{"a":1}') + b"\n", chain.link(b'{"a":2}') + b"\n")
    whole = chain.head.rpartition(":")[2]
    assert one.last_mac == whole
    assert one.waiting_bytes
    one.append(chain.link(b'{"a":3}')[:30])
    assert one.resume(Tail()) == b""
    assert one.last_mac == whole, "that of the last whole one"
    one.close()
    assert Spool(tmp_path, 1).last_mac == ""


def test_one_that_was_removed_is_made_anew_with_what_waits(tmp_path: Path) -> None:
    one = spool(tmp_path, line(0), line(1), line(2))
    one.advance(len(line(0)))
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    before = len(os.listdir("/proc/self/fd"))
    assert one.detect_truncation() == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert (kept.read_bytes(), one.peek()) == (line(1) + line(2), line(1) + line(2))
    one.append(line(3))
    assert one.detect_truncation() == 0
    assert kept.read_bytes() == line(1) + line(2) + line(3)
    one.close()


@pytest.mark.parametrize("before", [b"", line(0) * 40_000])
def test_one_that_is_made_anew_holds_its_first_line_whole(tmp_path: Path, before: bytes) -> None:
    """As every spool: what the sink has of it, a process to come can tell by the sink's end alone."""
    one = spool(tmp_path, before + line(1) + line(2))
    one.advance(len(before) + 7)
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    assert one.detect_truncation() == 0
    assert (kept.read_bytes(), one.peek()) == (line(1) + line(2), line(1)[7:] + line(2))
    one.advance(2)
    one.close()
    assert next_process(tmp_path, Tail(line(0)[:-1], line(1)[:9])) == line(1)[9:] + line(2)
    assert next_process(tmp_path, Tail(line(1)[:-1], line(2)[:9])) == line(2)[9:]
    assert next_process(tmp_path, Tail()) == line(1) + line(2), "to another reader of a pipe"


def test_one_that_is_made_anew_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = spool(tmp_path, line(1))
    one.sync()
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    one.detect_truncation()
    assert synced == [str(kept), str(tmp_path)]
    one.close()


def test_where_there_is_no_room_for_it_twice_not_even_for_a_line_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = spool(tmp_path, line(1), line(2))
    one.advance(9)
    (tmp_path / "audit-0.spool").unlink()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as there:
        there.setattr(os, "write", full)
        assert one.detect_truncation() == 2 * len(line(1)) - 9
    one.append(line(3))
    assert one.peek() == line(3)
    one.close()


def test_where_there_is_no_room_for_it_twice_the_rest_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is cut by that is ended."""
    whole = b"".join(map(line, range(50_000)))
    one = spool(tmp_path, whole)
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    room = [1 << 20, 0]
    write = os.write

    def full(descriptor: int, octets: bytes) -> int:
        if len(octets) > 1 and not room.pop(0):
            raise OSError(28, "No space left on device")
        return write(descriptor, octets)

    monkeypatch.setattr(os, "write", full)
    assert one.detect_truncation() == len(whole) - (1 << 20)
    assert kept.read_bytes() == whole[: 1 << 20] + b"\n"
    one.close()


@pytest.mark.parametrize(
    ("number", "calls", "removed"),
    [
        pytest.param(errno.EIO, ("pread", "close"), True, id="its disk is gone as well"),
        pytest.param(errno.ESTALE, ("fstat", "pread", "close"), False, id="at a network's server"),
    ],
)
def test_one_that_was_removed_and_cannot_be_read_is_reported_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, calls: tuple[str, ...], removed: bool
) -> None:
    one = spool(tmp_path, line(0), line(1))
    one.advance(9)
    if removed:
        (tmp_path / "audit-0.spool").unlink()
    lost = one._descriptor

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        def call(descriptor: int, *more: object) -> object:
            if descriptor == lost:
                raise OSError(number, os.strerror(number))
            return real(descriptor, *more)

        return call

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, failing(getattr(os, name)))
        assert one.detect_truncation() == len(line(0) + line(1)) - 9
        assert (one.waiting_bytes, one.detect_truncation()) == (0, 0)
        one.append(line(2))
        assert one.peek() == line(2)
    os.close(lost)
    one.close()


def test_one_that_was_cut_and_cannot_be_read_is_taken_to_end_within_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = spool(tmp_path, line(0), line(1))
    os.truncate(tmp_path / "audit-0.spool", 9)

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fails)
        assert one.detect_truncation() == len(line(0) + line(1)) - 9
    one.append(line(2))
    assert one.peek() == line(0)[:9] + b"\n" + line(2)
    one.close()


def test_one_that_cannot_be_made_anew_is_gone_on_with(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    one = spool(directory, line(0))
    (directory / "audit-0.spool").unlink()
    directory.rmdir()
    assert one.detect_truncation() == 0
    one.append(line(1))
    assert one.peek() == line(0) + line(1)
    one.close()


def test_one_whose_state_is_unknown_is_gone_on_with(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    one = spool(directory, line(0))
    directory.rename(tmp_path / "elsewhere")
    directory.touch()
    assert one.detect_truncation() == 0
    one.append(line(1))
    assert one.peek() == line(0) + line(1)


def test_nobody_removes_what_is_anothers(tmp_path: Path) -> None:
    """Who has the name of one that was removed."""
    one = spool(tmp_path, line(0))
    (tmp_path / "audit-0.spool").unlink()
    other = spool(tmp_path, line(1))
    one.advance(len(line(0)))
    one.close()
    assert (tmp_path / "audit-0.spool").read_bytes() == line(1)
    other.close()


def test_where_there_are_no_locks_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried for every batch that the sink does not take."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    one = Spool(tmp_path, 1 << 20)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(OSError, match="No locks"):
            one.append(line(1))
        (tmp_path / "audit-0.spool").write_bytes(line(0))
        with pytest.raises(OSError, match="No locks"):
            one.claim()
    assert os.listdir("/proc/self/fd") == before
