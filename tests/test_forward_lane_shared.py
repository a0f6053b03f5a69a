"""The forward lane where the cache is in Redis: through real connections, with a real Redis behind a line that waits.

The line is the cache's alone: buckets, and what Redis publishes, come by their own ways."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from gateway.core.cache_status import CacheReason
from gateway.core.errors import Code
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_redis import RedisCacheStore
from gateway.stores.redis_address import parse_address
from gateway.stores.redis_endpoint import RedisEndpoint
from tests.conftest import RedisServer
from tests.edge.wire import SOON_S, Client
from tests.fakes.line import TcpRelay
from tests.fakes.port import ETAG, ISSUES, LiveWorld, issues, port
from tests.fakes.world import CONFIGURATION, OWN, SECRETS, Answer
from tests.test_forward_lane import ANSWERS, PAGES, VARYING, Held, facts, quiet, until
from tests.test_forward_lane_validating import ANSWERS as VALIDATED
from tests.test_forward_lane_validating import MATCHING, _timeless
from tests.test_forward_lane_validating import answers as on_condition

PLENTY = CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 500")  # nothing flows back meanwhile
REUSED, ASKED_ABOUT = "reused", "asked about"
CACHES = {
    REUSED: "cache: {ttl: 60s, access_ttl: 60s, stale_if_error: 300s}\n",
    ASKED_ABOUT: "cache: {ttl: 0s, immutable: false, stale_if_error: 300s}\n",
}
EXPIRED_S = 61.0
NOW = time.time()  # at every gateway: lane and road look at the clock in moments of their own
KINDS = pytest.mark.parametrize("cached", [REUSED, ASKED_ABOUT])
WAITS = [(REUSED, "entry"), (REUSED, "lease"), (ASKED_ABOUT, "entry")]
ASKED = [*WAITS, (REUSED, "GitLab"), (ASKED_ABOUT, "GitLab")]
Opens = Callable[..., AbstractAsyncContextManager["Shared"]]
BY_THE_ROAD = (*ISSUES, (b"Last-Modified", b"Sat, 21 Nov 2026 01:42:06 GMT"))


class Shared(LiveWorld):
    """A gateway whose cache is in Redis, at the end of ``line``."""

    line: TcpRelay
    second: Client
    redis: Any
    assembly: Any
    link: Any
    ahead_s = 0.0

    # Nothing of any request is left, and Redis has answered everything.
    settled = property(lambda self: quiet(self) and not self.link._slots)
    # Of all gateways on this Redis.
    leases = property(lambda self: self.redis.keys("{ggw:cache}:lease:*"))
    lookups = property(lambda self: self.redis.info("commandstats")["cmdstat_mget"]["calls"])
    # Of each flight, here.
    waiters = property(lambda self: [len(one.waiters) for one in self.assembly.cache._fetcher.flights._table.values()])
    remaining = property(lambda self: round(self.made.last.limit_remaining))

    def kept(self) -> list[tuple[bytes, Any]]:
        """What Redis holds, less its times."""
        store, found = self.assembly.redis, []
        keys = {name: key for key, name in (store._names._current.previous | store._names._current).items()}
        for name in self.redis.keys("{ggw:cache}:value:*"):
            _, (entry,) = store._codec.decode(keys[name], self.redis.get(name))
            # When GitLab made it a private cache never asks: the lane does not read it.
            found.append((keys[name], _timeless(msgspec.structs.replace(entry, date_at=-1.0))))
        return sorted(found)

    def clean(self) -> None:
        """Nothing is stored, here or there."""
        for name in self.redis.keys("{ggw:cache}:value:*"):
            self.redis.delete(name)
        if self.assembly.levels is not None:
            self.assembly.levels._reset()

    def forget(self) -> None:
        """What happened so far."""
        self.made.up.requests.clear()
        self.made.seen.exchanges.clear()
        self.made.calls.clear()

    def road_alone(self) -> None:
        self.made.gateway.forward_lane.try_answer = lambda *_: None  # type: ignore[method-assign]

    async def send(self, page: int, client: Client | None = None) -> None:
        await (client or self.client).send(self.request(PAGES % page, caller="reader"))

    async def body(self, page: int) -> bytes:
        status, _, body = await self.ask(PAGES % page, caller="reader")
        assert status == 200
        return body

    async def told(self) -> tuple[int, list[bytes], bytes]:
        """What it is told, less what varies."""
        status, fields, body = await self.client.answer()
        return status, [VARYING.sub(rb"\1", b"%b: %b\n" % field) for field in fields], body

    async def until_asked(self, step: str, answer: Answer | None = None, *, lane: bool = True) -> Held:
        """Page 5 is asked for, until Redis was asked for the entry or the lease, or GitLab; no answer comes yet."""
        await until(lambda: self.settled)
        self.forget()
        before, held = self.lookups, Held(self, answer)
        if step == "entry":
            self.line.hold_answers()
        elif step == "lease":
            self._hold_at("lead_soon" if lane else "lead")
        await self.send(5)
        await until(lambda: bool(self.leases) if step == "lease" else self.lookups > before)
        assert ("cache.lead_soon" in self.made.calls) is lane
        if step == "GitLab":
            await held.arrived.wait()
        return held

    def _hold_at(self, name: str) -> None:
        leases = self.assembly.leases
        real = getattr(leases, name)

        def asks(*given: Any) -> Any:
            delattr(leases, name)
            self.line.hold_answers()
            return real(*given)

        setattr(leases, name, asks)


@asynccontextmanager
async def shared(directory: Path, redis_port: int, cached: str, first: int = 900) -> AsyncIterator[Shared]:
    """A gateway that knows what kind of request it will get; it learnt from the pages from ``first`` on."""
    directory.mkdir()
    line = TcpRelay(redis_port)
    await line.open()
    stores = f'stores: {{shared: "redis://127.0.0.1:{redis_port}/0", keys: "sqlite:///{directory}/keys.db"}}\n'
    try:
        with redis.Redis(port=redis_port) as client:
            async with port(directory, PLENTY + CACHES[cached] + SECRETS + stores) as at:
                at.__class__ = Shared
                assert isinstance(at, Shared)
                at.line, at.redis, at.assembly = line, client, at.made.made.cache_assembly
                at.link = at.assembly.redis._link
                assert type(at.assembly.store) is (TwoLevelCacheStore if cached == REUSED else RedisCacheStore)
                at.second = Client(*await asyncio.open_connection("127.0.0.1", at.port))
                with closing(at.second.writer):
                    await _ready(at, first)
                    yield at
                    line.release()
    finally:
        await line.cut()


async def _ready(at: Shared, first: int) -> None:
    """No clock ends a wait, and no sign of life that comes just now keeps a request off the lane."""
    gateway, levels = at.made.gateway, at.assembly.levels
    assert at.link._keeper is None, "not connected yet"
    at.link.endpoint = RedisEndpoint(parse_address(f"redis://127.0.0.1:{at.line.port}/0"))
    for link in (at.link, at.made.stages.limits._buckets._link):  # type: ignore[attr-defined]
        link._timeout_s = 2 * SOON_S
    gateway._wall = gateway.forward_lane.wall = lambda: NOW + at.ahead_s
    await at.body(first)
    if levels is not None:
        at.assembly.leases._wait_s = 2 * SOON_S
        await until(lambda: levels.trusted)
        levels._subscriber._unread = select.poll()
    for page in (first + 1, first + 2, first + 3):
        await at.body(page)
    assert at.forwarded
    await until(lambda: at.settled)
    at.forget()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that pauses changes nothing, and no lease ends by itself."""
    for name in ("stores.cache_leases.LEASE_S", "stores.cache_levels.TRUST_S", "app.cache_assembly.TRUST_S"):
        monkeypatch.setattr(f"gateway.{name}", 60.0)
    monkeypatch.setattr("gateway.stores.redis_subscriber._DEAD_S", 60.0)


