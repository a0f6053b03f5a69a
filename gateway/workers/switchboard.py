"""Questions from one worker to all, and what workers that ended had counted.

Workers are known by their seats: while a configuration takes the place of another, workers of both are here.

A total that fell because a worker died would look like a restart of everything: Prometheus would count again what the
others had counted. So a worker's last figures are kept when it ends, and added from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection

import msgspec

from ..telemetry.figures import Figures, together
from .line import Message, Question, Reply

FIGURES = "figures"
"""The question whose answers are kept."""
ALIVE = "alive"
"""The question that every worker answers, whatever else it can tell."""
GONE = -1
"""The seat under which the figures of workers that ended are given."""

_decode = msgspec.msgpack.Decoder(Figures).decode


class _Asked:
    def __init__(self, what: str, waiting: set[int]) -> None:
        self.what = what
        self.waiting = waiting
        self.answers: dict[int, bytes] = {}
        self.settled = asyncio.Event()

    def hear(self, seat: int, octets: bytes | None) -> None:
        self.waiting.discard(seat)
        if octets is not None:
            self.answers[seat] = octets
        if not self.waiting:
            self.settled.set()


class Switchboard:
    """The switchboard of one event loop. Workers join when they serve and leave when their line ends."""

    def __init__(self) -> None:
        self._lines: dict[int, Callable[[Message], None]] = {}
        self._asked: dict[int, _Asked] = {}
        self._last_id = 0
        self._figures: dict[int, bytes] = {}
        self._gone: Figures | None = None

    def join(self, seat: int, send: Callable[[Message], None]) -> None:
        self._lines[seat] = send

    def leave(self, seat: int) -> None:
        """Stop waiting for the worker at ``seat``; what it counted stays."""
        self._lines.pop(seat, None)
        last = self._figures.pop(seat, None)
        if last is not None:
            totals = _decode(last).totals()
            self._gone = totals if self._gone is None else together([self._gone, totals])
        for asked in self._asked.values():
            if seat in asked.waiting:
                asked.hear(seat, None)

    def reply(self, seat: int, reply: Reply) -> None:
        """Take a worker's reply. One that comes too late is dropped, and an empty one is none."""
        asked = self._asked.get(reply.id)
        if asked is not None and seat in asked.waiting:
            if asked.what == FIGURES and reply.octets:
                # Not only when all have answered: the worker may have ended by then, and would count twice.
                self._figures[seat] = reply.octets
            asked.hear(seat, reply.octets or None)

    def last(self, seat: int, figures: bytes) -> None:
        """Take the figures that a worker gives before it ends."""
        if seat in self._lines and figures:
            self._figures[seat] = figures

    async def ask(
        self, what: str, about: bytes, patience_s: float, seats: Collection[int] | None = None
    ) -> dict[int, bytes]:
        """What each worker says, or each of those at ``seats``, by its seat. A worker that has not answered in time is left
        out; for figures, its last answer stands in."""
        lines = {seat: send for seat, send in self._lines.items() if seats is None or seat in seats}
        if not lines:
            return {}
        self._last_id += 1
        question = Question(self._last_id, what, about)
        asked = self._asked[question.id] = _Asked(what, set(lines))
        try:
            for send in lines.values():
                send(question)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await asked.settled.wait()
        finally:
            del self._asked[question.id]
        return self._kept() if what == FIGURES else asked.answers

    def _kept(self) -> dict[int, bytes]:
        known = dict(self._figures)
        if self._gone is not None:
            known[GONE] = msgspec.msgpack.encode(self._gone)
        return known
