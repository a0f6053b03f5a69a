"""A tunnel: octets both ways until both sides have ended, one of them has broken, or nothing has moved for too long.

Each direction is one task that reads, writes and waits for room: while one side takes nothing, nothing is read from the
other. The end of one direction is passed on as a half-close; the other direction goes on. Where a side knows no half-close
(TLS), its end ends both directions, and so does an end that is passed on to it: what it said before is still delivered. No
further answer can show that a credential has ended, so that is checked again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .core.errors import Rejection, Source
from .reply import ClientSide, Ending, Tunnel

CredentialCheck = Callable[[], Awaitable[bool]]

CHECK_EVERY_S = 5.0


async def relay(
    client: ClientSide,
    server: Tunnel,
    *,
    idle_s: float,
    check: CredentialCheck | None = None,
    check_every_s: float = CHECK_EVERY_S,
) -> Ending:
    """Move octets until the end, then close both sides. The tunnel also ends when nothing has moved in either direction for
    ``idle_s``, or when ``check`` finds that the client's credential is no longer accepted."""
    loop = asyncio.get_running_loop()
    moved_at = loop.time()

    async def pump(source: Tunnel, sink: Tunnel) -> bool:
        """Move one direction's octets to its end. Returns whether the other direction goes on."""
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
    watch = set() if check is None else {loop.create_task(_until_rejected(check, check_every_s), name="tunnel credential")}
    try:
        while left:
            ends: set[asyncio.Future[Any]] = {*left, *watch, client.over}
            idle_at = moved_at + idle_s
            done, _ = await asyncio.wait(ends, timeout=idle_at - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            if client.over in done:
                return client.over.result()
            for over in watch & done:
                over.result()
                return Ending.GATEWAY
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
        for each in (*both, *watch):
            each.cancel()
        server.close()
        client.close()
        await asyncio.gather(*both, *watch, return_exceptions=True)


async def _until_rejected(check: CredentialCheck, every_s: float) -> None:
    while True:
        if not await check():
            return
        await asyncio.sleep(every_s)


def _cause(error: BaseException) -> Ending:
    if isinstance(error, Rejection):
        return Ending.UPSTREAM if error.source is Source.UPSTREAM else Ending.GATEWAY
    if isinstance(error, ConnectionError):
        return Ending.CLIENT
    raise error
