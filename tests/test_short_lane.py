"""The short lane answers as the road does, and only where the road would: through a real connection and real stages."""

from __future__ import annotations

import asyncio
import gc
import re
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.core.messages import ResponseHead
from gateway.core.secret import Secret
from gateway.limit_stage import Ticket
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from gateway.stores.cache_memory import MemoryCacheStore
from gateway.telemetry.audit_line import LineRenderer, encode, line_of
from gateway.telemetry.metrics import Metrics
from tests.edge.wire import SOON_S, Client
from tests.fakes.port import CACHED, ETAG, ISSUES, TARGET, LiveWorld, issues, port
from tests.fakes.world import CONFIGURATION, ENVIRONMENT, OWN

PAGE = "/api/v4/projects/1/issues?page=3"
ANONYMOUS = (
    CONFIGURATION.replace(
        "identities:\n", 'identities:\n  - {id: guests, anonymous: true, bind: {cidr: ["192.0.2.0/24"]}}\n'
    )
    + "  - {id: guests, by: address, rate: 1/day, burst: 10}\n"
    + CACHED
    + "listen: {trusted_proxies: [127.0.0.1/32]}\n"
)
VARYING = re.compile(rb"(?m)^(X-Gateway-Request-Id|Date|Age|Cache-Status|RateLimit[-A-Za-z]*): .*$")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[LiveWorld]:
    async with port(tmp_path) as one:
        yield one


# The same answer


@pytest.mark.parametrize("caller", ["reader", OWN])
@pytest.mark.parametrize(("lines", "status"), [((), 200), ((f"If-None-Match: {ETAG.decode()}",), 304)])
async def test_octet_for_octet_what_the_road_says(at: LiveWorld, caller: str, lines: tuple[str, ...], status: int) -> None:
    await at.ask(caller=caller)
    said = []
    for _ in range(4):
        at.made.calls.clear()
        await at.client.send(at.request(TARGET, *lines, caller=caller))
        head = await at.client.reader.readuntil(b"\r\n\r\n")
        said.append((head, b"" if status == 304 else await at.client.reader.readexactly(2)))
    assert [head[9:12] for head, _ in said] == [b"%d" % status] * 4
    road, lane = said[0], said[3]
    assert at.short
    assert VARYING.sub(rb"\1", lane[0]) == VARYING.sub(rb"\1", road[0])
    assert lane[1] == road[1]
    facts = [{name: getattr(x, name) for name in x.__struct_fields__} for x in at.made.seen.exchanges[1:]]
    for one in facts:
        del one["request_id"], one["started_at"], one["upstream_s"], one["observer_memo"]
        assert one.pop("bytes_out") > 200
    assert facts[3].pop("limit_remaining") == pytest.approx(facts[0].pop("limit_remaining") - 3, abs=0.5)
    assert facts[3] == facts[0], "the audit and the metrics can't tell the two apart"
    assert len({x.request_id for x in at.made.seen.exchanges}) == 5


async def test_each_answer_takes_from_the_buckets(at: LiveWorld) -> None:
    await at.learn()
    first = (await at.ask())[1]
    second = (await at.ask())[1]
    assert at.short
    assert int(second[b"RateLimit-Remaining"]) == int(first[b"RateLimit-Remaining"]) - 1


NARROW = CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 12")
SHADOW = "  - {id: tried, by: caller, rate: 1/day, burst: 8, mode: shadow}\n"


@pytest.mark.parametrize("shadow", ["", SHADOW])
async def test_what_is_told_of_kin_would_be_told_of_each(tmp_path: Path, shadow: str) -> None:
    """The octets of the audit, and the metrics: of answers, those near a limit or beyond a shadow one, and refusals."""
    async with port(tmp_path, NARROW + shadow + CACHED) as at:
        for _ in range(16):
            await at.ask()
        found = at.made.seen.exchanges[:]
    asked = [(x, 0.0001 * number) for number, x in enumerate(found)]
    assert {x.code for x in found if x.observer_memo} == ({""} if shadow else {"", "rate_limited"})
    assert not any(x.observer_memo for x in found if x.limit_near or x.limit_shadow)
    lines, together, alone = LineRenderer().render(asked, 1.0), Metrics("1"), Metrics("1")
    assert lines == [encode(line_of(x, x.started_at + 1.0, took_s)) for x, took_s in asked]
    for x, took_s in asked:
        together.observe(x, took_s)
        alone.observe(msgspec.structs.replace(x, observer_memo=None), took_s)
    assert together.render() == alone.render()


