"""Questions from one worker to all, and what workers that ended had counted.

A total that fell because a worker died would look like a restart of everything: Prometheus would count again what the
others had. So what a worker said last is kept when it ends, and added from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from ..telemetry.figures import Figures, together
from .line import Message, Question, Reply

FIGURES = "figures"
"""The question whose answers are kept."""
ALIVE = "alive"
"""The question that every worker answers, whatever else it can tell."""
GONE = -1
"""The number under which those that ended answer it."""

_decode = msgspec.msgpack.Decoder(Figures).decode


class _Asked:
    def __init__(self, waiting: set[int]) -> None:
        self.waiting = waiting
        self.answers: dict[int, bytes] = {}
        self.settled = asyncio.Event()

    def hear(self, number: int, octets: bytes | None) -> None:
        self.waiting.discard(number)
        if octets is not None:
            self.answers[number] = octets
        if not self.waiting:
            self.settled.set()


class Switchboard:
    """Of one event loop. Workers join when they serve and leave when their line ends."""

    def __init__(self) -> None:
        self._lines: dict[int, Callable[[Message], None]] = {}
        self._asked: dict[int, _Asked] = {}
        self._last_id = 0
        self._figures: dict[int, bytes] = {}
        self._gone: Figures | None = None

    def join(self, number: int, send: Callable[[Message], None]) -> None:
        self._lines[number] = send

    def leave(self, number: int) -> None:
        """Nobody waits for it any longer; what it counted stays."""
        self._lines.pop(number, None)
        last = self._figures.pop(number, None)
        if last is not None:
            totals = _decode(last).totals()
            self._gone = totals if self._gone is None else together([self._gone, totals])
        for asked in self._asked.values():
            if number in asked.waiting:
                asked.hear(number, None)

    def reply(self, number: int, reply: Reply) -> None:
        """One that comes too late is nobody's, and an empty one is none."""
        asked = self._asked.get(reply.id)
        if asked is not None and number in asked.waiting:
            asked.hear(number, reply.octets or None)

    async def ask(self, what: str, about: bytes, patience_s: float) -> dict[int, bytes]:
        """What each worker says, by its number. Who has not answered in time is left out, or said it when last asked."""
        if not self._lines:
            return {}
        self._last_id += 1
        question = Question(self._last_id, what, about)
        asked = self._asked[question.id] = _Asked(set(self._lines))
        try:
            for send in list(self._lines.values()):
                send(question)
            try:
                async with asyncio.timeout(patience_s):
                    await asked.settled.wait()
            except TimeoutError:
                asked.waiting.clear()
        finally:
            del self._asked[question.id]
        return self._kept(asked.answers) if what == FIGURES else asked.answers

    def _kept(self, answers: dict[int, bytes]) -> dict[int, bytes]:
        self._figures |= {number: octets for number, octets in answers.items() if number in self._lines}
        known = self._figures | answers
        if self._gone is not None:
            known[GONE] = msgspec.msgpack.encode(self._gone)
        return known
