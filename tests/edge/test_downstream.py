"""One request on aiohttp's own server, and the raw way back: every octet of the answer is ours."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from aiohttp.web_protocol import RequestHandler
from pytest_aiohttp.plugin import AiohttpRawServer

from gateway.core.errors import Code, Rejection
from gateway.core.messages import Fields, ResponseHead, first
from gateway.edge.connection import Connection
from gateway.edge.downstream import AiohttpDownstream, ClientGone, build_head
from gateway.edge.settings import EdgeSettings
from tests.edge.wire import SOON_S, Client, Handler, request, traffic

Serve = Callable[[Handler], Awaitable[Callable[[], Awaitable[Client]]]]
DATE = (b"Date", b"Fri, 15 Jan 2027 08:00:00 GMT")


class Plain:
    """aiohttp's own connection, with the little more that a downstream asks of one."""

    settings = EdgeSettings(body_idle_s=0.05)
    draining = False
    is_tls = False
    peer = "127.0.0.1"

    def __init__(self, protocol: RequestHandler) -> None:
        self._protocol = protocol

    @property
    def transport(self) -> asyncio.Transport | None:
        return cast("asyncio.Transport | None", self._protocol.transport)

    writing_paused = False

    def abort(self) -> None:
        assert self.transport is not None
        self.transport.abort()


class Answered:
    """A finished response, as aiohttp's own loop asks for one: nothing is left to prepare or to end."""

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, _request: object) -> None:
        return

    async def write_eof(self) -> None:
        return