async def test_callers_without_a_credential_come_this_way_too(tmp_path: Path) -> None:
    """Each address with buckets and a name of its own, and one copy of the answer for all."""
    async with port(tmp_path, ANONYMOUS) as at:
        said = []
        for address in ("192.0.2.1", "192.0.2.2"):
            for number in range(4):
                status, fields, body = await at.ask(TARGET, f"X-Forwarded-For: {address}", caller="")
                x = at.made.last
                assert (status, body, x.principal) == (200, b"[]", f"anonymous:{address}")
                assert int(fields[b"RateLimit-Remaining"]) == 9 - number
                said.append((at.short, x.principal_kind, x.identity, x.rule, x.credential_kind, x.permit_use))
            assert at.short
        assert said[3][1:] == said[0][1:], "as on the road"
        assert len(at.made.up.requests) == 1
        await at.ask(PAGE, "X-Forwarded-For: 192.0.2.2", caller="")
        assert at.forwarded
        assert at.made.last.principal == "anonymous:192.0.2.2"
        assert (await at.ask(TARGET, "X-Forwarded-For: 203.0.113.9", caller=""))[0] == 401


# Only where the road would


async def test_a_revoked_key_has_no_short_way(at: LiveWorld) -> None:
    await at.learn(caller="reader")
    at.made.made.gateway.stages.authenticator._keys._known.drop_where(lambda _: True)  # type: ignore[attr-defined]
    assert (await at.ask(caller="reader"))[0] == 200
    assert not at.short, "somebody must be asked first"


async def test_nobody_has_answers_of_a_credential_that_gitlab_refuses(at: LiveWorld) -> None:
    """Whoever found that out, and though they are fresh: the callers of each rule that uses it."""
    for caller in ("reader", "other"):
        await at.learn(caller=caller)
    del at.made.up.users[ENVIRONMENT["SA"]]
    at.made.up.answer = refusing
    assert (await at.ask("/api/v4/version", caller="reader"))[0] == 502
    for caller in ("reader", "other"):
        status, fields, _ = await at.ask(caller=caller)
        assert (status, fields[b"X-Gateway-Error"]) == (502, b"broker_credential_refused")


async def refusing(request: UpstreamRequest, octets: bytes) -> Reply:
    return Reply(ResponseHead(401, ()), whole=b"{}")


async def test_nobody_has_answers_of_a_token_that_was_replaced(at: LiveWorld) -> None:
    await at.learn(caller="reader")
    tokens = at.made.made.tokens
    assert tokens is not None
    tokens.switch("sa", Secret("glpat-its-successor"), None)
    before = len(at.made.up.requests)
    await at.ask(caller="reader")
    assert len(at.made.up.requests) == before + 1
    await at.learn(caller="reader")


async def test_what_was_purged_is_asked_for(at: LiveWorld) -> None:
    await at.learn()
    before = len(at.made.up.requests)
    at.made.up.answer = issues(b"[1]")
    store = at.made.made.cache_assembly.store
    assert store is not None
    await store.purge((b"project:1",))
    status, _, body = await at.ask()
    assert (status, body, at.short, len(at.made.up.requests)) == (200, b"[1]", False, before + 1)
    assert (await at.ask())[2] == b"[1]"
    assert at.short, "and short again, with the new answer"


async def test_a_name_learnt_since_makes_the_way_long_once(at: LiveWorld) -> None:
    """What was stored without a tag of the new name would survive a write by it."""
    await at.learn()
    at.made.made.cache_assembly.names.learn(b"1", b"group/project")
    assert (await at.ask())[0] == 200
    assert not at.short


async def test_no_longer_than_it_may_be_reused(at: LiveWorld) -> None:
    now = [1_800_000_000.0]
    at.made.gateway._wall = at.made.gateway.lane._wall = lambda: now[0]
    await at.learn()
    now[0] += 59
    _, fields, _ = await at.ask()
    assert (at.short, fields[b"Age"], fields[b"Cache-Status"]) == (True, b"59", b"gateway; hit; ttl=1")
    now[0] += 1
    await at.ask()
    assert not at.short


