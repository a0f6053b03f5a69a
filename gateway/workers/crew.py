"""The workers of one configuration: starts them, restarts those that end, tells all of them to leave.

The first worker is started alone: what keeps a gateway from starting is told once, by it. From then on a worker that ends
unasked is restarted, after a pause that depends on how long it lived; if none can be started at all, the crew gives up, so
that whoever watches the gateway sees that, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator

import msgspec

from ..config import Config
from ..config.given import Given
from .connection_counts import ConnectionCounts
from .line import (
    Answers,
    Ask,
    Begin,
    Farewell,
    Leave,
    Line,
    Message,
    Ready,
    Reload,
    Reply,
    Retire,
    Staff,
    ToSupervisor,
    at_supervisor,
    open_line,
)
from .switchboard import ALIVE, FIGURES, Switchboard

log = logging.getLogger("gateway.workers")

FAILED = 1
_LONG_S = 10.0
"""A worker that lived for so long is restarted after the first pause."""
PAUSES_S = (0.1, 10.0)
"""The first pause before a restart and the longest; each of them is twice the one before."""
_TRIES = 5
"""The crew gives up when each worker has failed so often in a row to get as far as serving."""
_UNREAPED_S = 5.0
"""How long a process may go on after its line has ended before it is killed."""

ALIVE_S = 15.0
"""How long a worker may take to say that it is alive."""
_DEAF = 2
"""How often in a row it must have failed to say so to be killed: a machine that wakes from sleep finds one such failure."""


class Ground(msgspec.Struct, frozen=True):
    """What every worker of a run is given, whatever its configuration."""

    command: tuple[str, ...]
    """Starts a worker, whose standard input is the line."""
    key: bytes
    traffic: tuple[int, ...]
    admin: tuple[int, ...]
    turns: int
    counts: ConnectionCounts
    board: Switchboard
    pauses_s: tuple[float, float] = PAUSES_S
    alive_s: float = ALIVE_S

    def __repr__(self) -> str:
        return "Ground()"  # never the key


class _Worker:
    """What is known of the worker of one number."""

    def __init__(self, seat: int, restarts: int) -> None:
        self.seat = seat
        self.process: asyncio.subprocess.Process | None = None
        self.line: Line[ToSupervisor] | None = None
        self.up = False
        self.served = False
        """Whether it has served in its present life."""
        self.ready = asyncio.Event()
        """Set once it has served in any of its lives."""
        self.restarts = restarts
        self.failures = 0
        """How often in a row it has ended before it served."""
        self.pause_s = 0.0
        self.deaf = 0
        """How often in a row it did not say that it is alive."""


class Crew:
    """A crew of workers, of one event loop.

    Args:
        config: Says how many workers there are, and how long they may take to leave.
        given: What they read the configuration from.
        ground: What every worker of the run is given.
        seats: The seats of the next workers of this run.
        staff: What is told with every answer: the staff of whichever crew is the present one.
        failed: Called when these workers can't go on, and leave.
        replaces: The crew that serves on if these workers can't be started.
    """

    def __init__(
        self,
        config: Config,
        given: Given,
        ground: Ground,
        seats: Iterator[int],
        *,
        staff: Callable[[], Staff],
        failed: Callable[[Crew], None],
        replaces: Crew | None = None,
    ) -> None:
        self.config = config
        self.given = given
        self._ground = ground
        self._board = ground.board
        self._staff = staff
        self._failed = failed
        self._failure = "the gateway does not start" if replaces is None else "the new configuration is not applied"
        # A count that falls would look like a restart of the gateway.
        known = [*(replaces.restarts if replaces is not None else ()), *[0] * config.listen.workers]
        self._workers = [_Worker(next(seats), known[number]) for number in range(config.listen.workers)]
        self.code = 0
        """The exit code of the crew as a whole, once all have left."""
        self.begun = False
        self._leaving = asyncio.Event()
        self._last_word: Message = Leave()
        """What a worker is told that is ready only after all were told to leave."""
        self._keeping: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> tuple[bool, ...]:
        """By number: whether the worker has started, and not ended."""
        return tuple(worker.up for worker in self._workers)

    @property
    def restarts(self) -> tuple[int, ...]:
        return tuple(worker.restarts for worker in self._workers)

    @property
    def seats(self) -> tuple[int, ...]:
        return tuple(worker.seat for worker in self._workers)

    async def start(self) -> bool:
        """Start all workers. Returns whether all of them serve; False: they can't, or are to leave meanwhile."""
        self._keeping = [self._kept(0)]
        if not await self._serves(0):
            return False
        others = range(1, len(self._workers))
        self._keeping += map(self._kept, others)
        for number in others:
            if not await self._serves(number):
                return False
        self.begun = True
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="watch")
        self._watching.add_done_callback(self._look)
        return True

    async def _serves(self, number: int) -> bool:
        """Wait until the worker serves, or until all are to leave. Returns False where they are to leave."""
        waiting = [asyncio.ensure_future(self._workers[number].ready.wait()), asyncio.ensure_future(self._leaving.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        return not self._leaving.is_set()

    # One worker

    def _kept(self, number: int) -> asyncio.Task[None]:
        keeping = asyncio.get_running_loop().create_task(self._keep(number), name=f"worker {number}")
        keeping.add_done_callback(self._look)
        return keeping

    def _look(self, kept: asyncio.Task[None]) -> None:
        if not kept.cancelled() and (fault := kept.exception()) is not None:
            log.error("fault while supervising %s", kept.get_name(), exc_info=fault)
            self._give_up()

    def _give_up(self) -> None:
        self.code = FAILED
        if not self._leaving.is_set():
            self._leaving.set()
            self._failed(self)

    async def _keep(self, number: int) -> None:
        """Keep a worker running, from its first start to its last end."""
        worker = self._workers[number]
        while True:
            started_at = time.monotonic()
            worker.served = False
            try:
                code = await self._live(number)
            except OSError as error:
                log.error("worker %d can't be started: %s", number, error)
                code = FAILED
            worker.process = None
            if self._leaving.is_set():
                # SIGTERM is from ``end``, before the worker could hear that it is to leave; the gateway's own workers keep
                # signals pending until they hear them (`process_signals`).
                self.code = self.code or (0 if code == -signal.SIGTERM else min(abs(code), FAILED))
                return
            worker.failures = 0 if worker.served else worker.failures + 1
            if not self._judge(number, code):
                return
            worker.restarts += 1
            worker.pause_s = next_pause(worker.pause_s, time.monotonic() - started_at, self._ground.pauses_s)
            log.error("worker %d ended (%s): restarted in %g s", number, _how(code), worker.pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(worker.pause_s):
                    await self._leaving.wait()
            if self._leaving.is_set():
                return

    def _judge(self, number: int, code: int) -> bool:
        """Whether the worker is restarted; if not, the crew gives up."""
        worker = self._workers[number]
        if not worker.ready.is_set() and not self.begun:
            log.error("worker %d ended (%s) before it served: %s", number, _how(code), self._failure)
        elif not any(one.up for one in self._workers) and all(one.failures >= _TRIES for one in self._workers):
            log.error("no worker can be started any more: giving up")
        else:
            return True
        self._give_up()
        return False

    async def _live(self, number: int) -> int:
        """Run a worker from its start to its end. Returns the code it ended with."""
        worker, ground = self._workers[number], self._ground
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                worker.process = process = await asyncio.create_subprocess_exec(
                    *ground.command,
                    stdin=theirs.fileno(),
                    pass_fds=(*ground.traffic, *ground.admin, ground.turns, ground.counts.file),
                    # A terminal's signals are for the supervisor, which tells the workers.
                    start_new_session=True,
                )
            worker.line = line = await open_line(ours, at_supervisor)
        except BaseException as error:
            ours.close()
            if isinstance(error, RuntimeError):
                # The thread that would wait for the worker can't start: a limit of processes has room for one, not both.
                raise OSError(errno.EAGAIN, str(error)) from error
            raise
        of = len(self._workers)
        files = (ground.traffic, ground.admin, ground.turns, ground.counts.file)
        line.send(Begin(number, of, worker.seat, self.given, ground.key, *files))
        try:
            while (message := await line.hear()) is not None:
                self._hear(worker, line, message)
        finally:
            worker.up, worker.line = False, None
            self._board.leave(worker.seat)
            ground.counts.leave(worker.seat)
            line.close()
        try:
            async with asyncio.timeout(_UNREAPED_S):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    def _hear(self, worker: _Worker, line: Line[ToSupervisor], message: ToSupervisor) -> None:
        match message:
            case Ready():
                worker.up = worker.served = True
                worker.ready.set()
                self._board.join(worker.seat, line.send)
                if self._leaving.is_set():
                    line.send(self._last_word)
            case Ask():
                answering = asyncio.get_running_loop().create_task(self._ask(line, message), name="question")
                self._answering.add(answering)
                answering.add_done_callback(self._answering.discard)
            case Reply():
                self._board.reply(worker.seat, message)
            case Farewell():
                self._board.last(worker.seat, message.figures)

    async def _ask(self, line: Line[ToSupervisor], asked: Ask) -> None:
        staff = self._staff()
        # Workers that were replaced are asked for figures alone: they neither take requests nor speak for the gateway.
        seats = None if asked.what == FIGURES else staff.seats
        answers = await self._board.ask(asked.what, asked.about, asked.patience_s, seats)
        now = self._staff()
        line.send(Answers(asked.id, answers, now if now.seats == staff.seats else staff))

    # All of them

    async def _watch(self) -> None:
        """Kill workers that hang and do not answer, so that they are restarted."""
        alive_s = self._ground.alive_s
        while True:
            asked = {worker.seat: worker.process for worker in self._workers if worker.up}
            # Together: an answer is waited for no longer than a round lasts, and no time goes by between two questions.
            alive, _ = await asyncio.gather(self._board.ask(ALIVE, b"", alive_s, asked), asyncio.sleep(alive_s))
            for number, worker in enumerate(self._workers):
                process = asked.get(worker.seat)
                if process is None:
                    continue
                worker.deaf = 0 if worker.seat in alive or worker.process is not process else worker.deaf + 1
                if worker.deaf >= _DEAF:
                    log.error("worker %d has not answered for %g s: killed", number, _DEAF * alive_s)
                    _signal(process, signal.SIGKILL)
                    worker.deaf = 0

    def read_certificates(self) -> None:
        """Tell all workers that serve to read their certificates again."""
        self._tell(Reload())

    def leave(self, *, at_once: bool = False) -> None:
        """Tell all to drain and end; ``at_once``: without the notice, or, if retiring, without waiting for idle clients."""
        self._go(Leave(at_once))

    def retire(self) -> None:
        """Tell all that others accept in their place."""
        self._go(Retire())

    def _go(self, word: Message) -> None:
        self._leaving.set()
        self._last_word = word
        if self._watching is not None:
            self._watching.cancel()
        self._tell(word)

    def _tell(self, word: Message) -> None:
        for worker in self._workers:
            if worker.up and worker.line is not None:
                worker.line.send(word)

    async def end(self, patience_s: float) -> None:
        """Wait until all have left, after they were told to: those that served leave by themselves; the others are ended,
        and so are those that take longer than ``patience_s``."""
        for worker in self._workers:
            if not worker.served:
                _signal(worker.process, signal.SIGTERM)
        if not self._keeping:
            return
        _, late = await asyncio.wait(self._keeping, timeout=patience_s)
        if late:
            log.error("workers that did not end in time, and are killed: %d", len(late))
            for worker in self._workers:
                _signal(worker.process, signal.SIGKILL)
            await asyncio.wait(late)

    async def close(self) -> None:
        """Cancel whatever still goes on."""
        tasks = [*self._keeping, *([self._watching] if self._watching is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def next_pause(before_s: float, lived_s: float, pauses_s: tuple[float, float] = PAUSES_S) -> float:
    """How long to wait before a worker is started again."""
    first, longest = pauses_s
    return first if lived_s >= _LONG_S or not before_s else min(longest, 2 * before_s)


def _how(code: int) -> str:
    """What an exit code means."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _signal(process: asyncio.subprocess.Process | None, number: int) -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
