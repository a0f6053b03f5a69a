"""The forward lane answers as the road does, and leaves to the road whatever is not plain: through a real connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cache.private import PrivateCache
from gateway.cache.private_miss import PrivateMiss
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields, ResponseHead
from gateway.forward_lane import ForwardLane, LaneRequest
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from gateway.telemetry.audit_line import LineRenderer
from tests.conftest import RedisServer
from tests.edge.wire import SOON_S, Client
from tests.fakes.port import CACHED, ETAG, ISSUES, LiveWorld, freeze_clock, issues, port
from tests.fakes.world import CONFIGURATION, ENVIRONMENT, OWN, Answer
from tests.test_short_lane_asking import Far, far

PAGES = "/api/v4/projects/1/issues?page=%d"
VARYING = re.compile(rb"(?m)^(X-Gateway-Request-Id|RateLimit[-A-Za-z]*|Date): .*$")
VARYING_FACTS = {
    "request_id",
    "started_at",
    "upstream_s",
    "upstream_first_byte_s",
    "bytes_out",
    "limit_remaining",
    "observer_memo",
}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[LiveWorld]:
    async with port(tmp_path) as one:
        freeze_clock(one.made)
        await learn(one)
        yield one


async def learn(at: LiveWorld, caller: str = "reader") -> None:
    """What kind of request it is."""
    await at.ask(PAGES % 900, caller=caller)
    await at.ask(PAGES % 901, caller=caller)
    assert at.forwarded
    at.made.up.requests.clear()
    at.made.seen.exchanges.clear()


async def said(at: LiveWorld, page: int, caller: str = "reader") -> bytes:
    await at.client.send(at.request(PAGES % page, caller=caller))
    head = await at.client.reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    assert length is not None
    return VARYING.sub(rb"\1", head) + await at.client.reader.readexactly(int(length[1]))


def facts(at: LiveWorld) -> list[dict[str, Any]]:
    return [
        {name: getattr(x, name) for name in x.__struct_fields__ if name not in VARYING_FACTS}
        | {name: bool(getattr(x, name)) for name in ("credential_fingerprint", "credential_id")}
        for x in at.made.seen.exchanges
    ]


def quiet(at: LiveWorld) -> bool:
    """Nothing of any request is left."""
    gateway = at.made.gateway
    cache = at.made.made.cache_assembly.cache
    flights = len(cache._fetcher.flights)  # type: ignore[attr-defined]
    return (gateway.in_flight, at.made.up.open, at.made.made.admitting_upstream.in_flight, flights) == (0, 0, 0, 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


LIMITS: Fields = ((b"RateLimit-Limit", b"10"), (b"RateLimit-Remaining", b"3"), (b"RateLimit-Reset", b"1900000000"))
DATED: Fields = ((b"Date", b"Sat, 21 Nov 2026 01:42:06 GMT"), (b"Content-Length", b"2"))


def answers(status: int, fields: Fields, body: bytes = b"[]") -> Answer:
    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        return Reply(ResponseHead(status, fields), whole=body)

    return answer


async def streamed(request: UpstreamRequest, octets: bytes) -> Reply:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"["
        await asyncio.sleep(0)
        yield b"]"

    return Reply(ResponseHead(200, (*ISSUES, (b"Content-Length", b"2"))), chunks=pieces())


ANSWERS: dict[str, tuple[Answer, bool]] = {
    "as GitLab lists": (issues(), True),
    "with Date and length": (issues(fields=(*ISSUES, *DATED)), True),
    "with GitLab's own limits": (issues(fields=(*ISSUES, *LIMITS)), True),
    "with names of its own": (
        issues(fields=(*ISSUES, (b"X-Request-Id", b"01HF"), (b"X-Runtime", b"0.05"), (b"X-Gitlab-Meta", b"{}"))),
        True,
    ),
    "nothing to store": (issues(b"hello", ((b"Content-Type", b"text/plain"),)), True),
    "not to be stored": (issues(fields=(*ISSUES, (b"Cache-Control", b"no-store"))), True),
    "a cookie": (issues(fields=(*ISSUES, (b"Set-Cookie", b"_gitlab_session=1"))), True),
    "another length than it says": (issues(fields=(*ISSUES, (b"Content-Length", b"3"))), False),
    "Last-Modified": (issues(fields=(*ISSUES, (b"Last-Modified", b"Sat, 21 Nov 2026 01:42:06 GMT"))), False),
    "another cache before us": (issues(fields=(*ISSUES, (b"Cache-Status", b"other; hit"))), False),
    "Connection names a field": (issues(fields=(*ISSUES, (b"Connection", b"X-Total"))), False),
    "not found": (answers(404, ((b"Content-Type", b"application/json"), *DATED)), False),
    "in maintenance": (answers(503, DATED), False),
    "a credential that GitLab knows": (answers(401, DATED), False),
    "not modified, though nobody asked": (answers(304, ((b"Etag", ETAG), (b"Content-Length", b"0"))), False),
    "in pieces": (streamed, False),
    "a field that no message may hold": (
        issues(fields=(*ISSUES, (b"X-Bad", b"a\x01b"), (b"Connection", b"X-Total"))),
        False,
    ),
}


@pytest.mark.parametrize("caller", ["reader", OWN])
@pytest.mark.parametrize("name", ANSWERS)
async def test_octet_for_octet_and_fact_for_fact_what_the_road_says(
    at: LiveWorld, caller: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if caller == OWN:
        if name == "a credential that GitLab knows":
            return None  # an own token that GitLab refuses is believed no more: no second request is alike
        await learn(at, caller)
    answer, whole = ANSWERS[name]
    if name == "another length than it says":
        return await _a_wrong_length(at, caller, answer)
    if name == "not modified, though nobody asked":
        return await _a_304(at, caller, answer)
    at.made.up.answer = answer
    told, seen, gone_up = [], [], []
    for page, lane in ((7, True), (7, False)):
        at.made.seen.exchanges.clear()
        at.made.calls.clear()
        at.made.up.requests.clear()
        if not lane:
            store = at.made.made.cache_assembly.memory
            assert store is not None
            store._slots.clear(), store._small.clear(), store._main.clear(), store._ghosts.clear()
            monkeypatch.setattr(at.made.gateway.forward_lane, "try_answer", lambda *_: None)
        told.append(await said(at, page, caller))
        await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
        assert at.forwarded is (lane and whole), at.made.calls
        seen.append(facts(at))
        gone_up.append([(one.target, [f for f in one.fields if f[0] != b"X-Request-Id"]) for one in at.made.up.requests])
    assert told[0] == told[1]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1
    assert gone_up[0] == gone_up[1]
    assert len(gone_up[0]) == 1
    return None


async def _a_wrong_length(at: LiveWorld, caller: str, answer: Answer) -> None:
    """The road tells it as it came, and stores nothing."""
    at.made.up.answer = answer
    await at.client.send(at.request(PAGES % 7, caller=caller))
    await at.client.reader.readuntil(b"\r\n\r\n[]")
    await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
    assert "cache.fetch" in at.made.calls
    assert at.made.last.cache_stored == "incomplete"


async def _a_304(at: LiveWorld, caller: str, answer: Answer) -> None:
    at.made.up.answer = answer
    status, _, _ = await at.ask(PAGES % 7, caller=caller)
    assert (status, at.made.last.upstream_status) == (304, 304)
    assert not at.forwarded
    assert quiet(at)


async def test_what_workhorse_should_have_kept_is_counted_once(at: LiveWorld) -> None:
    at.made.up.answer = issues(fields=(*ISSUES, (b"X-Sendfile", b"/srv/x"), (b"Connection", b"X-Total")))
    assert (await at.ask(PAGES % 7, caller="reader"))[0] == 200
    assert "upstream.send_soon" in at.made.calls
    assert at.made.gateway.stages.header_rules.leaks == 1


async def test_a_refusal_of_gitlab_is_told_and_heard_once(at: LiveWorld) -> None:
    at.made.up.answer = answers(429, ((b"Retry-After", b"7"), *DATED))
    status, fields, _ = await at.ask(PAGES % 7, caller="reader")
    assert (status, fields[b"Retry-After"]) == (429, b"7")
    assert "upstream.send_soon" in at.made.calls
    assert not at.forwarded
    assert (await at.ask(PAGES % 8, caller="reader"))[0] == 429
    assert "upstream.send_soon" not in at.made.calls, "its credential is not asked with meanwhile"
    assert len(at.made.up.requests) == 1
    assert quiet(at)


async def test_each_takes_one_from_its_buckets(at: LiveWorld) -> None:
    lefts = []
    for page in range(4):
        await at.ask(PAGES % page, caller="reader")
        assert at.forwarded
        lefts.append(at.made.last.limit_remaining)
    assert lefts == [pytest.approx(lefts[0] - page, abs=0.5) for page in range(4)]


async def test_what_it_stored_is_a_hit(at: LiveWorld) -> None:
    first = await at.ask(PAGES % 5, caller="reader")
    second = await at.ask(PAGES % 5, caller="reader")
    assert [one[0] for one in (first, second)] == [200, 200]
    assert (first[2], second[2]) == (b"[]", b"[]")
    assert [x.cache_status for x in at.made.seen.exchanges] == ["miss", "hit"]
    assert len(at.made.up.requests) == 1
    assert second[1][b"Etag"] == ETAG


@pytest.mark.parametrize(("condition", "expected"), [(ETAG.decode(), 304), ("*", 304), ('"another"', 200)])
async def test_who_holds_what_gitlab_sends_is_told_so(at: LiveWorld, condition: str, expected: int) -> None:
    """GitLab is asked on behalf of all, without this client's condition: its answer may be what the client holds."""
    for page in range(3):  # the first teaches the lane
        status, fields, body = await at.ask(PAGES % page, f"If-None-Match: {condition}", caller="reader")
        assert (status, fields[b"Etag"], body) == (expected, ETAG, b"" if expected == 304 else b"[]")
        assert b"If-None-Match" not in dict(at.made.up.requests[-1].fields)
        assert (at.made.last.upstream_status, at.made.last.cache_stored) == (200, "stored")
    assert "upstream.send_soon" in at.made.calls
    assert at.forwarded is (expected == 200), "the rest is the road's"
    assert (await at.ask(PAGES % 2, caller="reader"))[2] == b"[]"
    assert at.made.last.cache_status == "hit"
    assert quiet(at)


