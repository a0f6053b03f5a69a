"""Octets both ways, and every way in which that ends."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from gateway.core.errors import Code, Rejection, Source
from gateway.reply import Ending
from gateway.tunnel_stage import relay


class Side:
    """One end: reads what the test sends, keeps what is written."""

    half_closes = True

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.chunks: deque[bytes | Exception] = deque(chunks)
        self.more = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self.written: list[bytes] = []
        self.eof = asyncio.Event()
        self.closed = False

    def send(self, chunk: bytes | Exception) -> None:
        self.chunks.append(chunk)
        self.more.set()

    async def read(self) -> bytes:
        while not self.chunks:
            self.more.clear()
            await self.more.wait()
        chunk = self.chunks.popleft()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    async def write(self, chunk: bytes) -> None:
        await self.room.wait()
        self.written.append(chunk)

    def write_eof(self) -> None:
        self.eof.set()
        if not self.half_closes:
            self.send(b"")

    def close(self) -> None:
        self.closed = True


GONE = Rejection(Code.UPSTREAM_RESET, 502, "502", source=Source.UPSTREAM)
OUR_END = Rejection(Code.DRAINING, 503, "503", source=Source.INTERNAL)


async def test_an_end_is_passed_on_and_the_other_direction_goes_on() -> None:
    client, server = Side(b"a", b""), Side()
    running = asyncio.ensure_future(relay(client, server, idle_s=60))
    await server.eof.wait()
    assert (server.written, running.done()) == ([b"a"], False)
    server.send(b"b")
    server.send(b"")
    assert await running is Ending.BOTH
    assert client.written == [b"b"]
    assert client.eof.is_set()
    assert client.closed
    assert server.closed


@pytest.mark.parametrize(
    ("client", "server", "ending"),
    [
        (ConnectionResetError(), None, Ending.CLIENT),
        (None, GONE, Ending.UPSTREAM),
        (None, OUR_END, Ending.GATEWAY),
    ],
)
async def test_a_side_that_breaks_ends_both(client: Exception | None, server: Exception | None, ending: Ending) -> None:
    sides = Side(*[client] if client else []), Side(*[server] if server else [])
    assert await relay(*sides, idle_s=60) is ending
    assert all(side.closed for side in sides)


async def test_an_end_is_that_of_both_where_a_side_knows_no_half_close() -> None:
    """GitLab's, and the other direction is not waited for; the client's, and what GitLab had said is delivered first."""
    client, server = Side(), Side(b"last", b"")
    server.half_closes = False
    assert await relay(client, server, idle_s=60) is Ending.BOTH
    assert client.written == [b"last"]

    client, server = Side(b""), Side(b"had come")
    server.half_closes = False
    client.room.clear()
    running = asyncio.ensure_future(relay(client, server, idle_s=60))
    await server.eof.wait()
    client.room.set()
    assert await running is Ending.BOTH
    assert client.written == [b"had come"]


@pytest.mark.parametrize("ending", Ending)
async def test_it_is_over_whatever_its_octets_say(ending: Ending) -> None:
    """The client's end is not read, and GitLab takes nothing."""
    client, server = Side(b"x"), Side()
    server.room.clear()
    running = asyncio.ensure_future(relay(client, server, idle_s=60))
    await asyncio.sleep(0.01)
    client.over.set_result(ending)
    assert await running is ending
    assert client.closed
    assert server.closed


async def test_silence_ends_a_tunnel_and_traffic_keeps_it() -> None:
    client, server = Side(), Side()
    assert await relay(client, server, idle_s=0.01) is Ending.GATEWAY
    assert client.closed


async def test_silence_is_measured_from_the_last_octet_on() -> None:
    """Whichever way it went, and not from when it was looked for."""
    client, server = Side(), Side()
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(relay(client, server, idle_s=0.4))
    for side in (client, server, client):
        await asyncio.sleep(0.3)
        side.send(b"x")
    moved_at = loop.time()
    assert await running is Ending.GATEWAY
    assert 0.39 < loop.time() - moved_at < 0.65
    assert (client.written, server.written) == ([b"x"], [b"x", b"x"])


async def test_a_side_that_takes_nothing_holds_the_other_back() -> None:
    client, server = Side(*[b"x"] * 100), Side()
    server.room.clear()
    running = asyncio.ensure_future(relay(client, server, idle_s=60))
    while len(client.chunks) > 99:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(client.chunks) == 99
    server.room.set()
    client.send(b"")
    server.send(b"")
    assert await running is Ending.BOTH
    assert len(server.written) == 100


async def test_cancelled_it_leaves_nothing_behind() -> None:
    client, server = Side(), Side()
    before = asyncio.all_tasks()
    running = asyncio.ensure_future(relay(client, server, idle_s=60))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert client.closed
    assert server.closed
    assert asyncio.all_tasks() == before


async def test_a_fault_of_ours_is_not_swallowed() -> None:
    with pytest.raises(ValueError, match="ours"):
        await relay(Side(ValueError("ours")), Side(), idle_s=60)


async def test_it_is_over_with_the_credential_that_opened_it() -> None:
    client, server = Side(), Side()
    answers = iter([True, True, False])

    async def accepted() -> bool:
        return next(answers)

    assert await relay(client, server, idle_s=60, check=accepted, check_every_s=0) is Ending.GATEWAY
    assert client.closed
    assert server.closed
    assert list(answers) == []


async def test_a_credential_that_stays_good_ends_nothing_and_is_asked_about_no_longer_than_needed() -> None:
    client, server = Side(), Side()
    asked = asyncio.Event()

    async def accepted() -> bool:
        asked.set()
        return True

    running = asyncio.ensure_future(relay(client, server, idle_s=60, check=accepted))
    await asked.wait()
    client.send(b"x")
    client.send(b"")
    server.send(b"")
    assert await running is Ending.BOTH
    assert server.written == [b"x"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "tunnel credential"]


async def test_a_fault_in_asking_is_none_of_the_tunnels() -> None:
    async def accepted() -> bool:
        raise LookupError

    with pytest.raises(LookupError):
        await relay(client := Side(), Side(), idle_s=60, check=accepted)
    assert client.closed