async def test_a_304_tells_the_time_and_the_limits_of_its_own_request(at: LiveWorld) -> None:
    """It is kept whole from one request to the next, but for what may differ."""
    now = [1_800_000_000.25]
    at.made.gateway._wall = at.made.gateway.lane._wall = lambda: now[0]
    known = f"If-None-Match: {ETAG.decode()}"
    await at.learn()
    await at.learn(TARGET, known)
    left = []
    for step in (0.0, 0.1, 0.7, 0.1, 30.0, -5.0, 0.15, -40.0):
        now[0] += step
        told = []
        for lines in ((), (known,)):
            status, fields, _ = await at.ask(TARGET, *lines)
            assert (status, at.short) == (304 if lines else 200, True)
            told.append([fields[name] for name in (b"Age", b"Cache-Status", b"Date")])
            left.append(int(fields[b"RateLimit-Remaining"]))
        assert told[0] == told[1]
    assert left == list(range(left[0], left[0] - len(left), -1))
    assert len({x.request_id for x in at.made.seen.exchanges}) == len(at.made.seen.exchanges)


async def test_a_304_of_an_answer_that_was_validated_since_has_the_new_age(at: LiveWorld) -> None:
    """Its fields are the very same, and within one second."""
    now = [1_800_000_000.25]
    at.made.gateway._wall = at.made.gateway.lane._wall = lambda: now[0]
    known = f"If-None-Match: {ETAG.decode()}"
    await at.learn(TARGET, known)
    now[0] += 3
    assert (await at.ask(TARGET, known))[1][b"Age"] == b"3"
    store = at.made.made.cache_assembly.store
    assert isinstance(store, MemoryCacheStore)
    (slot,) = store._slots.values()
    slot.entries = (msgspec.structs.replace(slot.materialise()[0], received_at=now[0]),)
    assert (await at.ask(TARGET, known))[1][b"Age"] == b"0"
    assert at.short


async def test_another_answer_is_rendered_anew_and_vary_is_heeded(at: LiveWorld) -> None:
    await at.learn(TARGET, "Accept-Language: de")
    store = at.made.made.cache_assembly.store
    assert store is not None
    await store.purge((b"project:1",))
    at.made.up.answer = issues(b"[3]", ((b"Content-Type", b"application/json"), (b"X-New", b"1")))
    await at.ask(TARGET, "Accept-Language: de")
    _, fields, body = await at.ask(TARGET, "Accept-Language: de")
    assert (at.short, body, fields[b"X-New"]) == (True, b"[3]", b"1")
    await store.purge((b"project:1",))
    at.made.up.answer = issues(b"[4]", ISSUES)
    await at.ask(TARGET, "Accept-Language: fr")
    assert (await at.ask(TARGET, "Accept-Language: de"))[2] == b"[4]"


async def test_an_operators_change_counts_at_once(at: LiveWorld) -> None:
    await at.learn()
    limit_admin = at.made.made.limit_admin
    assert limit_admin is not None
    await limit_admin.change("admin", "127.0.0.1", {"limit": "caller", "subject": at.made.last.principal, "pause": True})
    _, fields, _ = await at.ask()
    assert at.short
    assert b"RateLimit-Remaining" not in fields, "no bucket is left to tell of"
    last = at.made.last
    assert (last.limit_id, last.limit_remaining, last.limit_near) == ("", -1.0, False), "nor was one asked"


