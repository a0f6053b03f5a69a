"""The workers of one configuration: starts them, restarts those that end, tells all of them to leave.

The first worker is started alone: what keeps a gateway from starting is logged once, by it. From then on a worker that ends
unasked is restarted, after a pause that depends on how long it lived; if none can be started at all, the group gives up, so
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
from ..config.compile import credentials
from ..config.source import ConfigSource
from .channel import (
    AllAnswers,
    AskAll,
    Begin,
    Channel,
    FinalFigures,
    GroupStatus,
    Leave,
    Message,
    Ready,
    Reload,
    Retire,
    ToSupervisor,
    WorkerReply,
    decode_at_supervisor,
    open_channel,
)
from .connection_counts import ConnectionCounts
from .question_relay import ALIVE, FIGURES, QuestionRelay

log = logging.getLogger("gateway.workers")

FAILED = 1
_LONG_S = 10.0
"""A worker that lived for so long is restarted after the first pause."""
PAUSES_S = (0.1, 10.0)
"""The first pause before a restart and the longest; each of them is twice the one before."""
_TRIES = 5
"""The group gives up when each worker has failed so often in a row to get as far as serving."""
_UNREAPED_S = 5.0
"""How long a process may go on after its channel has ended before it is killed."""

ALIVE_S = 15.0
"""How long a worker may take to say that it is alive."""
_MAX_MISSED = 2
"""How often in a row it must have failed to say so to be killed: a machine that wakes from sleep finds one such failure."""


class RunResources(msgspec.Struct, frozen=True):
    """What every worker of a run is given, whatever its configuration."""

    command: tuple[str, ...]
    """Starts a worker, whose standard input is its channel."""
    key: bytes
    traffic: tuple[int, ...]
    admin: tuple[int, ...]
    turns: int
    counts: ConnectionCounts
    relay: QuestionRelay
    pauses_s: tuple[float, float] = PAUSES_S
    alive_s: float = ALIVE_S

    def __repr__(self) -> str:
        return "RunResources()"  # never the key


class _Worker:
    """What is known of the worker of one number."""

    def __init__(self, worker_id: int, restarts: int) -> None:
        self.worker_id = worker_id
        self.process: asyncio.subprocess.Process | None = None
        self.channel: Channel[ToSupervisor] | None = None
        self.up = False
        self.served = False
        """Whether it has served in its present life."""
        self.ready = asyncio.Event()
        """Set once it has served in any of its lives."""
        self.restarts = restarts
        self.failures = 0
        """How often in a row it has ended before it served."""
        self.pause_s = 0.0
        self.missed_answers = 0
        """How often in a row it did not say that it is alive."""


class WorkerGroup:
    """The workers of one configuration, for one event loop.

    Args:
        config: Says how many workers there are, and how long they may take to leave.
        source: What they read the configuration from.
        resources: What every worker of the run is given.
        worker_ids: The ids of the next workers of this run.
        group_status: What is sent with every answer: the status of whichever group is the present one.
        failed: Called when these workers can't go on, and leave.
        replaces: The group that serves on if these workers can't be started.
    """

    def __init__(
        self,
        config: Config,
        source: ConfigSource,
        resources: RunResources,
        worker_ids: Iterator[int],
        *,
        group_status: Callable[[], GroupStatus],
        failed: Callable[[WorkerGroup], None],
        replaces: WorkerGroup | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self._resources = resources
        self._relay = resources.relay
        self._group_status = group_status
        self._failed = failed
        self._failure = "the gateway does not start" if replaces is None else "the new configuration is not applied"
        # A count that falls would look like a restart of the gateway.
        restarts = [*(replaces.restarts if replaces is not None else ()), *[0] * config.listen.workers]
        self._workers = [_Worker(next(worker_ids), restarts[number]) for number in range(config.listen.workers)]
        self.code = 0
        """The exit code of the group as a whole, once all have left."""
        self.begun = False
        self._new_tokens = _new_tokens(replaces.config, config) if replaces is not None else ()
        self._leaving = asyncio.Event()
        self._final_message: Message = Leave()
        """What is sent to a worker that is ready only after all were told to leave."""
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
    def worker_ids(self) -> tuple[int, ...]:
        return tuple(worker.worker_id for worker in self._workers)

    async def start(self) -> bool:
        """Start all workers. Returns whether all of them serve; False: they can't, or are to leave meanwhile."""
        self._keeping = [self._keeping_task(0)]
        if not await self._wait_until_serving(0):
            return False
        others = range(1, len(self._workers))
        self._keeping += map(self._keeping_task, others)
        for number in others:
            if not await self._wait_until_serving(number):
                return False
        self.begun = True
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="watch")
        self._watching.add_done_callback(self._on_done)
        return True

    async def _wait_until_serving(self, number: int) -> bool:
        """Wait until the worker serves, or until all are to leave. Returns False where they are to leave."""
        waiting = [asyncio.ensure_future(self._workers[number].ready.wait()), asyncio.ensure_future(self._leaving.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        return not self._leaving.is_set()

    # One worker

    def _keeping_task(self, number: int) -> asyncio.Task[None]:
        keeping = asyncio.get_running_loop().create_task(self._keep(number), name=f"worker {number}")
        keeping.add_done_callback(self._on_done)
        return keeping

    def _on_done(self, keeping: asyncio.Task[None]) -> None:
        if not keeping.cancelled() and (fault := keeping.exception()) is not None:
            log.error("fault while supervising %s", keeping.get_name(), exc_info=fault)
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
                code = await self._run_once(number)
            except OSError as error:
                log.error("worker %d can't be started: %s", number, error)
                code = FAILED
            worker.process = None
            if self._leaving.is_set():
                # SIGTERM is from ``end``, before the worker could read that it is to leave; the gateway's own workers keep
                # signals pending until they handle them (`process_signals`).
                self.code = self.code or (0 if code == -signal.SIGTERM else min(abs(code), FAILED))
                return
            worker.failures = 0 if worker.served else worker.failures + 1
            if not self._judge(number, code):
                return
            worker.restarts += 1
            worker.pause_s = next_pause(worker.pause_s, time.monotonic() - started_at, self._resources.pauses_s)
            log.error("worker %d ended (%s): restarted in %g s", number, _exit_reason(code), worker.pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(worker.pause_s):
                    await self._leaving.wait()
            if self._leaving.is_set():
                return

    def _judge(self, number: int, code: int) -> bool:
        """Whether the worker is restarted; if not, the group gives up."""
        worker = self._workers[number]
        if not worker.ready.is_set() and not self.begun:
            log.error("worker %d ended (%s) before it served: %s", number, _exit_reason(code), self._failure)
        elif not any(one.up for one in self._workers) and all(one.failures >= _TRIES for one in self._workers):
            log.error("no worker can be started any more: giving up")
        else:
            return True
        self._give_up()
        return False

    async def _run_once(self, number: int) -> int:
        """Run a worker from its start to its end. Returns the code it ended with."""
        worker, resources = self._workers[number], self._resources
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                worker.process = process = await asyncio.create_subprocess_exec(
                    *resources.command,
                    stdin=theirs.fileno(),
                    pass_fds=(*resources.traffic, *resources.admin, resources.turns, resources.counts.file),
                    # A terminal's signals are for the supervisor, which tells the workers.
                    start_new_session=True,
                )
            worker.channel = channel = await open_channel(ours, decode_at_supervisor)
        except BaseException as error:
            ours.close()
            if isinstance(error, RuntimeError):
                # The thread that would wait for the worker can't start: a limit of processes has room for one, not both.
                raise OSError(errno.EAGAIN, str(error)) from error
            raise
        of = len(self._workers)
        files = (resources.traffic, resources.admin, resources.turns, resources.counts.file)
        judged = (self._new_tokens, self.begun)
        channel.send(Begin(number, of, worker.worker_id, self.source, resources.key, *files, *judged))
        try:
            while (message := await channel.receive()) is not None:
                self._handle(worker, channel, message)
        finally:
            worker.up, worker.channel = False, None
            self._relay.leave(worker.worker_id)
            resources.counts.leave(worker.worker_id)
            channel.close()
        try:
            async with asyncio.timeout(_UNREAPED_S):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    def _handle(self, worker: _Worker, channel: Channel[ToSupervisor], message: ToSupervisor) -> None:
        match message:
            case Ready():
                worker.up = worker.served = True
                worker.ready.set()
                self._relay.join(worker.worker_id, channel.send)
                if self._leaving.is_set():
                    channel.send(self._final_message)
            case AskAll():
                answering = asyncio.get_running_loop().create_task(self._ask(channel, message), name="question")
                self._answering.add(answering)
                answering.add_done_callback(self._answering.discard)
            case WorkerReply():
                self._relay.reply(worker.worker_id, message)
            case FinalFigures():
                self._relay.keep_final_figures(worker.worker_id, message.figures)

    async def _ask(self, channel: Channel[ToSupervisor], question: AskAll) -> None:
        group_status = self._group_status()
        # Workers that were replaced are asked for figures alone: they neither take requests nor speak for the gateway.
        worker_ids = None if question.what == FIGURES else group_status.worker_ids
        answers = await self._relay.ask(question.what, question.about, question.patience_s, worker_ids)
        now = self._group_status()
        channel.send(AllAnswers(question.id, answers, now if now.worker_ids == group_status.worker_ids else group_status))

    # All of them

    async def _watch(self) -> None:
        """Kill workers that hang and do not answer, so that they are restarted."""
        alive_s = self._resources.alive_s
        while True:
            processes = {worker.worker_id: worker.process for worker in self._workers if worker.up}
            # Together: an answer is waited for no longer than a round lasts, and no time goes by between two questions.
            alive, _ = await asyncio.gather(self._relay.ask(ALIVE, b"", alive_s, processes), asyncio.sleep(alive_s))
            for number, worker in enumerate(self._workers):
                process = processes.get(worker.worker_id)
                if process is None:
                    continue
                worker.missed_answers = (
                    0 if worker.worker_id in alive or worker.process is not process else worker.missed_answers + 1
                )
                if worker.missed_answers >= _MAX_MISSED:
                    log.error("worker %d has not answered for %g s: killed", number, _MAX_MISSED * alive_s)
                    _signal(process, signal.SIGKILL)
                    worker.missed_answers = 0

    def read_certificates(self) -> None:
        """Tell all workers that serve to read their certificates again."""
        self._broadcast(Reload())

    def leave(self, *, at_once: bool = False) -> None:
        """Tell all to drain and end; ``at_once``: without the notice, or, if retiring, without waiting for idle clients."""
        self._end_with(Leave(at_once))

    def retire(self) -> None:
        """Tell all that others accept in their place."""
        self._end_with(Retire())

    def _end_with(self, message: Message) -> None:
        self._leaving.set()
        self._final_message = message
        if self._watching is not None:
            self._watching.cancel()
        self._broadcast(message)

    def _broadcast(self, message: Message) -> None:
        for worker in self._workers:
            if worker.up and worker.channel is not None:
                worker.channel.send(message)

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


def _exit_reason(code: int) -> str:
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


def _new_tokens(before: Config, config: Config) -> tuple[str, ...]:
    """The credentials of ``config`` whose tokens ``before`` has not under their names: all of them, if it has another
    GitLab."""
    known = {one.id: one.token for one in credentials(before)} if before.upstream.url == config.upstream.url else {}
    return tuple(one.id for one in credentials(config) if known.get(one.id) != one.token)
