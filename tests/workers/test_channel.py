"""Messages between two ends of a socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from gateway.config.source import ConfigSource
from gateway.workers.channel import (
    AllAnswers,
    AskAll,
    Begin,
    Channel,
    FinalFigures,
    GroupStatus,
    Leave,
    Message,
    Ready,
    Reload,
    Reloads,
    Retire,
    ToSupervisor,
    ToWorker,
    WorkerQuestion,
    WorkerReply,
    decode_at_supervisor,
    decode_at_worker,
    open_channel,
)

BEGIN = Begin(
    1,
    2,
    4,
    ConfigSource("version: 1", "f", ((("listen", "workers"), "2"),), files={"/p": "secret"}),
    b"key",
    (3,),
    (4,),
    5,
    6,
    ("sa",),
    True,
)


async def pair() -> tuple[Channel[ToWorker], Channel[ToSupervisor], socket.socket]:
    """A worker's end, its supervisor's, and the latter's socket again."""
    one, other = socket.socketpair()
    again = other.dup()
    return await open_channel(one, decode_at_worker), await open_channel(other, decode_at_supervisor), again


@pytest.mark.parametrize(
    "message",
    [
        BEGIN,
        Reload(),
        Retire(),
        Leave(),
        Leave(at_once=True),
        WorkerQuestion(7, "figures", b"\x00"),
        AllAnswers(7, {-1: b"", 3: b"x"}, GroupStatus((True,), (0,), True, (4,), Reloads(1, 2, 3, True))),
    ],
    ids=repr,
)
async def test_what_a_worker_receives(message: Message) -> None:
    worker, supervisor, again = await pair()
    supervisor.send(message)
    assert await worker.receive() == message
    for one in (worker, supervisor, again):
        one.close()


@pytest.mark.parametrize(
    "message",
    [Ready(), AskAll(1, "figures", b"", 1.0), WorkerReply(2, b"\xff" * 3_000_000), FinalFigures(b"f")],
    ids=["ready", "ask", "long reply", "final figures"],
)
async def test_what_a_supervisor_receives(message: Message) -> None:
    worker, supervisor, again = await pair()
    worker.send(message)
    async with asyncio.timeout(30):
        assert await supervisor.receive() == message
    for one in (worker, supervisor, again):
        one.close()


async def test_the_end_of_one_is_the_end_of_the_others_messages() -> None:
    worker, supervisor, again = await pair()
    worker.send(Ready())
    worker.send(Ready())
    worker.close()
    assert [await supervisor.receive(), await supervisor.receive(), await supervisor.receive()] == [Ready(), Ready(), None]
    supervisor.send(Reload())  # nobody is there; nobody minds
    supervisor.close()
    supervisor.send(Reload())
    again.close()


async def test_the_last_words_arrive_though_the_process_is_about_to_end() -> None:
    worker, supervisor, again = await pair()
    last = FinalFigures(b"f" * 3_000_000)
    worker.send(last)
    _, received = await asyncio.gather(worker.flush_and_close(), supervisor.receive())
    assert (received, await supervisor.receive()) == (last, None)
    supervisor.close()
    again.close()


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(struct.pack(">I", 3) + b"\xc1\xc1\xc1", id="no message"),
        pytest.param(struct.pack(">I", 1) + b"\x01", id="another message"),
        pytest.param(b"\xff" * 64, id="a length beyond all bounds"),
        pytest.param(struct.pack(">I", 9) + b"\x00", id="a part of one"),
    ],
)
async def test_what_is_no_message_ends_them(octets: bytes) -> None:
    worker, supervisor, again = await pair()
    again.send(octets)
    supervisor.close()
    again.close()
    assert await worker.receive() is None
    worker.close()


def test_no_secret_is_shown() -> None:
    assert repr(BEGIN) == "Begin(1 of 2)"


def test_the_ids_of_a_group_are_consecutive() -> None:
    assert BEGIN.group == range(3, 5)
