"""Admission to GitLab: places, turns, classes, and what is learned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.core.access import Priority
from gateway.core.adaptive import AdaptiveSettings
from gateway.core.errors import Code, Rejection
from gateway.core.messages import ResponseHead
from gateway.ports import RequestBody, UpstreamRequest
from gateway.reply import Reply
from gateway.upstream.admission import AdmissionSettings, AdmittingUpstream

CRITICAL, INTERACTIVE, BACKGROUND = Priority.CRITICAL, Priority.INTERACTIVE, Priority.BACKGROUND


class FakeGitLab:
    """Answers when it is let, in the order asked."""

    def __init__(self) -> None:
        self.inside: list[tuple[str, asyncio.Future[Reply]]] = []
        self.closed = False

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.inside.append((request.caller, answered))
        return await answered

    def answer(self, reply: Reply | None = None) -> None:
        self.inside.pop(0)[1].set_result(reply or Reply(ResponseHead(200, ()), b""))

    def fail(self, code: Code) -> None:
        self.inside.pop(0)[1].set_exception(Rejection(code, 504, "504"))

    async def close(self) -> None:
        self.closed = True


def request(
    caller: str = "bot", priority: Priority = INTERACTIVE, *, upgrade: bool = False, waits: bool = False
) -> UpstreamRequest:
    return UpstreamRequest("GET", b"/", (), upgrade=upgrade, caller=caller, priority=priority, waits=waits)


def admitting(gitlab: FakeGitLab, most: int = 10, **more: float) -> AdmittingUpstream:
    settings = AdmissionSettings(AdaptiveSettings(most=most, least=1), **more)  # type: ignore[arg-type]
    return AdmittingUpstream(gitlab, settings)


def sent(upstream: AdmittingUpstream, *asked: UpstreamRequest) -> list[asyncio.Task[Reply]]:
    return [asyncio.ensure_future(upstream.send(one, None)) for one in asked]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_class_fills_its_part_and_the_critical_keep_a_reserve() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab)
    tasks = sent(upstream, *[request("b", BACKGROUND)] * 9)
    await settle()
    assert (upstream.in_flight, upstream.waiting) == (7, 2)
    tasks += sent(upstream, *[request("i", INTERACTIVE)] * 3)
    await settle()
    assert (upstream.in_flight, upstream.waiting) == (9, 3)
    tasks += sent(upstream, request("c", CRITICAL))
    await settle()
    assert [caller for caller, _ in gitlab.inside].count("c") == 1
    while gitlab.inside:
        gitlab.answer()
        await settle()
    assert len(await asyncio.gather(*tasks)) == 13
    assert (upstream.in_flight, upstream.waiting) == (0, 0)


async def test_callers_take_turns() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab, most=1)
    order: list[str] = []
    tasks = sent(upstream, *[request("greedy")] * 10, request("polite"))
    await settle()
    while gitlab.inside:
        order.append(gitlab.inside[0][0])
        gitlab.answer()
        await settle()
    await asyncio.gather(*tasks)
    assert order.index("polite") <= 2


async def test_a_streamed_answer_keeps_its_place_until_released() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    gitlab = FakeGitLab()
    upstream = admitting(gitlab)
    released: list[bool] = []
    (task,) = sent(upstream, request())
    await settle()
    gitlab.answer(Reply(ResponseHead(200, ()), None, chunks(), lambda: released.append(True)))
    reply = await task
    assert upstream.in_flight == 1
    reply.release()
    reply.release()
    assert (upstream.in_flight, released) == (0, [True])


async def test_who_waits_too_long_is_told_to_come_back() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab, most=1, wait_s=0.01)
    first, late = sent(upstream, request(), request("late", BACKGROUND))
    with pytest.raises(Rejection) as refused:
        await late
    assert (refused.value.code, refused.value.status) == (Code.UPSTREAM_BUSY, 503)
    assert b"Retry-After" in dict(refused.value.headers)
    assert upstream.shed_total[BACKGROUND] == 1
    gitlab.answer()
    await first
    assert (upstream.in_flight, upstream.waiting) == (0, 0)


async def test_background_is_shed_first() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab, most=1, max_waiting=1)
    first, low, high = sent(upstream, request(), request("low", BACKGROUND), request("high", CRITICAL))
    with pytest.raises(Rejection):
        await low
    gitlab.answer()
    await first
    await settle()
    gitlab.answer()
    await high


async def test_a_client_that_leaves_frees_what_it_had() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab, most=1)
    inside, waiting, behind = sent(upstream, request(), request("leaves"), request("behind"))
    await settle()
    waiting.cancel()
    await settle()
    inside.cancel()
    await settle()
    assert [caller for caller, _ in gitlab.inside if caller == "behind"] == ["behind"]
    gitlab.inside = [one for one in gitlab.inside if one[0] == "behind"]
    gitlab.answer()
    await behind
    assert (upstream.in_flight, upstream.waiting) == (0, 0)


async def test_a_place_that_comes_as_its_taker_leaves_is_not_lost() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab, most=1)
    inside, waiting = sent(upstream, request(), request("leaves"))
    await settle()
    gitlab.answer()
    await inside  # by now the place is given on
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (upstream.in_flight, upstream.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        pytest.param(Code.UPSTREAM_TIMEOUT, 9, id="timeout"),
        pytest.param(Code.UPSTREAM_BREAKER_OPEN, 10, id="our-own"),
    ],
)
async def test_a_request_that_gitlab_dropped_lowers_the_limit(code: Code, limit: int) -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab)
    (task,) = sent(upstream, request())
    await settle()
    gitlab.fail(code)
    with pytest.raises(Rejection):
        await task
    assert (upstream.limit, upstream.in_flight) == (limit, 0)


async def test_a_tunnel_takes_no_place() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab)
    (task,) = sent(upstream, request(upgrade=True))
    await settle()
    assert upstream.in_flight == 0
    gitlab.answer()
    await task


@pytest.mark.parametrize("ends", ["answered", "dropped", "left"])
async def test_who_polls_for_long_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """A fleet of idle runners is more than there are places."""
    monkeypatch.setattr("gateway.upstream.parking.PARKED_AFTER_S", 0.0)
    gitlab = FakeGitLab()
    upstream = admitting(gitlab, most=2)
    polls = sent(upstream, *[request("runner", waits=True)] * 5)
    async with asyncio.timeout(30):
        while len(gitlab.inside) < 5 or upstream.in_flight:
            await asyncio.sleep(0)
    assert upstream.waiting == 0
    others = sent(upstream, *[request("other")] * 3)
    await settle()
    assert (upstream.in_flight, upstream.waiting) == (2, 1)
    for poll in polls:
        if ends == "answered":
            gitlab.answer()
        elif ends == "dropped":
            gitlab.fail(Code.UPSTREAM_TIMEOUT)
        else:
            poll.cancel()
            gitlab.inside.pop(0)
    await asyncio.gather(*polls, return_exceptions=True)
    assert (upstream.in_flight, upstream.waiting) == (2, 1)
    for _ in others:
        gitlab.answer()
        await settle()
    await asyncio.gather(*others)
    assert upstream.in_flight == 0


async def test_who_merely_waits_says_nothing_about_gitlab() -> None:
    gitlab = FakeGitLab()
    adaptive = AdaptiveSettings(most=10, least=1, window_s=0.0, samples=1)
    upstream = AdmittingUpstream(gitlab, AdmissionSettings(adaptive))
    for first_byte_s in (0.01, 59.0):
        waiting = sent(upstream, *[request(waits=True)] * 9)
        await settle()
        for _ in waiting:
            gitlab.answer(Reply(ResponseHead(200, ()), b"", first_byte_s=first_byte_s))
        await asyncio.gather(*waiting)
    assert upstream.limit == 10
    (lost,) = sent(upstream, request(waits=True))
    await settle()
    gitlab.fail(Code.UPSTREAM_TIMEOUT)
    await asyncio.wait([lost])
    assert (upstream.limit, upstream.in_flight) == (10, 0)


async def test_who_polls_and_sends_slowly_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstream.parking.PARKED_AFTER_S", 0.0)
    gitlab = FakeGitLab()
    upstream = admitting(gitlab)
    slowly = SlowClient(1_000_000)
    asked = asyncio.ensure_future(upstream.send(request(waits=True), slowly))
    await asyncio.sleep(0.001)
    await settle()
    assert upstream.in_flight == 1
    gitlab.answer()
    await asked


async def test_closing_refuses_who_waits() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab, most=1)
    inside, waiting = sent(upstream, request(), request())
    await settle()
    await upstream.close()
    with pytest.raises(Rejection):
        await waiting
    assert gitlab.closed
    inside.cancel()
    await asyncio.gather(inside, return_exceptions=True)


class SlowClient:
    """A body that comes when it likes."""

    def __init__(self, length: int) -> None:
        self.content_length: int | None = length
        self.comes = asyncio.Event()
        self._left = b"x" * length

    async def read(self) -> bytes:
        await self.comes.wait()
        octets, self._left = self._left, b""
        return octets


async def test_a_client_that_sends_slowly_holds_no_place() -> None:
    gitlab = FakeGitLab()
    upstream = admitting(gitlab)
    slow = [SlowClient(100) for _ in range(50)]
    post = UpstreamRequest("POST", b"/", (), content_length=100, caller="slow")
    tasks = [asyncio.ensure_future(upstream.send(post, body)) for body in slow]
    await settle()
    assert (upstream.in_flight, upstream.waiting, gitlab.inside) == (0, 0, [])
    tasks += sent(upstream, request())
    await settle()
    assert upstream.in_flight == 1
    for body in slow:
        body.comes.set()
    await settle()
    while gitlab.inside:
        gitlab.answer()
        await settle()
    assert len(await asyncio.gather(*tasks)) == 51
    assert upstream.in_flight == 0


async def test_a_small_body_goes_up_as_it_came() -> None:
    bodies = []

    class Reading(FakeGitLab):
        async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
            assert body is not None
            bodies.append((body.content_length, await body.read(), await body.read()))
            return Reply(ResponseHead(200, ()), b"")

    body = SlowClient(5)
    body.comes.set()
    await admitting(Reading()).send(UpstreamRequest("POST", b"/", (), content_length=5), body)
    assert bodies == [(5, b"xxxxx", b"")]
