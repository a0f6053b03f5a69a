"""Starts the workers, starts again those that end, tells all of them to leave. Serves nothing itself.

The first worker is started alone: what keeps a gateway from starting is told once, by it. From then on a worker that ends
unasked is started again, sooner or later by how long it lived; while no worker can be started at all, the supervisor ends,
so that whoever watches it sees that, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from ..config import Config
from ..config.given import Given
from ..hardening import harden
from ..telemetry import logging as operator_log
from .line import Answers, Ask, Begin, Leave, Line, Ready, Reload, Reply, Staff, ToSupervisor, at_supervisor, open_line
from .listeners import bind, place_of
from .switchboard import ALIVE, Switchboard

log = logging.getLogger("gateway.workers")

FAILED = 1
CLOSE_S = 30.0
"""Beyond notice and deadline: for steps of a rotation under way, and the audit's last lines."""
_LONG_S = 10.0
"""Who lived as long is started again at once."""
PAUSES_S = (0.1, 10.0)
"""Else: the first pause and the longest, each twice the one before."""
_TRIES = 5
"""In a row that no worker gets as far as to serve."""
_UNREAPED_S = 5.0
"""For a process whose line has ended."""

ALIVE_S = 15.0
"""How long a worker may take to say that it is alive."""
_DEAF = 2
"""So often in a row it must not have said so to be killed: a machine that sleeps wakes into one."""

_CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from gateway.app.working import main; sys.exit(main())"


def worker_command() -> list[str]:
    """A fresh interpreter with this very package; what lies in the working directory is not imported."""
    isolated = ["-I"] if sys.flags.isolated else ["-P"]
    return [sys.executable, *isolated, "-c", _CODE, str(Path(__file__).parents[2])]


def run(config: Config, given: Given) -> int:
    """Serve until SIGTERM or SIGINT; blocking. Returns the exit code. OSError: a port can't be had."""
    operator_log.configure(config.logging.level.value)
    harden()
    return asyncio.run(Supervisor(config, given, worker_command()).run())


