"""The client's side of a tunnel, over a pretended transport."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.edge.tunnel import ClientTunnel
from gateway.reply import Ending


class Transport:
    def __init__(self, *, half: bool = True) -> None:
        self.calls: list[str] = []
        self.written = b""
        self.half = half
        self.unsent = 0

    def is_closing(self) -> bool:
        return "close" in self.calls or "abort" in self.calls

    def write(self, data: bytes) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return self.half

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.append(name)


class Connection:
    def __init__(self, transport: Transport | None) -> None:
        self.transport: Any = transport
        self.writing_paused = False
        self.waited = 0
        self.tunnel_bytes_in = self.tunnel_bytes_out = 0

    async def drained(self) -> None:
        self.waited += 1


def made(early: bytes = b"", **more: Any) -> tuple[ClientTunnel, Connection, Transport]:
    transport = Transport(**more)
    connection = Connection(transport)
    return ClientTunnel(connection, connection, early), connection, transport


async def test_early_octets_come_first_then_the_rest_then_the_end() -> None:
    tunnel, connection, _ = made(b"early")
    tunnel.feed(b"late")
    tunnel.end()
    assert [await tunnel.read() for _ in range(4)] == [b"early", b"late", b"", b""]
    assert (tunnel.received, connection.tunnel_bytes_in) == (9, 9)


async def test_a_reader_is_woken() -> None:
    tunnel, _, _ = made()
    reading = asyncio.ensure_future(tunnel.read())
    await asyncio.sleep(0)
    tunnel.feed(b"x")
    assert await reading == b"x"


async def test_a_slow_reader_pauses_the_client_and_memory_is_bounded() -> None:
    tunnel, _, transport = made()
    for _ in range(3):
        tunnel.feed(b"x" * 64 * 1024)
    assert transport.calls == ["pause_reading"]
    await tunnel.read()
    assert transport.calls == ["pause_reading"]
    await tunnel.read()
    await tunnel.read()
    assert transport.calls == ["pause_reading", "resume_reading"]
    for _ in range(3):
        tunnel.feed(b"x" * 64 * 1024)
    assert transport.calls == ["pause_reading", "resume_reading", "pause_reading"], "each time it is too much"


async def test_writing_waits_for_room_and_counts() -> None:
    tunnel, connection, transport = made()
    await tunnel.write(b"abc")
    assert connection.waited == 0
    connection.writing_paused = True
    await tunnel.write(b"d")
    assert (transport.written, connection.waited, tunnel.sent, connection.tunnel_bytes_out) == (b"abcd", 1, 4, 4)


async def test_a_half_close_where_the_transport_knows_one() -> None:
    tunnel, _, transport = made()
    tunnel.write_eof()
    assert (tunnel.half_closes, transport.calls) == (True, ["write_eof"])
    tunnel.feed(b"x")
    assert await tunnel.read() == b"x"


async def test_where_it_knows_none_nothing_more_is_heard() -> None:
    """The connection stays until the tunnel is closed, so that nobody takes its loss for the client's doing."""
    tunnel, connection, transport = made(b"said before", half=False)
    tunnel.write_eof()
    tunnel.feed(b"said behind")
    assert (tunnel.half_closes, transport.calls, connection.tunnel_bytes_in) == (False, [], 11)
    assert [await tunnel.read(), await tunnel.read()] == [b"said before", b""]
    tunnel.close()
    assert transport.calls == ["close"]


async def test_draining_ends_it() -> None:
    tunnel, _, _ = made()
    assert not tunnel.over.done()
    tunnel.stop()
    tunnel.lost()
    assert tunnel.over.result() is Ending.GATEWAY


@pytest.mark.parametrize(
    ("half", "ended", "ending"),
    [(True, False, Ending.CLIENT), (True, True, Ending.CLIENT), (False, False, Ending.CLIENT), (False, True, Ending.BOTH)],
)
async def test_a_lost_connection_is_an_end_where_there_is_no_other(half: bool, ended: bool, ending: Ending) -> None:
    tunnel, _, _ = made(half=half)
    if ended:
        tunnel.end()
    tunnel.lost()
    tunnel.stop()
    assert tunnel.over.result() is ending


async def test_a_client_that_is_gone() -> None:
    tunnel, connection, transport = made()
    tunnel.close()
    tunnel.close()
    assert transport.calls == ["close"]
    tunnel.write_eof()
    with pytest.raises(ConnectionError):
        await tunnel.write(b"x")
    connection.transport = None
    tunnel.close()
    with pytest.raises(ConnectionError):
        await tunnel.write(b"x")
