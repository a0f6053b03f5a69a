"""What is stored and must be asked about, on the forward lane: a 304 is told there, all else by the road, with one question
to GitLab."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields, ResponseHead
from gateway.forward_lane import LaneRequest
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from tests.edge.wire import Client
from tests.fakes.port import ETAG, ISSUES, LiveWorld, freeze_clock, issues, port
from tests.fakes.world import CONFIGURATION, OWN, Answer
from tests.test_forward_lane import PAGES, VARYING, Held, facts, learn, quiet, until

OTHER = b'W/"another"'
MATCHING = f"If-None-Match: {ETAG.decode()}"
STALE = "cache: {ttl: 0s, stale_if_error: 60s}\n"


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[LiveWorld]:
    async with port(tmp_path, CONFIGURATION + STALE) as one:
        freeze_clock(one.made)
        await learn(one)
        yield one


def answers(status: int, fields: Fields = (), body: bytes = b"") -> Answer:
    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        if dict(request.fields).get(b"If-None-Match") is None:
            return Reply(ResponseHead(200, ISSUES), whole=b"[]")
        return Reply(ResponseHead(status, fields), whole=body)

    return answer


async def failing(request: UpstreamRequest, octets: bytes) -> Reply:
    raise Rejection(Code.UPSTREAM_TIMEOUT, 504, "504 Gateway Timeout", source=Source.UPSTREAM)


ANSWERS: dict[str, tuple[Answer, bool, int]] = {
    "not modified": (answers(304, ((b"Etag", ETAG),)), True, 1),
    "not modified, without an Etag": (answers(304), True, 1),
    "not modified, with news": (
        answers(304, ((b"Etag", ETAG), (b"X-Total", b"8"), (b"Cache-Control", b"max-age=0"), (b"Vary", b"Origin"))),
        True,
        1,
    ),
    "not modified, with names of its own": (
        answers(304, ((b"Etag", ETAG), (b"X-Request-Id", b"01HF"), (b"X-Runtime", b"0.01"), (b"X-Gitlab-Meta", b"{}"))),
        True,
        1,
    ),
    "not modified, with GitLab's own limits": (
        answers(304, ((b"Etag", ETAG), (b"RateLimit-Limit", b"9"), (b"RateLimit-Remaining", b"3"))),
        True,
        1,
    ),
    "not modified, not to be stored": (answers(304, ((b"Etag", ETAG), (b"Cache-Control", b"no-store"))), True, 1),
    "not modified, dated": (answers(304, ((b"Etag", ETAG), (b"Date", b"Sat, 21 Nov 2026 01:42:06 GMT"))), True, 1),
    "not modified, but something else": (answers(304, ((b"Etag", OTHER),)), False, 2),
    "changed": (answers(200, ((b"Etag", OTHER), (b"Content-Length", b"3")), b"[1]"), False, 1),
    "not found": (answers(404, ((b"Content-Length", b"0"),)), False, 1),
    "in maintenance": (answers(503, ((b"Content-Length", b"0"),)), False, 1),
    "a credential that GitLab refuses": (answers(403, ((b"Content-Length", b"0"),)), False, 1),
    "no answer in time": (failing, False, 1),
}


async def said(at: LiveWorld, caller: str, *lines: str) -> bytes:
    await at.client.send(at.request(PAGES % 7, *lines, caller=caller))
    status, fields, body = await at.client.answer()
    head = b"".join(b"%b: %b\n" % field for field in fields)
    return b"%d\n%b\n%b" % (status, VARYING.sub(rb"\1", head), body)


@pytest.mark.parametrize("caller", ["reader", OWN])
@pytest.mark.parametrize("lines", [(), (MATCHING,), ('If-None-Match: "something else"',)])
@pytest.mark.parametrize("name", ANSWERS)
async def test_octet_for_octet_and_fact_for_fact_what_the_road_says(
    at: LiveWorld, caller: str, lines: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, whole, asked = ANSWERS[name]
    await compared(at, caller, lines, answer, monkeypatch, whole=whole, asked=asked, stored=True)


@pytest.mark.parametrize("caller", ["reader", OWN])
@pytest.mark.parametrize("lines", [(MATCHING,), ("If-None-Match: *",), (f'{MATCHING}, "another"',)])
@pytest.mark.parametrize("name", ANSWERS)
async def test_and_where_nothing_is_stored(
    at: LiveWorld, caller: str, lines: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own conditions go up: GitLab's word about them is for this client."""
    await compared(
        at, caller, lines, ANSWERS[name][0], monkeypatch, whole=name.startswith("not modified"), asked=1, stored=False
    )


async def compared(
    at: LiveWorld,
    caller: str,
    lines: tuple[str, ...],
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    *,
    whole: bool,
    asked: int,
    stored: bool,
) -> None:
    """Lane and road. ``whole``: the lane answers to the end. ``stored``: something is, and stale."""
    store = at.made.made.cache_assembly.memory
    assert store is not None
    for _ in range(2):
        await at.ask(PAGES % 900, *lines, caller=caller)  # what kind of request it is
    told, seen, gone_up, kept = [], [], [], []
    for lane in (True, False):
        if not lane:
            monkeypatch.setattr(at.made.gateway.forward_lane, "try_answer", lambda *_: None)
        store._slots.clear(), store._small.clear(), store._main.clear(), store._ghosts.clear()
        if stored:
            at.made.up.answer = issues()
            await at.ask(PAGES % 7, caller=caller)
        at.made.up.answer = answer
        at.made.seen.exchanges.clear()
        at.made.calls.clear()
        at.made.up.requests.clear()
        told.append(await said(at, caller, *lines))
        await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
        assert at.forwarded is (lane and whole), at.made.calls
        seen.append(facts(at))
        gone_up.append([(one.target, [f for f in one.fields if f[0] != b"X-Request-Id"]) for one in at.made.up.requests])
        kept.append([_timeless(entry) for slot in store._slots.values() for entry in slot.materialise()])
    assert told[0] == told[1]
    assert seen[0] == seen[1]
    assert gone_up[0] == gone_up[1]
    assert len(gone_up[0]) == asked
    assert kept[0] == kept[1]