async def test_who_asks_the_same_meanwhile_waits_for_the_answer(at: LiveWorld) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def slowly(request: UpstreamRequest, octets: bytes) -> Reply:
        arrived.set()
        await go.wait()
        return Reply(ResponseHead(200, ISSUES), whole=b"[1]")

    at.made.up.answer = slowly
    others = [Client(*await asyncio.open_connection("127.0.0.1", at.port)) for _ in range(3)]
    await at.client.send(at.request(PAGES % 6, caller="reader"))
    await arrived.wait()
    for other in others:
        await other.send(at.request(PAGES % 6, caller="reader"))
    await until(lambda: at.made.gateway.in_flight == 4 and at.made.calls.count("cache.fetch") == 3)
    go.set()
    assert [(await one.answer())[2] for one in (at.client, *others)] == [b"[1]"] * 4
    assert len(at.made.up.requests) == 1
    assert sorted(x.cache_status for x in at.made.seen.exchanges) == ["collapsed"] * 3 + ["miss"]
    assert quiet(at)
    for other in others:
        other.writer.close()


class Held:
    """GitLab, until it is let go."""

    def __init__(self, at: LiveWorld, answer: Answer | None = None) -> None:
        self.arrived = asyncio.Event()
        self._go = asyncio.Event()
        self._answer = answer or issues()
        at.made.up.answer = self

    async def __call__(self, request: UpstreamRequest, octets: bytes) -> Reply:
        self.arrived.set()
        await self._go.wait()
        return await self._answer(request, octets)

    def go(self) -> None:
        self._go.set()


