"""Each await may be the last: wherever a request is cancelled, nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Callable

import pytest

from gateway.core.errors import Rejection
from gateway.ports import UpstreamRequest
from gateway.upstream.client import HttpUpstream

from .conftest import OK, Gitlab, Peer, Pieces, get

Make = Callable[..., HttpUpstream]

LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000


async def dripping(peer: Peer) -> None:
    """Answers in many small turns of the loop, so that there are many places to be cancelled at."""
    while head := await peer.request():
        if b"Content-Length: 100000" in head:
            await peer.body(100_000)
        elif b"chunked" in head:
            await peer.reader.readuntil(b"0\r\n\r\n")
        answer = LARGE if b"/large" in head else OK
        for at in (0, 10, 30):
            await peer.send(answer[at : {0: 10, 10: 30, 30: None}[at]])
            await asyncio.sleep(0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


CASES = {
    "small": (get(), None),
    "large": (get(b"/large"), None),
    "upload": (get(b"/", method="PUT", content_length=100_000), [b"x" * 50_000] * 2),
    "chunked": (get(b"/", method="POST"), [b"x"] * 5),
    "collected": (get(b"/", method="POST", content_length=3), [b"x"] * 3),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("warm", [False, True])
async def test_cancelled_after_any_number_of_turns(gitlab: Gitlab, upstream: Make, case: str, warm: bool) -> None:
    request, pieces = CASES[case]
    client = upstream(await gitlab.play(dripping), max_in_flight=2)

    async def exchange(request: UpstreamRequest, pieces: list[bytes] | None) -> None:
        reply = await client.send(request, Pieces(*pieces) if pieces else None)
        try:
            if reply.chunks is not None:
                async for _ in reply.chunks:
                    await asyncio.sleep(0)
        finally:
            reply.release()

    await exchange(*CASES["small"])
    finished = False
    turns = 0
    while not finished and turns < 300:
        if not warm:
            while client.idle:
                idle = client._pool.take_idle(asyncio.get_running_loop().time())  # type: ignore[union-attr]
                if idle is not None:
                    idle.close()
        task = asyncio.ensure_future(exchange(request, pieces))
        for _ in range(turns):
            await asyncio.sleep(0)
        finished = task.done()
        task.cancel()
        await asyncio.wait([task])
        assert (client.in_flight, client.waiting) == (0, 0)
        for _ in range(50):  # a connection that was being opened is dropped when it is open
            if client.open == client.idle:
                break
            await asyncio.sleep(0.001)
        assert client.open == client.idle
        turns += 1
    assert finished
    await exchange(request, pieces)
    assert client.in_flight == 0


async def test_cancelled_while_waiting_for_a_place(gitlab: Gitlab, upstream: Make) -> None:
    """Also in the very turn in which the place is handed over: it goes on to the next."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while await peer.request():
            await go.wait()
            await peer.send(OK)

    client = upstream(await gitlab.play(script), max_in_flight=1)
    first, second, third = (asyncio.ensure_future(client.send(get(), None)) for _ in range(3))
    while client.waiting < 2:
        await asyncio.sleep(0)
    go.set()
    while client.waiting == 2:
        await asyncio.sleep(0)
    second.cancel()
    assert (await first).whole == b"ok"
    assert (await third).whole == b"ok"
    with pytest.raises(asyncio.CancelledError):
        await second
    assert (client.in_flight, client.waiting) == (0, 0)


async def test_cancelled_in_the_turn_in_which_the_answer_comes(gitlab: Gitlab, upstream: Make) -> None:
    """The future holds a streaming reply that nobody will ever see: its connection is closed, its place freed."""
    client = upstream(await gitlab.play(dripping))
    for _ in range(3):
        task = asyncio.ensure_future(client.send(get(b"/large"), None))
        while client.in_flight == 0 or not _answered(client):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result().release()
        assert (client.in_flight, client.idle) == (0, 0)


def _answered(client: HttpUpstream) -> bool:
    pool = client._pool
    assert pool is not None
    return any(one.has_received for one in pool._open)


async def test_no_socket_is_left(gitlab: Gitlab, upstream: Make) -> None:
    """Through cancelled look-ups, connects and answers."""
    client = upstream(await gitlab.play(dripping), keepalive_s=0.01)
    await client.send(get(), None)
    for _ in range(20):
        await asyncio.sleep(0.002)
    gc.collect()
    before = descriptors()
    for turns in range(60):
        task = asyncio.ensure_future(client.send(get(b"/large"), None))
        for _ in range(turns % 20):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Rejection):
            (await task).release()
    for _ in range(100):
        if descriptors() <= before:
            break
        await asyncio.sleep(0.01)
    assert descriptors() <= before
