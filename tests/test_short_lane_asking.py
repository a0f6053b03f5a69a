"""The short lane while Redis is asked: through a real connection, real stages and a real Redis behind a line that waits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.core.limits import Limit, Scope, Take
from gateway.core.messages import RequestHead
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.redis_link import RedisLink
from tests.conftest import RedisServer
from tests.edge.wire import SOON_S, Client
from tests.fakes.line import TcpRelay
from tests.fakes.port import CACHED, TARGET, LiveWorld, issues, port
from tests.fakes.world import CONFIGURATION, OWN, SECRETS

VARYING = re.compile(rb"(?m)^(X-Gateway-Request-Id|Date|Age|Cache-Status|RateLimit[-A-Za-z]*): .*$")
FEW = CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 20")


class Far(LiveWorld):
    """A port whose Redis is at the end of ``line``."""

    line: TcpRelay

    @property
    def store(self) -> RedisBuckets:
        return self.made.made.gateway.stages.limits._buckets  # type: ignore[return-value]

    async def until_pending(self, count: int = 1) -> None:
        """Until so many wait for the buckets."""
        async with asyncio.timeout(SOON_S):
            while self.made.gateway.lane.pending != count:
                await asyncio.sleep(0)

    async def observed(self, count: int) -> None:
        async with asyncio.timeout(SOON_S):
            while len(self.made.seen.exchanges) < count:
                await asyncio.sleep(0)

    @property
    def remaining(self) -> int:
        return int(self.made.last.limit_remaining)


@asynccontextmanager
async def far(
    directory: Path, redis: int, text: str = CONFIGURATION, more: str = "", cached: str = CACHED
) -> AsyncIterator[Far]:
    line = TcpRelay(redis)
    await line.open()
    stores = f'stores: {{shared: "redis://127.0.0.1:{line.port}/0", keys: "sqlite:///{directory}/keys.db"{more}}}\n'
    try:
        async with port(directory, text + cached + SECRETS + stores) as at:
            at.__class__ = Far
            assert isinstance(at, Far)
            at.line = line
            at.store._link._timeout_s = 2 * SOON_S  # the line's word, not the clock's, ends a wait
            async with asyncio.timeout(SOON_S):
                await at.ask(caller="reader")
                while not at.short:  # until the copy at hand is trusted, and the way learnt
                    await at.ask(caller="reader")
            yield at
            line.release()
    finally:
        await line.cut()


@pytest.fixture
async def at(tmp_path: Path, redis_url: str, redis_server: RedisServer) -> AsyncIterator[Far]:
    async with far(tmp_path, redis_server.port) as one:
        yield one


def request(at: LiveWorld, page: int = 2) -> bytes:
    return at.request(TARGET.replace("2", str(page)), caller="reader")


async def test_octet_for_octet_and_fact_for_fact_what_the_road_says(at: Far) -> None:
    target = TARGET.replace("2", "3")
    said = []
    for _ in range(5):
        at.made.calls.clear()
        await at.client.send(at.request(target, caller="reader"))
        head = await at.client.reader.readuntil(b"\r\n\r\n")
        said.append(VARYING.sub(rb"\1", head) + await at.client.reader.readexactly(2))
    assert at.short
    assert "limits.admit_soon" in at.made.calls
    assert said[1:] == [said[1]] * 4
    facts = [{name: getattr(x, name) for name in x.__struct_fields__} for x in at.made.seen.exchanges[-4:]]
    lefts = [one.pop("limit_remaining") for one in facts]
    assert lefts == [pytest.approx(lefts[0] - place, abs=0.5) for place in range(4)], "each took one"
    for one in facts:
        del one["request_id"], one["started_at"], one["upstream_s"], one["bytes_out"], one["observer_memo"]
    assert facts[1:] == [facts[0]] * 3
    assert len({x.request_id for x in at.made.seen.exchanges}) == len(at.made.seen.exchanges)


async def test_what_comes_behind_waits_its_turn(at: Far) -> None:
    """Whole requests, known and unknown, and a part of one."""
    at.line.hold_answers()
    at.made.up.answer = issues(b"[9]")
    await at.client.send(request(at))
    await at.until_pending()
    await at.client.send(request(at))
    await at.client.send(request(at, 9) + request(at)[:40])
    for _ in range(20):
        await asyncio.sleep(0)
    assert (at.made.gateway.lane.pending, at.made.gateway.active) == (1, 0)
    assert at.made.gateway.in_flight == 1
    at.line.release()
    await at.client.send(request(at)[40:])
    assert [(await at.client.answer())[2] for _ in range(4)] == [b"[]", b"[]", b"[9]", b"[]"]
    for _ in range(2):
        assert (await at.ask(caller="reader"))[0] == 200
    assert at.short, "the connection is as it was, once a request came by itself"


async def test_who_leaves_is_counted_out(at: Far) -> None:
    before = len(at.made.seen.exchanges)
    at.line.hold_answers()
    await at.client.send(request(at))
    await at.until_pending()
    at.client.reset()
    await at.observed(before + 1)
    last = at.made.last
    assert (last.status, last.aborted, last.cache_status, last.bytes_out) == (499, "client", "", 0)
    assert at.made.gateway.in_flight == 0
    at.line.release()
    other = Client(*await asyncio.open_connection("127.0.0.1", at.port))
    assert (await at.ask(caller="reader", client=other))[0] == 200
    assert len(at.made.seen.exchanges) == before + 2
    other.writer.close()


class Nobody:
    """A sink that must get nothing."""

    gone = False

    def deliver(self, octets: bytes | None) -> None:
        raise AssertionError("nobody asked for it any more")


async def test_who_leaves_before_redis_was_asked_takes_nothing(at: Far) -> None:
    await at.ask(caller="reader")
    left = at.remaining
    head = at.server.head_cache.head(request(at), "127.0.0.1", tls=False)
    assert isinstance(head, RequestHead)
    pending = at.made.gateway.try_answer(head, Nobody())
    assert pending is not None
    assert not isinstance(pending, bytes)
    pending.leave()
    assert at.made.last.status == 499
    await at.ask(caller="reader")
    assert at.remaining == left - 1


async def test_a_drain_lets_it_end(at: Far) -> None:
    at.line.hold_answers()
    await at.client.send(request(at))
    await at.until_pending()
    at.server.drain()
    at.server.pre_shutdown()
    ending = asyncio.ensure_future(at.server.shutdown(SOON_S))
    await asyncio.sleep(0)
    at.line.release()
    status, _, body = await at.client.answer()
    assert (status, body) == (200, b"[]")
    assert await at.client.rest() == b""
    await ending
    assert (at.made.last.status, at.made.gateway.in_flight) == (200, 0)


async def test_a_drain_that_ends_first_says_so(at: Far) -> None:
    at.line.hold_answers()
    before = len(at.made.seen.exchanges)
    await at.client.send(request(at))
    await at.until_pending()
    at.server.pre_shutdown()
    await at.server.shutdown(0.01)
    status, fields, body = await at.client.answer()
    told = dict(fields)
    assert (status, told[b"Connection"], told[b"X-Gateway-Error"], told[b"Retry-After"]) == (
        503,
        b"close",
        b"draining",
        b"1",
    )
    assert body == b'{"message":"503 Service Unavailable"}'
    assert await at.client.rest() == b""
    assert len(at.made.seen.exchanges) == before + 1
    last = at.made.last
    assert (last.status, last.code, last.aborted, last.cache_status) == (503, "draining", "", "")
    assert last.request_id.encode() == told[b"X-Gateway-Request-Id"]
    assert at.made.gateway.in_flight == 0


async def test_when_redis_dies_the_policy_decides(at: Far) -> None:
    at.line.hold()
    await at.client.send(request(at))
    await at.until_pending()
    before = len(at.made.seen.exchanges)
    await at.line.cut()
    assert (await at.client.answer())[0] == 200
    assert (len(at.made.seen.exchanges), at.made.gateway.in_flight) == (before + 1, 0)


async def test_when_redis_dies_and_the_policy_is_closed_the_road_says_so(tmp_path: Path, redis_server: RedisServer) -> None:
    async with far(tmp_path, redis_server.port, more=", on_error: {buckets: closed}") as at:
        at.line.hold()
        await at.client.send(request(at))
        await at.until_pending()
        before = len(at.made.seen.exchanges)
        await at.line.cut()
        status, fields, _ = await at.client.answer()
        assert (status, dict(fields)[b"X-Gateway-Error"]) == (503, b"limiter_unavailable")
        assert (len(at.made.seen.exchanges), at.made.gateway.in_flight) == (before + 1, 0)


async def test_a_refusal_by_redis_is_the_roads_at_first_and_then_short(
    tmp_path: Path, redis_url: str, redis_server: RedisServer
) -> None:
    """Another gateway emptied the bucket. Nothing is taken, and it is told once."""
    async with far(tmp_path, redis_server.port, FEW) as at:
        other = RedisBuckets(RedisLink.from_url(redis_url, timeout_s=60.0, name="other"))
        limit = Limit("caller", Scope.CALLER, 1 / 86_400, 20.0)
        taken = await other.take([Take(f"{{gw}}:b:caller:{at.made.last.principal}", limit, float(at.remaining))])
        assert taken.allowed
        await other.close()
        for short in (False, True):
            at.store._known.clear()
            at.store._known_before.clear()
            before = len(at.made.seen.exchanges)
            status, fields, _ = await at.ask(caller="reader")
            assert (status, fields[b"RateLimit-Remaining"], at.short) == (429, b"0", short)
            assert "limits.admit_soon" in at.made.calls
            assert (len(at.made.seen.exchanges), at.made.gateway.in_flight) == (before + 1, 0)
            assert (at.made.last.status, at.made.last.code, at.made.last.cache_status) == (429, "rate_limited", "")
        (hot,) = at.made.stages.limits.top_talkers.top(1, taken.now)
        assert (hot.asked, hot.refused) == (len(at.made.seen.exchanges), 2)


async def test_a_key_that_is_revoked_meanwhile_lets_this_one_end(at: Far) -> None:
    at.line.hold_answers()
    await at.client.send(request(at))
    await at.until_pending()
    at.made.made.gateway.stages.authenticator._keys._known.drop_where(lambda _: True)  # type: ignore[attr-defined]
    at.line.release()
    assert (await at.client.answer())[0] == 200
    await at.ask(caller="reader")
    assert not at.short


async def test_many_in_one_turn(tmp_path: Path, redis_url: str, redis_server: RedisServer) -> None:
    """More than one script call takes."""
    count = 150
    async with far(tmp_path, redis_server.port, CONFIGURATION.replace("burst: 50", "burst: 5000")) as at:
        others = [Client(*await asyncio.open_connection("127.0.0.1", at.port)) for _ in range(count)]
        at.line.hold_answers()
        left = at.remaining
        for other in others:
            other.writer.write(request(at))
        await at.until_pending(count)
        at.line.release()
        lefts = sorted([int(dict((await other.answer())[1])[b"RateLimit-Remaining"]) for other in others])
        assert lefts[-1] - lefts[0] >= count - 10, "some flowed back meanwhile"
        assert left - count <= lefts[0] <= left
        assert at.made.gateway.in_flight == 0
        for other in others:
            other.writer.close()


async def test_a_fault_of_the_lane_is_nobodys_else(
    at: Far, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is given inside of what reads Redis's replies."""
    lane = at.made.gateway.lane
    before = len(at.made.seen.exchanges)
    real, faults = lane._answer, 0

    def answer(found: object, decision: object) -> bytes:
        nonlocal faults
        faults += 1
        if faults == 1:
            raise ZeroDivisionError
        return real(found, decision)  # type: ignore[arg-type]

    monkeypatch.setattr(lane, "_answer", answer)
    other = Client(*await asyncio.open_connection("127.0.0.1", at.port))
    at.line.hold_answers()
    await at.client.send(request(at))
    await other.send(request(at))
    await at.until_pending(2)
    at.line.release()
    assert [(await one.answer())[0] for one in (at.client, other)] == [200, 200]
    assert "fault in the short lane" in caplog.text
    assert (len(at.made.seen.exchanges), at.made.gateway.in_flight, faults) == (before + 2, 0, 2)
    assert at.store._link.healthy
    other.writer.close()


async def test_others_are_served_meanwhile(at: Far) -> None:
    at.line.hold_answers()
    await at.client.send(request(at))
    await at.until_pending()
    other = Client(*await asyncio.open_connection("127.0.0.1", at.port))
    await other.send(b"GET /api/v4/projects HTTP/1.1\r\nHost: git.example.com\r\n\r\n")
    assert (await other.answer())[0] == 401
    at.line.release()
    assert (await at.client.answer())[0] == 200
    assert (await at.ask(caller=OWN))[0] == 200
    other.writer.close()
