"""The road up: exact octets, reuse, retries, refusals, timeouts, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from gateway.core.breaker import BreakerSettings, BreakerState
from gateway.core.errors import Code, Rejection
from gateway.reply import Reply
from gateway.upstream.client import HttpUpstream

from .conftest import OK, Gitlab, Peer, Pieces, always, get, once

Make = Callable[..., HttpUpstream]


async def body_of(reply: Reply) -> bytes:
    if reply.whole is not None:
        return reply.whole
    assert reply.chunks is not None
    try:
        return b"".join([chunk async for chunk in reply.chunks])
    finally:
        reply.release()


async def refused(client: HttpUpstream, request: object = None, body: object = None) -> Rejection:
    with pytest.raises(Rejection) as refusal:
        await client.send(request or get(), body)  # type: ignore[arg-type]
    return refusal.value


# Octets out


async def test_a_request_goes_out_as_given(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)))
    target = b"/api/v4/projects/a%2fb%2F%252F;+[]?q=&&x=%zz?"
    reply = await client.send(get(target, own=((b"hOsT", b"git.test"), (b"PRIVATE-TOKEN", b"t"), (b"Expect", b"x"))), None)
    assert reply.whole == b"ok"
    assert gitlab.peers[0].heads == [b"GET " + target + b" HTTP/1.1\r\nhOsT: git.test\r\nPRIVATE-TOKEN: t\r\n\r\n"]


async def test_a_small_body_goes_with_its_head(gitlab: Gitlab, upstream: Make) -> None:
    seen = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.reader.read(65536))
        await peer.send(OK)

    client = upstream(await gitlab.play(script))
    await client.send(get(b"/", method="POST", content_length=10), Pieces(b"hello", b"world"))
    assert seen == [b"POST / HTTP/1.1\r\nHost: gitlab.test\r\nContent-Length: 10\r\n\r\nhelloworld"]


@pytest.mark.parametrize("length", [200_000, None])
async def test_a_large_or_endless_body_streams(gitlab: Gitlab, upstream: Make, length: int | None) -> None:
    got = []

    async def script(peer: Peer) -> None:
        while await peer.request():
            got.append(await peer.body(200_000) if length else await peer.reader.readuntil(b"0\r\n\r\n"))
            await peer.send(OK)

    client = upstream(await gitlab.play(script))
    for _ in range(2):
        body = Pieces(b"a" * 100_000, b"b" * 100_000)
        reply = await client.send(get(b"/", method="PUT", content_length=length), body)
        assert await body_of(reply) == b"ok"
    plain = b"a" * 100_000 + b"b" * 100_000
    framed = b"186a0\r\n" + b"a" * 100_000 + b"\r\n186a0\r\n" + b"b" * 100_000 + b"\r\n0\r\n\r\n"
    assert got == [plain if length else framed] * 2
    assert len(gitlab.peers) == 1


@pytest.mark.parametrize("length", [3, 9, 70_000, 99_999])
async def test_a_body_of_another_length_never_looks_whole(gitlab: Gitlab, upstream: Make, length: int) -> None:
    """Too short or too long, small or streamed: 400, and GitLab sees at most a part."""
    seen = []

    async def script(peer: Peer) -> None:
        await peer.request()
        seen.append(await peer.rest())

    client = upstream(await gitlab.play(script))
    sent = 5 if length < 100 else 80_000
    refusal = await refused(client, get(b"/", method="POST", content_length=length), Pieces(b"x" * sent))
    assert (refusal.code, refusal.status) == (Code.BAD_REQUEST, 400)
    for peer in gitlab.peers:
        await peer.ended.wait()
    assert all(len(octets) < length for octets in seen)


# Connections


async def test_connections_are_reused_last_first(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)))
    await asyncio.gather(*(client.send(get(), None) for _ in range(3)))
    assert (client.connects_total, client.idle, client.open) == (3, 3, 3)
    for _ in range(5):
        await client.send(get(), None)
    assert client.connects_total == 3
    assert sorted(len(peer.heads) for peer in gitlab.peers) == [1, 1, 6]


async def test_the_time_an_answer_had_is_not_its_connections(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)), keepalive_s=30.0)
    await client.send(get(first_byte_timeout_s=1.5), None)
    await asyncio.sleep(1.6)
    assert client.idle == 1
    await client.send(get(), None)
    assert client.connects_total == 1


async def test_no_more_idle_connections_than_told(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)), max_idle=1)
    await asyncio.gather(*(client.send(get(), None) for _ in range(3)))
    assert (client.idle, client.open) == (1, 1)


async def test_idle_connections_are_closed_in_time(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)), keepalive_s=0.05)
    await asyncio.gather(*(client.send(get(), None) for _ in range(2)))
    for peer in gitlab.peers:
        await peer.ended.wait()
    assert (client.idle, client.open) == (0, 0)
    await client.send(get(), None)
    assert client.connects_total == 3


async def test_octets_on_an_idle_connection_close_it(gitlab: Gitlab, upstream: Make) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 0:
            await go.wait()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
            assert await peer.rest() == b""

    client = upstream(await gitlab.play(script))
    await client.send(get(), None)
    go.set()
    await gitlab.peers[0].ended.wait()
    assert client.idle == 0
    assert (await client.send(get(), None)).whole == b"ok"


async def test_unix_sockets(gitlab: Gitlab, upstream: Make, tmp_path: object) -> None:
    client = upstream(await gitlab.play(always(OK), path=f"{tmp_path}/gitlab.socket"))
    assert (await client.send(get(), None)).whole == b"ok"
    assert client.origin.authority == b"localhost"


async def test_ipv6(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK), host="::1"))
    assert (await client.send(get(), None)).whole == b"ok"


async def test_names_are_looked_up(gitlab: Gitlab, upstream: Make) -> None:
    await gitlab.play(always(OK))
    client = upstream(f"http://localhost:{gitlab.port}")
    assert (await client.send(get(), None)).whole == b"ok"


# Retries


def stale(*, method: bytes = b"") -> Callable[[Peer], object]:
    """The first connection answers once, then closes on the second request without a word."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 0:
            await peer.request()
        else:
            while await peer.request():
                await peer.send(OK)

    return script


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_reused_connection_that_was_dead_costs_one_retry(gitlab: Gitlab, upstream: Make, method: str) -> None:
    client = upstream(await gitlab.play(stale()))
    await client.send(get(), None)
    body = b"" if method == "HEAD" else b"ok"
    reply = await client.send(get(method=method), None)
    assert reply.whole == body
    assert (client.retries_total, client.connects_total) == (1, 2)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
