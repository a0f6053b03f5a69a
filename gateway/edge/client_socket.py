"""Whether a client is still there and takes octets, as its socket tells; and how it is shown that an answer was cut."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

_ACKED = struct.Struct("120xQ")
"""From Linux's ``struct tcp_info``: how many octets the peer has acknowledged (``tcpi_bytes_acked``, Linux 4.2)."""


CHECK_EVERY_S = 1.0
"""The time between two checks whether a client is still there, while its connection isn't read."""
_PEER_EOF = getattr(select, "POLLRDHUP", 0)
"""The other side will send no more; only Linux tells."""
_PEER_GONE = getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


class SendProgress(NamedTuple):
    """How much a client has taken of what it is sent."""

    acked: int
    """The octets that its kernel has acknowledged, where ours tells; else 0. A transport hands octets to our kernel by the
    megabyte: its own count stands still for a minute while a slow client takes some all the time, and TLS hides part of
    them."""
    unsent: int
    """The octets that the transport still holds."""

    def has_advanced_since(self, before: SendProgress) -> bool:
        """Whether the client has taken anything since ``before``."""
        return self.acked > before.acked or self.unsent < before.unsent


def send_progress(transport: asyncio.Transport) -> SendProgress:
    """How much has been taken up to now; nothing of a transport that is closed."""
    acked = 0
    if hasattr(socket, "TCP_INFO"):
        # Respectively: closed, not TCP, closed (uvloop), an older kernel.
        with contextlib.suppress(AttributeError, OSError, ValueError, struct.error):
            tcp_info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
            (acked,) = _ACKED.unpack(tcp_info)
    return SendProgress(acked, unsent_bytes(transport))


class StallTimer:
    """A context manager that calls ``end`` when a client has taken nothing for ``stall_s`` seconds."""

    __slots__ = ("_before", "_end", "_loop", "_stall_s", "_timer", "_transport")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, stall_s: float, end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._stall_s = stall_s
        self._end = end

    def __enter__(self) -> None:
        self._before = send_progress(self._transport)
        self._timer = self._loop.call_later(self._stall_s, self._check)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        now = send_progress(self._transport)
        if now.has_advanced_since(self._before):
            self._before = now
            self._timer = self._loop.call_later(self._stall_s, self._check)
        else:
            self._end()


def has_left(transport: asyncio.Transport, *, whole: bool) -> bool:
    """Whether the client closed or broke its connection, as far as the kernel knows: a transport that isn't read hears of
    neither. A client that only says that it will send no more counts as gone, too (see ``connection``), except while the
    request is not ``whole``: what has not been read yet may be the rest of it."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is closed, and its protocol hears of that
        poll.register(transport.get_extra_info("socket"), _PEER_EOF if whole else 0)  # _PEER_GONE is always reported
        return any(events & (_PEER_GONE | _PEER_EOF) for _, events in poll.poll(0))
    return False


def set_reset_on_close(transport: asyncio.Transport, resets: bool) -> None:
    """Set whether closing the connection, for whatever reason, sends a reset from now on, which discards what has not
    arrived. uvloop's ``abort`` by itself sends none, and a Unix socket has none."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is closed
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", resets, 0))


def cut(transport: asyncio.Transport) -> None:
    """Abort the transport. asyncio's own TLS transport, once closed twice, fails here before Python 3.11.5: it is over."""
    with contextlib.suppress(AttributeError):
        transport.abort()


def unsent_bytes(transport: asyncio.Transport) -> int:
    """The octets that the transport still holds, as far as it tells. asyncio's own TLS transport, once closed twice, tells
    nothing."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:
        return 0