class OnAiohttp(AiohttpDownstream):
    """A downstream with what aiohttp's own loop asks of a request; the gateway's loop asks less."""

    remote = "127.0.0.1"

    def __init__(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> None:
        plain = cast(Connection, Plain(protocol))
        super().__init__(build_head(message, payload, plain), payload, plain, message)
        self.writer = writer
        self._task = task

    def _finish(self) -> None:
        return


@pytest.fixture
async def serve(aiohttp_raw_server: AiohttpRawServer) -> AsyncIterator[Serve]:
    """Starts aiohttp's low-level server with a handler of the test; gives a way to connect to it."""
    clients: list[Client] = []

    async def start(handler: Handler) -> Callable[[], Awaitable[Client]]:
        async def handle(down: Any) -> Any:
            await handler(down)
            return Answered(down.keep_alive)

        server = await aiohttp_raw_server(
            handle, request_factory=OnAiohttp, access_log=None, auto_decompress=False, keepalive_timeout=75.0
        )

        async def connect() -> Client:
            assert server.port is not None
            client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
            clients.append(client)
            return client

        return connect

    yield start
    for client in clients:
        client.writer.close()


async def answers(serve: Serve, octets: bytes, handler: Handler) -> Client:
    client = await (await serve(handler))()
    await client.send(octets)
    return client


def whole(status: int, fields: Fields, body: bytes, *, close: bool = False) -> Handler:
    async def handler(down: AiohttpDownstream) -> None:
        await down.respond(ResponseHead(status, (DATE, *fields)), body, close=close)

    return handler


def streamed(fields: Fields, *chunks: bytes, status: int = 200) -> Handler:
    async def handler(down: AiohttpDownstream) -> None:
        await down.start(ResponseHead(status, (DATE, *fields)))
        for chunk in chunks:
            await down.write(chunk)
        await down.finish()

    return handler


# What was received


async def test_the_head_as_received(serve: Serve) -> None:
    """Target and fields octet for octet, obs-text and duplicates too."""
    seen: list[AiohttpDownstream] = []

    async def handler(down: AiohttpDownstream) -> None:
        seen.append(down)
        await down.respond(ResponseHead(204, ()), b"")

    octets = (
        b"GET /a%2fb;c=d?x=%7E&y[]=+&z=? HTTP/1.1\r\nhOST: A:80\r\nX-Odd: caf\xe9 \xff\r\nAccept:a\r\naccept: b\r\n"
        b"Empty:\r\n\r\n"
    )
    assert (await (await answers(serve, octets, handler)).answer())[0] == 204
    head = seen[0].head
    assert (head.method, head.target) == ("GET", b"/a%2fb;c=d?x=%7E&y[]=+&z=?")
    assert head.fields == (
        (b"hOST", b"A:80"),
        (b"X-Odd", b"caf\xe9 \xff"),
        (b"Accept", b"a"),
        (b"accept", b"b"),
        (b"Empty", b""),
    )
    assert (head.has_body, head.content_length, head.http_10, head.tls, head.peer) == (
        False,
        None,
        False,
        False,
        "127.0.0.1",
    )
    assert seen[0].body is None
    assert seen[0].remote == "127.0.0.1"


@pytest.mark.parametrize(
    ("octets", "length", "body"),
    [
        (request("/", method="POST", body=b"abc"), 3, b"abc"),
        (
            request("/", "Transfer-Encoding: chunked", method="POST") + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: r\r\n\r\n",
            None,
            b"abc",
        ),
        (request("/", "Content-Encoding: gzip", method="PUT", body=b"abc"), 3, b"abc"),
        (request("/", method="DELETE", body=b"abc"), 3, b"abc"),
        (request("/", body=b"abc"), 3, b"abc"),
        (request("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n", None, b""),
    ],
    ids=["length", "chunked", "coded", "delete", "get", "empty chunked"],
)
async def test_a_body_is_pulled_as_it_is(serve: Serve, octets: bytes, length: int | None, body: bytes) -> None:
    seen: list[tuple[int | None, int]] = []

    async def handler(down: AiohttpDownstream) -> None:
        assert down.body is not None
        read = b""
        while chunk := await down.body.read():
            read += chunk
        assert await down.body.read() == b""
        seen.append((down.body.content_length, down.received_bytes))
        await down.respond(ResponseHead(200, ()), read)

    client = await answers(serve, octets + request("/next"), handler)
    assert (await client.answer())[2] == body
    assert seen == [(length, len(body))]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_length_of_nothing_is_no_body(serve: Serve, method: str) -> None:
    async def handler(down: AiohttpDownstream) -> None:
        await down.respond(ResponseHead(200, ()), repr((down.body, down.head.content_length)).encode())

    client = await answers(serve, request("/", "Content-Length: 0", method=method), handler)
    assert (await client.answer())[2] == b"(None, 0)"


async def rejected(serve: Serve, octets: bytes) -> tuple[Rejection, Client]:
    """What reading the body of ``octets`` raises."""
    raised: list[Rejection] = []

    async def handler(down: AiohttpDownstream) -> None:
        assert down.body is not None
        try:
            while await down.body.read():
                pass
        except Rejection as rejection:
            raised.append(rejection)
            await down.respond(ResponseHead(rejection.status, ()), b"", close=rejection.close)

    client = await answers(serve, octets, handler)
    await client.answer()
    return raised[0], client


async def test_a_stalled_body_times_out(serve: Serve) -> None:
    rejection, _ = await rejected(serve, request("/", "Content-Length: 9", method="POST") + b"abc")
    assert (rejection.code, rejection.status, rejection.close) == (Code.REQUEST_TIMEOUT, 408, True)


async def test_a_body_that_drips_times_out() -> None:
    """Every octet comes in time, and all of them too slowly."""
    ended: list[Rejection] = []

    async def handler(down: AiohttpDownstream) -> None:
        assert down.body is not None
        try:
            while await down.body.read():
                client.writer.write(b"x")
        except Rejection as rejection:
            ended.append(rejection)
        await down.respond(ResponseHead(408, ()), b"", close=True)

    async with traffic(handler, body_idle_s=SOON_S, body_rate=1 << 20, body_slack_s=0.2) as port:
        client = await port.connect()
        await client.send(request("/", "Content-Length: 999999999", method="POST") + b"x")
        assert (await client.answer())[0] == 408
    assert (ended[0].code, ended[0].close) == (Code.REQUEST_TIMEOUT, True)


async def test_broken_chunks_are_a_400_that_quotes_nothing() -> None:
    ready = asyncio.Event()
    raised: list[Rejection] = []

    async def handler(down: AiohttpDownstream) -> None:
        assert down.body is not None
        assert await down.body.read() == b"abc"
        ready.set()
        try:
            await down.body.read()
        except Rejection as rejection:
            raised.append(rejection)
            await down.respond(ResponseHead(rejection.status, ()), b"", close=rejection.close)

    async with traffic(handler) as port:
        client = await port.connect()
        await client.send(request("/", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
        await ready.wait()
        await client.send(b"secret\r\n" + request("/smuggled"))
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert (raised[0].code, raised[0].close) == (Code.BAD_REQUEST, True)
    assert "secret" not in f"{raised[0]} {raised[0].message} {raised[0].detail}"


# Expect


async def test_continue_is_said_when_the_body_is_wanted(serve: Serve) -> None:
    asked = asyncio.Event()

    async def handler(down: AiohttpDownstream) -> None:
        await asked.wait()
        assert down.body is not None
        read = await down.body.read()
        await down.respond(ResponseHead(200, ()), read)

    client = await answers(serve, request("/", "Expect: 100-continue", "Content-Length: 3", method="POST"), handler)
    asked.set()
    assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"abc")
    assert (await client.answer())[2] == b"abc"


async def test_continue_is_never_said_to_who_is_refused(serve: Serve) -> None:
    client = await answers(
        serve, request("/", "Expect: 100-Continue", "Content-Length: 3", method="POST"), whole(401, (), b"no")
    )
    status, fields, body = await client.answer()
    assert (status, body) == (401, b"no")
    assert first(tuple(fields), b"connection") == b"close"


async def test_http_10_is_never_told_to_continue(serve: Serve) -> None:
    async def handler(down: AiohttpDownstream) -> None:
        assert down.body is not None
        await down.respond(ResponseHead(200, ()), await down.body.read())

    octets = request("/", "Expect: 100-continue", method="POST", version="1.0", body=b"abc")
    client = await answers(serve, octets, handler)
    assert (await client.rest()).startswith(b"HTTP/1.1 200 OK\r\n")


# What is answered, octet for octet


def said(status: str, *lines: str, body: bytes = b"") -> bytes:
    """A whole answer as octets."""
    return (
        "\r\n".join([f"HTTP/1.1 {status}", "Date: Fri, 15 Jan 2027 08:00:00 GMT", *lines, "", ""]).encode("latin-1") + body
    )


CLOSE, CHUNKED = "Connection: close", "Transfer-Encoding: chunked"
KEEP = request("/", "Connection: keep-alive", version="1.0")


@pytest.mark.parametrize(
    ("octets", "handler", "answer"),
    [
        (
            request(),
            whole(200, ((b"eTaG", b'W/"\xe9"'), (b"X", b"1"), (b"x", b"2")), b"hi"),
            said("200 OK", 'eTaG: W/"\xe9"', "X: 1", "x: 2", "Content-Length: 2", body=b"hi"),
        ),
        (request(), whole(200, ((b"content-LENGTH", b"2"),), b"hi"), said("200 OK", "content-LENGTH: 2", body=b"hi")),
        (request(), whole(200, (), b"hi", close=True), said("200 OK", "Content-Length: 2", CLOSE, body=b"hi")),
        (request("/", CLOSE), whole(200, (), b"hi"), said("200 OK", "Content-Length: 2", CLOSE, body=b"hi")),
        (request(version="1.0"), whole(200, (), b"hi"), said("200 OK", "Content-Length: 2", CLOSE, body=b"hi")),
        (KEEP, whole(200, (), b"hi"), said("200 OK", "Content-Length: 2", "Connection: keep-alive", body=b"hi")),
        (request(method="HEAD"), whole(200, ((b"Content-Length", b"99"),), b"hi"), said("200 OK", "Content-Length: 99")),
        (request(method="HEAD"), whole(200, (), b"hi"), said("200 OK")),
        (request(), whole(204, (), b"hi"), said("204 No Content")),
        (request(), whole(304, ((b"Content-Length", b"9"),), b"hi"), said("304 Not Modified", "Content-Length: 9")),
        (
            request(),
            streamed((), b"hi", b"", b"there"),
            said("200 OK", CHUNKED, body=b"2\r\nhi\r\n5\r\nthere\r\n0\r\n\r\n"),
        ),
        (request(), streamed(()), said("200 OK", CHUNKED, body=b"0\r\n\r\n")),
        (
            request(),
            streamed(((b"Content-Length", b"7"),), b"hi", b"there"),
            said("200 OK", "Content-Length: 7", body=b"hithere"),
        ),
        (KEEP, streamed((), b"hi"), said("200 OK", CLOSE, body=b"hi")),
        (request(method="HEAD"), streamed(((b"Content-Length", b"7"),), b"never"), said("200 OK", "Content-Length: 7")),
        (request(), streamed((), b"never", status=304), said("304 Not Modified")),
    ],
)
async def test_answers(serve: Serve, octets: bytes, handler: Handler, answer: bytes) -> None:
    """Twice on one connection, so that nothing of the first runs into the second; or the connection ends."""
    client = await answers(serve, octets, handler)
    async with asyncio.timeout(SOON_S):
        assert await client.reader.readexactly(len(answer)) == answer
        if CLOSE.encode() in answer:
            assert await client.rest() == b""
            return
        await client.send(octets)
        assert await client.reader.readexactly(len(answer)) == answer


async def test_a_date_is_added_where_there_is_none(serve: Serve) -> None:
    async def handler(down: AiohttpDownstream) -> None:
        await down.respond(ResponseHead(200, ()), b"")

    _, fields, _ = await (await answers(serve, request(), handler)).answer()
    date = first(tuple(fields), b"date")
    assert date is not None
    assert re.fullmatch(rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date)


async def test_a_body_nobody_read_is_never_the_next_request(serve: Serve) -> None:
    octets = request("/", "Content-Length: 100", method="POST") + request("/smuggled")
    client = await answers(serve, octets, whole(403, (), b"no"))
    status, fields, _ = await client.answer()
    assert status == 403
    assert first(tuple(fields), b"connection") == b"close"
    await client.send(b"x" * 100 + request("/smuggled"))
    assert await client.rest() == b""


async def test_what_was_sent_is_counted(serve: Serve) -> None:
    sent: list[int] = []

    async def handler(down: AiohttpDownstream) -> None:
        await streamed((), b"hi")(down)
        sent.append(down.sent_bytes)

    client = await answers(serve, request("/", "Connection: close"), handler)
    answer = await client.rest()
    assert sent == [len(answer)]


# Cut short


async def test_an_abort_is_no_end(serve: Serve) -> None:
    async def handler(down: AiohttpDownstream) -> None:
        await down.start(ResponseHead(200, ()))
        await down.write(b"some")
        down.abort()

    client = await answers(serve, request(), handler)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.answer()


async def test_a_client_that_went_is_told_to_the_handler() -> None:
    """In the middle of a stream the handler is cancelled, or finds ClientGone at its next write; it never goes on."""
    begun, ended = asyncio.Event(), asyncio.Event()
    why: list[BaseException] = []

    async def handler(down: AiohttpDownstream) -> None:
        try:
            await down.start(ResponseHead(200, ()))
            begun.set()
            while True:
                await down.write(b"x" * 65536)
                await asyncio.sleep(0)
        except BaseException as error:
            why.append(error)
            raise
        finally:
            ended.set()

    async with traffic(handler) as port:
        client = await port.connect()
        await client.send(request())
        await begun.wait()
        client.reset()
        async with asyncio.timeout(SOON_S):
            await ended.wait()
    assert isinstance(why[0], asyncio.CancelledError | ConnectionError)


async def test_writing_to_a_closed_connection_is_client_gone(serve: Serve) -> None:
    raised: list[BaseException] = []

    async def handler(down: AiohttpDownstream) -> None:
        down.abort()
        try:
            await down.respond(ResponseHead(200, ()), b"")
        except ClientGone as gone:
            raised.append(gone)

    client = await answers(serve, request(), handler)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.answer()
    assert raised


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    ended = asyncio.Event()

    async def handler(down: AiohttpDownstream) -> None:
        try:
            await down.start(ResponseHead(200, ()))
            while True:
                await down.write(b"x" * (1 << 20))
        finally:
            ended.set()

    async with traffic(handler, write_stall_s=0.05) as port:
        client = await port.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request())
        async with asyncio.timeout(SOON_S):
            await ended.wait()


async def test_a_draining_connection_says_so() -> None:
    async def handler(down: AiohttpDownstream) -> None:
        await down.respond(ResponseHead(200, ()), b"")

    async with traffic(handler) as port:
        port.server.drain()
        assert b"\r\nConnection: close\r\n" in await port.ask(request())