async def test_who_leaves_while_gitlab_is_asked(at: LiveWorld) -> None:
    Held(at)
    await at.client.send(at.request(PAGES % 3, caller="reader"))
    await until(lambda: at.made.up.open == 1)
    assert at.made.gateway.in_flight == 1
    at.client.reset()
    await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
    last = at.made.last
    assert (last.status, last.aborted, last.bytes_out) == (499, "client", 0)
    assert last.upstream_s > 0
    at.made.up.answer = issues()
    other = Client(*await asyncio.open_connection("127.0.0.1", at.port))
    assert (await at.ask(PAGES % 3, caller="reader", client=other))[0] == 200
    assert len(at.made.seen.exchanges) == 2
    other.writer.close()


async def test_what_is_under_way_shows_no_credential(at: LiveWorld) -> None:
    """An event loop tells of callbacks that fail by the repr of whose they are."""
    held = Held(at)
    await at.client.send(at.request(PAGES % 3, caller="reader"))
    await held.arrived.wait()
    (connection,) = at.server.connections
    assert connection._pending is not None
    lane_request = connection._pending[0]
    assert isinstance(lane_request, LaneRequest)
    leader, (request,) = lane_request._leader, at.made.up.requests
    shown = repr(
        [
            lane_request,
            lane_request.on_answer,
            lane_request.plan,
            lane_request.head,
            lane_request.pending_call,
            leader,
            request,
        ]
    )
    shown += repr([request.repeated, list(at.made.made.cache_assembly.cache._fetcher.flights._table.values())])  # type: ignore[attr-defined]
    secrets = {at.made.keys["reader"], *ENVIRONMENT.values()}
    assert [secret for secret in secrets if secret in shown] == []
    assert any(secret.encode() in value for secret in secrets for _, value in request.fields)
    held.go()
    await at.client.answer()


