"""Where the audit's lines go: a standard stream, or a file that is followed through its rotations.

A sink takes octets and says how many it took; the writer (``audit_writer``) keeps what it did not take, so that a line that
a failure cut short is continued where it was cut. Sinks belong to the writer's thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import stat
import sys
import termios
from collections.abc import Callable
from typing import Protocol

from ..core.audit_chain import mac_of

log = logging.getLogger("gateway.audit")

STALL_S = 1.0
"""A reader that takes nothing for this long has stopped reading."""

_LONGEST_LINE = 1 << 18
_LINE_END = ord("\n")
_UNSYNCABLE = frozenset({errno.EINVAL, errno.ENOTSUP})
"""How fsync fails for pipes, sockets and terminals, and for directories on some file systems: there is nothing to wait for.
Not EROFS: that is how it fails, on ext4, for a file that took lines a moment ago and whose disk has failed since."""
_STREAMS = {"stdout": 1, "stderr": 2}


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: bytes) -> int:
        """Write ``lines``. Returns how many octets were taken: fewer than all if the sink failed or stalled on the way.
        Raises OSError if it took none."""
        ...

    def sync(self) -> None:
        """Make what was taken outlive a power cut, where the sink can tell. Raises OSError."""
        ...

    def was_emptied(self) -> bool:
        """Whether somebody emptied or removed what holds the octets taken. Called within a line, which then begins anew."""
        ...

    def close(self) -> None: ...


class StreamSink:
    """A descriptor that somebody else opened: standard output or error. ``reopen``: whether it may be opened anew."""

    def __init__(self, descriptor: int, *, stall_s: float = STALL_S, reopen: bool = True) -> None:
        self._out = _OutputDescriptor(descriptor, stall_s, reopen=reopen)

    def write(self, lines: bytes) -> int:
        return self._out.write(lines)

    def sync(self) -> None:
        self._out.sync()

    def was_emptied(self) -> bool:
        return self._out.was_emptied()

    def close(self) -> None:
        self._out.close()


class FileSink:
    """A file, created with mode 0600 and appended to.

    If the file was renamed or removed (logrotate), it is left where it went, and a new one is begun; this is checked before
    each write, so no signal is needed. A file that would grow past ``rotate_bytes`` is renamed to ``PATH.1``, and older
    ones move up by one number. No line is ever split between two files.

    The path may also be a named pipe: while nobody reads it, nothing is taken. A pipe that was made anew is opened anew,
    and no file is created in its place.

    Args:
        path: Absolute.
        rotate_bytes: The size past which the file is rotated; 0: never by itself.
        keep: How many rotated files stay.
        stall_s: As ``STALL_S``, for a named pipe.
        torn_in: A file that ends in the middle of a line, which is ended there: ``path``, or what a rotation renamed it to.
        durable: Whether a file is synced when it is left; if that fails, so does the next ``sync``.
    """

    def __init__(
        self,
        path: str,
        *,
        rotate_bytes: int = 0,
        keep: int = 1,
        stall_s: float = STALL_S,
        torn_in: str = "",
        durable: Callable[[], bool] = bool,
    ) -> None:
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._stall_s = stall_s
        self._durable = durable
        self._at_line_end = not torn_in
        """Whether what was written last ended a line, or its reader is gone."""
        self._rotation_works = True
        self._unreported_error: OSError | None = None
        """Why an earlier file could not be synced when it was left. That is not tried again: the system reports an error
        once or, for a file that is gone (with its disk, or on a network server), for ever."""
        self._descriptor = -1
        self._name_synced = False
        """Whether its name is durable, too, so that nothing synced in it is lost for want of a name."""
        self._device_inode = (0, 0)
        self._out: _OutputDescriptor | None = None
        self._is_pipe = False
        with contextlib.suppress(_UnreadError):
            self._open(torn_in or path)

    def write(self, lines: bytes) -> int:
        taken = 0
        while taken < len(lines):
            piece = self._next_piece(lines, taken)
            try:
                if self._at_line_end:
                    self._follow_rotation(len(piece))
                got = self._opened.write(piece)
            except OSError as error:
                self._at_line_end = self._at_line_end or isinstance(error, BrokenPipeError)
                if not taken:
                    raise
                break
            taken += got
            if got:
                self._at_line_end = lines[taken - 1] == _LINE_END
            if got < len(piece):
                break
        return taken

    def _next_piece(self, lines: bytes, begin: int) -> bytes:
        """What one file may hold of ``lines`` from ``begin`` on: whole lines, at least one, even if that is too long."""
        most = self._rotate_bytes
        if not most or len(lines) - begin <= most:
            return lines[begin:] if begin else lines
        end = lines.rfind(b"\n", begin, begin + most) + 1
        if end <= begin:
            end = lines.find(b"\n", begin) + 1 or len(lines)
        return lines[begin:end]

    def sync(self) -> None:
        error, self._unreported_error = self._unreported_error, None
        if error is not None:
            raise error
        self._opened.sync()
        self._sync_name()

    def was_emptied(self) -> bool:
        gone = self._out is not None and self._out.was_emptied(removed=True)
        self._at_line_end = self._at_line_end or gone
        return gone

    def close(self) -> None:
        if self._out is not None:
            _close(self._out, self._descriptor)

    @property
    def _opened(self) -> _OutputDescriptor:
        if self._out is None:
            raise _UnreadError
        return self._out

    def _open(self, path: str = "") -> None:
        path = path or self._path
        # Without O_NONBLOCK, opening a pipe waits for its reader.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | (0 if self._is_pipe else os.O_CREAT)
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode):
                self._is_pipe = True
                raise _UnreadError from None
            raise
        try:
            found = os.fstat(descriptor)
            self._out = _OutputDescriptor(descriptor, self._stall_s)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._device_inode = (found.st_dev, found.st_ino)
        self._is_pipe = stat.S_ISFIFO(found.st_mode)
        self._name_synced = not self._out.regular
        with contextlib.suppress(OSError):
            self._sync_name()

    def _sync_name(self) -> None:
        if not self._name_synced:
            sync_directory(self._path)
            self._name_synced = True

    def _follow_rotation(self, coming: int) -> None:
        if self._out is None:
            self._open()
            return
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self._reopen()
            return
        if (found.st_dev, found.st_ino) != self._device_inode:
            self._reopen()
        elif self._out.regular and self._rotate_bytes and found.st_size and found.st_size + coming > self._rotate_bytes:
            self._rotate()

    def _reopen(self) -> None:
        before, out = self._descriptor, self._out
        self._open()
        if out is not None:
            if self._durable():
                try:
                    out.sync()
                except OSError as error:
                    self._unreported_error = error
            _close(out, before)

    def _rotate(self) -> None:
        try:
            # Only up to the first free number: `keep` may be a million, where all files are to stay.
            kept = 0
            while kept < self._keep - 1 and os.path.lexists(f"{self._path}.{kept + 1}"):
                kept += 1
            for number in range(kept, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.rename(self._path, f"{self._path}.1")
        except FileNotFoundError:
            self._reopen()  # somebody else has renamed it, a moment ago
            return
        except OSError as error:
            # An audit in one long file is better than none.
            if self._rotation_works:
                log.error("the audit's file cannot be rotated: %s", error.strerror)
            self._rotation_works = False
            return
        self._rotation_works = True
        self._reopen()


class _UnreadError(OSError):
    """A named pipe that nobody has opened for reading."""

    def __init__(self) -> None:
        super().__init__(errno.ENXIO, "nobody reads the pipe")


class _OutputDescriptor:
    """A descriptor, written to as far as it takes octets: a pipe's reader that stops is waited for once, for ``stall_s``.

    A pipe is opened anew, so that not waiting is this process's choice alone: ``O_NONBLOCK`` is shared by all holders of
    the same open file description. What cannot be opened anew (a socket, a terminal, another user's pipe, as a container's
    is) is written in pieces that it takes at once or not at all; each piece costs two turns of the interpreter's lock. An
    empty pipe takes all it can hold.
    """

    def __init__(self, descriptor: int, stall_s: float, *, reopen: bool = True) -> None:
        self._given = descriptor
        self._descriptor = descriptor
        mode = os.fstat(descriptor).st_mode
        self.regular = stat.S_ISREG(mode)
        self._most_write_bytes = None if self.regular else select.PIPE_BUF
        self._pipe_bytes = 0
        if stat.S_ISFIFO(mode):
            with contextlib.suppress(OSError, AttributeError):  # only Linux tells
                self._pipe_bytes = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
            with contextlib.suppress(OSError):
                if not reopen:
                    raise PermissionError
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._most_write_bytes = None
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)
        self._patience_ms = self._stall_ms = round(stall_s * 1000)

    def write(self, lines: bytes) -> int:
        """As ``Sink.write``."""
        left = memoryview(lines)
        taken = 0
        while taken < len(lines):
            if self._most_write_bytes is not None and not self._has_room():
                break
            try:
                taken += os.write(self._descriptor, left[taken : taken + self._size(len(lines))])
            except BlockingIOError:
                if not self._has_room():
                    break
            except OSError:
                if not taken:
                    raise
                break
        if not taken and lines:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return taken

    def _size(self, whole: int) -> int:
        """The size of the next piece."""
        if self._most_write_bytes is None:
            return whole
        if self._pipe_bytes and not int.from_bytes(
            fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)), sys.byteorder
        ):
            return self._pipe_bytes
        return self._most_write_bytes

    def _has_room(self) -> bool:
        """Whether there is room, or an error to find. A reader that stopped is not waited for again until it goes on."""
        ready = bool(self._poll.poll(self._patience_ms))
        self._patience_ms = self._stall_ms if ready else 0
        return ready

    def sync(self) -> None:
        _sync(self._descriptor)

    def was_emptied(self, *, removed: bool = False) -> bool:
        """Whether the file is empty; with ``removed``, also whether it has no name any more. A network file system reports
        ESTALE for such a file."""
        if not self.regular:
            return False
        try:
            found = os.fstat(self._descriptor)
        except OSError as error:
            return removed and error.errno == errno.ESTALE
        return not found.st_size or (removed and not found.st_nlink)

    def close(self) -> None:
        """Close what was opened here; the descriptor that was given stays open."""
        if self._descriptor != self._given:
            os.close(self._descriptor)


def _close(out: _OutputDescriptor, descriptor: int) -> None:
    out.close()
    os.close(descriptor)


def sync_directory(path: str) -> None:
    """Make a new name in the directory of ``path`` outlive a power cut, where that can be known. Raises OSError."""
    try:
        directory = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # it may be searched, but not read
        return
    try:
        _sync(directory)
    finally:
        os.close(directory)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCABLE:
            raise


def path_of(where: str) -> str:
    """The name under which a sink's end can be read if it is a file; empty for a sink that never is."""
    if where in _STREAMS:  # `>> file`, or systemd's `StandardOutput=append:`
        return f"/proc/self/fd/{_STREAMS[where]}"
    return where.removeprefix("file:") if where.startswith("file:") else ""


