"""A client's connection at its socket: what aiohttp would do by itself and a gateway must not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest

from gateway.core.errors import Code
from gateway.core.messages import RequestHead, ResponseHead
from gateway.edge.connection import Connection
from gateway.edge.downstream import AiohttpDownstream
from gateway.pending_answer import AnswerSink
from tests.edge.wire import SOON_S, Client, Traffic, echo, request, traffic
from tests.test_outbox import crowded

CANARY = b"glpat-c4n4ryc4n4ryc4n4ry"


@pytest.mark.parametrize(
    ("octets", "status", "code"),
    [
        (b"\x16\x03\x01" + CANARY + b"\r\n\r\n", 400, Code.BAD_REQUEST),
        (b"GET /" + CANARY + b" HTTP/1.1\r\nHost : a\r\n\r\n", 400, Code.BAD_REQUEST),
        (b"GET /" + CANARY + b" HTTP/1.1\nHost: a\n\n", 400, Code.BAD_REQUEST),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + CANARY + b"\0\r\n\r\n", 400, Code.BAD_REQUEST),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n " + CANARY + b"\r\n\r\n", 400, Code.BAD_REQUEST),
        (b"GET / HTTP/1.1\r\nX: " + CANARY + b"\r\n\r\n", 400, Code.BAD_REQUEST),
        (b"GET / http/1.1\r\nHost: a\r\nX: " + CANARY + b"\r\n\r\n", 400, Code.BAD_REQUEST),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + CANARY, 400, Code.BAD_REQUEST),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n" + CANARY, 400, Code.BAD_REQUEST),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n" + CANARY, 400, Code.BAD_REQUEST),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + CANARY,
            400,
            Code.BAD_REQUEST,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n" + CANARY,
            400,
            Code.BAD_REQUEST,
        ),
        (b"GET /" + CANARY * 20 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, Code.TARGET_TOO_LONG),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + CANARY * 20 + b"\r\n\r\n", 431, Code.HEADERS_TOO_LARGE),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + CANARY * 20 + b": 1\r\n\r\n", 431, Code.HEADERS_TOO_LARGE),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + CANARY + b"\r\n") * 30 + b"\r\n", 431, Code.HEADERS_TOO_LARGE),
        (b"GET /" + CANARY + b" HTTP/0.9\r\nHost: a\r\n\r\n", 505, Code.VERSION_NOT_SUPPORTED),
        (b"GET /" + CANARY + b"\r\n\r\n", 505, Code.VERSION_NOT_SUPPORTED),
        (b"GET /" + CANARY + b" HTTP/2.0\r\nHost: a\r\n\r\n", 505, Code.VERSION_NOT_SUPPORTED),
        (b"GET /" + CANARY + b" HTTP/9.9\r\nHost: a\r\n\r\n", 505, Code.VERSION_NOT_SUPPORTED),
    ],
)
@pytest.mark.parametrize("field_bytes", [200, 201])
async def test_what_is_no_request_is_refused_unquoted(
    octets: bytes, status: int, code: Code, field_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the answer nor any log repeats what was sent, and the connection ends."""
    caplog.set_level(logging.DEBUG)
    async with traffic(echo, target_bytes=200, field_bytes=field_bytes, max_fields=20) as port:
        answer = await port.ask(octets)
    line, _, rest = answer.partition(b"\r\n")
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert b"X-Gateway-Error: %b\r\n" % code.value.encode() in rest
    assert b"Connection: close\r\n" in rest
    assert answer.count(b"HTTP/1.1 ") == 1
    assert CANARY[6:] not in answer
    assert "c4n4ry" not in caplog.text
    assert [rejection.code for rejection in port.refused] == [code]


async def test_a_fault_behind_a_good_request_ends_the_connection() -> None:
    async with traffic(echo) as port:
        client = await port.connect()
        await client.send(request("/one"))
        assert (await client.answer())[0] == 200
        await client.send(b"\x00garbage\r\n\r\n" + request("/two"))
        assert (await client.answer())[0] == 400
        assert await client.rest() == b""