async def test_who_leaves_in_the_very_moment_of_the_answer(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line in the audit is its own, whatever those say that were answered."""
    await at.ask(PAGES % 2, caller="reader")
    assert at.made.last.observer_memo is not None
    connection = next(iter(at.server.connections))
    monkeypatch.setattr(type(connection), "is_gone", lambda _: True)
    await at.client.send(at.request(PAGES % 3, caller="reader"))
    await until(lambda: len(at.made.seen.exchanges) == 2 and quiet(at))
    assert (at.made.last.status, at.made.last.aborted, at.made.last.bytes_out) == (499, "client", 0)
    (line,) = LineRenderer().render([(at.made.last, 0.1)], 1e9)
    assert b'"status":499' in line


async def test_a_fault_while_it_is_told(
    at: LiveWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*_: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(LaneRequest, "_render_new", fault)
    assert (await at.ask(PAGES % 3, caller="reader"))[0] == 200
    assert "fault in the forward lane" in caplog.text
    assert at.made.last.observer_memo is None
    assert quiet(at)


async def test_who_waits_while_the_gateway_ends_is_told(at: LiveWorld) -> None:
    Held(at)
    await at.client.send(at.request(PAGES % 3, caller="reader"))
    await until(lambda: at.made.up.open == 1)
    at.server.drain()
    await at.server.shutdown(0.01)
    status, fields, _ = await at.client.answer()
    assert (status, dict(fields)[b"Connection"]) == (503, b"close")
    assert (at.made.last.status, at.made.last.code) == (503, Code.DRAINING.value)
    assert quiet(at)


@pytest.mark.parametrize("code", [Code.UPSTREAM_TIMEOUT, Code.UPSTREAM_RESET])
async def test_a_failure_of_gitlab_is_told_by_the_road(at: LiveWorld, code: Code) -> None:
    async def fails(request: UpstreamRequest, octets: bytes) -> Reply:
        raise Rejection(code, 504, "504 Gateway Timeout", source=Source.UPSTREAM)

    at.made.up.answer = fails
    before = await _left(at)
    status, fields, _ = await at.ask(PAGES % 3, caller="reader")
    assert (status, fields[b"X-Gateway-Error"], at.made.last.code) == (504, code.value.encode(), code.value)
    assert "upstream.send_soon" in at.made.calls
    assert len(at.made.up.requests) == 2, "asked once, and the page before"
    assert at.made.last.limit_remaining == pytest.approx(before - 1, abs=0.5)
    assert quiet(at)


async def _left(at: LiveWorld) -> float:
    answer, at.made.up.answer = at.made.up.answer, issues()
    await at.ask(PAGES % 77, caller="reader")
    at.made.up.answer = answer
    return at.made.last.limit_remaining


async def test_what_may_be_sent_once_more_is_sent_by_the_road(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was kept turned out to be dead."""
    real = LaneRequest.on_answer
    monkeypatch.setattr(LaneRequest, "on_answer", lambda self, _answer: real(self, None))
    before = await _left(at)
    asked = len(at.made.up.requests)
    status, _, body = await at.ask(PAGES % 3, caller="reader")
    assert (status, body) == (200, b"[]")
    assert len(at.made.up.requests) == asked + 2
    assert at.made.last.limit_remaining == pytest.approx(before - 1, abs=0.5)
    assert (at.made.last.cache_status, at.made.last.cache_stored) == ("miss", "stored")
    assert quiet(at)


async def test_without_a_connection_at_hand_the_road_goes_on(at: LiveWorld) -> None:
    before = await _left(at)
    at.made.up.at_hand = False
    assert (await at.ask(PAGES % 3, caller="reader"))[0] == 200
    assert "upstream.send" in at.made.calls
    assert at.made.last.limit_remaining == pytest.approx(before - 1, abs=0.5)
    assert quiet(at)


async def test_a_write_that_overtakes_it_keeps_it_out_of_the_cache(at: LiveWorld) -> None:
    held = Held(at)
    await at.client.send(at.request(PAGES % 3, caller="reader"))
    await held.arrived.wait()
    store = at.made.made.cache_assembly.store
    assert store is not None
    await store.purge((b"project:1",))
    held.go()
    assert (await at.client.answer())[0] == 200
    assert (at.made.last.cache_status, at.made.last.cache_stored) == ("miss", "invalidated")
    await at.ask(PAGES % 3, caller="reader")
    assert at.made.last.cache_status == "miss"


@pytest.mark.parametrize("late", [False, True])
async def test_a_write_that_overtakes_what_the_road_deals_with(
    at: LiveWorld, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, as the road's own would be, and not kept: it was asked for before the write."""
    fields = (*ISSUES, (b"Last-Modified", b"Sat, 21 Nov 2026 01:42:06 GMT"))
    held = Held(at, issues(b"[1]", fields))
    store = at.made.made.cache_assembly.memory
    assert store is not None
    await at.client.send(at.request(PAGES % 3, caller="reader"))
    await held.arrived.wait()
    if late:
        real = LaneRequest.taken_on

        def taken_on(self: LaneRequest) -> None:
            store.purge_now((b"project:1",))
            real(self)

        monkeypatch.setattr(LaneRequest, "taken_on", taken_on)
    else:
        store.purge_now((b"project:1",))
    at.made.up.answer = issues(b"[2]", fields)
    held.go()
    assert (await at.client.answer())[2] == b"[1]"
    assert len(at.made.up.requests) == 1
    await until(lambda: quiet(at))
    assert at.made.last.cache_stored == "invalidated"
    monkeypatch.undo()
    assert (await at.ask(PAGES % 3, caller="reader"))[2] == b"[2]"
    assert at.made.last.cache_status == "miss"


async def test_who_leaves_before_the_road_takes_over(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is given back, and the request observed once."""
    handed: list[LaneRequest] = []
    connection = next(iter(at.server.connections))

    def deliver(octets: bytes | None, handover: LaneRequest | None = None) -> None:
        assert octets is None
        assert handover is not None
        handed.append(handover)
        connection._pending = None
        connection._handover = handover  # type: ignore[attr-defined]

    at.made.up.answer = streamed
    monkeypatch.setattr(type(connection), "deliver", lambda _self, octets, handover=None: deliver(octets, handover))
    await at.client.send(at.request(PAGES % 3, caller="reader"))
    await until(lambda: bool(handed))
    assert at.made.up.open == 1
    at.client.reset()
    await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
    assert (at.made.last.status, at.made.last.aborted) == (499, "client")
    assert len(at.made.seen.exchanges) == 1


@pytest.mark.parametrize("part", ["up", "down"])
async def test_a_fault_is_logged_and_the_road_answers(
    at: LiveWorld, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*_: object) -> None:
        raise ValueError("a fault")

    if part == "up":
        monkeypatch.setattr(PrivateCache, "lead_now", fault)
    else:
        monkeypatch.setattr(PrivateMiss, "answered", fault)
    assert (await at.ask(PAGES % 3, caller="reader"))[0] == 200
    assert "fault in the forward lane" in caplog.text
    assert len(at.made.seen.exchanges) == 1
    assert quiet(at)


async def test_a_fault_before_anything_was_taken(
    at: LiveWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*_: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(ForwardLane, "try_answer", fault)
    assert (await at.ask(PAGES % 3, caller="reader"))[0] == 200
    assert "fault in a lane" in caplog.text


# What keeps a request off the lane


async def test_a_refused_credential_is_for_the_road(at: LiveWorld) -> None:
    tokens = at.made.made.tokens
    assert tokens is not None
    tokens._settle(tokens._single["sa"], trusted=False, reason="is refused")
    status, _, _ = await at.ask(PAGES % 3, caller="reader")
    assert status == 502
    assert "upstream.send_soon" not in at.made.calls


async def test_an_empty_bucket_refuses_on_the_road(tmp_path: Path) -> None:
    few = CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 4")
    async with port(tmp_path, few + CACHED) as at:
        statuses = [(await at.ask(PAGES % page, caller="reader"))[0] for page in range(6)]
    assert statuses == [200] * 4 + [429] * 2


async def test_a_route_without_a_lifetime(tmp_path: Path) -> None:
    """Each page goes up on the lane once; what GitLab then says is changed is for the road."""
    async with port(tmp_path, CONFIGURATION + "cache: {ttl: 0s}\n") as at:
        await learn(at)
        for _ in range(2):
            status, fields, body = await at.ask(PAGES % 3, caller="reader")
            assert (status, body, fields[b"Etag"]) == (200, b"[]", ETAG)
        assert not at.forwarded
        assert [x.cache_status for x in at.made.seen.exchanges] == ["miss", "updated"]
        asked = [dict(one.fields).get(b"If-None-Match") for one in at.made.up.requests]
        assert asked == [None, ETAG]


async def test_without_limits(tmp_path: Path) -> None:
    unlimited = CONFIGURATION[: CONFIGURATION.index("limits:")]
    async with port(tmp_path, unlimited + CACHED) as at:
        await learn(at)
        _, fields, _ = await at.ask(PAGES % 3, caller="reader")
        assert at.forwarded
        assert not [call for call in at.made.calls if call.startswith("limits.")]
        assert fields[b"RateLimit-Limit"] == b"6000"
        assert (at.made.last.limit_id, at.made.last.limit_remaining) == ("", -1.0)


# Buckets in Redis


async def test_buckets_that_are_far(tmp_path: Path, redis_url: str, redis_server: RedisServer) -> None:
    few = CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 30")
    text = few + CACHED.replace("{", "{store: memory, ")
    async with far(tmp_path, redis_server.port, text, cached="") as at:
        await at.ask(PAGES % 900, caller="reader")
        await at.ask(PAGES % 901, caller="reader")
        assert at.forwarded
        assert "limits.admit_soon" in at.made.calls
        await _leaves_while_asked(at)
        at.client = Client(*await asyncio.open_connection("127.0.0.1", at.port))
        lefts = []
        statuses = []
        for page in range(30):
            statuses.append((await at.ask(PAGES % page, caller="reader"))[0])
            lefts.append(at.remaining)
        assert statuses.count(429) >= 2
        assert lefts[: statuses.count(200)] == list(range(lefts[0], lefts[0] - statuses.count(200), -1))
        assert lefts[statuses.count(200) - 1] == 0, "all were taken, and none twice"
        assert at.made.gateway.in_flight == 0
        at.client.writer.close()


async def _leaves_while_asked(at: Far) -> None:
    at.line.hold_answers()
    before = len(at.made.seen.exchanges)
    await at.client.send(at.request(PAGES % 902, caller="reader"))
    await until(lambda: at.made.gateway.forward_lane.active == 1)
    at.client.reset()
    await at.observed(before + 1)
    assert (at.made.last.status, at.made.last.aborted) == (499, "client")
    assert at.made.gateway.in_flight == 0
    at.line.release()