def _timeless(entry: object) -> list[object]:
    timed = {"received_at", "initial_age_s"}
    return [getattr(entry, name) for name in entry.__struct_fields__ if name not in timed]  # type: ignore[attr-defined]


async def stored(at: LiveWorld, *lines: str) -> None:
    at.made.up.answer, answer = issues(), at.made.up.answer
    await at.ask(PAGES % 7, caller="reader")
    at.made.up.answer = answer
    await at.ask(PAGES % 7, *lines, caller="reader")
    await at.ask(PAGES % 7, *lines, caller="reader")
    at.made.up.requests.clear()
    at.made.seen.exchanges.clear()


async def test_polling_is_answered_on_the_lane(at: LiveWorld) -> None:
    at.made.up.answer = answers(304)
    await stored(at, MATCHING)
    for _ in range(3):
        status, _, body = await at.ask(PAGES % 7, MATCHING, caller="reader")
        assert (status, body) == (304, b"")
        assert at.forwarded
    assert [x.cache_status for x in at.made.seen.exchanges] == ["revalidated"] * 3
    assert [x.upstream_status for x in at.made.seen.exchanges] == [304] * 3
    assert len({id(x.observer_memo) for x in at.made.seen.exchanges}) == 1
    assert len(at.made.up.requests) == 3


async def test_polling_for_what_was_never_stored_is_answered_on_the_lane(at: LiveWorld) -> None:
    """As after a restart: who polls has the answer, and the gateway has not."""
    at.made.up.answer = answers(304, ((b"Etag", ETAG),))
    for page in (7, 8, 7, 7):
        status, fields, body = await at.ask(PAGES % page, MATCHING, caller="reader")
        assert (status, body, fields[b"Etag"]) == (304, b"", ETAG)
    assert at.forwarded
    assert {(x.cache_status, x.cache_stored, x.upstream_status) for x in at.made.seen.exchanges} == {
        ("miss", "status", 304)
    }
    assert dict(at.made.up.requests[-1].fields)[b"If-None-Match"] == ETAG
    at.made.up.answer = issues(b"[1]")
    for _ in range(2):
        assert (await at.ask(PAGES % 7, caller="reader"))[2] == b"[1]", "and to others their own"


async def test_who_asks_the_same_meanwhile_waits_for_the_answer(at: LiveWorld) -> None:
    await stored(at)
    held = Held(at, answers(304))
    others = [Client(*await asyncio.open_connection("127.0.0.1", at.port)) for _ in range(3)]
    await at.client.send(at.request(PAGES % 7, caller="reader"))
    await held.arrived.wait()
    for other in others:
        await other.send(at.request(PAGES % 7, caller="reader"))
    await until(lambda: at.made.gateway.in_flight == 4)
    await asyncio.sleep(0.01)
    held.go()
    assert [(await one.answer())[0] for one in (at.client, *others)] == [200] * 4
    assert len(at.made.up.requests) == 1
    assert sorted(x.cache_status for x in at.made.seen.exchanges) == ["collapsed"] * 3 + ["revalidated"]
    assert quiet(at)
    for other in others:
        other.writer.close()


async def test_who_leaves_while_gitlab_is_asked(at: LiveWorld) -> None:
    await stored(at)
    held = Held(at)
    await at.client.send(at.request(PAGES % 7, caller="reader"))
    await held.arrived.wait()
    at.client.reset()
    await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
    assert (at.made.last.status, at.made.last.aborted) == (499, "client")


@pytest.mark.parametrize("answer", [answers(304, ((b"Etag", ETAG),)), answers(200, ((b"Etag", OTHER),), b"[1]")])
async def test_a_write_that_overtakes_it(at: LiveWorld, answer: Answer) -> None:
    """Nothing of before the write is stored as of after it."""
    await stored(at)
    store = at.made.made.cache_assembly.memory
    assert store is not None
    (tags,) = {slot.tags for key, slot in store._slots.items() if b"page=7" in key}
    held = Held(at, answer)
    await at.client.send(at.request(PAGES % 7, caller="reader"))
    await held.arrived.wait()
    store.purge_now(tags)
    held.go()
    status, _, _ = await at.client.answer()
    assert status == 200
    await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
    at.made.up.answer = issues(b"[2]")
    assert (await at.ask(PAGES % 7, caller="reader"))[2] == b"[2]"


async def test_a_fault_while_it_is_told(
    at: LiveWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at.made.up.answer = answers(304)
    await stored(at)
    monkeypatch.setattr(LaneRequest, "_render_stored", lambda *_: 1 / 0)
    assert (await at.ask(PAGES % 7, caller="reader"))[0] == 200
    assert "fault in the forward lane" in caplog.text
    assert at.made.last.observer_memo is None
    assert quiet(at)
