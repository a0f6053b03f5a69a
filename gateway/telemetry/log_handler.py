"""The operator's log, written to where a reader may stop reading or a disk may be full: a pipe, a socket, a terminal, a
file. A thread of its own waits for the reader.

    emit ─► queue ─► thread ─► descriptor

Code that logs waits until its line is written, so that none is missing after a crash, but only for a moment of each second:
beyond that, lines wait in the queue. Those that find no room there are dropped and counted, and the log says how many.

Why a thread? ``O_NONBLOCK`` is shared by all holders of the same open file description, perhaps a shell. And it does not
help to ask whether there is room: other processes write to the same pipe between the question and the write.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from collections import deque
from typing import TextIO

QUEUE_BYTES = 256 << 10
"""How many octets of lines may wait for a reader."""
EMIT_WAIT_S = 0.05
"""How long code that logs waits for its lines to be written, in total per second."""
STALL_S = 0.5
"""At exit: a reader that takes nothing for this long is not waited for."""
EXIT_S = 2.0
"""At exit: how long a reader that takes one line after the other is waited for."""
_UNREAD = "nobody read it"
_LINE_END = 0x0A


def handler_for(stream: TextIO) -> logging.Handler:
    """A handler that writes to ``stream`` and does not hold up the code that logs."""
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # a stream in memory
        return logging.StreamHandler(stream)
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode) or os.isatty(descriptor):
        return PatientHandler(descriptor)
    return logging.StreamHandler(stream)


class PatientHandler(logging.Handler):
    """Writes to a descriptor that somebody else opened, and leaves it open.

    Args:
        descriptor: Where to write.
        queue_bytes: As ``QUEUE_BYTES``.
        emit_wait_s: As ``EMIT_WAIT_S``.
        stall_s: As ``STALL_S``.
        exit_s: As ``EXIT_S``.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        queue_bytes: int = QUEUE_BYTES,
        emit_wait_s: float = EMIT_WAIT_S,
        stall_s: float = STALL_S,
        exit_s: float = EXIT_S,
    ) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._queue_bytes = queue_bytes
        self._emit_wait_s = emit_wait_s
        self._stall_s = stall_s
        self._exit_s = exit_s
        self._queue: deque[bytes] = deque()
        """The lines that wait; the first of them is being written."""
        self._queued = 0
        self._unreported = 0
        """How many of the dropped lines the log has not reported yet."""
        self._full = False
        """Whether lines are dropped until the queue is empty: then all are missing in one place, where the log says so."""
        self._since = self._waited_s = 0.0
        """When the present second began, and how long lines have been waited for in it."""
        self._is_writable = True
        """Whether the descriptor took what was written last."""
        self._drop_reason = _UNREAD
        """Why lines were last dropped."""
        self._mid_line = False
        """Whether what the descriptor took last ends in the middle of a line."""
        self._closing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 — as every handler of the library does
            self.handleError(record)
            return
        with self._changed:
            if not self._full and self._queue and self._queued + len(line) > self._queue_bytes:
                self._full, self._drop_reason = True, _UNREAD
            if self._full or self._closing:
                self._count_dropped()
                return
            self._queue.append(line)
            self._queued += len(line)
            self._changed.notify_all()
            began = time.monotonic()
            if began >= self._since + 1.0:
                self._since, self._waited_s = began, 0.0
            if self._waited_s < self._emit_wait_s:
                self._changed.wait_for(lambda: not self._queue, self._emit_wait_s - self._waited_s)
                self._waited_s += time.monotonic() - began

    def flush(self) -> None:
        """Wait until everything is written, as long as somebody reads, but not for long."""
        until = time.monotonic() + self._exit_s
        with self._changed:
            while self._has_pending():
                if time.monotonic() > until or not self._changed.wait(self._stall_s):
                    return

    def close(self) -> None:
        """Let the thread end once everything is written, or with the process."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode("utf-8", "backslashreplace")

    def _count_dropped(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _has_pending(self) -> bool:
        """Whether something has yet to be written."""
        return bool(self._queue or (self._unreported and self._is_writable))

    # The thread's side

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_pending() and not self._closing:
                    self._changed.wait()
                if not self._has_pending():
                    return
                line = self._queue[0] if self._queue else b""
                reported = 0 if self._full else self._unreported
            takes = self._write((self._notice(reported) if reported else b"") + line)
            with self._changed:
                self._is_writable = takes
                if line:
                    self._queue.popleft()
                    self._queued -= len(line)
                if takes:
                    self._unreported -= reported
                elif line:
                    self._count_dropped()
                if not self._queue:
                    self._full = False
                self._changed.notify_all()

    def _notice(self, count: int) -> bytes:
        words = "%d lines of this log were dropped: %s"
        return self._line(
            logging.LogRecord("gateway.log", logging.WARNING, __file__, 0, words, (count, self._drop_reason), None)
        )

    def _write(self, octets: bytes) -> bool:
        """Write ``octets``, however long that takes. Returns whether all were taken."""
        left = memoryview(b"\n" + octets if self._mid_line else octets)
        while left:
            try:
                taken = os.write(self._descriptor, left)
                self._mid_line = left[taken - 1] != _LINE_END if taken else self._mid_line
                left = left[taken:]
            except BlockingIOError:  # another holder of the description has asked for that
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError as error:
                self._drop_reason = error.strerror or _UNREAD
                return False
        return True
