"""The relay itself: octets pass unchanged, late, not at all."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.fakes.line import TcpRelay


async def test_octets_pass_late_and_not_at_all() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while octets := await reader.read(100):
            writer.write(octets)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        line = TcpRelay(server.sockets[0].getsockname()[1])
        await line.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"\x00one")
        assert await reader.read(100) == b"\x00one"
        line.delay_s = 0.05
        started = time.monotonic()
        writer.write(b"two")
        assert await reader.read(100) == b"two"
        assert time.monotonic() - started >= 0.05
        line.hold()
        writer.write(b"three")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.05)
        line.release()
        assert await reader.read(100) == b"three"
        line.hold_answers()
        writer.write(b"four")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.05)
        line.release()
        assert await reader.read(100) == b"four"
        await line.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", line.port)
        writer.close()
