"""Who takes octets, however slowly, is served, who takes none is not; who left is noticed; no answer that was cut looks
whole. On both loops, in clear and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.core.messages import ResponseHead
from gateway.edge import client_socket as module
from gateway.edge import connection as connection_module
from gateway.edge.client_socket import SendProgress, cut, send_progress, set_reset_on_close
from gateway.edge.downstream import AiohttpDownstream
from tests.fakes.certificates import Authority

from .wire import SOON_S, Handler, Traffic, request, traffic

SIZE = 12 << 20
"""More than both kernels take."""
STALL_S = 0.5

Run = Callable[[Callable[[], Awaitable[None]]], None]
Both = tuple[ssl.SSLContext, ssl.SSLContext] | None


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """On a loop of that kind."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda test: runner.run(test())  # type: ignore[arg-type]  # any coroutine function


@pytest.fixture(params=[False, True], ids=["clear", "tls"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Both:
    """The server's and the client's context, or none."""
    if not request.param:
        return None
    authority = Authority(tmp_path)
    pair = authority.issue("gateway")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.cert, pair.key)
    return server, ssl.create_default_context(cafile=authority.file)


async def connected(port: int, tls: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client with little room."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=raw, limit=32768, **named(tls))


def named(tls: ssl.SSLContext | None) -> dict[str, Any]:
    """As asyncio is told to shake hands."""
    return {"ssl": tls, "server_hostname": "127.0.0.1"} if tls is not None else {}


def reset(writer: asyncio.StreamWriter) -> None:
    set_reset_on_close(writer.transport, True)  # type: ignore[arg-type]
    writer.transport.abort()


async def pieces(down: AiohttpDownstream) -> None:
    await down.start(ResponseHead(200, ((b"Content-Length", b"%d" % SIZE),)))
    for _ in range(2):
        await down.write(bytes(SIZE // 2))
    await down.finish()


def test_a_client_that_takes_octets_all_the_time_is_not_cut(run: Run, both: Both) -> None:
    """Though its answer, and what is left of it when the connection closes, takes many times as long as one may take
    nothing."""

    async def test() -> None:
        server, ours = both or (None, None)
        loop = asyncio.get_running_loop()
        async with traffic(pieces, tls=server, write_stall_s=STALL_S) as port:
            reader, writer = await connected(port.port, ours)
            writer.write(request("/", "Connection: close"))
            began = loop.time()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            left = SIZE
            while left:
                octets = await reader.read(65536)
                assert octets, f"cut after {loop.time() - began:.2f} s, {left} octets early"
                left -= len(octets)
                await asyncio.sleep(0.02)
            assert loop.time() - began > 4 * STALL_S
            writer.close()

    run(test)


def test_a_client_that_stops_taking_octets_is_cut(run: Run, both: Both) -> None:
    """Not before, and soon."""

    async def test() -> None:
        server, ours = both or (None, None)
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        async def handler(down: AiohttpDownstream) -> None:
            try:
                await down.start(ResponseHead(200, ()))
                while True:
                    await down.write(bytes(SIZE))
            finally:
                ended.set_result(None)

        async with traffic(handler, tls=server, write_stall_s=STALL_S) as port:
            reader, writer = await connected(port.port, ours)
            writer.write(request())
            until = loop.time() + 3 * STALL_S
            while loop.time() < until:
                await reader.read(32768)
                await asyncio.sleep(0.01)
            assert not ended.done()
            async with asyncio.timeout(20 * STALL_S):
                await ended
            writer.transport.abort()

    run(test)


@pytest.mark.parametrize(
    ("before", "now", "further"),
    [
        (SendProgress(0, 9), SendProgress(0, 9), False),
        (SendProgress(0, 9), SendProgress(0, 8), True),
        (SendProgress(5, 9), SendProgress(6, 9), True),
        (SendProgress(5, 9), SendProgress(5, 10), False),
        (SendProgress(5, 0), SendProgress(0, 0), False),
    ],
)
def test_an_octet_more_is_further(before: SendProgress, now: SendProgress, further: bool) -> None:
    """By either count: a kernel may not tell, and TLS hides what it holds."""
    assert now.has_advanced_since(before) is further


def test_a_transport_that_is_over_has_taken_nothing(run: Run, both: Both) -> None:
    """Loops differ in how it says so."""

    async def test() -> None:
        server, ours = both or (None, None)
        transports: list[asyncio.Transport] = []

        class Greeting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transports.append(transport)  # type: ignore[arg-type]
                transports[0].write(b"hello")

        listening = await asyncio.get_running_loop().create_server(Greeting, "127.0.0.1", 0, ssl=server)
        reader, writer = await connected(listening.sockets[0].getsockname()[1], ours)
        assert await reader.readexactly(5) == b"hello"
        (transport,) = transports
        assert send_progress(transport).unsent == 0
        assert send_progress(transport).acked >= 5 or not hasattr(socket, "TCP_INFO")
        transport.close()
        transport.close()
        writer.close()
        async with asyncio.timeout(SOON_S):
            while send_progress(transport) != SendProgress(0, 0):
                await asyncio.sleep(0.01)
        cut(transport)
        listening.close()

    run(test)


def test_over_a_unix_socket_the_transport_alone_tells(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")

    async def test() -> None:
        asked = asyncio.get_running_loop().create_future()

        def told(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(bytes(SIZE))
            asked.set_result(send_progress(writer.transport))  # type: ignore[arg-type]
            writer.transport.abort()

        listening = await asyncio.start_unix_server(told, path)
        _, writer = await asyncio.open_unix_connection(path)
        assert 0 < (await asked).unsent <= SIZE
        assert (await asked).acked == 0
        writer.close()
        listening.close()

    run(test)


# A client that leaves while nothing is read of its connection


POLL = request("/poll")
UPLOAD = request("/upload", "Content-Length: 4000000", method="POST")


@dataclass
class Waiting:
    """A handler that waits for what never comes: who waits, and who was cancelled."""

    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    body = b""

    async def __call__(self, down: AiohttpDownstream) -> None:
        self.began.set()
        try:
            if down.head.target == b"/slow":
                assert down.body is not None
                await asyncio.sleep(4 * module.CHECK_EVERY_S)
                while chunk := await down.body.read():
                    self.body += chunk
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def is_over(self) -> bool:
        """Soon: by itself it would never be."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), SOON_S)
        return self.ended.is_set()


async def unread(port: Traffic) -> None:
    """Until the gateway has paused reading."""
    async with asyncio.timeout(SOON_S):
        while not any(each._reading_paused or each._buffer_paused for each in port.server.connections):
            await asyncio.sleep(0.01)


@pytest.fixture
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(connection_module, "CHECK_EVERY_S", 0.05)


@pytest.mark.usefixtures("_look_often")
@pytest.mark.parametrize(
    ("octets", "how"),
    [
        pytest.param(POLL + request("/next") * 200, "reset", id="behind-a-poll"),
        pytest.param(POLL + request("/next") * 200, "closed", id="behind-a-poll-closed"),
        pytest.param(POLL + UPLOAD + bytes(400_000), "reset", id="a-body-behind-a-poll"),
        pytest.param(UPLOAD + bytes(4_000_000), "reset", id="an-upload-that-nobody-takes"),
    ],
)
def test_a_client_that_left_is_noticed_though_nothing_is_read(run: Run, both: Both, octets: bytes, how: str) -> None:
    async def test() -> None:
        server, ours = both or (None, None)
        waiting = Waiting()
        async with traffic(waiting, tls=server) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port.port, **named(ours))
            writer.write(octets)
            await waiting.began.wait()
            await unread(port)
            await asyncio.sleep(4 * module.CHECK_EVERY_S)
            assert not waiting.ended.is_set(), "it is still there"
            if how == "reset":
                reset(writer)
            else:
                writer.transport.abort()
            assert await waiting.is_over()

    run(test)


@pytest.mark.usefixtures("_look_often")
def test_what_was_sent_before_a_client_half_closed_is_read(run: Run) -> None:
    """It counts as it does where reading never paused: the body is taken whole, and then the client has gone."""

    async def test() -> None:
        waiting = Waiting()
        async with traffic(waiting) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port.port)
            writer.write(request("/slow", method="POST", body=bytes(300_000)))
            writer.write_eof()
            await waiting.began.wait()
            await unread(port)
            assert await waiting.is_over()
            assert len(waiting.body) == 300_000
            writer.close()

    run(test)


@pytest.mark.usefixtures("_look_often")
def test_an_upload_that_is_taken_slowly_is_left_alone(run: Run) -> None:
    async def test() -> None:
        waiting = Waiting()
        async with traffic(waiting) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port.port)
            writer.write(request("/slow", method="POST", body=bytes(4_000_000)))
            async with asyncio.timeout(SOON_S):
                while len(waiting.body) < 4_000_000:
                    await asyncio.sleep(0.01)
            (connection,) = port.server.connections
            await asyncio.sleep(2 * module.CHECK_EVERY_S)
            assert connection._liveness_timer is None, "nobody looks where octets are read"  # type: ignore[attr-defined]
            assert not waiting.ended.is_set()
            writer.close()

    run(test)


# An answer that ends with its connection


async def endless(down: AiohttpDownstream) -> None:
    """In mid-body for ever."""
    await down.start(ResponseHead(200, ()))
    await down.write(b"some")
    await asyncio.Event().wait()


async def faulty(down: AiohttpDownstream) -> None:
    await down.start(ResponseHead(200, ()))
    await down.write(b"some")
    down.abort()


async def unended(down: AiohttpDownstream) -> None:
    """As an answer is that its client left."""
    await down.start(ResponseHead(200, ()))
    await down.write(b"some")


async def unmeasured(down: AiohttpDownstream) -> None:
    """Whole, with its last octets in the transport."""
    await down.start(ResponseHead(200, ()))
    await down.write(bytes(SIZE))
    await down.finish()


async def to_the_end(reader: asyncio.StreamReader) -> int:
    """How many octets came; a ConnectionResetError where they are not whole."""
    count = 0
    async with asyncio.timeout(SOON_S):
        while octets := await reader.read(1 << 20):
            count += len(octets)
    return count


@pytest.mark.parametrize(
    ("both", "handler", "then"),
    [
        (False, faulty, "nothing"),
        (False, unended, "nothing"),
        (False, endless, "drain"),
        (False, endless, "half-close"),
        (False, unmeasured, "drain"),
        (False, unmeasured, "stall"),
        (True, faulty, "nothing"),
        (True, endless, "drain"),
    ],
    indirect=["both"],
)
def test_what_only_its_end_would_end_is_reset_when_it_is_cut(run: Run, both: Both, handler: Handler, then: str) -> None:
    """An HTTP/1.0 client knows an end of the body from a cut by nothing else (RFC 9112 §8). TLS tells of its own end, or
    leaves it out; there not all clients look for it."""

    async def test() -> None:
        server, ours = both or (None, None)
        stall_s = 0.1 if then == "stall" else 30.0
        async with traffic(handler, tls=server, write_stall_s=stall_s) as port:
            reader, writer = await connected(port.port, ours)
            writer.write(request(version="1.0"))
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
            if then == "drain":
                port.server.pre_shutdown()
                await port.server.shutdown(0.1)
            elif then == "half-close":
                writer.write_eof()
            elif then == "stall":
                async with asyncio.timeout(SOON_S):
                    while port.server.client_connections.open:
                        await asyncio.sleep(0.01)
            with pytest.raises(ConnectionResetError):
                await to_the_end(reader)
            writer.close()

    run(test)


def test_what_its_end_ends_is_not_reset(run: Run, both: Both) -> None:
    """Not even while a slow client has not taken its last octets; the gateway may be draining."""

    async def test() -> None:
        server, ours = both or (None, None)
        async with traffic(unmeasured, tls=server) as port:
            reader, writer = await connected(port.port, ours)
            writer.write(request(version="1.0"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length" not in head
            port.server.pre_shutdown()
            ending = asyncio.ensure_future(port.server.shutdown(SOON_S))
            await asyncio.sleep(0.3)
            assert await to_the_end(reader) == SIZE
            writer.close()
            await ending

    run(test)


def test_over_a_unix_socket_it_ends_as_well(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Which knows no reset."""
    path = str(tmp_path_factory.mktemp("s") / "s")

    async def test() -> None:
        async with traffic(unmeasured) as port:
            listening = await port.server.listen(None, 0, path=path)
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(request(version="1.0"))
            await reader.readuntil(b"\r\n\r\n")
            assert await to_the_end(reader) == SIZE
            writer.close()
            listening.close()

    run(test)


def test_a_transport_that_forgot_itself_is_over() -> None:
    class Forgetful(asyncio.Transport):
        def abort(self) -> None:
            raise AttributeError("'NoneType' object has no attribute '_abort'")

        def get_write_buffer_size(self) -> int:
            raise AttributeError("'NoneType' object has no attribute '_get_write_buffer_size'")

    cut(Forgetful())
    set_reset_on_close(Forgetful(), True)
    assert send_progress(Forgetful()) == SendProgress(0, 0)
