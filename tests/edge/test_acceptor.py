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

from gateway.edge.acceptor import _ALONE_S, _IN_VAIN, _MOMENT_S, Acceptor
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


class Others:
    """What a test says of them."""

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


class Door:
    """One that accepts at a port of its own, unless it is given a socket."""

    def __init__(self, others: Any = None, bound: socket.socket | None = None, **more: Any) -> None:
        self.others = others or Others()
        self.now = 1000.0
        self.made: list[Echo] = []
        self.missed: list[Echo] = []
        self.bound = bound or listening()
        self.address = self.bound.getsockname()
        clock = {"clock": lambda: self.now} if others is None else {}
        self.acceptor: Acceptor[Echo] = Acceptor(
            [self.bound], self.make, self.others, missed=self.missed.append, **clock, **more
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
        door = Door()
        assert door.others.open
        assert await said(door.address) == b"hello"
        assert door.others.here == 1
        transport = door.made[0].transport
        assert transport is not None
        reader, writer = await asyncio.open_connection(*door.address)
        await until(lambda: len(door.made) == 2 and door.made[1].transport)
        second = door.made[1].transport
        assert second is not None
        raw = second.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert second.get_extra_info("peername") == writer.get_extra_info("sockname")
        door.acceptor.close()
        assert not door.others.open
        writer.write(b"still")
        async with asyncio.timeout(SOON_S):
            assert await reader.readexactly(5) == b"still"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*door.address)
        writer.close()
        await writer.wait_closed()
        await door.close()

    run(test)


def test_what_waits_is_left_to_who_has_fewer_for_a_moment(run: Run) -> None:
    async def test() -> None:
        door = Door()
        door.others.is_busier = True
        speaking = asyncio.ensure_future(said(door.address))
        await turns()
        assert not door.made
        door.now += _MOMENT_S * 0.9
        await turns()
        assert not door.made
        door.now += _MOMENT_S * 0.2
        assert await speaking == b"hello"
        assert len(door.made) == 1
        await door.close()

    run(test)


def test_the_moment_begins_anew_where_others_accept_and_ends_where_they_have_as_many(run: Run) -> None:
    async def test() -> None:
        door = Door()
        door.others.is_busier = True
        speaking = asyncio.ensure_future(said(door.address))
        for _ in range(5):
            await turns(5)
            door.now += _MOMENT_S * 0.9
            door.others.accepted_by_others += 1
        await turns()
        assert not door.made
        door.others.is_busier = False
        assert await speaking == b"hello"
        door.others.is_busier = True
        door.now += _MOMENT_S
        speaking = asyncio.ensure_future(said(door.address))
        await turns()
        door.now += _MOMENT_S * 0.9
        await turns()
        assert len(door.made) == 1
        door.now += _MOMENT_S * 0.2
        assert await speaking == b"hello"
        await door.close()

    run(test)


def test_nobody_is_waited_for_again_and_again(run: Run) -> None:
    async def test() -> None:
        door = Door()
        door.others.is_busier = True

        async def waits() -> bool:
            """Whether the next one is left to the others."""
            before = len(door.made)
            speaking = asyncio.ensure_future(said(door.address))
            await turns()
            left = len(door.made) == before
            if left:
                door.now += _MOMENT_S * 1.1
            await speaking
            return left

        assert [await waits() for _ in range(_IN_VAIN + 2)] == [*[True] * _IN_VAIN, False, False]
        door.now += _ALONE_S
        assert await waits()
        # Who accepted meanwhile is there again.
        for _ in range(_IN_VAIN - 2):
            assert await waits()
        door.others.accepted_by_others += 1
        assert [await waits() for _ in range(_IN_VAIN + 1)] == [*[True] * _IN_VAIN, False]
        door.others.accepted_by_others += 1
        assert await waits()
        await door.close()

    run(test)


def test_connections_in_a_row_are_shared_out(run: Run) -> None:
    async def test() -> None:
        with tempfile.TemporaryFile() as file, contextlib.ExitStack() as clients:
            counts = ConnectionCounts(file.fileno())
            bound = listening()
            again = bound.dup()
            doors = [Door(counts.for_worker(0, range(2)), bound), Door(counts.place(1, range(2)), again)]

            async def come(many: int, *to: Door) -> list[int]:
                before = sum(len(door.made) for door in doors)
                for number in range(many):
                    client = socket.create_connection(doors[0].address)
                    clients.enter_context(client)
                    await until(lambda number=number: sum(len(door.made) for door in doors) > before + number)  # type: ignore[misc]
                    for door in doors:
                        door.others.tell(len(door.made))
                return [len(door.made) for door in doors]

            one, other = await come(64)
            assert abs(one - other) <= 8, (one, other)
            doors[0].acceptor.close()
            (_, alone) = await come(20)
            assert alone == other + 20  # nobody is left waiting at the socket that is closed
            for door in doors:
                await door.close()

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
        door = Door(context=context, times=TLSTimeouts(ssl_handshake_timeout=0.5, ssl_shutdown_timeout=5.0))
        with contextlib.ExitStack() as clients:

            def client() -> socket.socket:
                return clients.enter_context(socket.create_connection(door.address))

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
            await until(lambda: len(door.missed) == 5)
        reader, writer = await asyncio.open_connection(*door.address, ssl=trusting, server_hostname="localhost")
        async with asyncio.timeout(SOON_S):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
        await until(lambda: not door.acceptor._beginning)
        assert len(door.made) == 6
        assert set(door.missed) == set(door.made[:5])
        assert [fault["message"] for fault in faults] == []
        await door.close()

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
        door = Door(bound=bound)
        speaking = asyncio.ensure_future(said(door.address))
        await asyncio.sleep(0.3)
        assert not speaking.done()
        Short.short = False
        assert await speaking == b"hello"
        assert await said(door.address) == b"hello"
        Short.short = True
        speaking = asyncio.ensure_future(said(door.address))
        await asyncio.sleep(0.02)
        door.acceptor.close()  # while it waits to try again
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError, BrokenPipeError)):
            await speaking
        await door.close()

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
        door = Door(bound=bound)
        assert await said(door.address) == b"hello"
        assert not Gone.errors
        assert door.others.here == 1
        await door.close()

    run(test)
