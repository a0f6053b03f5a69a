"""Who accepts at shared sockets leaves to others what is theirs, and waits for nobody long. On both loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from gateway.edge.acceptor import _DEFER_S, _MOST_DEFERRED, _NOT_DEFERRED_S, Acceptor
from gateway.edge.settings import TLSTimeouts
from gateway.workers.connection_counts import ConnectionCounts
from tests.fakes.certificates import Authority

SOON_S = 30.0

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """On a loop of that kind."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda test: runner.run(test())  # type: ignore[arg-type]  # any coroutine function


class Echo(asyncio.Protocol):
    """Says what it hears."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.over = True


class Counts:
    """What a test says of the other processes."""

    def __init__(self) -> None:
        self.is_busier = False
        self.accepted_by_others = 0
        self.here = 0
        self.open = False

    def join(self) -> None:
        self.open = True

    def accepted(self) -> None:
        self.here += 1

    def leave(self) -> None:
        self.open = False


class Listener:
    """One that accepts at a port of its own, unless it is given a socket."""

    def __init__(self, counts: Any = None, bound: socket.socket | None = None, **more: Any) -> None:
        self.counts = counts or Counts()
        self.now = 1000.0
        self.made: list[Echo] = []
        self.failed: list[Echo] = []
        self.bound = bound or listening()
        self.address = self.bound.getsockname()
        clock = {"clock": lambda: self.now} if counts is None else {}
        self.acceptor: Acceptor[Echo] = Acceptor(
            [self.bound], self.make, self.counts, on_failed_handshake=self.failed.append, **clock, **more
        )
        self.acceptor.start(64)

    def make(self) -> Echo:
        self.made.append(Echo())
        return self.made[-1]

    async def close(self) -> None:
        """No connection is left."""
        self.acceptor.close()
        await until(lambda: not self.acceptor._beginning)
        for echo in self.made:
            if echo.transport is not None:
                echo.transport.abort()
        await until(lambda: all(echo.over for echo in self.made if echo.transport is not None))


def listening() -> socket.socket:
    bound = socket.socket(proto=socket.IPPROTO_TCP)  # as `listeners.bind` has it; asyncio's own loop goes by that
    bound.bind(("127.0.0.1", 0))
    return bound


async def turns(times: int = 20) -> None:
    """Enough of the loop's for anything that needs no time."""
    for _ in range(times):
        await asyncio.sleep(0.001)


