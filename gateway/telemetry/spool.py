"""Octets that the audit's sink did not take, kept on disk in their order until it does.

Each process locks a file of its own: `audit-0.spool`, or the next number where several gateways share a `state_dir`. What a
process left there when it ended is taken over by another: one that starts, or one that runs and has nothing of its own to
write first.
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

_MOST_SPOOLS = 128
_PIECE = 1 << 20
_MODE, _DOUBTED = 0o600, 0o600 | stat.S_ISVTX
"""The mode of the spool's file. While in doubt, it includes the sticky bit, which means nothing on files (Linux), as a sign
for the next process."""
_FOREIGN_FILE_ERRORS = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""The errors of opening a name that somebody else has made: another name will do as well."""
_LINE_PREFIX = b'{"schema":'
"""How every line begins: what begins otherwise is the rest of a line."""


class Spool:
    """First in, first out. Used by one thread at a time. Every method but ``waiting_bytes`` may raise OSError.

    Args:
        directory: The gateway's ``state_dir``; None if it cannot be used: then nothing can be kept.
        max_bytes: The most octets of the file; it is up to the writer to keep to that.
        inherits: Whether what others left is for the same sink, and so may be claimed.
    """

    def __init__(self, directory: Path | None, max_bytes: int, *, inherits: bool = True) -> None:
        self._directory = directory
        self._inherits = inherits
        self.max_bytes = max_bytes
        self._path: Path | None = None
        self._descriptor = -1
        self._name_synced = False
        """Whether its name is durable, too, so that nothing synced in it is lost for want of a name."""
        self._read_at = 0
        self._end = 0
        self._ends_mid_line = False
        """Whether the file ends within a line that was cut short."""
        self.doubted = False
        """Whether the sink may have lost what it took from here: all of it is written once more before room is made."""

    @property
    def waiting_bytes(self) -> int:
        """How many octets wait."""
        return self._end - self._read_at

    @property
    def used_bytes(self) -> int:
        """The octets of the file, with those that the sink has by now: room is made once it has them all."""
        return self._end

    def claim(self) -> None:
        """Take over what a process left behind when it ended, if any did. Nothing may be waiting here."""
        if self._directory is None or not self._inherits:
            return
        there = set(os.listdir(self._directory))
        refused = None
        for name in map(_name, range(_MOST_SPOOLS)):
            path = self._directory / name
            try:
                if name in there and _holds_lines(path) and self._lock(path, os.O_RDWR | os.O_APPEND):
                    return
            except FileNotFoundError:
                continue
            except OSError as error:  # another user's file: those after it may be taken over all the same
                refused = refused or error
        if refused is not None:
            raise refused

    def append(self, octets: bytes, partial_line: bytes = b"") -> None:
        """Keep all of ``octets``, or none. ``partial_line``: what the sink has of the first line already; it is kept with
        the rest of that line, so that a later process can tell from the sink's end how far the sink has come."""
        if self._path is None:
            self._create()
        before = (b"\n" if self._ends_mid_line else b"") + (b"" if self.waiting_bytes else partial_line)
        if not self.waiting_bytes:
            self._read_at += len(before)
        end, left = self._end, memoryview(before + octets)
        try:
            if os.fstat(self._descriptor).st_size > end:
                os.ftruncate(self._descriptor, end)  # part of an earlier append that failed, and could not be removed then
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            self._read_at = min(self._read_at, end)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise
        self._ends_mid_line = False
        self._end = end + len(before) + len(octets)

    def peek(self) -> bytes:
        """The next octets that wait, at most 1 MiB."""
        return os.pread(self._descriptor, min(_PIECE, self.waiting_bytes), self._read_at) if self.waiting_bytes else b""

    def advance(self, count: int) -> None:
        """The sink has the next ``count`` octets. They stay on disk until ``empty``."""
        self._read_at += count

    def rewind(self, count: int) -> None:
        """The sink no longer has the last ``count`` of those: they wait again."""
        self._read_at = max(0, self._read_at - count)

    def doubt(self) -> None:
        """Set ``doubted``, provided that the sink took anything from here."""
        if not self.doubted and self.used_bytes > self.waiting_bytes:
            self.doubted = True
            self._mark(_DOUBTED)
            with contextlib.suppress(OSError):
                self.sync()  # after a power cut, the sink may have a later line and lack an earlier one

    def empty(self) -> None:
        """Make room, now that nothing waits and the sink has it all for good; if that is in doubt, it all waits again."""
        if self.doubted:
            # The file's mode stays until it is empty: if this process is killed meanwhile, the next one writes it again.
            self._read_at, self.doubted = 0, False
        else:
            self._clear()

    def _mark(self, mode: int) -> None:
        with contextlib.suppress(OSError):
            os.fchmod(self._descriptor, mode)

    def _clear(self) -> None:
        if self._end or self.doubted:
            os.ftruncate(self._descriptor, 0)
            self._read_at = self._end = 0
            self._mark(_MODE)
        self._ends_mid_line = self.doubted = False

    def detect_truncation(self) -> int:
        """Find out whether somebody shortened the file. Returns how many octets that waited are gone; what is left is made
        to end a line."""
        if self._path is None:
            return 0
        if not _is_there(self._descriptor, self._path):
            return self._recreate()
        size = os.fstat(self._descriptor).st_size
        if size >= self._end:
            return 0
        gone = self._end - max(size, self._read_at)
        self._read_at, self._end = min(self._read_at, size), size
        self._end_line()
        if not self.waiting_bytes:
            with contextlib.suppress(OSError):  # else later, with what the sink has by then
                self._clear()
        return gone

    def _recreate(self) -> int:
        """Make the file anew: it was removed, so no later process would find it. Returns, as ``detect_truncation`` does,
        how many octets are gone: those for which there is no room a second time."""
        before, path, read, end = self._descriptor, self._path, self._read_at, self._end
        self._path = None
        try:
            self._create()
        except OSError:
            self._path = path
            return 0
        # With what the sink has of the line that it has begun, as in ``append``.
        begin = at = read
        with contextlib.suppress(OSError):  # no room, or the disk is gone, too
            begin = at = _line_begins(before, read)
            while octets := os.pread(before, min(_PIECE, end - at), at):
                self.append(octets)
                at += len(octets)
            self.sync()  # as what was promised had been before
        with contextlib.suppress(OSError):
            os.close(before)
        self._read_at = min(read, at) - begin
        self._end_line()
        if not self.waiting_bytes:
            with contextlib.suppress(OSError):  # else later, with what the sink has by then
                self._clear()
        return end - max(read, at)

    def sync(self) -> None:
        """Make what was appended outlive a power cut."""
        if self._path is None:
            return
        os.fsync(self._descriptor)
        if not self._name_synced:
            sync_directory(str(self._path))
            self._name_synced = True

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        if self._path is None:
            return
        path, self._path = self._path, None
        try:
            if not self._end and _is_there(self._descriptor, path):  # else the name is another file's
                path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)

    # What a process that ended left

    def resume(self, tail: Tail) -> bytes:
        """Drop what the sink has already, judging by how it ends. Returns what must be written before all the rest."""
        self._end_line()
        at = there = self._read_at
        for line in self._lines():
            if (whole := line.removesuffix(b"\n")) and (whole == tail.line or whole in tail.before):
                if there not in {self._read_at, at}:
                    break  # a disk that failed has this line, and not the one before it
                there = at + len(line)
            at += len(line)
        self.advance(there - self._read_at)
        if not tail.torn:
            return b""
        head = self.peek()
        if head.startswith(tail.torn):
            self.advance(len(tail.torn))
        elif not head or head.startswith(_LINE_PREFIX):  # else it is the rest of that line, as older gateways kept it
            return b"\n"
        return b""

    def _end_line(self) -> None:
        """End the last line if it was cut short (its process was killed, or the power failed), or it would swallow the
        next one."""
        if not self._end:
            return
        with contextlib.suppress(OSError):  # what cannot be read counts as cut short
            if os.pread(self._descriptor, 1, self._end - 1) == b"\n":
                return
        self._ends_mid_line = True
        if self.waiting_bytes:
            with contextlib.suppress(OSError):  # else with the next ``append``
                self.append(b"")

    @property
    def last_mac(self) -> str:
        """The MAC of the last line, or of the one before it if that was cut short, for the chain that continues there."""
        macs = [mac_of(line.removesuffix(b"\n")) for line in deque(self._lines(), maxlen=2)]
        return macs[-1] or macs[0] if macs else ""

    def _lines(self) -> Iterator[bytes]:
        if self.waiting_bytes:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                file.seek(self._read_at)
                yield from file

    # Its file

    def _create(self) -> None:
        if self._directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "state_dir")
        refused = None
        for number in range(_MOST_SPOOLS):
            path = self._directory / _name(number)
            try:
                # Lines that a process left a moment ago are for the next that starts: ours may be in the middle of one.
                if not _holds_lines(path) and self._lock(path, os.O_RDWR | os.O_APPEND | os.O_CREAT):
                    return
            except OSError as error:  # as in ``claim``
                if error.errno not in _FOREIGN_FILE_ERRORS or not os.path.lexists(path):
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
            held = _is_there(descriptor, path)  # its owner may have removed it before it was locked
        except BlockingIOError:
            held = False
        except OSError:  # a file system without locks, or no file
            os.close(descriptor)
            raise
        if not held:
            os.close(descriptor)
            return False
        with contextlib.suppress(OSError):
            self.close()  # the previous file, which is empty
        self._path, self._descriptor, self._name_synced = path, descriptor, False
        found = os.fstat(descriptor)
        self._read_at, self._end = 0, found.st_size
        self._ends_mid_line, self.doubted = False, bool(found.st_mode & stat.S_ISVTX)
        if self.doubted and not self._end:
            self._clear()  # its owner was killed between the two steps of ``_clear``
        return True


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether the file still has this name, as far as can be seen. A network file system reports ESTALE for one that was
    removed elsewhere."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError as error:
        return error.errno not in {errno.ENOENT, errno.ESTALE}


def _line_begins(descriptor: int, at: int) -> int:
    """Where the line begins that goes on at the octet ``at``."""
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
