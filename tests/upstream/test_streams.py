"""What readers of a body or a tunnel see, without a socket."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.errors import Code, Rejection
from gateway.upstream.errors import Failure, UpstreamFailure, rejection
from gateway.upstream.streams import HIGH_BYTES, LOW_BYTES, Body, UpstreamTunnel


class Line:
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
    body = Body(Line())
    body.push(b"a")
    body.push(b"b")
    body.end()
    assert [chunk async for chunk in body] == [b"a", b"b"]
    assert await body.read() == b""


async def test_a_reader_waits_for_octets() -> None:
    body = Body(Line())
    reader = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    body.push(b"late")
    assert await reader == b"late"


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    body = Body(Line())
    reader = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    reader.cancel()
    body.push(b"kept")
    await asyncio.wait([reader])
    assert reader.cancelled()
    assert await body.read() == b"kept"


async def test_a_failure_comes_after_what_arrived_before_it() -> None:
    body = Body(Line())
    body.push(b"a")
    body.fail(rejection(Failure.INCOMPLETE))
    assert await body.read() == b"a"
    for _ in range(2):
        with pytest.raises(Rejection) as broken:
            await body.read()
        assert broken.value.code is Code.UPSTREAM_RESET


async def test_watermarks() -> None:
    line = Line()
    body = Body(line)
    half = b"x" * (HIGH_BYTES // 2)
    assert not body.push(half)
    assert not body.push(half)
    assert body.push(b"x" * LOW_BYTES)
    await body.read()
    assert line.calls == []
    await body.read()
    assert line.calls == ["resume"]
    assert body.buffered == LOW_BYTES


async def test_a_detached_body_no_longer_asks_for_more() -> None:
    line = Line()
    body = Body(line)
    assert body.push(b"x" * (HIGH_BYTES + 1))
    body.detach()
    body.end()
    await body.read()
    body.close()
    assert line.calls == []
    with pytest.raises(StopAsyncIteration):
        await anext(body)


async def test_closing_wakes_the_reader_with_an_error() -> None:
    line = Line()
    body = Body(line)
    reader = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    body.close()
    body.close()
    with pytest.raises(Rejection):
        await reader
    assert line.calls == ["close"]


async def test_over_tls_nobody_is_told_of_octets_behind_the_end() -> None:
    line = Line()
    tunnel = UpstreamTunnel(line, half_closes=False)
    tunnel.push(b"last")
    tunnel.end()
    line.open = False
    await tunnel.write(b"late")
    line.open, line.full = True, True
    await tunnel.write(b"later")
    assert [await tunnel.read(), await tunnel.read()] == [b"last", b""]


async def test_a_tunnel_writes_until_its_line_is_gone() -> None:
    line = Line()
    tunnel = UpstreamTunnel(line, half_closes=True)
    await tunnel.write(b"a")
    tunnel.write_eof()
    line.open = False
    with pytest.raises(Rejection):
        await tunnel.write(b"b")
    line.open, line.full = True, True
    with pytest.raises(Rejection) as stalled:
        await tunnel.write(b"c")
    assert stalled.value.proxy_error == "connection_write_timeout"
    tunnel.close()
    with pytest.raises(Rejection):
        await tunnel.write(b"d")
    tunnel.write_eof()
    assert line.calls == ["a", "eof", "b", "c", "close"]


@pytest.mark.parametrize("end", ["end", "fail", "close"])
async def test_who_asks_is_told_once_when_no_more_comes(end: str) -> None:
    told: list[str] = []
    body = Body(Line())
    body.on_end(lambda: told.append("over"))
    body.push(b"a")
    assert told == []
    if end == "fail":
        body.fail(rejection(Failure.RESET))
    elif end == "end":
        body.end()
    body.close()
    assert told == ["over"]
    body.on_end(lambda: told.append("late"))
    assert told == ["over", "late"]
