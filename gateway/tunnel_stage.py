"""A tunnel: octets both ways until both sides have ended, one of them broke, or nothing moved for too long.

Each direction is one task that reads, writes and waits for room: what one side does not take, the other is not asked for.
An end of one direction is passed on as a half-close; the other goes on. Where a side knows no half-close (TLS), its end is
that of both directions, and so is an end that it is passed on: what it said before is still delivered.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .core.errors import Rejection, Source
from .reply import ClientSide, Ending, Tunnel


async def relay(client: ClientSide, server: Tunnel, *, idle_s: float) -> Ending:
    """Move octets until the end; then both are closed. Nothing in either direction for ``idle_s`` is an end."""
    loop = asyncio.get_running_loop()
    moved_at = loop.time()

    async def pump(source: Tunnel, sink: Tunnel) -> bool:
        """Whether the other direction goes on."""
        nonlocal moved_at
        while chunk := await source.read():
            moved_at = loop.time()
            await sink.write(chunk)
            moved_at = loop.time()
        sink.write_eof()
        moved_at = loop.time()
        return source.half_closes

    both = {
        loop.create_task(pump(client, server), name="tunnel up"),
        loop.create_task(pump(server, client), name="tunnel down"),
    }
    left = set(both)
    try:
        while left:
            ends: set[asyncio.Future[Any]] = {*left, client.over}
            idle_at = moved_at + idle_s
            done, _ = await asyncio.wait(ends, timeout=idle_at - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            if client.over in done:
                return client.over.result()
            if not done and loop.time() >= moved_at + idle_s:
                return Ending.GATEWAY
            for task in left & done:
                error = task.exception()
                if error is not None:
                    return _cause(error)
                if not task.result():
                    return Ending.BOTH
            left -= done
        return Ending.BOTH
    finally:
        for task in both:
            task.cancel()
        server.close()
        client.close()
        await asyncio.gather(*both, return_exceptions=True)


def _cause(error: BaseException) -> Ending:
    if isinstance(error, Rejection):
        return Ending.UPSTREAM if error.source is Source.UPSTREAM else Ending.GATEWAY
    if isinstance(error, ConnectionError):
        return Ending.CLIENT
    raise error
