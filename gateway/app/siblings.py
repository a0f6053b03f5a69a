"""The other workers, as one of them sees them: what it asks them, and what it tells when they ask.

Every question goes to all, the one that asks among them, and what they say is put together by whoever asked.
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
    """Of one event loop; ``seat`` is the worker's own."""

    def __init__(self, line: Line[ToWorker], seat: int) -> None:
        self.seat = seat
        self._line = line
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answers]] = {}
        self._tells: dict[str, Tell] = {ALIVE: _alive}
        self._answering: set[asyncio.Task[None]] = set()

    def tell(self, what: str, tell: Tell) -> None:
        """From now on this answers that question."""
        self._tells[what] = tell

    def answer(self, question: Question) -> None:
        """As soon as it can be. One that nothing here answers is answered with nothing; a fault is nobody's end."""
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
        """Tell what was counted here, to the end."""
        await asyncio.gather(*self._answering)
        tell = self._tells.get(FIGURES)
        try:
            if tell is not None:
                self._line.send(Farewell(await tell(b"")))
        except Exception:
            log.exception("fault while telling what was counted")

    def hear(self, answers: Answers) -> None:
        """To what was asked here."""
        asked = self._asked.get(answers.id)
        if asked is not None and not asked.done():
            asked.set_result(answers)

    async def ask(self, what: str, about: bytes = b"", *, patience_s: float = PATIENCE_S) -> Answers:
        """What all say who are not slower than that; nobody where the supervisor takes twice as long."""
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