async def said(address: tuple[str, int], words: bytes = b"hello") -> bytes:
    """What comes back."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(SOON_S):
            writer.write(words)
            return await reader.readexactly(len(words))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not done():
            await asyncio.sleep(0.001)


def test_a_connection_is_served_as_a_server_would(run: Run) -> None:
    async def test() -> None:
        listener = Listener()
        assert listener.counts.open
        assert await said(listener.address) == b"hello"
        assert listener.counts.here == 1
        transport = listener.made[0].transport
        assert transport is not None
        reader, writer = await asyncio.open_connection(*listener.address)
        await until(lambda: len(listener.made) == 2 and listener.made[1].transport)
        second = listener.made[1].transport
        assert second is not None
        raw = second.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert second.get_extra_info("peername") == writer.get_extra_info("sockname")
        listener.acceptor.close()
        assert not listener.counts.open
        writer.write(b"still")
        async with asyncio.timeout(SOON_S):
            assert await reader.readexactly(5) == b"still"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*listener.address)
        writer.close()
        await writer.wait_closed()
        await listener.close()

    run(test)


def test_what_waits_is_left_to_who_has_fewer_for_a_moment(run: Run) -> None:
    async def test() -> None:
        listener = Listener()
        listener.counts.is_busier = True
        speaking = asyncio.ensure_future(said(listener.address))
        await turns()
        assert not listener.made
        listener.now += _DEFER_S * 0.9
        await turns()
        assert not listener.made
        listener.now += _DEFER_S * 0.2
        assert await speaking == b"hello"
        assert len(listener.made) == 1
        await listener.close()

    run(test)


def test_the_moment_begins_anew_where_others_accept_and_ends_where_they_have_as_many(run: Run) -> None:
    async def test() -> None:
        listener = Listener()
        listener.counts.is_busier = True
        speaking = asyncio.ensure_future(said(listener.address))
        for _ in range(5):
            await turns(5)
            listener.now += _DEFER_S * 0.9
            listener.counts.accepted_by_others += 1
        await turns()
        assert not listener.made
        listener.counts.is_busier = False
        assert await speaking == b"hello"
        listener.counts.is_busier = True
        listener.now += _DEFER_S
        speaking = asyncio.ensure_future(said(listener.address))
        await turns()
        listener.now += _DEFER_S * 0.9
        await turns()
        assert len(listener.made) == 1
        listener.now += _DEFER_S * 0.2
        assert await speaking == b"hello"
        await listener.close()

    run(test)


def test_nobody_is_waited_for_again_and_again(run: Run) -> None:
    async def test() -> None:
        listener = Listener()
        listener.counts.is_busier = True

        async def waits() -> bool:
            """Whether the next one is left to the others."""
            before = len(listener.made)
            speaking = asyncio.ensure_future(said(listener.address))
            await turns()
            left = len(listener.made) == before
            if left:
                listener.now += _DEFER_S * 1.1
            await speaking
            return left

        assert [await waits() for _ in range(_MOST_DEFERRED + 2)] == [*[True] * _MOST_DEFERRED, False, False]
        listener.now += _NOT_DEFERRED_S
        assert await waits()
        # Who accepted meanwhile is there again.
        for _ in range(_MOST_DEFERRED - 2):
            assert await waits()
        listener.counts.accepted_by_others += 1
        assert [await waits() for _ in range(_MOST_DEFERRED + 1)] == [*[True] * _MOST_DEFERRED, False]
        listener.counts.accepted_by_others += 1
        assert await waits()
        await listener.close()

    run(test)


def test_connections_in_a_row_are_shared_out(run: Run) -> None:
    async def test() -> None:
        with tempfile.TemporaryFile() as file, contextlib.ExitStack() as clients:
            counts = ConnectionCounts(file.fileno())
            bound = listening()
            again = bound.dup()
            listeners = [Listener(counts.for_worker(0, range(2)), bound), Listener(counts.for_worker(1, range(2)), again)]

            async def come(many: int, *to: Listener) -> list[int]:
                before = sum(len(listener.made) for listener in listeners)
                for number in range(many):
                    client = socket.create_connection(listeners[0].address)
                    clients.enter_context(client)
                    await until(lambda number=number: sum(len(listener.made) for listener in listeners) > before + number)  # type: ignore[misc]
                    for listener in listeners:
                        listener.counts.tell(len(listener.made))
                return [len(listener.made) for listener in listeners]

            one, other = await come(64)
            assert abs(one - other) <= 8, (one, other)
            listeners[0].acceptor.close()
            (_, alone) = await come(20)
            assert alone == other + 20  # nobody is left waiting at the socket that is closed
            for listener in listeners:
                await listener.close()

    run(test)


def test_hands_that_are_never_shaken_are_told(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("gateway")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    trusting = ssl.create_default_context(cafile=authority.file)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        faults: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, fault: faults.append(fault))
        listener = Listener(context=context, times=TLSTimeouts(ssl_handshake_timeout=0.5, ssl_shutdown_timeout=5.0))
        with contextlib.ExitStack() as clients:

            def client() -> socket.socket:
                return clients.enter_context(socket.create_connection(listener.address))

            client()  # says nothing
            client().close()
            client().sendall(b"GET / HTTP/1.1\r\n\r\n")
            half = client()
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
            half.close()
            reset = client()
            reset.sendall(b"\x16\x03\x01")
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.close()
            await until(lambda: len(listener.failed) == 5)
        reader, writer = await asyncio.open_connection(*listener.address, ssl=trusting, server_hostname="localhost")
        async with asyncio.timeout(SOON_S):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
        await until(lambda: not listener.acceptor._beginning)
        assert len(listener.made) == 6
        assert set(listener.failed) == set(listener.made[:5])
        assert [fault["message"] for fault in faults] == []
        await listener.close()

    run(test)


def test_without_descriptors_what_waits_is_kept(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Short(socket.socket):
        short = True

        def accept(self) -> tuple[socket.socket, Any]:
            if self.short:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def test() -> None:
        bound = Short()
        bound.bind(("127.0.0.1", 0))
        listener = Listener(bound=bound)
        speaking = asyncio.ensure_future(said(listener.address))
        await asyncio.sleep(0.3)
        assert not speaking.done()
        Short.short = False
        assert await speaking == b"hello"
        assert await said(listener.address) == b"hello"
        Short.short = True
        speaking = asyncio.ensure_future(said(listener.address))
        await asyncio.sleep(0.02)
        listener.acceptor.close()  # while it waits to try again
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError, BrokenPipeError)):
            await speaking
        await listener.close()

    with caplog.at_level(logging.WARNING):
        run(test)
    assert [record.message for record in caplog.records] == [
        "no connection can be accepted: Too many open files",
        "no connection can be accepted: Too many open files",
    ]


def test_a_client_that_left_before_it_was_accepted_is_nothing(run: Run) -> None:
    class Gone(socket.socket):
        errors = [errno.ECONNABORTED, errno.EAGAIN]

        def accept(self) -> tuple[socket.socket, Any]:
            if self.errors:
                raise OSError(self.errors.pop(), "gone")
            return super().accept()

    async def test() -> None:
        bound = Gone()
        bound.bind(("127.0.0.1", 0))
        listener = Listener(bound=bound)
        assert await said(listener.address) == b"hello"
        assert not Gone.errors
        assert listener.counts.here == 1
        await listener.close()

    run(test)
