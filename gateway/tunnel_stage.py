"""A tunnel: octets both ways until both sides have ended, one of them broke, or nothing moved for too long.

Each direction is one task that reads, writes and waits for room: what one side does not take, the other is not asked for.
An end of one direction is passed on as a half-close; the other goes on.
"""

from __future__ import annotations

import asyncio
import enum

from .core.errors import Rejection
from .reply import Tunnel


class Ending(enum.StrEnum):
    """How a tunnel came to its end. All but the first are the ``aborted`` of its exchange."""

    BOTH = ""
    """Each side said that it was done."""
    CLIENT = "client"
    """Cut by the client."""
    UPSTREAM = "upstream"
    """Cut by GitLab."""
    GATEWAY = "gateway"
    """Idle for too long, or the gateway drains."""


async def relay(client: Tunnel, server: Tunnel, *, idle_s: float) -> Ending:
    """Move octets until the end; then both are closed. Nothing in either direction for ``idle_s`` is an end."""
    loop = asyncio.get_running_loop()
    moved = 0

    async def pump(source: Tunnel, sink: Tunnel) -> None:
        nonlocal moved
        while chunk := await source.read():
            moved += 1
            await sink.write(chunk)
            moved += 1
        sink.write_eof()

    both = {
        loop.create_task(pump(client, server), name="tunnel up"),
        loop.create_task(pump(server, client), name="tunnel down"),
    }
    left = set(both)
    ending = Ending.BOTH
    try:
        while left and ending is Ending.BOTH:
            before = moved
            done, left = await asyncio.wait(left, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
            if not done and moved == before:
                ending = Ending.GATEWAY
            for task in done:
                ending = _cause(task.exception()) or ending
        return ending
    finally:
        for task in both:
            task.cancel()
        server.close()
        client.close()
        await asyncio.gather(*both, return_exceptions=True)


def _cause(error: BaseException | None) -> Ending | None:
    if error is None:
        return None
    if isinstance(error, Rejection):
        return Ending(error.source.value) if error.source.value == Ending.UPSTREAM else Ending.GATEWAY
    if isinstance(error, ConnectionError):
        return Ending.CLIENT
    raise error
