"""Binds the ports, keeps a group of workers at them, handles signals. Serves nothing itself.

On SIGHUP the configuration is read again. If it can be served, a second group is started at the same sockets, and only when
all of it serves does the first one accept no more and leave; whatever goes wrong before that leaves the first one as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..config import Config
from ..config.load import Loaded
from ..config.problems import Severity
from ..config.restart_only import restart_only, same_files
from ..config.source import ConfigSource
from ..hardening import harden
from ..process_signals import OnSignal, run_process
from ..telemetry import logging as operator_log
from .channel import GroupStatus, Reloads
from .connection_counts import ConnectionCounts
from .listeners import bind, naming, place_of
from .question_relay import QuestionRelay
from .worker_group import ALIVE_S, PAUSES_S, RunResources, WorkerGroup

log = logging.getLogger("gateway.workers")

CLOSE_S = 30.0
"""Time beyond notice and deadline, for steps of a rotation under way and the audit's last lines."""
START_S = 120.0
"""How long the workers of a new configuration may take to serve: GitLab may be slow to judge its credentials."""
TELL_CLIENTS_S = 10.0
"""How long workers that are replaced may take to tell all their clients (``edge.server.MOST_DRAIN_S``)."""
_MOST_RETIRED = 2
"""How many groups may be replaced and not gone yet. Beyond that, a reload waits for one to go: memory must have a bound."""

ReadAgain = Callable[[], tuple[ConfigSource, Loaded]]
"""Returns what the configuration is read from, and what it is now. Blocking; ValueError has words for the operator."""

_CODE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from gateway.workers.low_priority import imported;"
    " sys.exit(imported('gateway.app.worker_process').main())"
)


def worker_command() -> list[str]:
    """A fresh interpreter with this very package, imported at low priority; what lies in the working directory is not
    imported."""
    isolated = ["-I"] if sys.flags.isolated else ["-P"]
    return [sys.executable, *isolated, "-c", _CODE, str(Path(__file__).parents[2])]


def run(config: Config, source: ConfigSource, read_again: ReadAgain) -> int:
    """Serve until SIGTERM or SIGINT; blocking. Returns the exit code. Raises OSError where a port can't be had."""
    harden()
    _wait_without_threads()
    return run_process(lambda on_signal: _supervise(config, source, read_again, on_signal))


async def _supervise(config: Config, source: ConfigSource, read_again: ReadAgain, on_signal: OnSignal) -> int:
    operator_log.configure(config.logging.level.value)
    return await Supervisor(config, source, worker_command(), read_again).run(on_signal)


def _wait_without_threads() -> None:
    """Wait for each worker's end by a descriptor, as Python does from 3.12 on, instead of by a thread.

    Where a limit of processes has room for a worker and none for its thread, nobody would wait for that worker.
    """
    if sys.version_info < (3, 12) and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # a sandbox may not know the call
            os.close(os.pidfd_open(os.getpid()))
            asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


