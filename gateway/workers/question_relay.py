"""Questions from one worker to all, and what workers that ended had counted.

Workers are known by their ids: while a configuration takes the place of another, workers of both are here.

A total that fell because a worker died would look like a restart of everything: Prometheus would count again what the
others had counted. So a worker's last figures are kept when it ends, and added from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection

import msgspec

from ..telemetry.figures import Figures, merge
from .channel import Message, WorkerQuestion, WorkerReply

FIGURES = "figures"
"""The question whose answers are kept."""
ALIVE = "alive"
"""The question that every worker answers, whatever else it can tell."""
ENDED = -1
"""The worker id under which the figures of workers that ended are given."""

_decode = msgspec.msgpack.Decoder(Figures).decode


class _OpenQuestion:
    def __init__(self, what: str, waiting: set[int]) -> None:
        self.what = what
        self.waiting = waiting
        self.answers: dict[int, bytes] = {}
        self.settled = asyncio.Event()

    def receive(self, worker_id: int, octets: bytes | None) -> None:
        self.waiting.discard(worker_id)
        if octets is not None:
            self.answers[worker_id] = octets
        if not self.waiting:
            self.settled.set()


class QuestionRelay:
    """The relay of one event loop. Workers join when they serve and leave when their channel ends."""

    def __init__(self) -> None:
        self._senders: dict[int, Callable[[Message], None]] = {}
        self._open_questions: dict[int, _OpenQuestion] = {}
        self._last_id = 0
        self._figures: dict[int, bytes] = {}
        self._ended_totals: Figures | None = None

    def join(self, worker_id: int, send: Callable[[Message], None]) -> None:
        self._senders[worker_id] = send

    def leave(self, worker_id: int) -> None:
        """Stop waiting for worker ``worker_id``; what it counted stays."""
        self._senders.pop(worker_id, None)
        last = self._figures.pop(worker_id, None)
        if last is not None:
            totals = _decode(last).totals()
            self._ended_totals = totals if self._ended_totals is None else merge([self._ended_totals, totals])
        for pending in self._open_questions.values():
            if worker_id in pending.waiting:
                pending.receive(worker_id, None)

    def reply(self, worker_id: int, reply: WorkerReply) -> None:
        """Take a worker's reply. One that comes too late is dropped, and an empty one is none."""
        pending = self._open_questions.get(reply.id)
        if pending is not None and worker_id in pending.waiting:
            if pending.what == FIGURES and reply.octets:
                # Not only when all have answered: the worker may have ended by then, and would count twice.
                self._figures[worker_id] = reply.octets
            pending.receive(worker_id, reply.octets or None)

    def keep_final_figures(self, worker_id: int, figures: bytes) -> None:
        """Take the figures that a worker sends before it ends."""
        if worker_id in self._senders and figures:
            self._figures[worker_id] = figures

    async def ask(
        self, what: str, about: bytes, patience_s: float, worker_ids: Collection[int] | None = None
    ) -> dict[int, bytes]:
        """What each worker answers, or each of ``worker_ids``, by id. A worker that has not answered in time is left
        out; for figures, its last answer stands in."""
        senders = {
            worker_id: send for worker_id, send in self._senders.items() if worker_ids is None or worker_id in worker_ids
        }
        if not senders:
            return {}
        self._last_id += 1
        question = WorkerQuestion(self._last_id, what, about)
        pending = self._open_questions[question.id] = _OpenQuestion(what, set(senders))
        try:
            for send in senders.values():
                send(question)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await pending.settled.wait()
        finally:
            del self._open_questions[question.id]
        return self._all_figures() if what == FIGURES else pending.answers

    def _all_figures(self) -> dict[int, bytes]:
        known = dict(self._figures)
        if self._ended_totals is not None:
            known[ENDED] = msgspec.msgpack.encode(self._ended_totals)
        return known