@pytest.fixture
async def opens(tmp_path: Path, redis_url: str, redis_server: RedisServer) -> Opens:
    """One of several gateways on one Redis, by the page that it learns from."""
    return lambda cached=REUSED, first=900: shared(tmp_path / str(first), redis_server.port, cached, first)


# Lane and road


async def compared(at: Shared, octets: bytes, answer: Answer, *, whole: bool, asked: int, stored: bool = False) -> None:
    """``whole``: the lane answers to the end. ``asked``: GitLab, how often. ``stored``: something is, and expired."""
    said = []
    for lane in (True, False):
        if not lane:
            at.road_alone()
        await until(lambda: at.settled)
        at.clean()
        at.made.up.answer, at.ahead_s = issues(), 0.0
        if stored:
            await at.body(7)
            await until(lambda: at.settled)
        assert len(at.kept()) == stored
        at.made.up.answer, at.ahead_s = answer, EXPIRED_S
        at.forget()
        await at.client.send(octets)
        told = await at.told()
        await until(lambda: bool(at.made.seen.exchanges) and at.settled)
        assert (at.forwarded, at.made.calls.count("upstream.send_soon")) == (lane and whole, lane)
        up = [(one.target, [field for field in one.fields if field[0] != b"X-Request-Id"]) for one in at.made.up.requests]
        assert (len(at.made.seen.exchanges), len(up), at.leases) == (1, asked, [])
        said.append((told, facts(at), up, at.kept()))
    for by_lane, by_road in zip(*said, strict=True):
        assert by_lane == by_road


