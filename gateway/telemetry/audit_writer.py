"""The audit's thread: takes rendered lines from the event loop and gets them written, whatever the sink does.

    offer ─► queue ─► sink                    all is well
                 └──► spool ─► sink           it failed: what it did not take waits on disk, in order, until it does
                          └──► blocked        no room on disk either: lines wait in memory, then are refused and counted

Lines are linked and offered only after a check that there is room, so the chain never misses a line that found none.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from .sinks import Sink, Tail
from .spool import Spool

log = logging.getLogger("gateway.audit")

RETRY_S = 1.0
"""How often a sink that failed is tried again when there is nothing new to write."""

CLAIM_PAUSE_S = 5.0
"""How often the writer looks for lines that another process left on disk when it ended."""

QUEUE_BYTES = 16 << 20
"""How many octets of lines may wait in memory."""

REWRITE_PAUSE_S = 60.0
"""How often, at most, lines are written again because the sink could not be synced: a disk that never can be would fill
up with them."""

ROOM_BYTES = 1 << 16
"""Less room than this counts as none: the lines of requests in progress are still to come."""

PATIENCE_S = 5.0
"""How long a request waits for its line to be on disk, and the process for its last lines."""

_STALLS = "it stalls"


class _Offered(msgspec.Struct, frozen=True):
    lines: bytes
    on_durable: Callable[[bool], object] | None = None


class AuditWriter:
    """Writes lines in a thread, which starts at once.

    Args:
        sink: Where lines go.
        spool: Where lines wait while the sink fails; None: what the sink does not take is lost and counted.
        partial_line: What the sink holds of a line that another process left unfinished.
        torn: Octets to write before all others: they end that line if its rest is lost.
        tail: Reads how the sink ends at that moment, of whole lines only.
        durable: Whether lines were promised to outlive a power cut: then they stay in the spool until the sink's do so.
        queue_bytes: As ``QUEUE_BYTES``.
        retry_s: As ``RETRY_S``.
        claim_pause_s: As ``CLAIM_PAUSE_S``.
        rewrite_pause_s: As ``REWRITE_PAUSE_S``.
        patience_s: As ``PATIENCE_S``.
    """

    def __init__(
        self,
        sink: Sink,
        spool: Spool | None = None,
        *,
        partial_line: bytes = b"",
        torn: bytes = b"",
        tail: Callable[[], Tail] = Tail,
        durable: bool = False,
        queue_bytes: int = QUEUE_BYTES,
        retry_s: float = RETRY_S,
        claim_pause_s: float = CLAIM_PAUSE_S,
        rewrite_pause_s: float = REWRITE_PAUSE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._sink = sink
        self._spool = spool
        self._held = b""
        self._line_end_due = torn
        self._queue_bytes = queue_bytes
        self._tail = tail
        self.durable = durable
        self._retry_s = retry_s
        self._claim_pause_s = claim_pause_s if spool is not None else None
        self._claim_at = 0.0
        self._rewrite_pause_s = rewrite_pause_s
        self._rewrite_at = 0.0
        self._patience_s = patience_s
        self._queue: deque[_Offered] = deque()
        self._queued = 0
        self._stuck = False
        """Whether what is held fits nowhere: neither sink nor spool took it."""
        self._partial_line = partial_line
        """The last octets in the sink, if they do not end a line."""
        self._sink_took_all = True
        """Whether the sink took everything the last time."""
        self._spool_failure_logged = False
        """Whether the log has reported that the spool fails: once, until nothing waits there."""
        self._unsynced = False
        """Whether the sink took something since it was last to be synced."""
        self.sync_failing = False
        """Whether the sink could not be synced the last time."""
        self._doubted = spool is not None and spool.used_bytes > 0
        """Whether the sink may hold something that outlives a power cut only in the spool: it could not be synced, or
        another process, which may have promised that, wrote it."""
        self._busy_since: float | None = None
        """When the thread began what it is doing; None while it waits."""
        self._closing = False
        self._changed = threading.Condition()
        self.failing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def has_spool(self) -> bool:
        """Whether what the sink does not take is kept on disk."""
        return self._spool is not None

    @property
    def spooled_bytes(self) -> int:
        """How many octets wait on disk."""
        return self._spool.waiting_bytes if self._spool is not None else 0

    @property
    def blocked(self) -> bool:
        """Whether there is nowhere left to put lines: then requests that change something must not go up."""
        return self._spool is not None and (self._stuck or not self.has_room(ROOM_BYTES))

    @property
    def is_hanging(self) -> bool:
        """Whether the sink or the spool's disk has not returned for longer than anybody waits (on a network file system
        whose server is away)."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > self._patience_s

    # The event loop's side

    def has_room(self, size: int) -> bool:
        """Whether ``size`` octets may be offered. Checked before lines are linked, so that refused ones leave no gap."""
        if self._queued + len(self._held) + size > self._queue_bytes:
            return False
        spool = self._spool
        if spool is None or not self.failing:
            return True
        return spool.used_bytes + self._queued + size <= spool.max_bytes

    def offer(self, lines: bytes, on_durable: Callable[[bool], object] | None = None) -> None:
        """Queue ``lines``; never blocks. The thread calls ``on_durable`` with whether they outlive a power cut."""
        with self._changed:
            self._queue.append(_Offered(lines, on_durable))
            self._queued += len(lines)
            self._changed.notify()

    async def write_durably(self, lines: bytes) -> bool:
        """Queue ``lines``, and wait until they outlive the process and a power cut; False: they may not."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[bool] = loop.create_future()

        def on_durable(done: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(_resolve_future, written, done)

        self.offer(lines, on_durable)
        try:
            async with asyncio.timeout(self._patience_s):
                return await written
        except TimeoutError:
            return False

    def close(self) -> None:
        """Stop once all that was offered is written or on disk; blocks for at most 5 s. What waits on disk stays there."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            log.error("the audit sink does not return: its last lines may be lost")
            return
        if self._held:
            log.error("%d audit lines found no room and are lost with the process", self._held.count(b"\n"))
        try:
            self._sink.close()
        except OSError as error:  # a network file system may report only now what its server did not take
            log.error("the audit sink fails: %s", error.strerror)
        if self._spool is not None:
            with contextlib.suppress(OSError):
                self._spool.close()

    # The thread's side

    def _run(self) -> None:
        over = False
        while not over:
            offered, over = self._next()
            self._busy_since = time.monotonic()
            written = self._write(b"".join([one.lines for one in offered]))
            callbacks = [one.on_durable for one in offered if one.on_durable is not None]
            if callbacks:
                written = written and self._sync()
                for on_durable in callbacks:
                    on_durable(written)
            if not over:
                self._claim_leftovers()
            self._busy_since = None

    def _next(self) -> tuple[list[_Offered], bool]:
        """What was offered since the last call, and whether it is the last. It counts as queued until it is written."""
        with self._changed:
            if not self._closing and (self._stuck or not self._queue):
                self._changed.wait(self._retry_s if self._has_backlog() or self.sync_failing else self._claim_pause_s)
            if self._stuck and not self._closing:
                return [], False  # new lines wait in the queue, behind what is held
            offered = list(self._queue)
            self._queue.clear()
            return offered, self._closing

    def _write(self, lines: bytes) -> bool:
        """Write the backlog, then ``lines``. Returns whether these are in the sink, or on disk in their order."""
        lost = self.dropped
        self._check_sink()
        self._check_spool()
        self._write_backlog()
        self._keep(lines if self._has_backlog() else lines[self._push(lines) :])
        with self._changed:
            self._queued -= len(lines)
        if self.failing and self._sink_took_all and not self._has_backlog():
            self.failing = False
            log.warning("the audit sink takes lines again")
        return not self._held and self.dropped == lost

    def _check_sink(self) -> None:
        """Begin a line anew if the sink had part of it and was emptied, by a rotation or an operator who needs the room."""
        if not self._partial_line or not self._sink.was_emptied():
            return
        if self._line_end_due:
            self._line_end_due = b""
        elif self._spool is not None and self._spool.waiting_bytes:
            self._spool.rewind(len(self._partial_line))
        else:
            self._held = self._partial_line + self._held
        self._partial_line = b""

    def _check_spool(self) -> None:
        """Find out whether the spool was cut by an operator who needs the room."""
        if self._spool is None:
            return
        try:
            gone = self._spool.detect_truncation()
        except OSError as error:
            self._log_spool_failure(error)
            return
        if not self._spool.waiting_bytes:
            self._spool_failure_logged = False
        if gone:
            log.error("somebody truncated the audit's spool: %d octets that waited there are lost", gone)
            if self._partial_line and not self._line_end_due and not self._spool.waiting_bytes:
                self._line_end_due = b"\n"  # the rest of the line that the sink has begun is among them

    def _log_spool_failure(self, error: OSError) -> None:
        if not self._spool_failure_logged:
            log.error("the audit's spool fails: %s", error.strerror)
        self._spool_failure_logged = True

    def _claim_leftovers(self) -> None:
        """Write what another process left, once all lines of our own are written: after a whole line, and only while the
        sink takes lines."""
        spool, now = self._spool, time.monotonic()
        if (
            spool is None
            or now < self._claim_at
            or self.failing
            or self._has_backlog()
            or self._partial_line
            or spool.used_bytes
        ):
            return
        self._claim_at = now + (self._claim_pause_s or 0.0)
        with contextlib.suppress(OSError):  # reported once the spool is needed for lines of our own
            spool.claim()
        if not spool.waiting_bytes:
            return
        log.warning(
            "the audit's spool holds %d octets of a process that has ended: they are written now", spool.waiting_bytes
        )
        self._doubted = True
        try:
            spool.resume(self._tail())
        except OSError as error:
            log.error("the audit's spool fails: %s", error.strerror)
        self._write_backlog()

    def _has_backlog(self) -> bool:
        """Whether something must be written before anything new."""
        return bool(self._line_end_due or self._held) or self.spooled_bytes > 0

    def _write_backlog(self) -> None:
        """Write as much of the backlog as the sink takes, but stop in time for what is new."""
        if not self._end_line():
            return
        spool = self._spool
        while spool is not None and spool.waiting_bytes:
            try:
                octets = spool.peek()
                taken = self._push(octets)
                spool.advance(taken)
            except OSError as error:
                self._log_spool_failure(error)
                self.failing = True  # as if the sink had failed: what comes after those needs room in the spool
                return
            if self._partial_line and not spool.waiting_bytes:
                self._line_end_due = b"\n"  # somebody cut it within a line, and there was no room to end that line
            if not octets or taken < len(octets) or self._queue or self._closing:
                break  # no octets: somebody has just cut the spool
        self._empty_spool()
        if self._end_line() and self._held and not self.spooled_bytes:
            self._held = self._held[self._push(self._held) :]
        self._keep(b"")

    def _end_line(self) -> bool:
        """End the line in the sink whose rest is lost, if there is one. Returns whether none is left."""
        self._line_end_due = self._line_end_due[self._push(self._line_end_due) :]
        return not self._line_end_due

    def _empty_spool(self) -> None:
        """Empty the spool if the sink has all of it, and, where that was promised, for good; else retry in the next round.

        The sync is retried even if nothing is spooled: the sink's state must not stay unknown until a request changes
        something.
        """
        spool = self._spool
        if self.spooled_bytes or not (self.sync_failing or (spool is not None and spool.used_bytes)):
            return
        # The rest of a line that the sink has begun is held.
        not_yet = spool is not None and spool.doubted and (self._partial_line or time.monotonic() < self._rewrite_at)
        if not_yet and not self.sync_failing:
            return
        self._unsynced = self._unsynced or self._doubted
        if ((self.durable or self._doubted) and not self._sync_sink()) or spool is None or not_yet:
            return
        with contextlib.suppress(OSError):
            spool.empty()
            if self.durable:
                spool.sync()  # else a power cut would bring it back, and again lines that are rotated away by now
        if spool.waiting_bytes:
            self._rewrite_at = time.monotonic() + self._rewrite_pause_s
            log.warning(
                "lines the audit sink accepted before a failed fsync are written again: %d octets", spool.waiting_bytes
            )

    def _push(self, octets: bytes) -> int:
        """Write ``octets`` to the sink. Returns how many it took."""
        if not octets:
            return 0
        self._busy_since = time.monotonic()  # for each piece: a long spool takes time, and is no hang
        taken, why = self._try_sink(octets)
        if 0 < taken < len(octets) and not self.failing:
            # What stopped it midway shows only at the next try. A reader that stalls is not waited for twice.
            more, why = self._try_sink(octets[taken:])
            taken += more
        if taken:
            self._unsynced = True
            end = octets.rfind(b"\n", 0, taken) + 1
            self._partial_line = octets[end:taken] if end else self._partial_line + octets[:taken]
        self._sink_took_all = taken == len(octets)
        if not self._sink_took_all and not self.failing:
            self.failing = True
            log.error("the audit sink fails: %s", why)
        return taken

    def _try_sink(self, octets: bytes) -> tuple[int, str]:
        """How many octets the sink took, and why not all of them."""
        try:
            return self._sink.write(octets), _STALLS
        except BlockingIOError as error:
            return 0, _STALLS if error.strerror == os.strerror(errno.EAGAIN) else _why(error)
        except (OSError, ValueError) as error:
            return 0, _why(error)

    def _keep(self, octets: bytes) -> None:
        """Keep what the sink did not take, behind what is held already."""
        octets = self._held + octets
        self._held = b""
        if not octets:
            self._stuck = False
        elif self._spool is None:
            # Only the rest of a line that was cut short stays: that line must be ended before another begins.
            self._held = octets[: octets.index(b"\n") + 1] if self._partial_line and not self._line_end_due else b""
            self.dropped += octets.count(b"\n", len(self._held))
        else:
            self._check_spool()  # again: the sink may have taken long, and after a cut these would pass for what is gone
            try:
                self._spool.append(octets, b"" if self._line_end_due else self._partial_line)
                self._stuck = False
            except OSError as error:
                if not self._stuck:
                    log.error("the audit's spool fails: %s", error.strerror)
                self._held, self._stuck = octets, True

    def _sync(self) -> bool:
        """Sync sink and spool: either may hold some of what was offered. Returns whether all of it outlives a power cut."""
        done = self._sync_sink()
        try:
            if self._spool is not None and self._spool.waiting_bytes:
                self._spool.sync()
        except OSError as error:
            return _not_durable(error)
        return done

    def _sync_sink(self) -> bool:
        """Sync the sink. Returns whether what it took since it was last to be synced outlives a power cut."""
        if not self._unsynced:
            return True
        self._unsynced = False  # even if it fails, which is reported once: later lines are no worse for that
        try:
            self._sink.sync()
        except OSError as error:
            if not self.sync_failing:
                _not_durable(error)
            self.sync_failing = self._doubted = True
            if self._spool is not None:
                self._spool.doubt()  # Linux drops what it could not write, and reports success when asked again
            return False
        if self.sync_failing:
            log.warning("the audit can be synced to disk again")
        self.sync_failing = False
        self._doubted = self._spool is not None and self._spool.doubted
        return True


def _not_durable(error: OSError) -> bool:
    log.error("the audit cannot be synced to disk: %s", error.strerror)
    return False


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _resolve_future(future: asyncio.Future[bool], done: bool) -> None:
    if not future.done():
        future.set_result(done)
