"""Whether a client is there, by its socket: has it left, does it take octets? And how it is told that an answer was cut."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

_ACKED = struct.Struct("120xQ")
"""Of Linux' ``struct tcp_info``: how many octets the peer has acknowledged (``tcpi_bytes_acked``, Linux 4.2)."""


LOOK_S = 1.0
"""Between two looks for a client whose connection isn't read."""
_NO_MORE = getattr(select, "POLLRDHUP", 0)
"""The other side sends no more; Linux alone tells."""
_LEFT = getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


class Taken(NamedTuple):
    """How far a client has come with what it is sent."""

    acked: int
    """What its own kernel has taken, where ours tells; else 0. A transport hands octets to our kernel by the megabyte: its
    own count stands still for a minute while a slow client takes some all the time, and TLS hides part of it."""
    unsent: int
    """What the transport still holds."""

    def further_than(self, before: Taken) -> bool:
        """Something was taken since."""
        return self.acked > before.acked or self.unsent < before.unsent


def taken(transport: asyncio.Transport) -> Taken:
    """Up to now; of a transport that is over, nothing."""
    acked = 0
    if hasattr(socket, "TCP_INFO"):
        # Respectively: over, no TCP, over (uvloop), an older kernel.
        with contextlib.suppress(AttributeError, OSError, ValueError, struct.error):
            told = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
            (acked,) = _ACKED.unpack(told)
    return Taken(acked, unsent_bytes(transport))


class Stall:
    """Calls ``end`` when a client has taken nothing for ``stall_s``, while it is entered."""

    __slots__ = ("_before", "_end", "_loop", "_stall_s", "_timer", "_transport")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, stall_s: float, end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._stall_s = stall_s
        self._end = end

    def __enter__(self) -> None:
        self._before = taken(self._transport)
        self._timer = self._loop.call_later(self._stall_s, self._look)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = taken(self._transport)
        if now.further_than(self._before):
            self._before = now
            self._timer = self._loop.call_later(self._stall_s, self._look)
        else:
            self._end()


def has_left(transport: asyncio.Transport, *, whole: bool) -> bool:
    """A client that closed its connection or broke it, as far as the kernel knows: a transport that isn't read is told
    neither. One that only says that it will send no more has left as well (see ``server``), but where the request is not
    ``whole``: what is not read yet may be the rest of it."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is over, and its protocol hears of that
        poll.register(transport.get_extra_info("socket"), _NO_MORE if whole else 0)  # what is in _LEFT is always told
        return any(told & (_LEFT | _NO_MORE) for _, told in poll.poll(0))
    return False


def close_resets(transport: asyncio.Transport, resets: bool) -> None:
    """Whether the connection's end, whoever brings it about, is a reset from now on, which throws away what has not
    arrived. uvloop's ``abort`` alone is none, and a unix socket knows none."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is over
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", resets, 0))


def cut(transport: asyncio.Transport) -> None:
    """Abort it. One of asyncio's own TLS that was closed twice can't be told so before Python 3.11.5, and is over."""
    with contextlib.suppress(AttributeError):
        transport.abort()


def unsent_bytes(transport: asyncio.Transport) -> int:
    """What it has not sent yet, as far as it tells. One of asyncio's own TLS that was closed twice can't be asked."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:
        return 0
