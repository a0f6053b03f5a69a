"""One worker among several, over a real channel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from gateway.app.siblings import Siblings
from gateway.workers.channel import (
    AllAnswers,
    AskAll,
    Channel,
    FinalFigures,
    GroupStatus,
    ToSupervisor,
    WorkerQuestion,
    WorkerReply,
    decode_at_supervisor,
    decode_at_worker,
    open_channel,
)
from gateway.workers.question_relay import ALIVE, FIGURES

STATUS = GroupStatus((True, True), (0, 1), True, (0, 1))


class Pair:
    """A worker's siblings, and the supervisor's end of its channel."""

    def __init__(self, siblings: Siblings, supervisor: Channel[ToSupervisor]) -> None:
        self.siblings = siblings
        self.supervisor = supervisor


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    one, other = socket.socketpair()
    channel, supervisor = await open_channel(one, decode_at_worker), await open_channel(other, decode_at_supervisor)
    yield Pair(Siblings(channel, 0), supervisor)
    channel.close()
    supervisor.close()


async def test_it_answers_what_it_knows_and_nothing_else(pair: Pair) -> None:
    async def echo(about: bytes) -> bytes:
        return about + b"!"

    pair.siblings.handle("echo", echo)
    pair.siblings.answer(WorkerQuestion(1, "echo", b"hey"))
    pair.siblings.answer(WorkerQuestion(2, "unknown", b"hey"))
    assert [await pair.supervisor.receive(), await pair.supervisor.receive()] == [
        WorkerReply(1, b"hey!"),
        WorkerReply(2, b""),
    ]


async def test_every_worker_says_that_it_is_alive(pair: Pair) -> None:
    pair.siblings.answer(WorkerQuestion(1, ALIVE, b""))
    assert await pair.supervisor.receive() == WorkerReply(1, b"yes")


async def test_a_fault_in_one_answer_is_not_the_end(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(about: bytes) -> bytes:
        raise RuntimeError(about)

    pair.siblings.handle("broken", broken)
    pair.siblings.answer(WorkerQuestion(1, "broken", b""))
    assert await pair.supervisor.receive() == WorkerReply(1, b"")
    assert "fault while telling the other workers: broken" in caplog.text


async def test_answers_go_to_whoever_asked(pair: Pair) -> None:
    first = asyncio.ensure_future(pair.siblings.ask("a", patience_s=60.0))
    second = asyncio.ensure_future(pair.siblings.ask("b", b"about", patience_s=60.0))
    asked = [await pair.supervisor.receive(), await pair.supervisor.receive()]
    assert [(one.what, one.about) for one in asked if isinstance(one, AskAll)] == [("a", b""), ("b", b"about")]
    for one in reversed(asked):
        assert isinstance(one, AskAll)
        pair.siblings.receive(AllAnswers(one.id, {0: one.what.encode()}, STATUS))
    assert [(await first).answers, (await second).answers] == [{0: b"a"}, {0: b"b"}]
    pair.siblings.receive(AllAnswers(1, {}, STATUS))  # once more: of no effect


async def test_an_answer_that_comes_twice_or_too_late_harms_nobody(pair: Pair) -> None:
    """It may come when the patience is over, and whoever asked has not heard of that yet."""
    asking = asyncio.ensure_future(pair.siblings.ask("a", patience_s=60.0))
    asked = await pair.supervisor.receive()
    assert isinstance(asked, AskAll)
    for answer in (b"first", b"second"):
        pair.siblings.receive(AllAnswers(asked.id, {0: answer}, STATUS))
    assert (await asking).answers == {0: b"first"}


async def test_nothing_of_a_question_stays_when_it_is_over(pair: Pair) -> None:
    """A worker is asked and asks for as long as it lives."""
    given_up = asyncio.ensure_future(pair.siblings.ask("a", patience_s=60.0))
    assert isinstance(await pair.supervisor.receive(), AskAll)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    await pair.siblings.ask("b", patience_s=0.0)
    pair.siblings.answer(WorkerQuestion(1, ALIVE, b""))
    await asyncio.gather(*pair.siblings._answering)
    await asyncio.sleep(0)
    assert (pair.siblings._pending, pair.siblings._answering) == ({}, set())


async def test_who_parts_says_what_it_counted_after_everything_else(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    await pair.siblings.send_final_figures()  # counts nothing yet
    may = asyncio.Event()

    async def slow(_: bytes) -> bytes:
        await may.wait()
        return b"slow"

    async def figures(_: bytes) -> bytes:
        return b"figures"

    async def broken(_: bytes) -> bytes:
        raise RuntimeError

    pair.siblings.handle("slow", slow)
    pair.siblings.handle(FIGURES, figures)
    pair.siblings.answer(WorkerQuestion(1, "slow", b""))
    parting = asyncio.ensure_future(pair.siblings.send_final_figures())
    await asyncio.sleep(0)
    may.set()
    await parting
    assert [await pair.supervisor.receive(), await pair.supervisor.receive()] == [
        WorkerReply(1, b"slow"),
        FinalFigures(b"figures"),
    ]
    pair.siblings.handle(FIGURES, broken)
    await pair.siblings.send_final_figures()
    assert "fault while telling what was counted" in caplog.text


async def test_a_supervisor_that_does_not_answer_is_nobody_at_all() -> None:
    one, other = socket.socketpair()
    with other:
        channel = await open_channel(one, decode_at_worker)
        answers = await Siblings(channel, 0).ask("a", patience_s=0.0)
        assert (answers.answers, answers.group_status.begun) == ({}, False)
        channel.close()
