"""Accepts at sockets that several processes share, so that each has as many connections as the others.

The system wakes all that wait at a socket, and whoever looks first has what came. Left to itself, that is one of them over
and over: who is awake anyway looks sooner than who has to be woken, so that of 64 connections opened in a row one worker
may have them all. So one that has more than another leaves what waits to that one, for a moment.
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

from .settings import TLSTimes

log = logging.getLogger("gateway.edge")

_MOMENT_S = 0.005
"""For the others; who is about to accept has begun by then."""
_IN_VAIN = 4
"""So often in a row nobody came; then nobody is waited for until one does, or for a while: they hang, or are very busy."""
_ALONE_S = 1.0
_SHORT_S = 0.05
"""Until it is tried again where there were no descriptors, or no memory."""
_NOBODY = frozenset({errno.EAGAIN, errno.ECONNABORTED, errno.EINTR})
"""Another one has accepted, or the client has gone."""


Client = TypeVar("Client", bound=asyncio.BaseProtocol)


class Others(Protocol):
    """Who accepts at the same sockets."""

    @property
    def ahead(self) -> bool:
        """One of them has fewer connections than this process."""
        ...

    @property
    def accepted_by_others(self) -> int:
        """Ever."""
        ...

    def join(self) -> None:
        """Connections are accepted here from now on."""
        ...

    def accepted(self) -> None:
        """One more, here."""
        ...

    def leave(self) -> None:
        """None any more, here."""
        ...


class Acceptor(Generic[Client]):
    """Of one event loop.

    Args:
        sockets: Bound. Closed with it; those of the other processes stay open.
        make: A protocol for each connection.
        missed: Told of one that hands were never shaken with (TLS).
        others: Who accepts there, too.
        context: For TLS.
        times: As ``EdgeSettings.of_tls`` has them for it.
        clock: Seconds.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make: Callable[[], Client],
        others: Others,
        *,
        missed: Callable[[Client], None],
        context: ssl.SSLContext | None = None,
        times: TLSTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._make = make
        self._others = others
        self._missed = missed
        self._context = context
        self._times = times or TLSTimes()
        self._clock = clock
        self._left_since: float | None = None
        """Something waits, and is left to the others."""
        self._accepted_before = 0
        """By the others, at that time."""
        self._in_vain = 0
        self._alone_until = 0.0
        self._short: dict[socket.socket, asyncio.TimerHandle] = {}
        self._said_short = False
        self._beginning: set[asyncio.Task[None]] = set()

    def start(self, backlog: int) -> None:
        """Accept from now on; ``backlog`` as ``listen(2)`` takes it."""
        for bound in self._sockets:
            bound.setblocking(False)
            bound.listen(backlog)
            self._loop.add_reader(bound, self._look, bound)
        self._others.join()

    def close(self) -> None:
        """Accept no more. Connections stay, and so do handshakes that have begun."""
        while self._sockets:
            bound = self._sockets.pop()
            short = self._short.pop(bound, None)
            if short is not None:
                short.cancel()
            self._loop.remove_reader(bound)
            bound.close()
        self._others.leave()

    def _look(self, bound: socket.socket) -> None:
        """Somebody waits there. Called again with the loop's next turn as long as somebody does."""
        if self._leaves():
            os.sched_yield()  # whom it is left to may wait for this very core
            return
        try:
            accepted, _ = bound.accept()
        except OSError as error:
            if error.errno not in _NOBODY:
                self._run_short(bound, error)
            return
        self._others.accepted()
        self._said_short = False
        # Made here, so that it is counted before the next one is looked for.
        beginning = self._loop.create_task(self._begin(accepted, self._make()), name="accepted")
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)

    def _leaves(self) -> bool:
        """What waits is for another one."""
        others = self._others
        if not others.ahead:
            self._left_since = None
            return False
        now, accepted = self._clock(), others.accepted_by_others
        if accepted != self._accepted_before:  # they are there
            self._accepted_before, self._left_since = accepted, None
            self._in_vain, self._alone_until = 0, 0.0
        if now < self._alone_until:
            return False
        if self._left_since is None:
            self._left_since = now
        if now - self._left_since < _MOMENT_S:
            return True
        self._left_since = None
        self._in_vain += 1
        if self._in_vain >= _IN_VAIN:
            self._in_vain, self._alone_until = 0, now + _ALONE_S
        return False

    async def _begin(self, accepted: socket.socket, client: Client) -> None:
        accepted.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(lambda: client, accepted, ssl=self._context, **self._times)
        except OSError:  # the client's doing: it left, speaks something else, or takes its time
            self._missed(client)

    def _run_short(self, bound: socket.socket, error: OSError) -> None:
        """What waits stays where it is, for this process or another."""
        if not self._said_short:
            log.warning("no connection can be accepted: %s", error.strerror)
            self._said_short = True
        self._loop.remove_reader(bound)
        self._short[bound] = self._loop.call_later(_SHORT_S, self._resume, bound)

    def _resume(self, bound: socket.socket) -> None:
        del self._short[bound]
        self._loop.add_reader(bound, self._look, bound)