class Supervisor:
    """The supervisor, of one event loop.

    Args:
        config: Says how many workers there are, where they listen, and how long they may take to leave.
        source: What they read the configuration from.
        command: Starts a worker, whose standard input is its channel.
        read_again: Reads the configuration again, on SIGHUP.
        pauses_s: See ``PAUSES_S``.
        close_s: See ``CLOSE_S``.
        alive_s: See ``ALIVE_S``.
        start_s: See ``START_S``.
    """

    def __init__(
        self,
        config: Config,
        source: ConfigSource,
        command: list[str],
        read_again: ReadAgain,
        *,
        pauses_s: tuple[float, float] = PAUSES_S,
        close_s: float = CLOSE_S,
        alive_s: float = ALIVE_S,
        start_s: float = START_S,
    ) -> None:
        self._config = config
        self._source = source
        self._command = tuple(command)
        self._read_again = read_again
        self._pauses_s = pauses_s
        self._close_s = close_s
        self._alive_s = alive_s
        self._start_s = start_s
        self._worker_ids = itertools.count()
        self._relay = QuestionRelay()
        self._key = secrets.token_bytes(32)
        self._leaving = asyncio.Event()
        self._reload_requested = asyncio.Event()
        self._reloads = Reloads()
        self._traffic: tuple[socket.socket, ...] = ()
        self._admin: tuple[socket.socket, ...] = ()
        self._resources: RunResources
        self._group: WorkerGroup
        self._next_group: WorkerGroup | None = None
        self._retired: dict[WorkerGroup, asyncio.Task[None]] = {}

    async def run(self, on_signal: OnSignal) -> int:
        """Run until all workers have left. Returns the exit code."""
        with contextlib.ExitStack() as open_files:
            turns = open_files.enter_context(_empty_file("audit-turns")).fileno()
            counts = ConnectionCounts(open_files.enter_context(_empty_file("connection-counts")).fileno())
            listen = self._config.listen
            with naming("listen.address", listen.address):
                self._traffic = bind(listen.address)
            open_files.callback(self._stop_listening)
            with naming("listen.admin", listen.admin):
                self._admin = bind(listen.admin)
            traffic, admin = (tuple(one.fileno() for one in sockets) for sockets in (self._traffic, self._admin))
            self._resources = RunResources(
                self._command, self._key, traffic, admin, turns, counts, self._relay, self._pauses_s, self._alive_s
            )
            self._group = self._make_group(self._config, self._source)
            for number in (signal.SIGTERM, signal.SIGINT):
                on_signal(number, self._leave)
            on_signal(signal.SIGHUP, self._request_reload)
            reloading: asyncio.Task[None] | None = None
            try:
                if await self._group.start():
                    log.info(
                        "serving %s on %s, admin on %s, with %d workers",
                        self._config.upstream.url,
                        place_of(self._traffic[0]),
                        place_of(self._admin[0]),
                        len(self._group.worker_ids),
                    )
                    reloading = asyncio.get_running_loop().create_task(self._reload_loop(), name="reload")
                await self._leaving.wait()
                if reloading is not None:
                    reloading.cancel()
                    await asyncio.gather(reloading, return_exceptions=True)
                await self._end()
            finally:
                for task in self._retired.values():
                    task.cancel()
                await asyncio.gather(
                    *(group.close() for group in self._groups), *self._retired.values(), return_exceptions=True
                )
        return self._group.code

    def _make_group(self, config: Config, source: ConfigSource, replaces: WorkerGroup | None = None) -> WorkerGroup:
        return WorkerGroup(
            config,
            source,
            self._resources,
            self._worker_ids,
            group_status=lambda: self.group_status,
            failed=self._failed,
            replaces=replaces,
        )

    @property
    def _groups(self) -> list[WorkerGroup]:
        return [*self._retired, self._group, *([self._next_group] if self._next_group is not None else [])]

    @property
    def group_status(self) -> GroupStatus:
        """What is sent to workers with every answer."""
        group = self._group
        return GroupStatus(group.up, group.restarts, group.begun, group.worker_ids, self._reloads)

    def _failed(self, group: WorkerGroup) -> None:
        if group is self._group:  # otherwise the group that serves goes on
            self._leaving.set()

    # A new configuration

    def _request_reload(self) -> None:
        """A signal asks for a reload. All signals that come during a reload lead to one more."""
        self._group.read_certificates()
        self._reload_requested.set()

    async def _reload_loop(self) -> None:
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            try:
                outcome = await self._apply_reload()
            except Exception:
                log.exception("fault while reloading the configuration")
                outcome = "failed"
            finally:
                self._retire_next_group()
            reloads = self._reloads
            counts = {outcome: getattr(reloads, outcome) + 1}
            self._reloads = msgspec.structs.replace(reloads, **counts, failing=outcome == "failed")
            if outcome == "failed":
                log.error("the new configuration was not applied; the previous one stays in force")

    async def _apply_reload(self) -> str:
        """Read the configuration again, and serve it. Returns what became of that, as ``Reloads`` counts it."""
        before = self._group
        try:
            source, loaded = await asyncio.to_thread(self._read_again)
        except ValueError as error:
            log.error("%s", error)
            return "failed"
        for problem in loaded.problems:
            log.log(logging.ERROR if problem.severity is Severity.ERROR else logging.WARNING, "%s", problem)
        config = loaded.config
        if config is None:
            return "failed"
        if fixed := restart_only(before.config, config):
            log.error("only a restart can change %s", ", ".join(fixed))
            return "failed"
        if config == before.config and same_files(config, before.source, source):
            log.info("the configuration has not changed")
            return "unchanged"
        if len(self._retired) >= _MOST_RETIRED:
            log.warning("a new configuration waits until the workers of an earlier one have left")
            while len(self._retired) >= _MOST_RETIRED:
                await asyncio.wait(self._retired.values(), return_when=asyncio.FIRST_COMPLETED)
        if not await self._replace_group(before, config, source):
            return "failed"
        if config.logging.level is not before.config.logging.level:
            logging.getLogger().setLevel(config.logging.level.value.upper())
        log.info("the configuration was reloaded, and is served with %d workers", config.listen.workers)
        return "applied"

    async def _replace_group(self, before: WorkerGroup, config: Config, source: ConfigSource) -> bool:
        """Start new workers in the place of ``before``. Returns whether they serve."""
        group = self._next_group = self._make_group(config, source, before)
        try:
            async with asyncio.timeout(self._start_s):
                if not await group.start():
                    return False
        except TimeoutError:
            log.error("the new workers have not started in %g s", self._start_s)
            return False
        self._group, self._next_group = group, None
        self._retire(before, f"{len(before.worker_ids)} replaced workers")
        return True

    def _retire_next_group(self) -> None:
        """Retire the workers of a new configuration if they can't serve it."""
        group, self._next_group = self._next_group, None
        if group is not None:
            self._retire(group, "the new workers, which did not take over,")

    def _retire(self, group: WorkerGroup, who: str) -> None:
        """Let ``group`` retire. ``who`` names it in the log when it has left."""
        group.retire()
        if self._leaving.is_set():
            group.leave(at_once=True)
        task = asyncio.get_running_loop().create_task(group.end(self._retires_within_s(group)), name="retired")
        self._retired[group] = task
        task.add_done_callback(lambda _: self._on_group_ended(group, who))

    def _on_group_ended(self, group: WorkerGroup, who: str) -> None:
        self._retired.pop(group, None)
        if not self._leaving.is_set():
            log.info("%s have left", who)

    def _retires_within_s(self, group: WorkerGroup) -> float:
        return TELL_CLIENTS_S + group.config.listen.idle_s + group.config.listen.drain.deadline + self._close_s

    # All of them

    def _leave(self) -> None:
        """A signal asks to leave; the second one ends the notice."""
        at_once = self._leaving.is_set()
        if not at_once:
            log.info("draining")
        self._leaving.set()
        for group in self._groups:
            group.leave(at_once=at_once or group is not self._group)

    def _stop_listening(self) -> None:
        for one in (*self._traffic, *self._admin):
            one.close()

    async def _end(self) -> None:
        """Wait until all have left: those that serve leave by themselves; the others, and those too slow, are ended."""
        # The workers hold these as long as they need them: no client may be left waiting at a port where nobody accepts.
        self._stop_listening()
        drain = self._group.config.listen.drain
        if self._group.code:
            self._group.leave(at_once=True)
        ending = [*self._retired.values()]
        for group in self._retired:
            group.leave(at_once=True)
        await asyncio.gather(self._group.end(drain.notice + drain.deadline + self._close_s), *ending)


def _empty_file(what: str) -> BinaryIO:
    """An empty file without a name; in memory, called ``what``, where the system can: there may be no place to write to."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create(what), "r+b", buffering=0)
    return tempfile.TemporaryFile()
