"""A TCP connection between two processes that a test makes slow, dead or short. Octets pass unchanged."""

from __future__ import annotations

import asyncio
import contextlib


class TcpRelay:
    """Relays connections to a port of this machine. ``delay_s`` holds back what comes from there."""

    def __init__(self, to_port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.to_port = to_port
        """Of connections made from now on."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._answers = asyncio.Event()

    async def open(self) -> None:
        """Listen; on the same port when opened again."""
        self.release()
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def hold(self) -> None:
        """Nothing comes through any more, and neither side learns it: a half-open connection."""
        self._flows.clear()

    def hold_answers(self) -> None:
        """Requests still arrive; what comes back stays on its way."""
        self._answers.clear()

    def release(self) -> None:
        self._flows.set()
        self._answers.set()

    async def cut(self) -> None:
        """End every connection at once and refuse new ones."""
        if self._server is not None:
            self._server.close()
        self.release()
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        beyond = None
        try:
            there, beyond = await asyncio.open_connection("127.0.0.1", self.to_port)
            self._writers.add(beyond)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, beyond, delayed=False))
                both.create_task(self._pass(there, writer, delayed=True))
        except* ConnectionError:
            pass
        finally:
            for one in (writer, beyond):
                if one is not None:
                    self._writers.discard(one)
                    one.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delayed: bool) -> None:
        loop = asyncio.get_running_loop()
        while octets := await reader.read(65536):
            await self._flows.wait()
            if delayed:
                await self._answers.wait()
            if delayed and self.delay_s:
                # Each piece is late by itself; a slow connection is not a queue of naps.
                loop.call_later(self.delay_s, _write, writer, octets)
                continue
            writer.write(octets)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _write(writer: asyncio.StreamWriter, octets: bytes) -> None:
    if not writer.is_closing():
        writer.write(octets)