OWNS = ["as GitLab lists", "with GitLab's own limits", "nothing to store", "a cookie", "Last-Modified", "in pieces"]
NAMES = [("reader", name) for name in ANSWERS if name != "another length than it says"] + [(OWN, name) for name in OWNS]


@KINDS
@pytest.mark.parametrize(("caller", "name"), NAMES)
async def test_octet_for_octet_and_fact_for_fact_as_the_road(opens: Opens, cached: str, caller: str, name: str) -> None:
    answer, whole = ANSWERS[name]
    async with opens(cached) as at:
        for page in (910, 911):
            await at.ask(PAGES % page, caller=caller)
        await compared(at, at.request(PAGES % 7, caller=caller), answer, whole=whole, asked=1)


HELD = [(kind, lines, True) for kind in (REUSED, ASKED_ABOUT) for lines in ((), (MATCHING,))]


@pytest.mark.parametrize(("cached", "lines", "stored"), [*HELD, (ASKED_ABOUT, (MATCHING,), False)])
@pytest.mark.parametrize("name", VALIDATED)
async def test_and_of_what_is_held(opens: Opens, cached: str, lines: tuple[str, ...], stored: bool, name: str) -> None:
    answer, whole, asked = VALIDATED[name]
    async with opens(cached) as at:
        for page in (910, 911):
            await at.ask(PAGES % page, *lines, caller="reader")
        if not stored:
            whole, asked = name.startswith("not modified"), 1
        octets = at.request(PAGES % 7, *lines, caller="reader")
        await compared(at, octets, answer, whole=whole, asked=asked, stored=stored)
        assert dict(at.made.up.requests[0].fields)[b"If-None-Match"] == ETAG


# What is shared


@KINDS
async def test_what_it_stored_is_there_for_all(opens: Opens, cached: str) -> None:
    """A hit by the road; or asked about on the lane again, wherever it was stored."""
    async with opens(cached) as here, opens(cached, 800) as there:
        here.made.up.answer = there.made.up.answer = on_condition(304)
        await here.body(5)
        assert here.forwarded
        await until(lambda: here.settled)
        left = here.remaining
        here.forget()
        for one, taken in ((there, 1), (here, 2)):
            assert await one.body(5) == b"[]"
            x, up = one.made.last, one.made.up.requests
            assert (one.made.calls.count("cache.lead_soon"), one.remaining) == (1, left - taken)
            if cached == REUSED:
                assert one.made.calls.count("cache.fetch") == 1
                assert (x.cache_status, x.upstream_status, up) == ("hit", 0, [])
            else:
                assert one.forwarded
                assert (x.cache_status, x.cache_stored, len(up)) == ("revalidated", "freshened", 1)
                assert dict(up[0].fields)[b"If-None-Match"] == ETAG


