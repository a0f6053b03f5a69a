"""Requests that a proxy or a tracer marks take the lanes as others do, and each keeps its own marks."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from gateway.core.messages import first
from tests.edge.wire import Client
from tests.fakes.port import CACHED, ETAG, ISSUES, TARGET, LiveWorld, issues, port
from tests.fakes.world import CONFIGURATION, OWN, SECRETS

PAGES = "/api/v4/projects/1/issues?page=%d"
STORES = 'stores: {shared: "%s", keys: "sqlite:///%s/keys.db"}\n'
TRUSTING = "listen: {trusted_proxies: [127.0.0.1/32]}\n"


def marks(number: int) -> tuple[str, ...]:
    """As an ingress and a tracing client write them."""
    return (
        f"X-Request-Id: the-proxys-{number}",
        f"traceparent: 00-{number:032x}-{number:016x}-01",
        f"X-Amzn-Trace-Id: Root=1-{number:08x}",
        f"baggage: session={number}",
    )


def trace(number: int) -> str:
    return f"{number:032x}"


def went_up(at: LiveWorld, name: bytes) -> list[bytes | None]:
    return [first(request.fields, name) for request in at.made.up.requests]


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("caller", ["reader", OWN])
async def test_a_stored_answer_is_told_on_the_short_lane(tmp_path: Path, caller: str, trusted: bool) -> None:
    async with port(tmp_path, CONFIGURATION + CACHED + (TRUSTING if trusted else "")) as at:
        for number in range(1, 4):
            await at.ask(TARGET, *marks(number), caller=caller)
        assert at.short
        before = len(at.made.up.requests)
        for number in range(4, 8):
            status, fields, body = await at.ask(TARGET, *marks(number), caller=caller)
            x = at.made.last
            assert at.short
            assert (status, body) == (200, b"[]")
            assert fields[b"X-Gateway-Request-Id"].decode() == x.request_id
            assert (x.request_id == f"the-proxys-{number}") is trusted
            assert x.trace_id == trace(number)
        assert len(at.made.up.requests) == before
        assert len({x.request_id for x in at.made.seen.exchanges}) == 7
        await at.ask(TARGET, caller=caller)
        assert (at.made.last.trace_id, at.made.last.request_id.startswith("the-proxys")) == ("", False)


@pytest.mark.parametrize(
    "fields",
    [
        ("elastic-apm-traceparent: 00-%032x-1-01", "traceparent: 00-%032x-1-01", "tracestate:"),
        ("sw8: 1-%x-1", "sw8-correlation: ", "sw8-x: 0- "),
        ("X-INSTANA-T: %x", "X-INSTANA-S: %x", "X-INSTANA-L: 1"),
        ("X-dynaTrace: FW4;1;2;%x",),
        ("singularityheader: notxdetect=true*ctrlguid=%x",),
        ("X-Honeycomb-Trace: 1;trace_id=%x",),
        ("ot-tracer-traceid: %x", "ot-tracer-spanid: %x", "ot-tracer-sampled: true"),
        ("l5d-ctx-trace: %x", "l5d-ctx-deadline: 1 %x", "l5d-reqid: %x"),
        ("Request-Id: |%x.1.", "x-ms-request-id: |%x.1.", "x-ms-request-root-id: %x"),
        ("X-ARR-LOG-ID: %x",),
        ("Kong-Request-ID: 11f1-4c1d#%d",),
        ("X-Varnish: %d", "X-Timer: S%d.1,VS0"),
        ("Akamai-GRN: 0.08a7cb17.%d.c1005fe",),
    ],
    ids=lambda fields: fields[0].partition(":")[0],
)
async def test_whoever_marks_the_requests(tmp_path: Path, fields: tuple[str, ...]) -> None:
    async with port(tmp_path) as at:
        for number in range(1, 6):
            await at.ask(TARGET, *[field % ((number,) * ("%" in field)) for field in fields])
        assert at.short
        assert len([request for request in at.made.up.requests if request.target == TARGET.encode()]) == 1


@pytest.mark.parametrize("trusting", ["", TRUSTING], ids=["a stranger", "a trusted proxy"])
async def test_what_a_proxy_says_of_the_address_parts_no_entries(tmp_path: Path, trusting: str) -> None:
    async with port(tmp_path, CONFIGURATION + CACHED + trusting) as at:
        for number in range(1, 4):
            address = f"198.51.100.{number}"
            await at.ask(
                TARGET,
                f"CloudFront-Viewer-Address: {address}:4242{number}",
                f"X-Azure-ClientIP: {address}",
                f"X-Azure-SocketIP: {address}",
                f"Fastly-Client-IP: {address}",
                f"CF-Connecting-IPv6: 2001:db8::{number}",
            )
        (sent,) = [request for request in at.made.up.requests if request.target == TARGET.encode()]
        assert b"198.51.100" not in b"".join(value for _, value in sent.fields)


@pytest.mark.parametrize("marked", [True, False])
async def test_a_client_may_come_by_several_proxies_in_turn(tmp_path: Path, marked: bool) -> None:
    proxies = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    async with port(tmp_path, CONFIGURATION + CACHED + TRUSTING.replace("127.0.0.1/32", "127.0.0.0/8")) as at:
        clients = [Client(*await asyncio.open_connection("127.0.0.1", at.port, local_addr=(one, 0))) for one in proxies]
        for number, client in zip(range(18), itertools.cycle(clients), strict=False):
            await at.ask(TARGET, "X-Forwarded-For: 192.0.2.7", *(marks(number + 1) if marked else ()), client=client)
            assert at.short or number < 6
            assert at.made.last.peer == "192.0.2.7"
            if marked:
                assert (at.made.last.request_id, at.made.last.trace_id) == (f"the-proxys-{number + 1}", trace(number + 1))
        for client in clients:
            client.writer.close()


async def test_so_is_a_304(tmp_path: Path) -> None:
    condition = f"If-None-Match: {ETAG.decode()}"
    async with port(tmp_path, CONFIGURATION + CACHED + TRUSTING) as at:
        for number in range(1, 8):
            status, fields, _ = await at.ask(TARGET, condition, *marks(number))
        assert at.short
        assert status == 304
        assert fields[b"X-Gateway-Request-Id"] == b"the-proxys-7"
        assert at.made.last.trace_id == trace(7)


@pytest.mark.parametrize("store", ["memory", "Redis"])
async def test_so_is_a_refusal(tmp_path: Path, store: str, redis_url: str) -> None:
    text = CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 3") + CACHED + TRUSTING
    if store == "Redis":
        text += SECRETS + STORES % (redis_url, tmp_path)
    async with port(tmp_path, text) as at:
        for number in range(1, 9):
            status, fields, _ = await at.ask(TARGET, *marks(number), caller="reader")
            assert fields[b"X-Gateway-Request-Id"].decode() == f"the-proxys-{number}"
            assert (at.made.last.request_id, at.made.last.trace_id) == (f"the-proxys-{number}", trace(number))
        assert status == 429
        assert at.short


@pytest.mark.parametrize("trusted", [True, False])
async def test_each_goes_up_with_marks_of_its_own(tmp_path: Path, trusted: bool) -> None:
    """On the road at first, on the forward lane then; on the road again where GitLab must be asked about what is stored."""
    async with port(tmp_path, CONFIGURATION + (TRUSTING if trusted else "")) as at:
        for number in range(1, 9):
            await at.ask(PAGES % (900 + number % 7), *marks(number), caller="reader")
            assert at.forwarded is (number in range(2, 8))
            x = at.made.last
            assert (x.request_id == f"the-proxys-{number}") is trusted
            assert x.trace_id == trace(number)
        numbers = range(1, 9)
        issues_asked = [request for request in at.made.up.requests if b"/issues" in request.target]
        at.made.up.requests[:] = issues_asked
        assert went_up(at, b"traceparent") == [f"00-{n:032x}-{n:016x}-01".encode() for n in numbers]
        assert went_up(at, b"x-amzn-trace-id") == [f"Root=1-{n:08x}".encode() for n in numbers]
        assert went_up(at, b"baggage") == [f"session={n}".encode() if trusted else None for n in numbers]
        assert went_up(at, b"x-request-id") == [x.request_id.encode() for x in at.made.seen.exchanges[-8:]]
        assert {
            len([name for name, _ in request.fields if name.lower() == b"x-request-id"]) for request in issues_asked
        } == {1}


async def test_a_path_that_nobody_asked_for_is_planned_for_them_too(tmp_path: Path) -> None:
    async with port(tmp_path) as at:
        for number in range(1, 6):
            await at.ask(f"/api/v4/projects/{number}/issues", *marks(number))
        assert "upstream.send_soon" in at.made.calls
        assert "cache.fetch" not in at.made.calls
        assert at.made.last.trace_id == trace(5)


@pytest.mark.parametrize("broken", ["traceparent: 00-0-0-00", "traceparent: 00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
async def test_a_broken_trace_goes_nowhere(tmp_path: Path, broken: str) -> None:
    async with port(tmp_path) as at:
        for page in range(4):
            await at.ask(PAGES % page, broken, "tracestate: a=b")
            assert at.made.last.trace_id == ""
        assert at.forwarded
        assert set(went_up(at, b"traceparent") + went_up(at, b"tracestate")) == {None}


async def test_an_answer_is_everybodys_whatever_marks_the_request_for_it(tmp_path: Path) -> None:
    """On the road, too, where what stands twice is not set aside: none is part of what an answer is stored under."""
    async with port(tmp_path, CONFIGURATION + CACHED, issues()) as at:
        await at.ask(TARGET, *marks(1))
        await at.ask(TARGET, "cf-ray: 8c1-FRA", "x-b3-traceid: 1", "x-b3-traceid: 2", "sentry-trace: 1-2")
        assert at.made.last.cache_status == "hit"
        assert at.made.last.cache_reason == "fresh"


async def test_a_mark_that_connection_names_goes_nowhere(tmp_path: Path) -> None:
    async with port(tmp_path) as at:
        for page in range(4):
            await at.ask(PAGES % page, "Connection: keep-alive, traceparent", *marks(page + 1))
        assert set(went_up(at, b"traceparent")) == {None}


async def test_a_proxys_id_that_stays_on_the_road_is_still_its_own(tmp_path: Path) -> None:
    """Twice the same octets, with what can't be set aside: the lane would mint an id."""
    async with port(tmp_path, CONFIGURATION + CACHED + TRUSTING) as at:
        for _ in range(4):
            await at.ask(TARGET, "X-Request-Id: a-retry", "traceparent: x", "Traceparent: y")
            assert at.made.last.request_id == "a-retry"