@pytest.mark.parametrize("body", [None, b"x", b"x" * 70_000])
async def test_what_may_have_happened_is_not_done_twice(
    gitlab: Gitlab, upstream: Make, method: str, body: bytes | None
) -> None:
    client = upstream(await gitlab.play(stale()))
    await client.send(get(), None)
    request = get(method=method, content_length=len(body) if body else None)
    assert (await refused(client, request, Pieces(body) if body else None)).code is Code.UPSTREAM_RESET
    assert (gitlab.requests, client.retries_total) == (2, 0)


async def test_a_get_with_a_body_is_not_retried(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(stale()))
    await client.send(get(), None)
    assert (await refused(client, get(content_length=1), Pieces(b"x"))).code is Code.UPSTREAM_RESET


async def test_a_new_connection_that_dies_is_not_retried(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(once(b"")))
    assert (await refused(client)).code is Code.UPSTREAM_RESET
    assert gitlab.requests == 1


async def test_after_an_octet_of_an_answer_there_is_no_retry(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")

    client = upstream(await gitlab.play(script))
    await client.send(get(), None)
    assert (await refused(client)).code is Code.UPSTREAM_RESET
    assert gitlab.requests == 2


async def test_retries_stay_within_their_budget(gitlab: Gitlab, upstream: Make) -> None:
    """Every reused connection dies: the first retry is free, then a tenth of requests."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    client = upstream(await gitlab.play(script), breaker=None)
    failed = 0
    for _ in range(40):
        try:
            await client.send(get(), None)
        except Rejection:
            failed += 1
    assert failed > 0
    assert client.retries_total <= 1 + 40 * 0.1


# Failures, each told by the table


async def test_nobody_listens(gitlab: Gitlab, upstream: Make) -> None:
    url = await gitlab.play(always(OK))
    await gitlab.stop()
    client = upstream(url)
    refusal = await refused(client)
    assert (refusal.code, refusal.status, refusal.proxy_error) == (Code.UPSTREAM_REFUSED, 502, "connection_refused")
    assert refusal.message == "502 Bad Gateway"


async def test_a_name_that_can_be_nobodys(upstream: Make) -> None:
    """A label of 64 octets: no resolver is asked, which keeps the test on this machine."""
    refusal = await refused(upstream(f"http://{'a' * 64}.localhost"))
    assert (refusal.code, refusal.status, refusal.proxy_error) == (Code.UPSTREAM_DNS, 502, "dns_error")


async def test_a_socket_that_is_not_there(upstream: Make, tmp_path: object) -> None:
    assert (await refused(upstream(f"unix:{tmp_path}/none"))).code is Code.UPSTREAM_REFUSED


async def test_a_silent_gitlab(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.rest()

    client = upstream(await gitlab.play(script), first_byte_s=30.0)
    refusal = await refused(client, get(first_byte_timeout_s=0.05))
    assert (refusal.code, refusal.status, refusal.proxy_error) == (Code.UPSTREAM_TIMEOUT, 504, "http_response_timeout")
    await gitlab.peers[0].ended.wait()


async def test_interim_answers_do_not_put_the_deadline_off(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for _ in range(15):
            await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await asyncio.sleep(0.02)
        await peer.rest()

    client = upstream(await gitlab.play(script), first_byte_s=0.1)
    assert (await refused(client)).status == 504


async def test_a_handshake_that_never_comes(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.rest()

    url = await gitlab.play(script)
    client = upstream(url.replace("http:", "https:"), connect_s=0.1)
    refusal = await refused(client)
    assert (refusal.code, refusal.status, refusal.proxy_error) == (Code.UPSTREAM_CONNECT_TIMEOUT, 504, "connection_timeout")


async def test_plain_http_where_tls_was_meant(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    url = await gitlab.play(script)
    refusal = await refused(upstream(url.replace("http:", "https:")))
    assert (refusal.code, refusal.status) == (Code.UPSTREAM_TLS, 502)


async def test_a_reset(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    refusal = await refused(upstream(await gitlab.play(script)))
    assert (refusal.code, refusal.status, refusal.proxy_error) == (Code.UPSTREAM_RESET, 502, "connection_terminated")


async def test_refusals_name_no_address(gitlab: Gitlab, upstream: Make) -> None:
    url = await gitlab.play(once(b"garbage\r\n\r\n"))
    refusal = await refused(upstream(url))
    assert refusal.code is Code.UPSTREAM_PROTOCOL
    assert str(gitlab.port) not in f"{refusal!r}{refusal.message}{refusal.detail}{refusal.headers}"
    assert "garbage" not in f"{refusal.detail}"


# Whether GitLab can be reached


async def test_a_connection_that_is_only_tried_is_closed_unused(gitlab: Gitlab, upstream: Make) -> None:
    client = upstream(await gitlab.play(always(OK)))
    assert await client.try_to_connect() is None
    while not gitlab.peers:
        await asyncio.sleep(0)
    await gitlab.peers[0].ended.wait()
    assert gitlab.requests == 0
    assert (client.open, client.in_flight, client.connects_total) == (0, 0, 0)
    assert (await client.send(get(), None)).whole == b"ok"


async def test_why_no_connection_can_be_made(gitlab: Gitlab, upstream: Make) -> None:
    url = await gitlab.play(always(OK))
    await gitlab.stop()
    client = upstream(url, breaker=BreakerSettings(min_requests=1))
    assert await client.try_to_connect() is Code.UPSTREAM_REFUSED
    assert client.breaker_state is BreakerState.CLOSED
    assert await upstream(f"http://{'a' * 64}.localhost").try_to_connect() is Code.UPSTREAM_DNS


# Places


async def test_one_too_many_waits_then_is_served(gitlab: Gitlab, upstream: Make) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while await peer.request():
            await go.wait()
            await peer.send(OK)

    client = upstream(await gitlab.play(script), max_in_flight=1, max_waiting=1)
    first = asyncio.ensure_future(client.send(get(), None))
    second = asyncio.ensure_future(client.send(get(), None))
    await asyncio.sleep(0)
    assert (client.in_flight, client.waiting) == (1, 1)
    refusal = await refused(client)
    assert (refusal.code, refusal.status, refusal.proxy_error) == (Code.UPSTREAM_BUSY, 503, "connection_limit_reached")
    assert refusal.headers == ((b"Retry-After", b"1"),)
    go.set()
    assert [(await one).whole for one in (first, second)] == [b"ok", b"ok"]
    assert client.connects_total == 1
    assert (client.in_flight, client.waiting) == (0, 0)


async def test_when_a_request_is_sent_is_told(gitlab: Gitlab, upstream: Make) -> None:
    """Not while it waits for a place, nor while a body is on its way for as long as its client likes."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while head := await peer.request():
            if head.startswith(b"POST /early"):
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                return
            if b"chunked" in head:
                await peer.reader.readuntil(b"0\r\n\r\n")
            elif head.startswith(b"POST"):
                await peer.body(70_000)
            await go.wait()
            await peer.send(OK)

    client = upstream(await gitlab.play(script), max_in_flight=1, max_waiting=1)
    sent: list[str] = []
    first = asyncio.ensure_future(client.send(get(on_sent=lambda: sent.append("first")), None))
    second = asyncio.ensure_future(client.send(get(on_sent=lambda: sent.append("second")), None))
    async with asyncio.timeout(30):
        while not gitlab.peers or not gitlab.peers[0].heads:
            await asyncio.sleep(0)
    assert (sent, client.waiting) == (["first"], 1)
    go.set()
    assert [(await one).whole for one in (first, second)] == [b"ok", b"ok"]
    go.clear()
    for length in (70_000, None):
        body = asyncio.Event()
        pieces = Pieces(b"x" * 70_000, then=body.wait)  # type: ignore[arg-type]
        sent.clear()
        request = get(method="POST", content_length=length, on_sent=lambda: sent.append("body"))
        streamed = asyncio.ensure_future(client.send(request, pieces))
        await asyncio.sleep(0.01)
        assert sent == []
        body.set()
        async with asyncio.timeout(30):
            while not sent:
                await asyncio.sleep(0)
        streamed.cancel()
        await asyncio.wait([streamed])
        assert sent == ["body"]
    early = get(b"/early", method="POST", content_length=70_000, on_sent=lambda: sent.append("early"))
    assert (await client.send(early, Pieces(b"x", then=asyncio.Event().wait))).whole == b"x"  # type: ignore[arg-type]
    assert sent == ["body"]


async def test_a_poll_that_waits_leaves_its_place_to_others(
    gitlab: Gitlab, upstream: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstream.parking.PARKED_AFTER_S", 0.0)
    job = asyncio.Event()

    async def script(peer: Peer) -> None:
        while head := await peer.request():
            if head.startswith(b"POST"):
                await peer.body(2)
                await job.wait()
            await peer.send(OK)

    client = upstream(await gitlab.play(script), max_in_flight=1, max_waiting=0, max_tunnels=1)
    poll = get(method="POST", content_length=2, waits=True)
    first = asyncio.ensure_future(client.send(poll, Pieces(b"{}")))
    async with asyncio.timeout(30):
        while not gitlab.peers or not gitlab.peers[0].heads or client.in_flight:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(client.send(poll, Pieces(b"{}")))
        while len(gitlab.peers) < 2:
            await asyncio.sleep(0)
    assert (await refused(client)).code is Code.UPSTREAM_BUSY, "no more than so many are parked"
    job.set()
    assert [(await one).whole for one in (first, second)] == [b"ok", b"ok"]
    assert client.in_flight == 0
    assert (await client.send(get(), None)).whole == b"ok"


@pytest.mark.parametrize("end", ["read", "released", "broken off"])
async def test_who_watches_holds_no_place_while_nothing_comes(
    gitlab: Gitlab, upstream: Make, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstream.parking.PARKED_AFTER_S", 0.0)
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        while head := await peer.request():
            if b"watch" not in head:
                await peer.send(OK)
                continue
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            await more.wait()
            if end == "broken off":
                return
            await peer.send(b"1\r\nb\r\n0\r\n\r\n")

    client = upstream(await gitlab.play(script), max_in_flight=1, max_waiting=0)
    reply = await client.send(get(b"/watch", waits=True), None)
    async with asyncio.timeout(30):
        while client.in_flight:
            await asyncio.sleep(0)
    assert (await client.send(get(), None)).whole == b"ok"
    assert reply.chunks is not None
    assert await anext(reply.chunks) == b"a"
    if end == "read":
        more.set()
        assert [chunk async for chunk in reply.chunks] == [b"b"]
    elif end == "broken off":
        more.set()
        with pytest.raises(Rejection):
            await anext(reply.chunks)
    reply.release()
    more.set()
    assert client._pool is not None
    assert (client.in_flight, client._pool.parked) == (0, 0)
    assert (await client.send(get(), None)).whole == b"ok"


@pytest.mark.parametrize("whole", [True, False], ids=["all of it came", "it broke off"])
async def test_a_watch_that_is_over_counts_no_longer_however_slowly_it_is_taken(
    gitlab: Gitlab, upstream: Make, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is another's, or gone: there would be a place more than there are."""
    monkeypatch.setattr("gateway.upstream.parking.PARKED_AFTER_S", 0.0)
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await more.wait()
        if whole:
            await peer.send(b"1\r\nb\r\n0\r\n\r\n")
            await peer.rest()

    client = upstream(await gitlab.play(script), max_in_flight=1, max_waiting=0)
    reply = await client.send(get(b"/watch", waits=True), None)
    pool = client._pool
    assert pool is not None
    async with asyncio.timeout(30):
        while not pool.parked:
            await asyncio.sleep(0)
        more.set()
        while pool.in_flight:
            await asyncio.sleep(0)
    assert (client.in_flight, pool.parked) == (0, 0)
    reply.release()
    assert (client.in_flight, pool.parked) == (0, 0)


async def test_waiting_ends(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.rest()

    client = upstream(await gitlab.play(script), max_in_flight=1, wait_s=0.05)
    first = asyncio.ensure_future(client.send(get(), None))
    await asyncio.sleep(0)
    assert (await refused(client)).code is Code.UPSTREAM_BUSY
    first.cancel()
    await asyncio.wait([first])
    assert (client.in_flight, client.waiting) == (0, 0)


async def test_a_full_house_reads_no_body(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.rest()

    client = upstream(await gitlab.play(script), max_in_flight=1, max_waiting=0)
    first = asyncio.ensure_future(client.send(get(), None))
    await asyncio.sleep(0)
    body = Pieces(b"x")
    await refused(client, get(method="POST", content_length=1), body)
    assert body.reads == 0
    first.cancel()
    await asyncio.wait([first])


# The breaker


async def test_the_breaker_opens_and_recovers(gitlab: Gitlab, upstream: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.upstream")
    broken = True

    async def script(peer: Peer) -> None:
        while await peer.request():
            if broken:
                return
            await peer.send(OK)

    client = upstream(await gitlab.play(script), breaker=BreakerSettings(min_requests=3, open_for_s=0.05))
    for _ in range(3):
        assert (await refused(client)).code is Code.UPSTREAM_RESET
    body = Pieces(b"x")
    refusal = await refused(client, get(method="POST", content_length=1), body)
    assert (refusal.code, refusal.status, refusal.proxy_error) == (
        Code.UPSTREAM_BREAKER_OPEN,
        503,
        "destination_unavailable",
    )
    assert refusal.headers == ((b"Retry-After", b"1"),)
    assert body.reads == 0
    assert gitlab.requests == 3
    assert (client.breaker_state, client.in_flight) == (BreakerState.OPEN, 0)
    while (refusal := await refused(client)).code is Code.UPSTREAM_BREAKER_OPEN:
        await asyncio.sleep(0.01)
    assert refusal.code is Code.UPSTREAM_RESET, "a probe, which fails"
    broken = False
    for _ in range(100):
        try:
            assert (await client.send(get(), None)).whole == b"ok"
            break
        except Rejection:
            await asyncio.sleep(0.01)
    assert client.breaker_state is BreakerState.CLOSED
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "ERROR",
            "GitLab fails (last with upstream_reset): the breaker is open, requests get 503 until a probe succeeds",
        ),
        ("WARNING", "GitLab answers again: the breaker is closed"),
    ]


async def test_gitlabs_own_errors_do_not_open_the_breaker(gitlab: Gitlab, upstream: Make) -> None:
    url = await gitlab.play(always(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"))
    client = upstream(url, breaker=BreakerSettings(min_requests=2))
    for _ in range(3):
        assert (await client.send(get(), None)).head.status == 502
    assert client.breaker_state is BreakerState.CLOSED


async def test_answers_that_break_off_count(gitlab: Gitlab, upstream: Make) -> None:
    url = await gitlab.play(once(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello"))
    client = upstream(url, breaker=BreakerSettings(min_requests=4))
    for _ in range(2):
        reply = await client.send(get(), None)
        with pytest.raises(Rejection):
            await body_of(reply)
    assert client.breaker_state is BreakerState.OPEN


async def test_clients_that_leave_do_not_count(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.rest()

    client = upstream(await gitlab.play(script), breaker=BreakerSettings(min_requests=1))
    for _ in range(3):
        task = asyncio.ensure_future(client.send(get(), None))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
    assert client.breaker_state is BreakerState.CLOSED


@pytest.mark.parametrize("begun", [True, False])
async def test_what_merely_waits_says_nothing_about_gitlab(gitlab: Gitlab, upstream: Make, begun: bool) -> None:
    """A watch of a cluster in which nothing happens ends in silence, or with its agent."""

    async def script(peer: Peer) -> None:
        while head := await peer.request():
            if b"/watch" in head:
                if begun:
                    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
                if b"/watch/reset" in head:
                    peer.reset()
                else:
                    await peer.rest()
                return
            await peer.send(OK)

    settings = BreakerSettings(min_requests=1, error_ratio=0.1)
    client = upstream(await gitlab.play(script), first_byte_s=0.05, idle_s=0.05, breaker=settings)
    for target in (b"/watch", b"/watch/reset"):
        with pytest.raises(Rejection) as refusal:
            await body_of(await client.send(get(target, waits=True), None))
        assert refusal.value.code in (Code.UPSTREAM_TIMEOUT, Code.UPSTREAM_RESET)
    assert (await client.send(get(), None)).whole == b"ok"
    client = upstream("http://127.0.0.1:1", breaker=settings)
    assert (await refused(client, get(waits=True))).code is Code.UPSTREAM_REFUSED
    assert client.breaker_state is BreakerState.OPEN, "it could not even be sent"


# The end


async def test_close_breaks_off_what_is_on(gitlab: Gitlab, upstream: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello")
        await peer.rest()

    client = upstream(await gitlab.play(script), max_in_flight=2)
    streaming = await client.send(get(), None)
    waiting = [asyncio.ensure_future(client.send(get(), None)) for _ in range(2)]
    while len(gitlab.peers) < 2 or not gitlab.peers[1].heads:
        await asyncio.sleep(0)
    await client.close()
    with pytest.raises(Rejection):
        await body_of(streaming)
    for one in waiting:
        with pytest.raises(Rejection) as refusal:
            await one
        assert (refusal.value.code, refusal.value.status) == (Code.DRAINING, 503)
    assert (await refused(client)).code is Code.DRAINING
    assert (client.in_flight, client.waiting, client.open) == (0, 0, 0)


async def test_figures_before_the_first_request(upstream: Make) -> None:
    client = upstream("http://127.0.0.1:1", breaker=None)
    assert (client.open, client.idle, client.in_flight, client.waiting) == (0, 0, 0, 0)
    assert client.breaker_state is BreakerState.CLOSED
    client.read_tls()()