@pytest.mark.parametrize("leaves", [False, True])
async def test_who_asks_while_another_gateway_does_waits_for_its_answer(opens: Opens, leaves: bool) -> None:
    """Or until the other's client leaves: then this one leads."""
    async with opens() as at, opens(first=800) as other:
        at.made.up.answer = issues(b"[4]")
        held = await other.until_asked("GitLab", issues(b"[3]"))
        await at.send(5)
        await until(lambda: any(name.endswith(b":waited-for") for name in at.leases))
        assert "cache.lead_soon" in at.made.calls
        assert (at.made.gateway.active, at.made.gateway.forward_lane.active, at.made.up.requests) == (1, 0, [])
        (other.client.reset if leaves else held.go)()
        assert (await at.told())[2] == (b"[4]" if leaves else b"[3]")
        await until(lambda: at.settled and other.settled and bool(at.made.seen.exchanges and other.made.seen.exchanges))
        assert [x.cache_status for x in at.made.seen.exchanges] == ["miss" if leaves else "collapsed"]
        assert (len(at.made.up.requests), other.made.last.status, at.leases) == (leaves, 499 if leaves else 200, [])


@KINDS
async def test_two_at_the_same_moment_ask_gitlab_once(opens: Opens, cached: str) -> None:
    async with opens(cached) as at:
        await at.body(4)
        left = at.remaining
        at.forget()
        held = Held(at, issues(b"[5]"))
        at.line.hold_answers()
        await at.send(5)
        await at.send(5, at.second)
        await until(lambda: at.made.calls.count("cache.lead_soon") == 2)
        at.line.release()
        await held.arrived.wait()
        await until(lambda: at.waiters == [1])
        held.go()
        assert [(await one.answer())[2] for one in (at.client, at.second)] == [b"[5]"] * 2
        await until(lambda: at.settled)
        assert (len(at.made.up.requests), at.leases) == (1, [])
        assert sorted(x.cache_status for x in at.made.seen.exchanges) == ["collapsed", "miss"]
        assert sorted(round(x.limit_remaining) for x in at.made.seen.exchanges) == [left - 2, left - 1]


# A client that leaves


@pytest.mark.parametrize(("cached", "step"), ASKED)
async def test_who_leaves_leaves_nothing(opens: Opens, cached: str, step: str) -> None:
    async with opens(cached) as at, opens(cached, 800) as other:
        await at.body(4)
        left = at.remaining
        await at.until_asked(step)
        assert len(at.leases) == (cached == REUSED and step != "entry")
        at.client.reset()
        await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
        last = at.made.last
        assert (last.status, last.aborted, last.bytes_out, at.remaining) == (499, "client", 0, left - 1)
        assert (last.upstream_s > 0, len(at.made.up.requests)) == (step == "GitLab", step == "GitLab")
        await until(lambda: at.leases == [])
        assert await other.body(5) == b"[]"
        assert other.forwarded, "it leads at once"
        assert (other.made.last.cache_status, other.remaining) == ("miss", left - 2)
        at.line.release()
        await until(lambda: at.settled)
        assert (len(at.made.up.requests), len(at.made.seen.exchanges)) == (step == "GitLab", 1), "what is late is nobody's"
        at.made.up.answer, at.client = issues(), at.second
        await at.body(6)
        assert at.forwarded


async def test_who_leaves_the_road_while_redis_is_asked_for_the_lease(opens: Opens) -> None:
    async with opens() as at:
        at.road_alone()
        await at.until_asked("lease", lane=False)
        at.client.reset()
        await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
        at.line.release()
        await until(lambda: at.settled)
        assert at.leases == []


# What ends meanwhile


