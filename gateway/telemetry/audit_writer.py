"""The audit's thread: takes rendered lines from the event loop and sees them written, whatever the sink does.

    offer ─► queue ─► sink                    all is well
                 └──► spool ─► sink           it failed: what it did not take waits on disk, in order, until it takes it
                          └──► blocked        no room on disk either: lines wait in memory, then are refused and counted

Whoever offers asks first whether there is room, and links only then: the chain never misses a line that found none.
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
"""How often a sink that failed is tried when there is nothing new to write."""

LOOK_S = 5.0
"""How often it is looked for lines that a process which has ended left on disk."""

QUEUE_BYTES = 16 << 20
"""Lines that wait for the thread."""

AGAIN_S = 60.0
"""What the sink could not be synced of is not written again more often: a disk that is never sure would be full of it."""

ROOM_BYTES = 1 << 16
"""Less room than this is none: the lines of requests in progress are still to come."""

PATIENCE_S = 5.0
"""How long a request waits for its line to be on disk, and the process for its last lines."""

_STALLS = "it stalls"


class _Offered(msgspec.Struct, frozen=True):
    lines: bytes
    durable: Callable[[bool], object] | None = None


class AuditWriter:
    """One thread, started at once.

    Args:
        sink: Where lines go.
        spool: Where they wait while it fails; None: what it does not take is lost and counted.
        begun: What the sink holds of a line that another process cut short.
        torn: Octets to write before all others, to end it where its rest is lost.
        tail: How the sink ends, when it is asked; its last whole line alone.
        durable: What waits on disk was promised to outlive a power cut: it leaves there when the sink's does.
        queue_bytes: As ``QUEUE_BYTES``.
        retry_s: As ``RETRY_S``.
        look_s: As ``LOOK_S``.
        again_s: As ``AGAIN_S``.
        patience_s: As ``PATIENCE_S``.
    """

    def __init__(
        self,
        sink: Sink,
        spool: Spool | None = None,
        *,
        begun: bytes = b"",
        torn: bytes = b"",
        tail: Callable[[], Tail] = Tail,
        durable: bool = False,
        queue_bytes: int = QUEUE_BYTES,
        retry_s: float = RETRY_S,
        look_s: float = LOOK_S,
        again_s: float = AGAIN_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._sink = sink
        self._spool = spool
        self._hand = b""
        self._torn = torn
        self._queue_bytes = queue_bytes
        self._tail = tail
        self.durable = durable
        self._retry_s = retry_s
        self._look_s = look_s if spool is not None else None
        self._look_at = 0.0
        self._again_s = again_s
        self._again_at = 0.0
        self._patience_s = patience_s
        self._queue: deque[_Offered] = deque()
        self._queued = 0
        self._stuck = False
        """What is in hand fits nowhere."""
        self._begun = begun
        """The sink's last octets, where they end no line."""
        self._took = True
        """The sink's answer, last time it was asked."""
        self._spool_told = False
        """That the spool fails; once until nothing waits there."""
        self._unsynced = False
        """It took something since it was to be synced."""
        self.unsure = False
        """It could not be synced, last time."""
        self._doubted = spool is not None and spool.used > 0
        """So, or by another process, which may have promised it, something may be in the sink that does not outlive a power
        cut but in the spool."""
        self._since: float | None = None
        """When it began what it is at."""
        self._closing = False
        self._changed = threading.Condition()
        self.failing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def spools(self) -> bool:
        """What the sink does not take is kept."""
        return self._spool is not None

    @property
    def spooled_bytes(self) -> int:
        """What waits on disk."""
        return self._spool.waiting if self._spool is not None else 0

    @property
    def blocked(self) -> bool:
        """There is nowhere left to put lines: what changes something must not go up."""
        return self._spool is not None and (self._stuck or not self.has_room(ROOM_BYTES))

    @property
    def hangs(self) -> bool:
        """Longer than anybody waits: the sink, or the spool's disk, does not return (a network's, whose server is away)."""
        since = self._since
        return since is not None and time.monotonic() - since > self._patience_s

    # The event loop's side

    def has_room(self, size: int) -> bool:
        """Whether so many octets could be offered. Asked before lines are linked: what is refused leaves no gap."""
        if self._queued + len(self._hand) + size > self._queue_bytes:
            return False
        spool = self._spool
        if spool is None or not self.failing:
            return True
        return spool.used + self._queued + size <= spool.max_bytes

    def offer(self, lines: bytes, durable: Callable[[bool], object] | None = None) -> None:
        """Take them; never blocks. ``durable`` is told, from the thread, whether they outlive a power cut."""
        with self._changed:
            self._queue.append(_Offered(lines, durable))
            self._queued += len(lines)
            self._changed.notify()

    async def settle(self, lines: bytes) -> bool:
        """Take them, and say when they outlive the process and a power cut; False: they may not."""
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[bool] = loop.create_future()

        def tell(done: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(_settle, settled, done)

        self.offer(lines, tell)
        try:
            async with asyncio.timeout(self._patience_s):
                return await settled
        except TimeoutError:
            return False

    def close(self) -> None:
        """Stop when what was offered is written or on disk; blocks, at most 5 s. What waits on disk stays there."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            log.error("the audit sink does not return: its last lines may be lost")
            return
        if self._hand:
            log.error("%d audit lines found no room and are lost with the process", self._hand.count(b"\n"))
        try:
            self._sink.close()
        except OSError as error:  # a network's file system says only now what its server did not take
            log.error("the audit sink fails: %s", error.strerror)
        if self._spool is not None:
            with contextlib.suppress(OSError):
                self._spool.close()

    # The thread's side

    def _run(self) -> None:
        over = False
        while not over:
            offered, over = self._next()
            self._since = time.monotonic()
            written = self._write(b"".join([one.lines for one in offered]))
            told = [one.durable for one in offered if one.durable is not None]
            if told:
                written = written and self._sync()
                for tell in told:
                    tell(written)
            if not over:
                self._look()
            self._since = None

    def _next(self) -> tuple[list[_Offered], bool]:
        """What was offered since, counted as queued until it is written, and whether it is the last."""
        with self._changed:
            if not self._closing and (self._stuck or not self._queue):
                self._changed.wait(self._retry_s if self._owed() or self.unsure else self._look_s)
            if self._stuck and not self._closing:
                return [], False  # what is new waits in the queue, behind what is in hand
            offered = list(self._queue)
            self._queue.clear()
            return offered, self._closing

    def _write(self, lines: bytes) -> bool:
        """Whether these are where they belong, or on disk in their order."""
        lost = self.dropped
        self._see_to_sink()
        self._see_to_spool()
        self._recover()
        self._keep(lines if self._owed() else lines[self._push(lines) :])
        with self._changed:
            self._queued -= len(lines)
        if self.failing and self._took and not self._owed():
            self.failing = False
            log.warning("the audit sink takes lines again")
        return not self._hand and self.dropped == lost

    def _see_to_sink(self) -> None:
        """An operator who needs the room may have emptied it, or a rotation: a line that it had a part of begins anew."""
        if not self._begun or not self._sink.emptied():
            return
        if self._torn:
            self._torn = b""
        elif self._spool is not None and self._spool.waiting:
            self._spool.take_back(len(self._begun))
        else:
            self._hand = self._begun + self._hand
        self._begun = b""

    def _see_to_spool(self) -> None:
        """An operator who needs the room may have cut it."""
        if self._spool is None:
            return
        try:
            gone = self._spool.cut()
        except OSError as error:
            self._spool_fails(error)
            return
        if not self._spool.waiting:
            self._spool_told = False
        if gone:
            log.error("somebody cut the audit's spool: %d octets that waited there are lost", gone)
            if self._begun and not self._torn and not self._spool.waiting:
                self._torn = b"\n"  # the rest of that line is among them

    def _spool_fails(self, error: OSError) -> None:
        if not self._spool_told:
            log.error("the audit's spool fails: %s", error.strerror)
        self._spool_told = True

    def _look(self) -> None:
        """Write what another left, once all of our own is written: behind a whole line, and while the sink takes lines."""
        spool, now = self._spool, time.monotonic()
        if spool is None or now < self._look_at or self.failing or self._owed() or self._begun or spool.used:
            return
        self._look_at = now + (self._look_s or 0.0)
        with contextlib.suppress(OSError):  # told where it is needed for lines of our own
            spool.claim()
        if not spool.waiting:
            return
        log.warning("the audit's spool holds %d octets of a process that has ended: they are written now", spool.waiting)
        self._doubted = True
        try:
            spool.resume(self._tail())
        except OSError as error:
            log.error("the audit's spool fails: %s", error.strerror)
        self._recover()

    def _owed(self) -> bool:
        """Something waits to be written before anything new is."""
        return bool(self._torn or self._hand) or self.spooled_bytes > 0

    def _recover(self) -> None:
        """As much of what is owed as the sink takes, and in time to look at what is new."""
        if not self._end_line():
            return
        spool = self._spool
        while spool is not None and spool.waiting:
            try:
                octets = spool.peek()
                taken = self._push(octets)
                spool.drop(taken)
            except OSError as error:
                self._spool_fails(error)
                self.failing = True  # the sink, for all that comes behind those: there must be room for that
                return
            if self._begun and not spool.waiting:
                self._torn = b"\n"  # somebody cut it within a line, and it found no room to end that
            if not octets or taken < len(octets) or self._queue or self._closing:
                break  # the first where somebody has just cut it
        self._empty_spool()
        if self._end_line() and self._hand and not self.spooled_bytes:
            self._hand = self._hand[self._push(self._hand) :]
        self._keep(b"")

    def _end_line(self) -> bool:
        """Whether none is left in the sink whose rest is lost."""
        self._torn = self._torn[self._push(self._torn) :]
        return not self._torn

    def _empty_spool(self) -> None:
        """When the sink has all of it, for good where that was promised; else it is tried again with the next round.

        So it is where nothing is kept: whoever asks how the sink is doing must not have to wait for a change to find out.
        """
        spool = self._spool
        if self.spooled_bytes or not (self.unsure or (spool is not None and spool.used)):
            return
        # The rest of what is begun is in hand.
        not_yet = spool is not None and spool.doubted and (self._begun or time.monotonic() < self._again_at)
        if not_yet and not self.unsure:
            return
        self._unsynced = self._unsynced or self._doubted
        if ((self.durable or self._doubted) and not self._sync_sink()) or spool is None or not_yet:
            return
        with contextlib.suppress(OSError):
            spool.empty()
            if self.durable:
                spool.sync()  # a power cut would bring it back, and lines twice that are rotated away by now
        if spool.waiting:
            self._again_at = time.monotonic() + self._again_s
            log.warning("what the audit sink took while it could not be synced is written again: %d octets", spool.waiting)

    def _push(self, octets: bytes) -> int:
        """How many the sink took."""
        if not octets:
            return 0
        self._since = time.monotonic()  # a long spool is on its way
        taken, why = self._asked(octets)
        if 0 < taken < len(octets) and not self.failing:
            # What stopped it on the way is not said before the next try. A reader who stalls is not waited for twice.
            more, why = self._asked(octets[taken:])
            taken += more
        if taken:
            self._unsynced = True
            end = octets.rfind(b"\n", 0, taken) + 1
            self._begun = octets[end:taken] if end else self._begun + octets[:taken]
        self._took = taken == len(octets)
        if not self._took and not self.failing:
            self.failing = True
            log.error("the audit sink fails: %s", why)
        return taken

    def _asked(self, octets: bytes) -> tuple[int, str]:
        """How many the sink took, and why not all of them."""
        try:
            return self._sink.write(octets), _STALLS
        except BlockingIOError as error:
            return 0, _STALLS if error.strerror == os.strerror(errno.EAGAIN) else _why(error)
        except (OSError, ValueError) as error:
            return 0, _why(error)

    def _keep(self, octets: bytes) -> None:
        """What the sink did not take, behind what is in hand already."""
        octets = self._hand + octets
        self._hand = b""
        if not octets:
            self._stuck = False
        elif self._spool is None:
            # The rest of a line that was cut: it must be ended before another begins.
            self._hand = octets[: octets.index(b"\n") + 1] if self._begun and not self._torn else b""
            self.dropped += octets.count(b"\n", len(self._hand))
        else:
            self._see_to_spool()  # again: the sink may have taken long, and behind what is gone these would be taken for it
            try:
                self._spool.append(octets, b"" if self._torn else self._begun)
                self._stuck = False
            except OSError as error:
                if not self._stuck:
                    log.error("the audit's spool fails: %s", error.strerror)
                self._hand, self._stuck = octets, True

    def _sync(self) -> bool:
        """Whether all that was offered outlives a power cut: some of it may be in the sink, and the rest in the spool."""
        done = self._sync_sink()
        try:
            if self._spool is not None and self._spool.waiting:
                self._spool.sync()
        except OSError as error:
            return _not_durable(error)
        return done

    def _sync_sink(self) -> bool:
        """Whether it has what it took."""
        if not self._unsynced:
            return True
        self._unsynced = False  # once told that it may not: later lines are no worse for that
        try:
            self._sink.sync()
        except OSError as error:
            if not self.unsure:
                _not_durable(error)
            self.unsure = self._doubted = True
            if self._spool is not None:
                self._spool.doubt()  # Linux drops what it could not write, and says that all is well when asked again
            return False
        if self.unsure:
            log.warning("the audit can be made durable again")
        self.unsure = False
        self._doubted = self._spool is not None and self._spool.doubted
        return True


def _not_durable(error: OSError) -> bool:
    log.error("the audit cannot be made durable: %s", error.strerror)
    return False


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _settle(settled: asyncio.Future[bool], done: bool) -> None:
    if not settled.done():
        settled.set_result(done)
