"""Refusals on the short lane: told as the road tells them, and only where the road would."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.messages import ResponseHead
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from tests.conftest import RedisServer
from tests.edge.wire import Client
from tests.fakes.port import CACHED, ISSUES, TARGET, LiveWorld, port
from tests.fakes.world import CONFIGURATION, SECRETS

FEW = CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 5")
TOLD = re.compile(
    rb"(?m)^(X-Gateway-Request-Id|Date|Retry-After|RateLimit-Reset(?:Time)?): .*$|;t=\d+|urn:gateway:decision:[0-9a-f-]+"
)
"""What differs from one to the next, be it that a second began between them."""
OFTEN = 5
"""Refusals: the first of them is the road's."""


def facts_for(at: LiveWorld, count: int) -> list[dict[str, object]]:
    """Of the last requests, less what differs from one to the next."""
    found = [{name: getattr(x, name) for name in x.__struct_fields__} for x in at.made.seen.exchanges[-count:]]
    for one in found:
        del one["request_id"], one["started_at"], one["observer_memo"]
        assert 0 <= one.pop("limit_remaining") < 0.01  # type: ignore[operator]
    return found


async def refused(at: LiveWorld, request: bytes, count: int = OFTEN) -> list[bytes]:
    """The head and, where there is one, the body, of so many refusals of the same request."""
    said = []
    for _ in range(count):
        at.made.calls.clear()
        await at.client.send(request)
        head = await at.client.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?m)^Content-Length: (\d+)\r$", head)
        said.append(head + (await at.client.reader.readexactly(int(length[1])) if length else b""))
    assert {one[9:12] for one in said} == {b"429"}
    return said


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize(
    "line",
    [
        "Accept: */*",
        "Accept: application/json",
        "Accept: application/problem+json",
        "Origin: https://example.com",
        "Prefer: respond-async",
    ],
)
async def test_a_refusal_is_octet_for_octet_what_the_road_says(tmp_path: Path, method: str, line: str) -> None:
    async with port(tmp_path, FEW + CACHED) as at:
        for _ in range(5):
            assert (await at.ask())[0] == 200
        if method == "HEAD":
            await at.ask()  # what follows is not the first word on this connection
        request = at.request(TARGET, line).replace(b"GET", method.encode(), 1)
        road, *lane = await refused(at, request)
        assert at.short, "the first stage was passed by"
        for one in lane:
            assert TOLD.sub(rb"\1", one) == TOLD.sub(rb"\1", road)
        facts = facts_for(at, OFTEN)
        assert all(one == facts[0] for one in facts[1:]), "the audit and the metrics can't tell them apart"
        ids = [x.request_id for x in at.made.seen.exchanges]
        assert len(set(ids)) == len(ids)
        if b"decision:" in road:
            assert all(
                b"urn:gateway:decision:%b" % x.encode() in one for x, one in zip(ids[-OFTEN:], [road, *lane], strict=True)
            )


async def test_a_refusal_has_the_form_of_its_format(tmp_path: Path) -> None:
    async with port(tmp_path, FEW + CACHED) as at:
        for _ in range(5):
            assert (await at.ask())[0] == 200
        road, *lane = await refused(at, at.request("/api/v4/projects/1/packages/npm/@acme%2flib"))
        assert b'"error":"This endpoint has been requested too many times.' in road
        assert at.short, "the first stage was passed by"
        assert [TOLD.sub(rb"\1", one) for one in lane] == [TOLD.sub(rb"\1", road)] * (OFTEN - 1)


async def test_with_redis_what_is_certain_is_said_at_once(tmp_path: Path, redis_url: str) -> None:
    text = FEW + CACHED + SECRETS + f'stores: {{shared: "{redis_url}"}}\n'
    async with port(tmp_path, text) as at:
        for _ in range(5):
            assert (await at.ask())[0] == 200
        road, *lane = await refused(at, at.request())
        assert at.short
        assert "limits.admit_soon" not in at.made.calls
        for one in lane:
            assert TOLD.sub(rb"\1", one) == TOLD.sub(rb"\1", road)
        facts = facts_for(at, OFTEN)
        assert all(one == facts[0] for one in facts[1:])