def open_sink(
    where: str, *, rotate_bytes: int = 0, keep: int = 1, torn_in: str = "", durable: Callable[[], bool] = bool
) -> Sink:
    """The sink that ``where`` names: ``stdout``, ``stderr`` or ``file:/path``; the rest as in ``FileSink``.

    Raises OSError if the file can't be opened.
    """
    if where in _STREAMS:
        return StreamSink(_STREAMS[where])  # not sys.stdout: something that took its place must not get the audit
    path = where.removeprefix("file:")
    return FileSink(path, rotate_bytes=rotate_bytes, keep=keep, torn_in=torn_in, durable=durable)


class Tail:
    """The end of what a sink holds already: its last whole line, and what a process that died left of another."""

    def __init__(
        self, line: bytes = b"", torn: bytes = b"", torn_in: str = "", before: frozenset[bytes] = frozenset()
    ) -> None:
        self.line = line
        self.torn = torn
        self.torn_in = torn_in
        """The file that holds ``torn``."""
        self.before = before
        """Some of the whole lines before the last one: where several processes write, that may be another's."""

    @property
    def mac(self) -> str:
        """The MAC of the last line, for the chain that continues there; empty if it has none."""
        return mac_of(self.line)


def read_tail(where: str) -> Tail:
    """How the sink ``where`` ends, if it is a file (if need be, the one before its last rotation), or a stream that is a
    file and may be read.

    Empty for every other sink.
    """
    path = path_of(where)
    if where in _STREAMS:
        with contextlib.suppress(OSError):
            return _tail_of(path)
    if not where.startswith("file:"):
        return Tail()
    tail = _tail_of(path)
    if tail.line:
        return tail
    before = _tail_of(f"{path}.1")
    if tail.torn:
        return Tail(before.line, tail.torn, tail.torn_in)
    # A torn line in a file that may not be written to is left as it is.
    return before if os.access(f"{path}.1", os.W_OK) else Tail(before.line)


def _tail_of(path: str) -> Tail:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # opening a pipe for reading would wait for its writer: for us
            return Tail()
        with open(path, "rb") as file:
            file.seek(max(0, found.st_size - _LONGEST_LINE))
            whole, _, torn = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return Tail()
    *before, line = whole.split(b"\n")
    return Tail(line, torn, path if torn else "", frozenset(before))
