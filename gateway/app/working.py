"""One worker: a gateway that is given its sockets, and that stops when its supervisor says so or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys

import uvloop

from ..broker.static import CredentialsRefused
from ..edge.parsing import require_c_parser
from ..hardening import harden
from ..ports import StoreUnavailable
from ..process_signals import Hear, run_process
from ..state_dir import StateRefused
from ..telemetry import logging as operator_log
from ..workers.connection_counts import ConnectionCounts
from ..workers.line import Answers, Begin, Leave, Line, Question, Ready, Reload, Retire, ToWorker, at_worker, open_line
from .certificates import Certificates
from .post import Post
from .serving import Departure, attend, begun
from .siblings import Siblings

log = logging.getLogger("gateway.app")


def main() -> int:
    """Run one worker, with standard input as its line to the supervisor; blocking. Returns the exit code."""
    harden()
    require_c_parser()
    end = socket.socket(fileno=os.dup(0))
    # Code that reads standard input must not read the line.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        return run_process(lambda hear: _main(end, hear), uvloop.new_event_loop)
    except OSError as error:
        log.error("failed: %s", error.strerror or error)
        return 1


async def _main(end: socket.socket, hear: Hear) -> int:
    line = await open_line(end, at_worker)
    begin = await line.hear()
    if not isinstance(begin, Begin):
        return 1  # the supervisor ended before it said anything
    config = begin.given.load(os.environ).config
    assert config is not None, "the supervisor has read the same"
    operator_log.configure(config.logging.level.value, worker=begin.number)
    departure = Departure()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Sent by a service manager that stops all processes of the unit together; only the supervisor may skip the notice.
        hear(number, departure.told.set)
    post = Post(
        number=begin.number,
        of=begin.of,
        key=begin.key,
        traffic=tuple(socket.socket(fileno=one) for one in begin.traffic),
        admin=tuple(socket.socket(fileno=one) for one in begin.admin),
        turns=begin.turns,
        place=ConnectionCounts(begin.counts).place(begin.seat, begin.crew),
        siblings=Siblings(line, begin.seat),
    )
    room = _Room(line, departure, post.siblings)
    listening = asyncio.get_running_loop().create_task(room.listen(), name="line")
    try:
        async with contextlib.AsyncExitStack() as stack:
            started = await begun(stack, departure, config, post)
            if started is None:
                return 0
            room.certificates = started.certificates
            hear(signal.SIGHUP, started.certificates.reload)
            log.info("worker %d of %d serves", begin.number, begin.of)
            line.send(Ready())
            await attend(started, departure)
        await post.siblings.part()
        return 0
    except CredentialsRefused as refused:
        for problem in refused.problems:
            log.error("%s", problem)
    except (OSError, StateRefused, StoreUnavailable) as error:
        log.error("failed: %s", error)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await line.end()
    return 1


class _Room:
    """Listens to the supervisor, and does what it says."""

    def __init__(self, line: Line[ToWorker], departure: Departure, siblings: Siblings) -> None:
        self._line = line
        self._departure = departure
        self._siblings = siblings
        self.certificates: Certificates | None = None

    async def listen(self) -> None:
        """Do what the supervisor says until the line ends; then there is nobody to work for, and the worker leaves."""
        try:
            while (message := await self._line.hear()) is not None:
                self._hear(message)
            log.error("the supervisor is gone: draining")
        except Exception:
            log.exception("fault on the line to the supervisor: draining")
        self._leave(at_once=True)

    def _hear(self, message: ToWorker) -> None:
        match message:
            case Question():
                self._siblings.answer(message)
            case Answers():
                self._siblings.hear(message)
            case Reload():
                if self.certificates is not None:
                    self.certificates.reload()
            case Retire():
                self._departure.replaced = True
                self._departure.told.set()
            case Leave():
                self._leave(at_once=message.at_once)
            case Begin():
                raise AssertionError("begun already")

    def _leave(self, *, at_once: bool) -> None:
        self._departure.told.set()
        if at_once:
            self._departure.at_once.set()


if __name__ == "__main__":
    sys.exit(main())