class _Worker:
    """What is known of one number."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.line: Line[ToSupervisor] | None = None
        self.up = False
        self.served = False
        """In its present life."""
        self.ready = asyncio.Event()
        """In any."""
        self.restarts = 0
        self.failures = 0
        """In a row, before it served."""
        self.pause_s = 0.0
        self.deaf = 0
        """How often in a row it did not say that it is alive."""


class Supervisor:
    """Of one event loop.

    Args:
        config: How many, where, and how long they may take to leave.
        given: What they read it from.
        command: Starts one; its standard input is the line.
        pauses_s: As ``PAUSES_S``.
        close_s: As ``CLOSE_S``.
        alive_s: As ``ALIVE_S``.
    """

    def __init__(
        self,
        config: Config,
        given: Given,
        command: list[str],
        *,
        pauses_s: tuple[float, float] = PAUSES_S,
        close_s: float = CLOSE_S,
        alive_s: float = ALIVE_S,
    ) -> None:
        self._alive_s = alive_s
        self._pauses_s = pauses_s
        self._close_s = close_s
        self._config = config
        self._given = given
        self._command = command
        self._key = secrets.token_bytes(32)
        self._workers = [_Worker() for _ in range(config.listen.workers)]
        self._board = Switchboard()
        self._leaving = asyncio.Event()
        self._code = 0
        self._begun = False
        self._answering: set[asyncio.Task[None]] = set()
        self._traffic: tuple[socket.socket, ...] = ()
        self._admin: tuple[socket.socket, ...] = ()
        self._turns = -1

    async def run(self) -> int:
        """Until all have left; the exit code."""
        with contextlib.ExitStack() as open_files:
            self._turns = open_files.enter_context(_empty_file()).fileno()
            self._traffic = bind(self._config.listen.address)
            open_files.callback(self._stop_listening)
            self._admin = bind(self._config.listen.admin)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._leave)
            loop.add_signal_handler(signal.SIGHUP, self._reload)
            keeping = [self._kept(0)]
            try:
                if await self._serves(0):
                    keeping += map(self._kept, range(1, len(self._workers)))
                    await self._all_serve()
                watching = loop.create_task(self._watch(), name="watch")
                watching.add_done_callback(self._look)
                await self._leaving.wait()
                watching.cancel()
                await self._end(keeping)
            finally:
                for task in keeping:
                    task.cancel()
                await asyncio.gather(*keeping, return_exceptions=True)
        return self._code

    async def _serves(self, number: int) -> bool:
        """Waits until it does, or until all are to leave."""
        waiting = [asyncio.ensure_future(self._workers[number].ready.wait()), asyncio.ensure_future(self._leaving.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        return not self._leaving.is_set()

    async def _all_serve(self) -> None:
        for number in range(1, len(self._workers)):
            if not await self._serves(number):
                return
        self._begun = True
        log.info(
            "serving %s on %s, admin on %s, with %d workers",
            self._config.upstream.url,
            place_of(self._traffic[0]),
            place_of(self._admin[0]),
            len(self._workers),
        )

    # One worker

    def _kept(self, number: int) -> asyncio.Task[None]:
        keeping = asyncio.get_running_loop().create_task(self._keep(number), name=f"worker {number}")
        keeping.add_done_callback(self._look)
        return keeping

    def _look(self, kept: asyncio.Task[None]) -> None:
        if not kept.cancelled() and (fault := kept.exception()) is not None:
            log.error("fault while keeping %s", kept.get_name(), exc_info=fault)
            self._code = FAILED
            self._leaving.set()

    async def _keep(self, number: int) -> None:
        """From its first start to its last end."""
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
                ended_young = not worker.served and code == -signal.SIGTERM  # by _end
                self._code = self._code or (0 if ended_young else min(abs(code), FAILED))
                return
            worker.failures = 0 if worker.served else worker.failures + 1
            if not self._judge(number, code):
                return
            worker.restarts += 1
            worker.pause_s = next_pause(worker.pause_s, time.monotonic() - started_at, self._pauses_s)
            log.error("worker %d ended (%s): started again in %g s", number, _how(code), worker.pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(worker.pause_s):
                    await self._leaving.wait()
            if self._leaving.is_set():
                return

    def _judge(self, number: int, code: int) -> bool:
        """Whether it is started again."""
        worker = self._workers[number]
        if not worker.ready.is_set() and not self._begun:
            log.error("worker %d ended (%s) before it served: the gateway does not start", number, _how(code))
        elif not any(one.up for one in self._workers) and all(one.failures >= _TRIES for one in self._workers):
            log.error("no worker can be started any more: giving up")
        else:
            return True
        self._code = FAILED
        self._leaving.set()
        return False

    async def _live(self, number: int) -> int:
        """From its start to its end; the code it ended with."""
        worker = self._workers[number]
        ours, theirs = socket.socketpair()
        try:
            traffic, admin = (tuple(one.fileno() for one in sockets) for sockets in (self._traffic, self._admin))
            with theirs:
                worker.process = process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=theirs.fileno(),
                    pass_fds=(*traffic, *admin, self._turns),
                    # Signals of a terminal are for the supervisor: it tells them.
                    start_new_session=True,
                )
            worker.line = line = await open_line(ours, at_supervisor)
        except BaseException:
            ours.close()
            raise
        of = len(self._workers)
        line.send(Begin(number, of, self._given, self._key, traffic, admin, self._turns))
        try:
            while (message := await line.hear()) is not None:
                self._hear(number, line, message)
        finally:
            worker.up, worker.line = False, None
            self._board.leave(number)
            line.close()
        try:
            async with asyncio.timeout(_UNREAPED_S):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    def _hear(self, number: int, line: Line[ToSupervisor], message: ToSupervisor) -> None:
        worker = self._workers[number]
        match message:
            case Ready():
                worker.up = worker.served = True
                worker.ready.set()
                self._board.join(number, line.send)
                if self._leaving.is_set():
                    line.send(Leave())
            case Ask():
                answering = asyncio.get_running_loop().create_task(self._ask(line, message), name="question")
                self._answering.add(answering)
                answering.add_done_callback(self._answering.discard)
            case Reply():
                self._board.reply(number, message)

    async def _ask(self, line: Line[ToSupervisor], asked: Ask) -> None:
        answers = await self._board.ask(asked.what, asked.about, asked.patience_s)
        line.send(Answers(asked.id, answers, self.staff))

    @property
    def staff(self) -> Staff:
        """What is told with every answer."""
        return Staff(
            tuple(worker.up for worker in self._workers), tuple(worker.restarts for worker in self._workers), self._begun
        )

    # All of them

    async def _watch(self) -> None:
        """Until all are to leave: one that hangs, and says nothing, is ended, and so started again."""
        while True:
            asked = {number: worker.process for number, worker in enumerate(self._workers) if worker.up}
            alive = await self._board.ask(ALIVE, b"", self._alive_s)
            for number, process in asked.items():
                worker = self._workers[number]
                worker.deaf = 0 if number in alive or worker.process is not process else worker.deaf + 1
                if worker.deaf >= _DEAF:
                    log.error("worker %d has not answered for %g s: killed", number, _DEAF * self._alive_s)
                    _signal(process, signal.SIGKILL)
                    worker.deaf = 0
            await asyncio.sleep(self._alive_s)

    def _reload(self) -> None:
        for worker in self._workers:
            if worker.line is not None:
                worker.line.send(Reload())

    def _leave(self) -> None:
        """By a signal; the second one ends the notice."""
        at_once = self._leaving.is_set()
        if not at_once:
            log.info("draining")
        self._leaving.set()
        for worker in self._workers:
            if worker.up and worker.line is not None:
                worker.line.send(Leave(at_once))

    def _stop_listening(self) -> None:
        for one in (*self._traffic, *self._admin):
            one.close()

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        """Those that serve leave by themselves; the others, and who takes too long, are ended."""
        # The workers hold these as long as they need them: nobody may be left waiting at a port that none accepts at.
        self._stop_listening()
        for worker in self._workers:
            if not worker.up:
                _signal(worker.process, signal.SIGTERM)
            elif self._code and worker.line is not None:
                worker.line.send(Leave(at_once=True))
        drain = self._config.listen.drain
        _, late = await asyncio.wait(keeping, timeout=drain.notice + drain.deadline + self._close_s)
        if late:
            log.error("workers that did not end in time, and are killed: %d", len(late))
            for worker in self._workers:
                _signal(worker.process, signal.SIGKILL)
            await asyncio.wait(late)


def _empty_file() -> BinaryIO:
    """Without a name. In memory where the system can: there may be no place to write to."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("audit-turns"), "r+b", buffering=0)
    return tempfile.TemporaryFile()


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