async def test_one_id_given_twice_holds_two_places(tmp_path: Path) -> None:
    """What a request holds is under an id of the gateway's own: a proxy may give the same to a retry."""
    text = CONFIGURATION + "  - {id: places, by: caller, concurrent: 5}\n" + TRUSTING
    async with port(tmp_path, text) as at:
        for _ in range(20):
            status, _, _ = await at.ask(TARGET, "X-Request-Id: the-same")
            assert status == 200


async def test_with_buckets_in_redis(tmp_path: Path, redis_url: str) -> None:
    text = CONFIGURATION + CACHED + TRUSTING + SECRETS + STORES % (redis_url, tmp_path)
    async with port(tmp_path, text) as at:
        for number in range(1, 12):
            status, fields, _ = await at.ask(TARGET, *marks(number), caller="reader")
            assert (status, fields[b"X-Gateway-Request-Id"]) == (200, f"the-proxys-{number}".encode())
            assert (at.made.last.request_id, at.made.last.trace_id) == (f"the-proxys-{number}", trace(number))


@pytest.mark.parametrize("aside", [True, False])
async def test_an_answer_that_varies_with_a_mark_is_nobody_elses(tmp_path: Path, aside: bool) -> None:
    """Nothing sent by GitLab does; but a proxy in front of it may."""
    fields = tuple([field for field in ISSUES if field[0] != b"Vary"])
    async with port(tmp_path, CONFIGURATION + CACHED, issues(fields=(*fields, (b"Vary", b"Origin, Traceparent")))) as at:
        for number in range(1, 6):
            await at.ask(TARGET, *marks(number), *(() if aside else ("b3: 1", "b3: 2")))
            x = at.made.last
            assert (x.cache_status, x.cache_stored) == ("miss", "vary-any")
        assert len([request for request in at.made.up.requests if request.target == TARGET.encode()]) == 5