async def test_what_a_limit_did_to_the_request_that_the_way_was_learnt_from_is_not_told_of_others(
    at: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at.learn()
    limits = at.made.made.limits
    assert limits is not None
    admit = limits.admit

    async def in_turn(*given: Any) -> Ticket:
        ticket = await admit(*given)
        ticket.waited_s = 1.5
        return ticket

    with monkeypatch.context() as patch:
        patch.setattr(limits, "admit", in_turn)
        await at.ask(TARGET, "User-Agent: another")
    assert (at.made.last.limit_waited_s, at.made.last.cache_status) == (1.5, "hit")
    await at.ask(TARGET, "User-Agent: another")
    assert at.short
    assert at.made.last.limit_waited_s == 0.0


async def test_who_asks_directives_gets_the_road(at: LiveWorld) -> None:
    for _ in range(4):
        await at.ask(TARGET, "Cache-Control: max-age=10")
        assert not at.short


async def test_a_place_among_those_in_progress_is_given_back(tmp_path: Path) -> None:
    text = CONFIGURATION + "  - {id: few, by: caller, concurrent: 2}\n" + CACHED
    async with port(tmp_path, text) as at:
        for _ in range(6):
            assert (await at.ask())[0] == 200
            assert not at.short, "what is owed afterwards is the road's to settle"


async def test_what_cannot_be_written_down_is_not_answered(at: LiveWorld) -> None:
    await at.learn()
    audit = at.made.made.audit
    async with asyncio.timeout(SOON_S):
        while audit.pending:
            await asyncio.sleep(0)
    audit.closed = True  # until the next line is rendered
    await at.ask()
    assert not at.short


async def test_a_limit_of_places_that_was_paused_is_the_roads_again(tmp_path: Path) -> None:
    """What the lane learnt while nothing was owed must not take places that nobody gives back."""
    text = CONFIGURATION + "  - {id: few, by: caller, concurrent: 2}\n" + CACHED
    async with port(tmp_path, text) as at:
        await at.ask()
        limit_admin, subject = at.made.made.limit_admin, at.made.last.principal
        assert limit_admin is not None
        await limit_admin.change("admin", "127.0.0.1", {"limit": "few", "subject": subject, "pause": True})
        await at.learn()
        await limit_admin.change("admin", "127.0.0.1", {"limit": "few", "subject": subject, "reset": True})
        for _ in range(6):
            assert (await at.ask())[0] == 200
            assert not at.short


async def test_two_callers_with_the_same_words_from_two_places(at: LiveWorld) -> None:
    """The address is part of what was judged."""
    await at.learn()
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port, local_addr=("127.0.0.2", 0))
    other = Client(reader, writer)
    await at.ask(client=other)
    assert not at.short
    assert at.made.last.peer == "127.0.0.2"
    writer.close()


async def test_a_record_that_is_closed_to_reads_closes_the_lane(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await at.learn()
    monkeypatch.setattr(at.made.gateway.stages.audit, "closed", True)
    await at.ask()
    assert not at.short


async def test_behind_a_proxy_of_ours_each_client_has_its_way(tmp_path: Path) -> None:
    text = CONFIGURATION + CACHED + "listen: {trusted_proxies: [127.0.0.1/32]}\n"
    async with port(tmp_path, text) as at:
        for client in ("192.0.2.1", "192.0.2.2"):
            await at.learn(TARGET, f"X-Forwarded-For: {client}")
            assert at.made.last.peer == client


async def test_a_draining_gateway_says_so(at: LiveWorld) -> None:
    await at.learn()
    at.server.drain()
    _, fields, _ = await at.ask()
    assert fields[b"Connection"] == b"close"


async def test_a_fault_of_the_lane_is_not_the_clients(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await at.learn()
    monkeypatch.setattr(at.made.gateway.lane, "_answer", lambda *_: 1 / 0)
    assert (await at.ask())[0] == 200
    assert (await at.ask())[0] == 200
    assert not at.short


async def test_a_fault_in_finding_the_way_is_not_the_clients_either(
    at: LiveWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await at.learn()
    before = len(at.made.seen.exchanges)
    monkeypatch.setattr(at.made.gateway.lane, "_find_shortcut", lambda _: 1 / 0)
    assert (await at.ask())[0] == 200
    assert len(at.made.seen.exchanges) == before + 1
    assert "fault in a lane" in caplog.text


async def test_a_way_keeps_no_answer_from_being_forgotten(tmp_path: Path) -> None:
    """The cache's bound is the bound: what it evicted, or purged, must not live on in remembered heads."""
    size, count = 256 * 1024, 60

    async def large(request: UpstreamRequest, octets: bytes) -> Reply:
        return Reply(ResponseHead(200, ISSUES), whole=b'"' + b"x" * size + b'"')

    text = CONFIGURATION.replace("burst: 50", "burst: 5000") + "cache: {ttl: 60s, access_ttl: 60s, max_bytes: 4MiB}\n"
    async with port(tmp_path, text, large) as at:
        await at.learn()
        tracemalloc.start()
        try:
            for page in range(count):
                for _ in range(3):
                    await at.ask(f"/api/v4/projects/1/issues?page={page + 100}")
            assert at.short
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < count * size / 2, "the answers of all pages are still there"


async def test_answers_of_one_connection_stay_in_order(at: LiveWorld) -> None:
    """Pipelined: what is known waits for what is not."""
    await at.learn()
    await at.client.send(at.request("/api/v4/projects/1/issues?page=9") + at.request())
    at.made.up.answer = issues(b"[9]")
    first = await at.client.answer()
    second = await at.client.answer()
    assert (first[2], second[2]) == (b"[9]", b"[]")
