"""A request may be cancelled at any await: nothing leaks, and its audit line is still written.

Each test cancels after one more turn of the event loop until the request gets through untouched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.core.errors import Rejection
from gateway.core.messages import ResponseHead
from gateway.ports import DRAINED, UpstreamRequest
from gateway.reply import Reply
from tests.fakes.port import freeze_key_cache
from tests.fakes.world import CONFIGURATION, OWN, FakeDownstream, World, world

PROJECT = "/api/v4/projects/1"
ETAG = ((b"ETag", b'W/"1"'), (b"Content-Type", b"application/json"))
_LASTING = {"credentials"}
_TURNS = 400
"""More than any request here takes; a test that gets there is stuck."""


async def settled(made: World) -> None:
    """Whatever a cancelled request leaves to be finished in the background, finishes."""
    async with asyncio.timeout(30):
        while made.up.open or made.made.admitting_upstream.in_flight or _passing():
            await asyncio.sleep(0)


def _passing() -> list[asyncio.Task[object]]:
    """Tasks that must come to an end, unlike the test's and those that last as long as the gateway."""
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and task.get_name() not in _LASTING]


async def cancelled_everywhere(made: World, request: Callable[[int], FakeDownstream]) -> int:
    """Cancel at every turn; the number of turns a request takes."""
    for turns in range(_TURNS):
        down = request(turns)
        before = len(made.seen.exchanges)
        task = asyncio.ensure_future(made.gateway.handle(down))
        for _ in range(turns):
            await asyncio.sleep(0)
        untouched = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(made.seen.exchanges) == before + (1 if turns else 0), "one audit event for whatever began"
        assert made.gateway.in_flight == 0
        await settled(made)
        if untouched:
            assert made.last.aborted == ""
            return turns
        if turns:
            assert (made.last.status, made.last.aborted) == (499, "client")
            assert not down.finished
    raise AssertionError("it never came to its end")


async def test_the_gateways_own_end_is_not_the_clients(made: World) -> None:
    """Whoever has no answer yet is told; an answer that has begun is cut, and laid at the gateway's door."""
    for turns in range(_TURNS):
        down = made.down("GET", PROJECT)
        before = len(made.seen.exchanges)
        task = asyncio.ensure_future(made.gateway.handle(down))
        for _ in range(turns + 1):
            await asyncio.sleep(0)
        untouched, had_begun = task.done(), down.started
        task.cancel(DRAINED)
        await asyncio.gather(task, return_exceptions=True)
        await settled(made)
        if untouched:
            break
        assert len(made.seen.exchanges) == before + 1
        assert made.last.code == "draining"
        assert made.last.aborted == ("gateway" if had_begun else "")
        assert (made.last.status, down.aborted) == ((200, True) if had_begun else (503, False))
    else:
        raise AssertionError("it never came to its end")
    assert turns > 1


async def test_a_write_that_went_up_is_not_to_be_repeated_after_a_drain(made: World) -> None:
    """Before it goes up its caller may come back; from then on nobody knows what GitLab did."""
    statuses = []
    for turns in range(1, _TURNS):
        token = f"glpat-nobody-knew-{turns}"  # asked about first
        made.up.users[token] = 3000 + turns
        down = made.down("POST", f"{PROJECT}/issues", caller=token, body=(b"x",))
        task = asyncio.ensure_future(made.gateway.handle(down))
        for _ in range(turns):
            await asyncio.sleep(0)
        if down.started or task.done():
            break
        task.cancel(DRAINED)
        await asyncio.gather(task, return_exceptions=True)
        await settled(made)
        statuses.append(made.last.status)
    await asyncio.gather(task)
    assert {503, 504} == set(statuses)
    assert statuses == sorted(statuses)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        one.up.answer = streamed
        yield one


async def chunks() -> AsyncIterator[bytes]:
    for piece in (b"one", b"two", b"three"):
        await asyncio.sleep(0)
        yield piece


async def streamed(request: UpstreamRequest, body: bytes) -> Reply:
    return Reply(ResponseHead(200, ETAG), chunks=chunks())


