"""The other workers, as one of them sees them: what it asks them, and what it answers when they ask.

Every question goes to all workers, including the one that asks, which puts the answers together.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

from ..workers.channel import AllAnswers, AskAll, Channel, FinalFigures, GroupStatus, ToWorker, WorkerQuestion, WorkerReply
from ..workers.question_relay import ALIVE, FIGURES

log = logging.getLogger("gateway.app")

Handler = Callable[[bytes], Awaitable[bytes]]

PATIENCE_S = 1.0

_NO_STATUS = GroupStatus((), (), False)


async def _alive(_: bytes) -> bytes:
    return b"yes"


class Siblings:
    """One worker's way to ask all workers and to answer them. Belongs to one event loop; ``worker_id`` is its own."""

    def __init__(self, channel: Channel[ToWorker], worker_id: int) -> None:
        self.worker_id = worker_id
        self._channel = channel
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[AllAnswers]] = {}
        self._handlers: dict[str, Handler] = {ALIVE: _alive}
        self._answering: set[asyncio.Task[None]] = set()

    def handle(self, what: str, handle: Handler) -> None:
        """Answer the question ``what`` with ``handle`` from now on."""
        self._handlers[what] = handle

    def answer(self, question: WorkerQuestion) -> None:
        """Answer a question as soon as possible. One that is unknown here gets an empty answer; a fault is only logged."""
        answering = asyncio.get_running_loop().create_task(self._answer(question), name="answer")
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def _answer(self, question: WorkerQuestion) -> None:
        handle = self._handlers.get(question.what)
        octets = b""
        try:
            octets = await handle(question.about) if handle is not None else b""
        except Exception:
            log.exception("fault while telling the other workers: %s", question.what)
        self._channel.send(WorkerReply(question.id, octets))

    async def send_final_figures(self) -> None:
        """Report the final figures of this worker, once its last answers are sent."""
        await asyncio.gather(*self._answering)
        handle = self._handlers.get(FIGURES)
        try:
            if handle is not None:
                self._channel.send(FinalFigures(await handle(b"")))
        except Exception:
            log.exception("fault while telling what was counted")

    def receive(self, answers: AllAnswers) -> None:
        """Take the answers to a question that was asked here."""
        pending = self._pending.get(answers.id)
        if pending is not None and not pending.done():
            pending.set_result(answers)

    async def ask(self, what: str, about: bytes = b"", *, patience_s: float = PATIENCE_S) -> AllAnswers:
        """Ask all workers; the answers of those that are not slower than ``patience_s``. Where the supervisor takes twice
        as long, there are none, and an empty status."""
        number = next(self._ids)
        pending: asyncio.Future[AllAnswers] = asyncio.get_running_loop().create_future()
        self._pending[number] = pending
        try:
            self._channel.send(AskAll(number, what, about, patience_s))
            async with asyncio.timeout(2 * patience_s):
                return await pending
        except TimeoutError:
            return AllAnswers(number, {}, _NO_STATUS)
        finally:
            del self._pending[number]
