"""One sink for several processes: each writes when it is its turn, and whole lines only.

A turn is a lock on a file that all of them have open. It is kept across writes while a line is half written, however long
that takes. The system ends it with the process that had it, and the next process to write ends the line that was cut short.
Whether there is such a line shows at the sink's end if the sink is a file. For a pipe, the file of the turns shows it: its
one octet is 1 while a process writes.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable

from .sinks import STALL_S, Sink

_POLL_S = 0.002
_LINE_END = ord("\n")


class TurnSink:
    """A sink that other processes write to as well.

    Args:
        sink: What all of them write to.
        turns: A descriptor of the file to lock, inherited by every process: ``lockf`` locks belong to a process, not to
            the open file.
        path: The sink's own file, if it has one: it shows whether the last line is whole.
        patience_s: How long a turn is waited for: once, and not again until one was had, as with a sink that stalls.
        sleep: Called between two attempts to get a turn.
    """

    def __init__(
        self,
        sink: Sink,
        turns: int,
        *,
        path: str = "",
        patience_s: float = STALL_S,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._sink = sink
        self._turns = turns
        self._path = path
        self._patience_s = self._waits_s = patience_s
        self._sleep = sleep
        self._holds_lock = self._mid_line = False
        if not os.fstat(turns).st_size:
            os.ftruncate(turns, 1)
        self._dirty_flag = mmap.mmap(turns, 1)

    def write(self, lines: bytes) -> int:
        if not self._holds_lock:
            self._acquire()
        taken = 0
        self._dirty_flag[0] = 1  # first: the process may be killed within
        try:
            taken = self._sink.write(lines)
        finally:
            # If nothing was taken, the line is as it was: whole, if the turn is new.
            self._mid_line = lines[taken - 1] != _LINE_END if taken else self._mid_line
            if not self._mid_line:
                self._dirty_flag[0] = 0
                self._release()
        return taken

    def sync(self) -> None:
        self._sink.sync()

    def was_emptied(self) -> bool:
        return self._sink.was_emptied()

    def close(self) -> None:
        """Close the sink. The descriptor of the turns is the process's, and stays open: another sink may yet need it."""
        self._sink.close()
        if self._holds_lock:
            self._release()

    def _acquire(self) -> None:
        waited_s = 0.0
        while True:
            try:
                fcntl.lockf(self._turns, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in {errno.EAGAIN, errno.EACCES}:
                    raise
            if waited_s >= self._waits_s:
                self._waits_s = 0.0
                raise BlockingIOError(errno.EAGAIN, "another process is in the middle of a line")
            self._sleep(_POLL_S)
            waited_s += _POLL_S
        self._waits_s = self._patience_s
        self._holds_lock, self._mid_line = True, False
        try:
            if self._is_mid_line():
                self._sink.write(b"\n")  # the process that was writing has died, or left
        except OSError:
            self._release()
            raise

    def _is_mid_line(self) -> bool:
        whole = _is_whole(self._path) if self._path else None
        return self._dirty_flag[0] == 1 if whole is None else not whole

    def _release(self) -> None:
        fcntl.lockf(self._turns, fcntl.LOCK_UN)
        self._holds_lock = False


def _is_whole(path: str) -> bool | None:
    """Whether the file ends with the end of a line; None: it is not a regular file that can be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb", buffering=0) as file:
            return not file.seek(0, os.SEEK_END) or os.pread(file.fileno(), 1, file.tell() - 1) == b"\n"
    except FileNotFoundError:
        return True
    except OSError:
        return None