async def test_with_a_token_nobody_knew_yet(made: World) -> None:
    """Its verification is in flight for others too: it goes on, or ends, but never hangs."""

    def request(turn: int) -> FakeDownstream:
        token = f"glpat-somebodys-own-token-{turn}"
        made.up.users[token] = 1000 + turn
        return made.down("GET", PROJECT, caller=token)

    assert await cancelled_everywhere(made, request) > 8


async def test_with_a_token_that_is_believed(made: World) -> None:
    await made.ask("GET", PROJECT)
    await cancelled_everywhere(made, lambda _turn: made.down("GET", PROJECT))


async def test_with_a_key(made: World) -> None:
    await made.ask("GET", PROJECT, caller="reader")
    await cancelled_everywhere(made, lambda _turn: made.down("GET", PROJECT, caller="reader"))


async def test_with_a_body_on_its_way_up(made: World) -> None:
    await made.ask("GET", PROJECT, caller="reader")
    form = (b"Content-Type", b"application/x-www-form-urlencoded")

    def request(_turn: int) -> FakeDownstream:
        return made.down("POST", f"{PROJECT}/issues", form, caller="reader", body=(b"title=x", b"&a=b", b"&c=d"))

    assert await cancelled_everywhere(made, request) > 8


async def test_with_a_credential_in_the_body(made: World) -> None:
    await made.ask("GET", PROJECT)
    form = (b"Content-Type", b"application/x-www-form-urlencoded")

    def request(_turn: int) -> FakeDownstream:
        body = (b"title=x", b"&private_token=", OWN.encode())
        return made.down("POST", f"{PROJECT}/issues", form, caller=None, body=body)

    await cancelled_everywhere(made, request)


async def test_while_being_refused(made: World) -> None:
    """GitLab says 401 to a credential of ours: the question whether it is dead may be cancelled, too."""

    async def refusing(request: UpstreamRequest, body: bytes) -> Reply:
        await asyncio.sleep(0)
        return Reply(ResponseHead(401, ()), whole=b"")

    await made.ask("GET", PROJECT, caller="reader")
    made.up.answer = refusing
    await cancelled_everywhere(made, lambda _turn: made.down("GET", PROJECT, caller="reader"))


async def test_others_who_wait_for_the_same_answer_get_it(made: World) -> None:
    """Two ask about one unknown token; whoever asked first goes away at every turn in between."""
    for turns in range(1, 12):
        token = f"glpat-shared-by-two-{turns}"
        made.up.users[token] = 2000 + turns
        first, second = made.down("GET", PROJECT, caller=token), made.down("GET", PROJECT, caller=token)
        leader = asyncio.ensure_future(made.gateway.handle(first))
        await asyncio.sleep(0)
        follower = asyncio.ensure_future(made.gateway.handle(second))
        for _ in range(turns):
            await asyncio.sleep(0)
        leader.cancel()
        async with asyncio.timeout(30):
            await asyncio.gather(leader, return_exceptions=True)
            await follower
        assert (second.status, second.written, second.finished) == (200, b"onetwothree", True)
        await settled(made)


async def test_a_rejection_is_no_cancellation(made: World) -> None:
    """The fakes tell the two apart, so that the tests above can fail."""

    async def refusing(request: UpstreamRequest, body: bytes) -> Reply:
        from gateway.core.errors import Code

        raise Rejection(Code.UPSTREAM_BUSY, 503, "503 Service Unavailable")

    made.up.answer = refusing
    down = await made.ask("GET", PROJECT)
    assert (down.status, made.last.aborted) == (503, "")


async def test_by_a_plan_that_is_known(tmp_path: Path) -> None:
    """Between the buckets and the last octet. (On the short lane: ``tests/test_short_lane_asking.py``.)"""

    async def issues(request: UpstreamRequest, body: bytes) -> Reply:
        return Reply(ResponseHead(200, ETAG), whole=b"[]")

    async with world(tmp_path, CONFIGURATION + "cache: {ttl: 60s, access_ttl: 60s}\n", issues) as made:
        freeze_key_cache(made)
        down = made.down("GET", f"{PROJECT}/issues", caller="reader").repeated()
        for _ in range(4):
            down = down.repeated()
            await made.gateway.handle(down)
        made.calls.clear()
        assert await cancelled_everywhere(made, lambda _turn: down.repeated()) > 1
        assert "limits.admit_now" in made.calls
        assert "entry.target" not in made.calls
