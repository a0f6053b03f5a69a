"""Requests without a coroutine: sent where a connection is at hand, answered once, counted and given back as all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.adaptive import AdaptiveSettings
from gateway.core.breaker import BreakerSettings, BreakerState
from gateway.core.errors import Code, Rejection
from gateway.core.messages import Fields
from gateway.ports import RepeatedFields
from gateway.reply import Reply
from gateway.upstream.admission import AdmissionSettings, AdmittingUpstream
from gateway.upstream.client import HttpUpstream
from tests.conformance.import_corpus import octets
from tests.conformance.strict_upstream import cases
from tests.edge.wire import SOON_S
from tests.test_outbox import crowded

from .conftest import OK, Gitlab, Peer, always, get

Make = Callable[..., HttpUpstream]
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 10


class Outcome:
    """Takes the outcome of a request."""

    def __init__(self) -> None:
        self.answers: list[Reply | Rejection | None] = []
        self._heard = asyncio.Event()

    def __call__(self, answer: Reply | Rejection | None) -> None:
        self.answers.append(answer)
        self._heard.set()

    async def answer(self) -> Reply | Rejection | None:
        async with asyncio.timeout(SOON_S):
            await self._heard.wait()
        (answer,) = self.answers
        return answer


CORPUS = [case for case in cases("responses") if case["method"] == "GET"]


async def outcome_of(answer: Reply | Rejection | None) -> tuple[object, ...]:
    """What a client would make of it."""
    if not isinstance(answer, Reply):
        return ("none",) if answer is None else ("refused", answer.code)
    body = answer.whole
    try:
        if body is None:
            assert answer.chunks is not None
            body = b"".join([chunk async for chunk in answer.chunks])
    except Rejection as broken:
        return ("broken", answer.head.status, broken.code)
    finally:
        answer.release()
    return (answer.head.status, answer.head.fields, body)


def parts(target: bytes = b"/api/v4/version") -> tuple[bytes, Fields, RepeatedFields]:
    """As ``get``."""
    return target, ((b"X-Request-Id", b"1"),), RepeatedFields(((b"Host", b"gitlab.test"),), ())


async def warm(client: HttpUpstream | AdmittingUpstream) -> None:
    """A connection is kept."""
    (await client.send(get(), None)).release()


def admitting(client: HttpUpstream, most: int = 10) -> AdmittingUpstream:
    return AdmittingUpstream(client, AdmissionSettings(AdaptiveSettings(most=most, least=1)))


async def test_over_a_connection_that_was_kept(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)))
    outcome = Outcome()
    assert client.send_soon(*parts(), outcome) is None, "there is none"
    await warm(client)
    assert client.send_soon(*parts(b"/x%2Fy"), outcome) is not None
    assert outcome.answers == [], "later"
    reply = await outcome.answer()
    assert isinstance(reply, Reply)
    assert (reply.head.status, reply.whole) == (200, b"ok")
    assert len(gitlab.peers) == 1
    assert gitlab.peers[0].heads[1] == b"GET /x%2Fy HTTP/1.1\r\nHost: gitlab.test\r\nX-Request-Id: 1\r\n\r\n"
    assert (client.in_flight, client.idle, client.connects_total) == (0, 1, 1)
    await warm(client)
    assert len(gitlab.peers) == 1, "and it is kept again"


async def test_a_body_that_streams(gitlab: Gitlab, upstream: Make) -> None:
    goes_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(LARGE)
        await goes_on.wait()
        await peer.send(b"x" * 199_990)
        await peer.rest()

    client = upstream(await gitlab.play(script))
    admission = admitting(client)
    await warm(admission)
    outcome = Outcome()
    assert admission.send_soon(*parts(), outcome) is not None
    answer = await outcome.answer()
    assert isinstance(answer, Reply)
    assert answer.chunks is not None
    assert (admission.in_flight, client.in_flight) == (1, 1)
    goes_on.set()
    assert len(b"".join([chunk async for chunk in answer.chunks])) == 200_000
    assert (admission.in_flight, client.in_flight) == (1, 0)
    answer.release()
    assert admission.in_flight == 0


async def test_who_cancels_is_told_nothing_and_costs_the_connection(gitlab: Gitlab, upstream: Make) -> None:
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        arrived.set()
        await peer.rest()

    client = upstream(await gitlab.play(script))
    admission = admitting(client)
    await warm(admission)
    outcome = Outcome()
    sent = admission.send_soon(*parts(), outcome)
    assert sent is not None
    await arrived.wait()
    assert (admission.in_flight, client.in_flight) == (1, 1)
    sent.cancel()
    sent.cancel()
    assert (admission.in_flight, client.in_flight, client.open) == (0, 0, 0)
    await gitlab.peers[0].ended.wait()
    assert outcome.answers == []


async def test_what_is_cancelled_in_the_turn_it_was_sent_never_leaves(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)))
    await warm(client)
    assert client._outbox is not None
    await crowded(client._outbox)
    outcome = Outcome()
    sent = client.send_soon(*parts(b"/x"), outcome)
    assert sent is not None
    sent.cancel()
    assert (client.in_flight, client.open) == (0, 0)
    await gitlab.peers[0].ended.wait()
    assert (gitlab.requests, outcome.answers) == (1, [])


async def test_requests_of_one_turn_each_go_over_their_own(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)))
    replies = await asyncio.gather(*[client.send(get(), None) for _ in range(3)])
    for reply in replies:
        reply.release()
    outcome = [Outcome() for _ in range(3)]
    for number, one in enumerate(outcome):
        assert client.send_soon(*parts(b"/%d" % number), one) is not None
    answers = [await one.answer() for one in outcome]
    assert [answer.whole for answer in answers if isinstance(answer, Reply)] == [b"ok"] * 3
    asked = sorted(peer.heads[-1].split()[1] for peer in gitlab.peers)
    assert asked == [b"/0", b"/1", b"/2"]


async def test_a_connection_that_was_dead_may_be_tried_again(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        peer.reset()

    client = upstream(await gitlab.play(script))
    admission = admitting(client)
    await warm(admission)
    client._retry_budget = 1.0
    outcome = Outcome()
    assert admission.send_soon(*parts(), outcome) is not None
    assert await outcome.answer() is None
    assert (client.retries_total, admission.in_flight, client.in_flight) == (1, 0, 0)


@pytest.mark.parametrize(
    ("octets", "code"),
    [(b"HTTP/1.1 200 OK\r\nContent-Le", Code.UPSTREAM_RESET), (b"nonsense\r\n\r\n", Code.UPSTREAM_PROTOCOL)],
)
async def test_a_failure_is_told_and_learnt(gitlab: Gitlab, upstream: Make, octets: bytes, code: Code) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(octets)
        peer.close()

    client = upstream(await gitlab.play(script), breaker=BreakerSettings(min_requests=2, error_ratio=0.5))
    await warm(client)
    outcome = Outcome()
    assert client.send_soon(*parts(), outcome) is not None
    answer = await outcome.answer()
    assert isinstance(answer, Rejection)
    assert answer.code is code
    assert client.breaker_state is BreakerState.OPEN
    assert client.send_soon(*parts(), outcome) is None, "an open breaker is the road's to tell of"


async def test_no_answer_in_time(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.rest()

    client = upstream(await gitlab.play(script), first_byte_s=0.05)
    await warm(client)
    outcome = Outcome()
    assert client.send_soon(*parts(), outcome) is not None
    answer = await outcome.answer()
    assert isinstance(answer, Rejection)
    assert answer.code is Code.UPSTREAM_TIMEOUT
    assert client.in_flight == 0


async def test_whoever_is_told_may_fail(gitlab: Gitlab, upstream: Make, caplog: pytest.LogCaptureFixture) -> None:
    """And neither the connection nor anybody else suffers."""
    client = upstream(await gitlab.play(always(OK)))
    admission = admitting(client)
    await warm(admission)

    def fails(_: object) -> None:
        raise ValueError("a fault")

    assert admission.send_soon(*parts(), fails) is not None
    async with asyncio.timeout(SOON_S):
        while admission.in_flight:
            await asyncio.sleep(0)
    assert "response callback failed" in caplog.text
    await warm(admission)
    assert len(gitlab.peers) == 1


async def test_nobody_overtakes_those_who_wait_for_admission(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)))
    admission = admitting(client, most=1)
    await warm(admission)
    admission.in_flight = 1
    waiting = asyncio.ensure_future(admission.send(get(), None))
    await asyncio.sleep(0)
    assert admission.send_soon(*parts(), Outcome()) is None
    admission._free_place()
    (await waiting).release()
    outcome = Outcome()
    assert admission.send_soon(*parts(), outcome) is not None
    assert admission.in_flight == 1
    assert admission.send_soon(*parts(), Outcome()) is None, "no room for two"
    await outcome.answer()
    assert admission.in_flight == 0


async def test_closed_it_tells_who_waits(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.rest()

    client = upstream(await gitlab.play(script))
    await warm(client)
    outcome = Outcome()
    assert client.send_soon(*parts(), outcome) is not None
    await client.close()
    answer = await outcome.answer()
    assert isinstance(answer, Rejection)
    assert answer.code is Code.DRAINING
    assert client.send_soon(*parts(), outcome) is None


@pytest.mark.parametrize("case", CORPUS, ids=[case["id"] for case in CORPUS])
async def test_a_malformed_answer_comes_to_the_same(gitlab: Gitlab, upstream: Make, case: dict[str, Any]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        while await peer.request():
            await peer.send(octets(case["octets"]).encode("latin-1"))
            if case.get("closes"):
                return

    client = upstream(await gitlab.play(script), first_byte_s=0.2, idle_s=0.2, breaker=None)
    client._retry_budget = -100.0
    outcomes = []
    for soon in (False, True):
        await warm(client)
        if not soon:
            try:
                outcomes.append(await outcome_of(await client.send(get(), None)))
            except Rejection as refused_:
                outcomes.append(("refused", refused_.code))
        else:
            outcome = Outcome()
            assert client.send_soon(*parts(), outcome) is not None
            outcomes.append(await outcome_of(await outcome.answer()))
        kept = client.idle
        outcomes.append((kept,))
        for peer in gitlab.peers:
            peer.close()
        async with asyncio.timeout(SOON_S):
            while client.open:
                await asyncio.sleep(0)
    assert outcomes[:2] == outcomes[2:]
    assert client.in_flight == 0
