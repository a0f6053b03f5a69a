"""Names to addresses, asked of the system in threads that nobody has to wait for.

The event loop's own look-ups can't be taken back: behind a resolver that does not answer they queue up, and the loop does
not end before the last of them. Here whoever asks meanwhile shares one that is under way, and what is left at the end goes
with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import threading
from typing import cast

Address = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]

_LATE_S = 2.0
"""A resolver that took longer may have been asked when it was away: the next who asks does so anew."""
_MOST = 4
"""Look-ups that one name has under way."""


class Names:
    """Of one name and port, asked for in one event loop. ``late_s`` as ``_LATE_S``."""

    def __init__(self, host: str, port: int, *, late_s: float = _LATE_S) -> None:
        self._host = host
        self._port = port
        self._late_s = late_s
        self._newest: asyncio.Future[list[Address]] | None = None
        self._asked_at = 0.0
        self._under_way = 0

    async def addresses(self) -> list[Address]:
        """As the system has them now, the best first. Raises OSError, or UnicodeError where IDNA can't express the name."""
        literal = _literal(self._host, self._port)
        if literal is not None:  # needs no look-up
            return [literal]
        return await asyncio.shield(self._asked())

    def _asked(self) -> asyncio.Future[list[Address]]:
        loop = asyncio.get_running_loop()
        newest = self._newest
        if newest is not None and not newest.done():
            late = loop.time() - self._asked_at > self._late_s
            if not late or self._under_way >= _MOST:
                return newest
        told: asyncio.Future[list[Address]] = loop.create_future()
        thread = threading.Thread(target=self._look_up, args=(loop, told), name=f"names {self._host}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no thread for a look-up") from error
        self._newest, self._asked_at = told, loop.time()
        self._under_way += 1
        return told

    def _look_up(self, loop: asyncio.AbstractEventLoop, told: asyncio.Future[list[Address]]) -> None:
        found: list[Address] | OSError | UnicodeError
        try:
            # TCP only: never the form that holds bytes.
            found = cast("list[Address]", socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._tell, told, found)

    def _tell(self, told: asyncio.Future[list[Address]], found: list[Address] | OSError | UnicodeError) -> None:
        self._under_way -= 1
        if isinstance(found, list):
            told.set_result(found)
        else:
            told.set_exception(found)
            told.exception()  # all who asked may have left


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    if version == 4:
        return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))