async def test_an_answer_and_a_refusal_of_one_head_whichever_the_buckets_say(tmp_path: Path) -> None:
    async with port(tmp_path, FEW + CACHED) as at:
        limit_admin = at.made.made.limit_admin
        assert limit_admin is not None
        await at.learn()
        for first in (True, False):
            while (answer := await at.ask())[0] == 200:
                assert at.short
                assert (answer[2], b"Retry-After" in answer[1]) == (b"[]", False)
            assert at.short is not first, "the first refusal is the road's"
            for _ in range(2):
                assert (await at.ask())[0] == 429
                assert at.short
            await limit_admin.change(
                "admin", "127.0.0.1", {"limit": "caller", "subject": at.made.last.principal, "reset": True}
            )


async def test_a_refusal_asks_the_buckets_once(tmp_path: Path) -> None:
    async with port(tmp_path, FEW + CACHED) as at:
        talkers = at.made.stages.limits.top_talkers
        for count in range(1, 12):
            await at.ask()
            (hot,) = talkers.top(1, at.made.gateway._wall())
            assert (hot.asked, hot.refused) == (count, max(0, count - 5))


async def test_what_flows_back_is_given_out_again(tmp_path: Path) -> None:
    async with port(tmp_path, FEW + CACHED) as at:
        for _ in range(8):
            await at.ask()
        assert (at.short, at.made.last.status) == (True, 429)
        buckets = at.made.made.gateway.stages.limits._buckets
        now = [buckets._clock() + 86_400]  # type: ignore[attr-defined]
        buckets._clock = lambda: now[0]  # type: ignore[attr-defined]
        assert (await at.ask())[0] == 200
        assert (await at.ask())[0] == 429
        now[0] -= 3600  # the clock goes back, and is believed from then on
        assert (await at.ask())[0] == 429
        now[0] += 86_400
        assert (await at.ask())[0] == 200


@pytest.mark.parametrize("line", ["Prefer: wait=5", ""])
async def test_who_may_wait_is_not_refused_here(tmp_path: Path, line: str) -> None:
    limit = "rate: 20/s, burst: 1" + ("" if line else ", absorb: 5s")
    text = CONFIGURATION.replace("rate: 60/min, burst: 50", limit) + CACHED
    async with port(tmp_path, text) as at:
        for _ in range(8):
            assert (await at.ask(TARGET, *([line] if line else [])))[0] == 200
        assert at.made.last.limit_waited_s > 0


async def test_a_refusal_for_want_of_a_place_is_short_and_takes_none(tmp_path: Path) -> None:
    text = CONFIGURATION + "  - {id: few, by: caller, concurrent: 2}\n" + CACHED
    async with port(tmp_path, text) as at:
        gate, entered = asyncio.Event(), asyncio.Semaphore(0)

        async def slow(request: UpstreamRequest, octets: bytes) -> Reply:
            entered.release()
            await gate.wait()
            return Reply(ResponseHead(200, ISSUES), whole=b"[]")

        at.made.up.answer = slow
        others = [Client(*await asyncio.open_connection("127.0.0.1", at.port)) for _ in range(2)]
        for place, other in enumerate(others):
            await other.send(at.request(f"{TARGET}&{place}"))
            await entered.acquire()
        await refused(at, at.request())
        assert at.short
        gate.set()
        for other in others:
            await other.answer()
            other.writer.close()
        assert (await at.ask())[0] == 200


async def test_a_refused_caller_whose_key_is_gone_hears_of_the_key(tmp_path: Path) -> None:
    async with port(tmp_path, FEW + CACHED) as at:
        for _ in range(8):
            await at.ask(caller="reader")
        assert (at.short, at.made.last.status) == (True, 429)
        key = at.made.last.credential_fingerprint
        assert key
        keys = at.made.made.gateway.stages.authenticator._keys  # type: ignore[attr-defined]
        keys._known.drop_where(lambda _: True)
        assert (await at.ask(caller="reader"))[0] == 429
        assert not at.short, "somebody must be asked first"


async def test_a_store_that_is_away_and_closed_is_no_refusal_of_a_bucket(
    tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    redis = start_redis()
    text = (
        FEW
        + CACHED
        + SECRETS
        + f'stores: {{shared: "{redis.url}", keys: "sqlite:///{tmp_path}/keys.db", on_error: {{buckets: closed}}}}\n'
    )
    async with port(tmp_path, text) as at:
        for _ in range(8):
            await at.ask()
        assert (at.short, at.made.last.status) == (True, 429)
        redis.stop()
        for place in range(12):
            await at.ask(f"{TARGET}&{place}", caller="reader")
        assert at.made.last.code == "limiter_unavailable"
        assert (await at.ask())[0] == 503
        assert not at.short