@pytest.mark.parametrize(("cached", "step"), WAITS)
@pytest.mark.parametrize("how", ["cut", "silent", "dead"])
async def test_a_redis_that_does_not_answer(tmp_path: Path, start_redis: Any, cached: str, step: str, how: str) -> None:
    """GitLab is asked all the same, and once; the buckets are as they were; what comes next is as ever."""
    server = start_redis()
    async with shared(tmp_path / "one", server.port, cached) as at:
        await at.body(4)
        left = at.remaining
        if how == "silent":
            at.link._timeout_s, at.link._timer = 0.05, None
        (await at.until_asked(step, issues(b"[7]"))).go()
        if how == "dead":
            server.stop()
        if how != "silent":
            await at.line.cut()
        assert (await at.told())[2] == b"[7]"
        await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
        assert (len(at.made.seen.exchanges), len(at.made.up.requests)) == (1, 1)
        assert (at.remaining, "limits.admit" in at.made.calls) == (left - 1, False)
        if step == "entry":
            assert "cache.fetch" in at.made.calls
            assert at.made.last.cache_reason == CacheReason.STORE_UNAVAILABLE.value
        if how == "dead":
            return
        at.link._timeout_s = 2 * SOON_S
        if how == "cut":
            await at.line.open()
        else:
            at.line.release()
            await until(lambda: at.leases == [])
        await until(lambda: at.link._wire is not None and not at.link._down and not at.link._slots)
        await at.body(6)
        assert at.remaining == left - 2


@pytest.mark.parametrize(("cached", "step"), WAITS)
async def test_a_drain_is_told_as_by_the_road(opens: Opens, cached: str, step: str) -> None:
    said = []
    for lane, first in ((True, 900), (False, 800)):
        async with opens(cached, first) as at:
            if not lane:
                at.road_alone()
            await at.until_asked(step, lane=lane)
            at.server.drain()
            await at.server.shutdown(0.01)
            told = await at.told()
            await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
            said.append((facts(at), told))
            assert (told[0], at.made.last.code) == (503, Code.DRAINING.value)
            if lane:
                await until(lambda: at.leases == [])
            at.line.release()
            await until(lambda: at.settled)
            assert (at.made.up.requests, len(at.made.seen.exchanges)) == ([], 1)
    for by_lane, by_road in zip(*said, strict=True):
        assert by_lane == by_road


# A write that overtakes it


@KINDS
@pytest.mark.parametrize("step", ["entry", "GitLab"])
@pytest.mark.parametrize("kind", ["lane", "road", "304"])
@pytest.mark.parametrize("there", [False, True], ids=["written here", "written there"])
async def test_a_write_that_overtakes_an_answer(opens: Opens, cached: str, step: str, kind: str, there: bool) -> None:
    """It is told, and never seen again; what it was asked about is as old."""
    asked = {"lane": issues(b"[1]"), "road": issues(b"[1]", BY_THE_ROAD), "304": on_condition(304, ((b"Etag", ETAG),))}
    async with opens(cached) as at, opens(cached, 800) as other:
        if kind == "304":
            await at.body(5)
            at.ahead_s = EXPIRED_S
        held = await at.until_asked(step, asked[kind])
        if there:
            assert (await other.made.ask("POST", "/api/v4/projects/1/issues", caller="reader")).status == 200
        else:
            writing = asyncio.ensure_future(at.assembly.store.purge((b"project:1",)))
            await until(lambda: bool(at.redis.keys("{ggw:cache}:purged:*")))
        held.go()
        at.line.release()
        assert there or await writing
        assert (await at.told())[2] == (b"[]" if kind == "304" else b"[1]")
        await until(lambda: at.settled)
        assert [x.cache_status for x in at.made.seen.exchanges] == ["revalidated" if kind == "304" else "miss"]
        assert (len(at.made.up.requests), "cache.fetch" in at.made.calls) == (1, kind == "road"), "nobody asked again"
        at.ahead_s = 0.0
        at.made.up.answer = other.made.up.answer = issues(b"[2]")
        assert await at.body(5) == b"[2]"
        assert at.made.last.cache_status == "miss"
        assert b"If-None-Match" not in dict(at.made.up.requests[-1].fields)
        await until(lambda: at.settled)
        assert await other.body(5) == b"[2]"
