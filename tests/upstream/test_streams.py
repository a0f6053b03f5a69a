"""What readers of a body or a tunnel see, without a socket."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.errors import Code, Rejection
from gateway.upstream.errors import Failure, UpstreamFailure, rejection
from gateway.upstream.streams import HIGH_BYTES, LOW_BYTES, Body, UpstreamTunnel


class Connection:
    """The connection's part, recorded."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.open = True
        self.full = False

    def resume(self) -> None:
        self.calls.append("resume")

    def close(self) -> None:
        self.calls.append("close")

    def write(self, data: bytes) -> bool:
        self.calls.append(data.decode())
        return self.open

    async def writable(self) -> None:
        if self.full:
            raise UpstreamFailure(Failure.WRITE_TIMEOUT)

    def write_eof(self) -> None:
        self.calls.append("eof")


async def test_a_body_gives_what_came_then_ends() -> None:
    body = Body(Connection())
    body.push(b"a")
    body.push(b"b")
    body.end()
    assert [chunk async for chunk in body] == [b"a", b"b"]
    assert await body.read() == b""


async def test_a_reader_waits_for_octets() -> None:
    body = Body(Connection())
    reader = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    body.push(b"late")
    assert await reader == b"late"


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    body = Body(Connection())
    reader = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    reader.cancel()
    body.push(b"kept")
    await asyncio.wait([reader])
    assert reader.cancelled()
    assert await body.read() == b"kept"


async def test_a_failure_comes_after_what_arrived_before_it() -> None:
    body = Body(Connection())
    body.push(b"a")
    body.fail(rejection(Failure.INCOMPLETE))
    assert await body.read() == b"a"
    for _ in range(2):
        with pytest.raises(Rejection) as broken:
            await body.read()
        assert broken.value.code is Code.UPSTREAM_RESET


async def test_watermarks() -> None:
    connection = Connection()
    body = Body(connection)
    half = b"x" * (HIGH_BYTES // 2)
    assert not body.push(half)
    assert not body.push(half)
    assert body.push(b"x" * LOW_BYTES)
    await body.read()
    assert connection.calls == []
    await body.read()
    assert connection.calls == ["resume"]
    assert body.buffered == LOW_BYTES


async def test_a_detached_body_no_longer_asks_for_more() -> None:
    connection = Connection()
    body = Body(connection)
    assert body.push(b"x" * (HIGH_BYTES + 1))
    body.detach()
    body.end()
    await body.read()
    body.close()
    assert connection.calls == []
    with pytest.raises(StopAsyncIteration):
        await anext(body)


async def test_closing_wakes_the_reader_with_an_error() -> None:
    connection = Connection()
    body = Body(connection)
    reader = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    body.close()
    body.close()
    with pytest.raises(Rejection):
        await reader
    assert connection.calls == ["close"]


async def test_over_tls_nobody_is_told_of_octets_behind_the_end() -> None:
    connection = Connection()
    tunnel = UpstreamTunnel(connection, half_closes=False)
    tunnel.push(b"last")
    tunnel.end()
    connection.open = False
    await tunnel.write(b"late")
    connection.open, connection.full = True, True
    await tunnel.write(b"later")
    assert [await tunnel.read(), await tunnel.read()] == [b"last", b""]


async def test_a_tunnel_writes_until_its_line_is_gone() -> None:
    connection = Connection()
    tunnel = UpstreamTunnel(connection, half_closes=True)
    await tunnel.write(b"a")
    tunnel.write_eof()
    connection.open = False
    with pytest.raises(Rejection):
        await tunnel.write(b"b")
    connection.open, connection.full = True, True
    with pytest.raises(Rejection) as stalled:
        await tunnel.write(b"c")
    assert stalled.value.proxy_error == "connection_write_timeout"
    tunnel.close()
    with pytest.raises(Rejection):
        await tunnel.write(b"d")
    tunnel.write_eof()
    assert connection.calls == ["a", "eof", "b", "c", "close"]


@pytest.mark.parametrize("end", ["end", "fail", "close"])
async def test_who_asks_is_told_once_when_no_more_comes(end: str) -> None:
    called: list[str] = []
    body = Body(Connection())
    body.on_end(lambda: called.append("over"))
    body.push(b"a")
    assert called == []
    if end == "fail":
        body.fail(rejection(Failure.RESET))
    elif end == "end":
        body.end()
    body.close()
    assert called == ["over"]
    body.on_end(lambda: called.append("late"))
    assert called == ["over", "late"]