async def test_limits_hold_what_they_say() -> None:
    """A target and a field of exactly the limit pass here; one octet more is core's or the parser's to refuse."""
    async with traffic(echo, target_bytes=100, field_bytes=100) as port:
        client = await port.connect()
        await client.send(request("/" + "a" * 99, "X: " + "b" * 99))
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("octets", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX:", b"\r\n\r\n"], ids=["silent", "part", "blank"])
async def test_a_slow_head_is_cut(octets: bytes) -> None:
    async with traffic(echo, request_head_s=0.05) as port:
        assert await port.ask(octets) == b""
        assert port.server.slow_heads == 1


async def test_a_slow_second_head_is_cut_too() -> None:
    async with traffic(echo, request_head_s=0.05) as port:
        client = await port.connect()
        await client.send(request("/one"))
        assert (await client.answer())[0] == 200
        await client.send(b"GET /two HT")
        assert await client.rest() == b""
        assert port.server.slow_heads == 1


async def test_a_request_in_progress_is_no_slow_head() -> None:
    told = asyncio.Event()

    async def handler(down: AiohttpDownstream) -> None:
        await down.start(ResponseHead(200, ()))
        await down.write(b"begin")
        await told.wait()
        await down.write(b"end")
        await down.finish()

    async with traffic(handler, request_head_s=0.05) as port:
        client = await port.connect()
        await client.send(request())
        # Longer than a head may take, by the clock of a connection that is cut for it.
        assert await port.ask(b"GET") == b""
        told.set()
        assert (await client.answer())[2] == b"beginend"


async def test_an_idle_connection_is_closed() -> None:
    async with traffic(echo, idle_s=0.05) as port:
        client = await port.connect()
        await client.send(request())
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with traffic(echo) as port:
        client = await port.connect()
        await client.send(b"".join(request(f"/{number}") for number in range(50)))
        for number in range(50):
            assert (await client.answer())[2] == b"/%d " % number


@asynccontextmanager
async def answering_at_once() -> AsyncIterator[tuple[Traffic, Client, Connection]]:
    """A connection whose ``/known`` is answered without its task from now on: 200, ``at once``."""

    def try_answer(head: RequestHead, _sink: AnswerSink) -> bytes | None:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nat once" if head.target == b"/known" else None

    async with traffic(echo, try_answer) as port:
        client = await port.connect()
        await client.send(request("/known"))
        assert (await client.answer())[2] == b"/known "
        await asyncio.sleep(0)
        (connection,) = port.server.connections
        assert isinstance(connection, Connection)
        await crowded(port.server.outbox)
        yield port, client, connection


async def test_answers_at_once_go_before_what_a_task_writes() -> None:
    async with answering_at_once() as (_port, client, connection):
        for target in ("/known", "/other", "/known", "/known", "/another"):
            connection.data_received(request(target))
        said = [(await client.answer())[2] for _ in range(5)]
        assert said == [b"at once", b"/other ", b"/known ", b"/known ", b"/another "]


@pytest.mark.parametrize("ending", ["half-closed", "forced", "drained", "closing"])
async def test_an_answer_at_once_is_not_lost_with_its_connection(ending: str) -> None:
    """Though it is written at the end of the loop's turn, and the connection ends in that very turn."""
    async with answering_at_once() as (port, client, connection):
        if ending == "closing":
            asking = Mock()
            port.server.try_answer = lambda _head, _sink: asking
            connection.data_received(request("/known"))
            connection.close()
            connection.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nat once")
            asking.leave.assert_not_called()
        else:
            connection.data_received(request("/known"))
        assert connection.transport is not None
        if ending == "half-closed":
            assert not connection.eof_received()
            connection.transport.close()
        elif ending == "forced":
            connection.force_close()
        elif ending == "drained":
            await connection.shutdown(SOON_S)
        assert (await client.answer())[2] == b"at once"
        assert await client.rest() == b""


async def test_pipelined_bodies_do_not_run_into_each_other() -> None:
    async with traffic(echo) as port:
        client = await port.connect()
        smuggled = request("/smuggled")
        await client.send(
            request("/read", method="POST", body=smuggled) + request("/x", method="POST", body=smuggled) + request("/last")
        )
        assert (await client.answer())[2] == b"/read " + smuggled
        assert (await client.answer())[2] == b"/x "
        assert (await client.answer())[2] == b"/last "


@pytest.mark.parametrize(
    "octets",
    [
        request("/up", "Connection: Upgrade", "Upgrade: websocket"),
        request("/up", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
        request("/read", "Connection: Upgrade", "Upgrade: h2c", method="POST", body=b"12345"),
        request("/x", "Connection: Upgrade", "Upgrade: TLS/1.0", method="POST", body=b"12345"),
        b"CONNECT up:443 HTTP/1.1\r\nHost: up:443\r\n\r\n",
    ],
    ids=["websocket", "h2c", "post", "unread", "connect"],
)
async def test_behind_a_declined_upgrade_nothing_is_read(octets: bytes) -> None:
    """aiohttp's parser loses what stands behind an upgrade it does not know: whoever went on reading would lose step."""
    async with traffic(echo) as port:
        answer = await port.ask(octets + request("/smuggled"))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close\r\n" in answer
    assert b"/smuggled" not in answer


async def test_a_client_that_half_closes_has_gone() -> None:
    """As documented: a FIN behind the request can't be told from a client that left."""
    cancelled = asyncio.Event()

    async def handler(_down: AiohttpDownstream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with traffic(handler) as port:
        client = await port.connect()
        client.writer.write(request())
        client.writer.write_eof()
        assert await client.rest() == b""
        assert cancelled.is_set()


# Faults of our own


async def test_a_fault_that_escapes_cuts_the_connection_and_quotes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(_down: AiohttpDownstream) -> None:
        raise ValueError("a fault")

    caplog.set_level(logging.DEBUG)
    async with traffic(handler) as port:
        client = await port.connect()
        await client.send(request("/" + CANARY.decode()))
        assert await client.is_cut()
    assert "c4n4ry" not in caplog.text
