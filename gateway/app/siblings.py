"""The other workers, as one of them sees them: what it asks them, and what it answers when they ask.

Every question goes to all workers, including the one that asks, which puts the answers together.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

from ..workers.line import Answers, Ask, Farewell, Line, Question, Reply, Staff, ToWorker
from ..workers.switchboard import ALIVE, FIGURES

log = logging.getLogger("gateway.app")

Tell = Callable[[bytes], Awaitable[bytes]]

PATIENCE_S = 1.0

_NOBODY = Staff((), (), False)


async def _alive(_: bytes) -> bytes:
    return b"yes"


class Siblings:
    """One worker's way to ask all workers and to answer them. Belongs to one event loop; ``seat`` is the worker's own."""

    def __init__(self, line: Line[ToWorker], seat: int) -> None:
        self.seat = seat
        self._line = line
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answers]] = {}
        self._tells: dict[str, Tell] = {ALIVE: _alive}
        self._answering: set[asyncio.Task[None]] = set()

    def tell(self, what: str, tell: Tell) -> None:
        """Answer the question ``what`` with ``tell`` from now on."""
        self._tells[what] = tell

    def answer(self, question: Question) -> None:
        """Answer a question as soon as possible. One that is unknown here gets an empty answer; a fault is only logged."""
        answering = asyncio.get_running_loop().create_task(self._answer(question), name="answer")
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def _answer(self, question: Question) -> None:
        tell = self._tells.get(question.what)
        told = b""
        try:
            told = await tell(question.about) if tell is not None else b""
        except Exception:
            log.exception("fault while telling the other workers: %s", question.what)
        self._line.send(Reply(question.id, told))

    async def part(self) -> None:
        """Report the final figures of this worker, once its last answers are sent."""
        await asyncio.gather(*self._answering)
        tell = self._tells.get(FIGURES)
        try:
            if tell is not None:
                self._line.send(Farewell(await tell(b"")))
        except Exception:
            log.exception("fault while telling what was counted")

    def hear(self, answers: Answers) -> None:
        """Take the answers to a question that was asked here."""
        asked = self._asked.get(answers.id)
        if asked is not None and not asked.done():
            asked.set_result(answers)

    async def ask(self, what: str, about: bytes = b"", *, patience_s: float = PATIENCE_S) -> Answers:
        """Ask all workers; the answers of those that are not slower than ``patience_s``. Where the supervisor takes twice
        as long, there are none, and no staff."""
        number = next(self._ids)
        asked: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            self._line.send(Ask(number, what, about, patience_s))
            async with asyncio.timeout(2 * patience_s):
                return await asked
        except TimeoutError:
            return Answers(number, {}, _NOBODY)
        finally:
            del self._asked[number]
