"""The other workers, as one of them sees them: what it asks them, and what it tells when they ask.

Every question goes to all, the one that asks among them, and what they say is put together by whoever asked.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

from ..workers.line import Answers, Ask, Line, Question, Reply, Staff, ToWorker
from ..workers.switchboard import PATIENCE_S

log = logging.getLogger("gateway.app")

Tell = Callable[[bytes], Awaitable[bytes]]

_NOBODY = Staff((), (), False)


class Siblings:
    """Of one event loop. ``patience_s``: for the supervisor, which waits ``PATIENCE_S`` for the workers."""

    def __init__(self, line: Line[ToWorker], *, patience_s: float = 2 * PATIENCE_S) -> None:
        self._line = line
        self._patience_s = patience_s
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answers]] = {}
        self._tells: dict[str, Tell] = {}
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

    def hear(self, answers: Answers) -> None:
        """To what was asked here."""
        asked = self._asked.get(answers.id)
        if asked is not None and not asked.done():
            asked.set_result(answers)

    async def ask(self, what: str, about: bytes = b"") -> Answers:
        """What all say; nobody where the supervisor does not answer in time."""
        number = next(self._ids)
        asked: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            self._line.send(Ask(number, what, about))
            async with asyncio.timeout(self._patience_s):
                return await asked
        except TimeoutError:
            return Answers(number, {}, _NOBODY)
        finally:
            del self._asked[number]
