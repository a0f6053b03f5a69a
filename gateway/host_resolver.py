"""Host names to addresses, looked up by the system in threads that nobody has to wait for.

The event loop's own look-ups can't be cancelled: behind a resolver that does not answer they queue up, and the loop does
not end before the last of them. Here all callers share the look-ups under way, and those left at the end go with the
process.
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

_SLOW_S = 0.25
"""After so long a query may be lost, or may have been sent while the resolver was away: another look-up is started, and
further ones after twice as long each time. The first answer is everybody's."""
_MOST = 6
"""How many look-ups of one name may be under way."""


class HostResolver:
    """The addresses of one name and port, for one event loop. ``slow_s``: see ``_SLOW_S``."""

    def __init__(self, host: str, port: int, *, slow_s: float = _SLOW_S) -> None:
        self._host = host
        self._port = port
        self._slow_s = slow_s
        self._answer: asyncio.Future[list[Address]] | None = None
        """What all who wait share."""
        self._newest = 0
        self._started_at = 0.0
        self._under_way = 0

    async def addresses(self) -> list[Address]:
        """The addresses as the system has them now, the best first. Raises OSError, or UnicodeError where IDNA can't
        express the name."""
        literal = _literal(self._host, self._port)
        if literal is not None:  # needs no look-up
            return [literal]
        while True:
            answer = self._pending_answer()
            slow_at = self._started_at + self._wait_s()
            await asyncio.wait((answer,), timeout=max(slow_at - answer.get_loop().time(), self._slow_s))
            if answer.done():
                return answer.result()

    def _pending_answer(self) -> asyncio.Future[list[Address]]:
        """The answer of the look-ups under way; starts another one where none of them is likely to be answered soon."""
        loop = asyncio.get_running_loop()
        answer = self._answer
        if answer is None or answer.done():
            answer = loop.create_future()
            is_due = True
        else:
            is_due = loop.time() - self._started_at >= self._wait_s()
        if is_due and self._under_way < _MOST:
            number = self._newest + 1
            thread = threading.Thread(target=self._look_up, args=(loop, number), name=f"names {self._host}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, "no thread for a look-up") from error
            self._newest, self._started_at = number, loop.time()
            self._under_way += 1
        self._answer = answer
        return answer

    def _wait_s(self) -> float:
        """How long the newest look-up is waited for before another one is started."""
        return self._slow_s * (1 << max(0, self._under_way - 1))

    def _look_up(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        found: list[Address] | OSError | UnicodeError
        try:
            # For TCP it never returns the form of address that holds bytes.
            found = cast("list[Address]", socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._deliver, number, found)

    def _deliver(self, number: int, found: list[Address] | OSError | UnicodeError) -> None:
        self._under_way -= 1
        answer = self._answer
        if answer is None or answer.done():
            return
        if isinstance(found, list):
            answer.set_result(found)
        elif number == self._newest:  # the cause of an older look-up's failure may be over
            answer.set_exception(found)
            answer.exception()  # all who waited may have left


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    if version == 4:
        return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))
