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
from ..process_signals import OnSignal, run_process
from ..state_dir import StateRefused
from ..telemetry import logging as operator_log
from ..workers.channel import (
    AllAnswers,
    Begin,
    Channel,
    Leave,
    Ready,
    Reload,
    Retire,
    ToWorker,
    WorkerQuestion,
    decode_at_worker,
    open_channel,
)
from ..workers.connection_counts import ConnectionCounts
from .certificates import Certificates
from .serving import StopRequest, serve_until_stopped, start_unless_stopped
from .siblings import Siblings
from .worker_slot import WorkerSlot

log = logging.getLogger("gateway.app")


def main() -> int:
    """Run one worker, with standard input as its channel to the supervisor; blocking. Returns the exit code."""
    harden()
    require_c_parser()
    end = socket.socket(fileno=os.dup(0))
    # Code that reads standard input must not read the channel.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        return run_process(lambda on_signal: _main(end, on_signal), uvloop.new_event_loop)
    except OSError as error:
        log.error("failed: %s", error.strerror or error)
        return 1


async def _main(end: socket.socket, on_signal: OnSignal) -> int:
    channel = await open_channel(end, decode_at_worker)
    begin = await channel.receive()
    if not isinstance(begin, Begin):
        return 1  # the supervisor ended before it said anything
    config = begin.source.load(os.environ).config
    assert config is not None, "the supervisor has read the same"
    operator_log.configure(config.logging.level.value, worker=begin.number)
    stop_request = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Sent by a service manager that stops all processes of the unit together; only the supervisor may skip the notice.
        on_signal(number, stop_request.requested.set)
    slot = WorkerSlot(
        number=begin.number,
        of=begin.of,
        key=begin.key,
        traffic=tuple(socket.socket(fileno=one) for one in begin.traffic),
        admin=tuple(socket.socket(fileno=one) for one in begin.admin),
        turns=begin.turns,
        counts=ConnectionCounts(begin.counts).for_worker(begin.worker_id, begin.group),
        siblings=Siblings(channel, begin.worker_id),
        new_tokens=frozenset(begin.new_tokens),
        restarted=begin.restarted,
    )
    listener = _SupervisorListener(channel, stop_request, slot.siblings)
    listening = asyncio.get_running_loop().create_task(listener.listen(), name="line")
    try:
        async with contextlib.AsyncExitStack() as stack:
            started = await start_unless_stopped(stack, stop_request, config, slot)
            if started is None:
                return 0
            listener.certificates = started.certificates
            on_signal(signal.SIGHUP, started.certificates.reload)
            log.info("worker %d of %d serves", begin.number, begin.of)
            channel.send(Ready())
            await serve_until_stopped(started, stop_request)
        await slot.siblings.send_final_figures()
        return 0
    except CredentialsRefused as refused:
        for problem in refused.problems:
            log.error("%s", problem)
    except (OSError, StateRefused, StoreUnavailable) as error:
        log.error("failed: %s", error)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await channel.flush_and_close()
    return 1


class _SupervisorListener:
    """Listens to the supervisor, and does what it says."""

    def __init__(self, channel: Channel[ToWorker], stop_request: StopRequest, siblings: Siblings) -> None:
        self._channel = channel
        self._stop_request = stop_request
        self._siblings = siblings
        self.certificates: Certificates | None = None

    async def listen(self) -> None:
        """Do what the supervisor says until the channel ends; then there is nobody to work for, and the worker leaves."""
        try:
            while (message := await self._channel.receive()) is not None:
                self._handle(message)
            log.error("the supervisor is gone: draining")
        except Exception:
            log.exception("fault on the line to the supervisor: draining")
        self._leave(at_once=True)

    def _handle(self, message: ToWorker) -> None:
        match message:
            case WorkerQuestion():
                self._siblings.answer(message)
            case AllAnswers():
                self._siblings.receive(message)
            case Reload():
                if self.certificates is not None:
                    self.certificates.reload()
            case Retire():
                self._stop_request.replaced = True
                self._stop_request.requested.set()
            case Leave():
                self._leave(at_once=message.at_once)
            case Begin():
                raise AssertionError("begun already")

    def _leave(self, *, at_once: bool) -> None:
        self._stop_request.requested.set()
        if at_once:
            self._stop_request.at_once.set()


if __name__ == "__main__":
    sys.exit(main())
