"""Accepts connections at sockets that several processes share, so that each has as many as the others.

The system wakes every process that waits at a socket, and the first to look gets the connection. Left alone, that would be
the same process over and over: one that is awake anyway looks sooner than one that has to be woken, so that of 64
connections opened in a row one worker may get them all. So a process that has more connections than another leaves those
that wait to the other one, for a moment.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from .settings import TLSTimeouts

log = logging.getLogger("gateway.edge")

_DEFER_S = 0.005
"""How long a connection is left to the others: a process that is about to accept has begun by then."""
_MOST_DEFERRED = 4
"""If no other process accepts in so many such times in a row, they hang or are very busy: nothing is left to them until one
of them does accept, or for ``_NOT_DEFERRED_S``."""
_NOT_DEFERRED_S = 1.0
_PAUSE_S = 0.05
"""How long to wait before accepting again where file descriptors or memory ran out."""
_NOTHING_TO_ACCEPT = frozenset({errno.EAGAIN, errno.ECONNABORTED, errno.EINTR})
"""There is nothing to accept: another process was faster, or the client has gone."""


Client = TypeVar("Client", bound=asyncio.BaseProtocol)


class SharedCounts(Protocol):
    """The counts that the processes which accept at the same sockets share, as one of them sees them."""

    @property
    def is_busier(self) -> bool:
        """Whether another process has fewer connections than this one."""
        ...

    @property
    def accepted_by_others(self) -> int:
        """How many connections the others have accepted since the start."""
        ...

    def join(self) -> None:
        """Make known that this process accepts connections from now on."""
        ...

    def accepted(self) -> None:
        """Count one more connection accepted by this process."""
        ...

    def leave(self) -> None:
        """Make known that this process accepts no more connections."""
        ...


class Acceptor(Generic[Client]):
    """Accepts connections for one event loop.

    Args:
        sockets: The bound sockets. They are closed with the acceptor; the other processes' own stay open.
        make: Makes the protocol for each connection.
        on_failed_handshake: Called with the protocol of each connection whose TLS handshake never succeeded.
        counts: Those that the processes which accept there share.
        context: The TLS context; None: no TLS.
        times: The timeouts for TLS, from ``EdgeSettings.tls_timeouts``.
        clock: Seconds.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make: Callable[[], Client],
        counts: SharedCounts,
        *,
        on_failed_handshake: Callable[[Client], None],
        context: ssl.SSLContext | None = None,
        times: TLSTimeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._make = make
        self._counts = counts
        self._on_failed_handshake = on_failed_handshake
        self._context = context
        self._times = times or TLSTimeouts()
        self._clock = clock
        self._deferred_since: float | None = None
        """Since when a waiting connection has been left to the others; None: none is."""
        self._accepted_before = 0
        """How many connections the others had accepted when that was last looked up."""
        self._deferred = 0
        self._not_deferred_until = 0.0
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._has_warned = False
        self._beginning: set[asyncio.Task[None]] = set()

    def start(self, backlog: int) -> None:
        """Accept from now on; ``backlog`` is that of ``listen(2)``."""
        for bound in self._sockets:
            bound.setblocking(False)
            bound.listen(backlog)
            self._loop.add_reader(bound, self._accept_one, bound)
        self._counts.join()

    def close(self) -> None:
        """Accept no more. Open connections stay, and so do handshakes that have begun."""
        while self._sockets:
            bound = self._sockets.pop()
            timer = self._paused.pop(bound, None)
            if timer is not None:
                timer.cancel()
            self._loop.remove_reader(bound)
            bound.close()
        self._counts.leave()

    def _accept_one(self, bound: socket.socket) -> None:
        """Accept one connection that waits there, or leave it. Called in every turn of the loop as long as one waits."""
        if self._should_defer():
            os.sched_yield()  # the process that it is left to may be waiting for this very core
            return
        try:
            accepted, _ = bound.accept()
        except OSError as error:
            if error.errno not in _NOTHING_TO_ACCEPT:
                self._pause_accepting(bound, error)
            return
        self._counts.accepted()
        self._has_warned = False
        # The protocol is made here, so that the connection is counted before the next one is looked for.
        beginning = self._loop.create_task(self._begin(accepted, self._make()), name="accepted")
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)

    def _should_defer(self) -> bool:
        """Whether the waiting connection is left to another process."""
        counts = self._counts
        if not counts.is_busier:
            self._deferred_since = None
            return False
        now, accepted = self._clock(), counts.accepted_by_others
        if accepted != self._accepted_before:  # one of them has accepted: they are alive
            self._accepted_before, self._deferred_since = accepted, None
            self._deferred, self._not_deferred_until = 0, 0.0
        if now < self._not_deferred_until:
            return False
        if self._deferred_since is None:
            self._deferred_since = now
        if now - self._deferred_since < _DEFER_S:
            return True
        self._deferred_since = None
        self._deferred += 1
        if self._deferred >= _MOST_DEFERRED:
            self._deferred, self._not_deferred_until = 0, now + _NOT_DEFERRED_S
        return False

    async def _begin(self, accepted: socket.socket, client: Client) -> None:
        accepted.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(lambda: client, accepted, ssl=self._context, **self._times)
        except OSError:  # the client's doing: it left, speaks something other than TLS, or took too long
            self._on_failed_handshake(client)

    def _pause_accepting(self, bound: socket.socket, error: OSError) -> None:
        """Stop accepting there for ``_PAUSE_S``: connections wait meanwhile, for this process or another."""
        if not self._has_warned:
            log.warning("no connection can be accepted: %s", error.strerror)
            self._has_warned = True
        self._loop.remove_reader(bound)
        self._paused[bound] = self._loop.call_later(_PAUSE_S, self._resume, bound)

    def _resume(self, bound: socket.socket) -> None:
        del self._paused[bound]
        self._loop.add_reader(bound, self._accept_one, bound)
