"""Questions to all workers, and what is kept of those that ended."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.telemetry.figures import Figures, Number, Row
from gateway.workers.channel import Message, WorkerQuestion, WorkerReply
from gateway.workers.question_relay import ENDED, FIGURES, QuestionRelay

_encode = msgspec.msgpack.Encoder().encode


class Worker:
    """Answers at once, or not at all."""

    def __init__(self, relay: QuestionRelay, number: int, answer: bytes | None = b"") -> None:
        self.relay = relay
        self.number = number
        self.answer = answer
        self.asked: list[WorkerQuestion] = []
        relay.join(number, self.receive)

    def receive(self, message: Message) -> None:
        assert isinstance(message, WorkerQuestion)
        self.asked.append(message)
        if self.answer is not None:
            self.relay.reply(self.number, WorkerReply(message.id, self.answer))


def counted(requests: int, up: float = 1.0) -> bytes:
    numbers = (Number("connects", "", float(requests), True, {}), Number("store_up", "", up, False, {}))
    return _encode(Figures((Row(("GET",), requests, 0, 0),), numbers=numbers))


def ended(answers: dict[int, bytes]) -> Figures:
    return msgspec.msgpack.decode(answers[ENDED], type=Figures)


async def test_everybody_is_asked() -> None:
    relay = QuestionRelay()
    workers = [Worker(relay, number, str(number).encode()) for number in range(3)]
    assert await relay.ask("who", b"about", 60.0) == {0: b"0", 1: b"1", 2: b"2"}
    assert [(one.asked[0].what, one.asked[0].about) for one in workers] == [("who", b"about")] * 3


async def test_where_nobody_is_nobody_answers() -> None:
    assert await QuestionRelay().ask("who", b"", 60.0) == {}


async def test_who_does_not_answer_is_left_out() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, b"0")
    silent = Worker(relay, 1, None)
    assert await relay.ask("who", b"", 0.0) == {0: b"0"}
    relay.reply(1, WorkerReply(silent.asked[0].id, b"late"))
    relay.reply(1, WorkerReply(99, b"to nothing"))
    assert await relay.ask("who", b"", 0.0) == {0: b"0"}


async def test_nobody_waits_for_one_that_ends_meanwhile() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, b"0")
    silent = Worker(relay, 1, None)
    asking = asyncio.ensure_future(relay.ask("who", b"", 60.0))
    while not silent.asked:
        await asyncio.sleep(0)
    relay.leave(1)
    assert await asking == {0: b"0"}


async def test_who_has_nothing_to_say_is_left_out() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, b"")
    Worker(relay, 1, b"1")
    assert await relay.ask("who", b"", 60.0) == {1: b"1"}


async def test_questions_do_not_mix() -> None:
    relay = QuestionRelay()
    silent = Worker(relay, 0, None)
    first, second = asyncio.ensure_future(relay.ask("a", b"", 60.0)), asyncio.ensure_future(relay.ask("b", b"", 60.0))
    while len(silent.asked) < 2:
        await asyncio.sleep(0)
    for question in reversed(silent.asked):
        relay.reply(0, WorkerReply(question.id, question.what.encode()))
    assert (await first, await second) == ({0: b"a"}, {0: b"b"})


async def test_what_one_had_counted_outlives_it() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, counted(1))
    Worker(relay, 1, counted(10))
    assert ENDED not in await relay.ask(FIGURES, b"", 60.0)
    relay.leave(1)
    kept = ended(await relay.ask(FIGURES, b"", 60.0))
    assert (kept.requests, [(one.name, one.value) for one in kept.numbers]) == (10, [("connects", 10.0)])
    Worker(relay, 1, counted(2))
    answers = await relay.ask(FIGURES, b"", 60.0)
    assert (ended(answers).requests, set(answers)) == (10, {0, 1, ENDED})
    relay.leave(1)
    assert ended(await relay.ask(FIGURES, b"", 60.0)).requests == 12


async def test_one_that_was_never_asked_leaves_nothing() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, counted(1))
    Worker(relay, 1, counted(5))
    relay.leave(1)
    assert set(await relay.ask(FIGURES, b"", 60.0)) == {0}
    relay.leave(7)  # it had not joined


async def test_who_is_slow_once_has_the_figures_of_before() -> None:
    """A sum that falls for a moment would look like a restart."""
    relay = QuestionRelay()
    slow = Worker(relay, 0, counted(3))
    Worker(relay, 1, counted(1))
    await relay.ask(FIGURES, b"", 60.0)
    slow.answer = None
    answers = await relay.ask(FIGURES, b"", 0.0)
    assert msgspec.msgpack.decode(answers[0], type=Figures).requests == 3


async def test_the_final_figures_of_one_are_what_is_kept() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, counted(1))
    Worker(relay, 1, counted(5))
    await relay.ask(FIGURES, b"", 60.0)
    relay.keep_final_figures(1, counted(8))
    relay.keep_final_figures(1, b"")  # says nothing
    relay.keep_final_figures(7, counted(100))  # it has not joined, or has left
    relay.leave(1)
    answers = await relay.ask(FIGURES, b"", 60.0)
    assert (set(answers), ended(answers).requests) == ({0, ENDED}, 8)


async def test_one_that_has_answered_and_ends_while_others_are_asked_counts_once() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, counted(3))
    silent = Worker(relay, 1, None)
    asking = asyncio.ensure_future(relay.ask(FIGURES, b"", 60.0))
    while not silent.asked:
        await asyncio.sleep(0)
    relay.leave(0)
    relay.reply(1, WorkerReply(silent.asked[0].id, counted(4)))
    answers = await asking
    assert (set(answers), ended(answers).requests) == ({1, ENDED}, 3)


async def test_one_that_ends_before_its_answer_is_heard_counts_once() -> None:
    """What it had counted is among what those that are gone had; its answer would come on top, and never leave."""
    relay = QuestionRelay()
    leaving = Worker(relay, 0, counted(3))
    await relay.ask(FIGURES, b"", 60.0)
    leaving.answer = None
    silent = Worker(relay, 1, None)
    asking = asyncio.ensure_future(relay.ask(FIGURES, b"", 60.0))
    while not silent.asked:
        await asyncio.sleep(0)
    relay.leave(0)
    relay.reply(0, WorkerReply(leaving.asked[-1].id, counted(4)))
    relay.reply(1, WorkerReply(silent.asked[0].id, counted(5)))
    answers = await asking
    assert (set(answers), ended(answers).requests) == ({1, ENDED}, 3)


async def test_one_whose_figures_can_not_be_told_has_those_of_before() -> None:
    relay = QuestionRelay()
    worker = Worker(relay, 0, counted(3))
    await relay.ask(FIGURES, b"", 60.0)
    worker.answer = b""
    assert await relay.ask(FIGURES, b"", 60.0) == {0: counted(3)}
    Worker(relay, 1, counted(1))
    relay.leave(0)
    assert ended(await relay.ask(FIGURES, b"", 60.0)).requests == 3


@pytest.mark.parametrize("ends", ["answered", "late", "cancelled"])
async def test_nothing_of_a_question_stays_when_it_is_over(ends: str) -> None:
    relay = QuestionRelay()
    worker = Worker(relay, 0, b"0" if ends == "answered" else None)
    asking = asyncio.ensure_future(relay.ask("who", b"", 0.0 if ends == "late" else 60.0))
    while not worker.asked:
        await asyncio.sleep(0)
    if ends == "cancelled":
        asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert not relay._open_questions


async def test_some_alone_may_be_asked() -> None:
    relay = QuestionRelay()
    workers = [Worker(relay, worker_id, str(worker_id).encode()) for worker_id in range(4)]
    assert await relay.ask("who", b"", 60.0, (1, 3, 9)) == {1: b"1", 3: b"3"}
    assert workers[0].asked == []


async def test_answers_to_other_questions_are_not_kept() -> None:
    relay = QuestionRelay()
    Worker(relay, 0, b"x")
    await relay.ask("who", b"", 60.0)
    relay.leave(0)
    Worker(relay, 1, b"y")
    assert await relay.ask("who", b"", 60.0) == {1: b"y"}
