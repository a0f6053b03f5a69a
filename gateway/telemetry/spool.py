"""Octets that the audit's sink did not take, kept on disk in their order until it does.

One file a process, locked: `audit-0.spool`, or the next number where several gateways share a `state_dir`. What a process
that ended left there is taken up by another: one that starts, or that runs and has nothing of its own to write first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ..core.audit_chain import mac_of
from .sinks import Tail, sync_directory

_NUMBERS = 128
_PIECE = 1 << 20
_MODE, _DOUBTED = 0o600, 0o600 | stat.S_ISVTX
"""Of its file; in doubt with a bit that means nothing of one (Linux), for the next process to go by."""
_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""What opening says of a name that somebody else made: another is as good."""
_BEGINNING = b'{"schema":'
"""Of every line: what begins otherwise is the rest of one."""


class Spool:
    """First in, first out. Used by one thread at a time. Every method but ``waiting`` may raise OSError.

    Args:
        directory: Of the gateway's state; None where it cannot be used: then nothing can be kept.
        max_bytes: Of the file, for the writer to keep to.
        inherits: What others left is for the same sink: to be claimed.
    """

    def __init__(self, directory: Path | None, max_bytes: int, *, inherits: bool = True) -> None:
        self._directory = directory
        self._inherits = inherits
        self.max_bytes = max_bytes
        self._path: Path | None = None
        self._descriptor = -1
        self._named = False
        """What is synced in it is not lost for want of its name."""
        self._read = 0
        self._end = 0
        self._unended = False
        """It ends within a line that somebody cut."""
        self.doubted = False
        """The sink may not have what it took of it: all of it is written once more before room is made."""

    @property
    def waiting(self) -> int:
        """Octets."""
        return self._end - self._read

    @property
    def used(self) -> int:
        """Octets of the file, with those that the sink has by now: room is made when it has them all."""
        return self._end

    def claim(self) -> None:
        """Take up what a process that ended left behind, if anybody did. Nothing may wait here."""
        if self._directory is None or not self._inherits:
            return
        there = set(os.listdir(self._directory))
        refused = None
        for name in map(_name, range(_NUMBERS)):
            path = self._directory / name
            try:
                if name in there and _holds_lines(path) and self._lock(path, os.O_RDWR | os.O_APPEND):
                    return
            except FileNotFoundError:
                continue
            except OSError as error:  # another user's: those behind it are ours all the same
                refused = refused or error
        if refused is not None:
            raise refused

    def append(self, octets: bytes, begun: bytes = b"") -> None:
        """All of them or none. ``begun``: what the sink has of the first line already; kept with the rest of it, so that a
        process to come can tell by the sink's end how far that is."""
        if self._path is None:
            self._create()
        before = (b"\n" if self._unended else b"") + (b"" if self.waiting else begun)
        if not self.waiting:
            self._read += len(before)
        end, left = self._end, memoryview(before + octets)
        try:
            if os.fstat(self._descriptor).st_size > end:
                os.ftruncate(self._descriptor, end)  # a part of what was to be kept before: it could not be taken back
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            self._read = min(self._read, end)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise
        self._unended = False
        self._end = end + len(before) + len(octets)

    def peek(self) -> bytes:
        """The next of them, at most 1 MiB."""
        return os.pread(self._descriptor, min(_PIECE, self.waiting), self._read) if self.waiting else b""

    def drop(self, count: int) -> None:
        """Those are where they belong; they stay on disk until ``empty``."""
        self._read += count

    def take_back(self, count: int) -> None:
        """The last of those are not there any more: they wait again."""
        self._read = max(0, self._read - count)

    def doubt(self) -> None:
        """As ``doubted``, if it took any."""
        if not self.doubted and self.used > self.waiting:
            self.doubted = True
            self._mark(_DOUBTED)
            with contextlib.suppress(OSError):
                self.sync()  # behind a power cut the sink may have a later line, and not one before it

    def empty(self) -> None:
        """Make room: nothing waits, and the sink has it all for good. Or all of it waits again, where that was in doubt."""
        if self.doubted:
            # The file says so until it is empty: who is killed while it is written again leaves that to the next.
            self._read, self.doubted = 0, False
        else:
            self._clear()

    def _mark(self, mode: int) -> None:
        with contextlib.suppress(OSError):
            os.fchmod(self._descriptor, mode)

    def _clear(self) -> None:
        if self._end or self.doubted:
            os.ftruncate(self._descriptor, 0)
            self._read = self._end = 0
            self._mark(_MODE)
        self._unended = self.doubted = False

    def cut(self) -> int:
        """How many octets that waited are gone, because somebody made the file shorter; what is left ends a line."""
        if self._path is None:
            return 0
        if not _is_there(self._descriptor, self._path):
            return self._renewed()
        size = os.fstat(self._descriptor).st_size
        if size >= self._end:
            return 0
        gone = self._end - max(size, self._read)
        self._read, self._end = min(self._read, size), size
        self._end_line()
        if not self.waiting:
            with contextlib.suppress(OSError):  # else with what the sink has by then
                self._clear()
        return gone

    def _renewed(self) -> int:
        """Somebody removed it: no process to come would find it. As ``cut``, of what there is no room for a second time."""
        before, path, read, end = self._descriptor, self._path, self._read, self._end
        self._path = None
        try:
            self._create()
        except OSError:
            self._path = path
            return 0
        # With what the sink has of the line that it is in: as in ``append``.
        begin = at = read
        with contextlib.suppress(OSError):  # no room, or its disk is gone, too
            begin = at = _line_begins(before, read)
            while octets := os.pread(before, min(_PIECE, end - at), at):
                self.append(octets)
                at += len(octets)
            self.sync()  # as what was promised had been
        with contextlib.suppress(OSError):
            os.close(before)
        self._read = min(read, at) - begin
        self._end_line()
        if not self.waiting:
            with contextlib.suppress(OSError):  # else with what the sink has by then
                self._clear()
        return end - max(read, at)

    def sync(self) -> None:
        """What was appended outlives a power cut."""
        if self._path is None:
            return
        os.fsync(self._descriptor)
        if not self._named:
            sync_directory(str(self._path))
            self._named = True

    def close(self) -> None:
        """An empty one is removed."""
        if self._path is None:
            return
        path, self._path = self._path, None
        try:
            if not self._end and _is_there(self._descriptor, path):  # else it is another's
                path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)

    # What a process that ended left

    def resume(self, tail: Tail) -> bytes:
        """Drop what the sink has already, by how it ends; what must be written before all the rest."""
        self._end_line()
        at = there = self._read
        for line in self._lines():
            if (whole := line.removesuffix(b"\n")) and (whole == tail.line or whole in tail.before):
                if there not in {self._read, at}:
                    break  # a disk that failed has this one, and not the one before it
                there = at + len(line)
            at += len(line)
        self.drop(there - self._read)
        if not tail.torn:
            return b""
        head = self.peek()
        if head.startswith(tail.torn):
            self.drop(len(tail.torn))
        elif not head or head.startswith(_BEGINNING):  # else the rest of that line, as older gateways kept it
            return b"\n"
        return b""

    def _end_line(self) -> None:
        """One that a process was killed in, or a power cut, must not swallow the next."""
        if not self._end:
            return
        with contextlib.suppress(OSError):  # what cannot be read is taken for cut
            if os.pread(self._descriptor, 1, self._end - 1) == b"\n":
                return
        self._unended = True
        if self.waiting:
            with contextlib.suppress(OSError):  # else with the next
                self.append(b"")

    @property
    def last_mac(self) -> str:
        """Of the last line, or of the one before it where that was cut short, for the chain that continues there."""
        macs = [mac_of(line.removesuffix(b"\n")) for line in deque(self._lines(), maxlen=2)]
        return macs[-1] or macs[0] if macs else ""

    def _lines(self) -> Iterator[bytes]:
        if self.waiting:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                file.seek(self._read)
                yield from file

    # Its file

    def _create(self) -> None:
        if self._directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "state_dir")
        refused = None
        for number in range(_NUMBERS):
            path = self._directory / _name(number)
            try:
                # One that a process left a moment ago is for the next that starts: lines are in the middle of something.
                if not _holds_lines(path) and self._lock(path, os.O_RDWR | os.O_APPEND | os.O_CREAT):
                    return
            except OSError as error:  # as in ``claim``
                if error.errno not in _NOT_OURS or not os.path.lexists(path):
                    raise
                refused = refused or error
        if refused is not None:
            raise refused
        raise BlockingIOError(errno.EAGAIN, "every spool is another process's")

    def _lock(self, path: Path, flags: int) -> bool:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe takes lines, and gives none back
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), str(path))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = _is_there(descriptor, path)  # its owner may have removed it between the two
        except BlockingIOError:
            held = False
        except OSError:  # a file system without locks, or no file
            os.close(descriptor)
            raise
        if not held:
            os.close(descriptor)
            return False
        with contextlib.suppress(OSError):
            self.close()  # one of before, which is empty
        self._path, self._descriptor, self._named = path, descriptor, False
        found = os.fstat(descriptor)
        self._read, self._end = 0, found.st_size
        self._unended, self.doubted = False, bool(found.st_mode & stat.S_ISVTX)
        if self.doubted and not self._end:
            self._clear()  # its owner was killed between the two steps of that
        return True


def _is_there(descriptor: int, path: Path) -> bool:
    """It has this name still, for all that can be told. A network's file system says ESTALE of a file removed elsewhere."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError as error:
        return error.errno not in {errno.ENOENT, errno.ESTALE}


def _line_begins(descriptor: int, at: int) -> int:
    """The line that goes on at that octet."""
    while at > 0:
        begin = max(0, at - _PIECE)
        end = os.pread(descriptor, at - begin, begin).rfind(b"\n") + 1
        if end:
            return begin + end
        at = begin
    return 0


def _holds_lines(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _name(number: int) -> str:
    return f"audit-{number}.spool"
