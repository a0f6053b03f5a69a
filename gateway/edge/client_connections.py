"""Clients' connections: how many there are and from where, and how they are closed without cutting anybody's answer short.

accepted ── TLS handshake ── counted in ── … ── closing, last octets on their way ── counted out
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Protocol

from .client_socket import SendProgress, cut, send_progress, unsent_bytes
from .settings import EdgeSettings

_LAST_OCTETS_S = 1.0
"""How long to wait at the end for octets that a transport may hold without telling, and for clients slow to close (TLS)."""
_POLL_S = 0.01
_CLOSE_S = 30.0
"""How long a client that has been sent everything may take to close its side, too (TLS): one that pools connections may not
look out for our close."""


class ClientConnection(Protocol):
    """A client's connection."""

    peer: str
    ticket: int
    """The number that ``ClientConnections.accept`` gave it."""
    left: bool
    """Whether the connection is over."""

    def has_pending_answer(self, transport: asyncio.Transport) -> bool:
        """Whether its client may still have to be sent some of an answer: one is in progress, or on its way out."""
        ...


class ClientConnections:
    """The connections of one data port."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: EdgeSettings) -> None:
        self._loop = loop
        self._settings = settings
        self._per_peer: dict[str, int] = {}
        self._tickets = itertools.count()
        self._handshaking: OrderedDict[int, float] = OrderedDict()
        """Ticket → when the connection was accepted, oldest first, of those not counted in yet: with TLS that happens after
        the handshake. No more than this is kept of a client that only pretends to shake hands."""
        self._closing: OrderedDict[int, tuple[float, asyncio.Transport]] = OrderedDict()
        """Ticket → until when the client may take to leave, earliest first, of connections that are closed and have been
        sent everything, as far as is known."""
        self._closing_timer: asyncio.TimerHandle | None = None
        self.open = 0
        self.refused = 0
        self.on_count_change: Callable[[int], None] | None = None
        """Called with the number of connections whenever it changes, so that several processes can share them out."""

    @property
    def is_empty(self) -> bool:
        """Whether no client is connected or about to be."""
        self._expire_handshakes()
        return not (self.open or self._handshaking)

    def accept(self) -> int:
        """Note an accepted connection and return its ticket. ``admit`` follows, unless its TLS handshake never succeeds."""
        self._expire_handshakes()
        ticket = next(self._tickets)
        self._handshaking[ticket] = self._loop.time()
        self._report_count()
        return ticket

    def forget_failed_handshake(self, connection: ClientConnection) -> None:
        """Forget a connection whose TLS handshake never succeeded."""
        self._handshaking.pop(connection.ticket, None)
        self._report_count()

    def admit(self, connection: ClientConnection) -> bool:
        """Count a connection in; False if it is one too many."""
        settings = self._settings
        self._handshaking.pop(connection.ticket, None)
        self.open += 1
        count = self._per_peer.get(connection.peer, 0) + 1
        self._per_peer[connection.peer] = count
        most = settings.max_connections_per_peer
        if settings.max_connections and self.open > settings.max_connections:
            admitted = False
        else:
            admitted = not most or count <= most or settings.uncounted_peer(connection.peer)
        self.refused += not admitted
        return admitted

    def leave(self, connection: ClientConnection) -> None:
        """Count a connection out."""
        connection.left = True
        self._closing.pop(connection.ticket, None)
        self.open -= 1
        count = self._per_peer.get(connection.peer, 0) - 1
        if count > 0:
            self._per_peer[connection.peer] = count
        else:
            self._per_peer.pop(connection.peer, None)
        self._report_count()

    def _report_count(self) -> None:
        if self.on_count_change is not None:
            self.on_count_change(self.open + len(self._handshaking))

    def close_gracefully(self, connection: ClientConnection, transport: asyncio.Transport) -> None:
        """Close the connection once all is sent. A client that takes nothing for ``write_stall_s``, or that has been sent
        everything and never leaves, is cut off."""
        if not transport.is_closing():  # asyncio's own TLS transport, closed twice, can no longer be queried or aborted
            transport.close()
        self._watch(connection, transport)

    def _watch(self, connection: ClientConnection, transport: asyncio.Transport) -> None:
        if unsent_bytes(transport):
            self._loop.call_later(
                self._settings.write_stall_s, self._check_progress, connection, transport, send_progress(transport)
            )
        elif not connection.left:
            self._closing.setdefault(connection.ticket, (self._loop.time() + _CLOSE_S, transport))
            if self._closing_timer is None:
                self._closing_timer = self._loop.call_later(_CLOSE_S, self._cut_overdue)

    def _check_progress(self, connection: ClientConnection, transport: asyncio.Transport, before: SendProgress) -> None:
        if connection.left:
            return
        if send_progress(transport).has_advanced_since(before):
            self._watch(connection, transport)
        else:
            cut(transport)

    def _cut_overdue(self) -> None:
        """Cut off the clients that have not left in time. One timer serves all of them, since most leave at once."""
        self._closing_timer = None
        closing, now = self._closing, self._loop.time()
        while closing:
            until, transport = next(iter(closing.values()))
            if until > now:
                self._closing_timer = self._loop.call_later(until - now, self._cut_overdue)
                return
            closing.popitem(last=False)
            cut(transport)

    async def wait_closed(
        self, pending: Collection[ClientConnection], here: Collection[ClientConnection], ends_at: float
    ) -> None:
        """Wait until all clients have left: until ``ends_at``, by the loop's clock, for those with ``pending`` answers, and
        then a moment for all that are ``here``."""
        await self._wait_all_left(pending, ends_at)
        # TLS does not tell all that it holds. A client at rest has been sent everything, or is slow to close.
        await self._wait_all_left(here, self._loop.time() + _LAST_OCTETS_S)

    async def _wait_all_left(self, client_connections: Collection[ClientConnection], ends_at: float) -> None:
        while not all(connection.left for connection in client_connections) and self._loop.time() < ends_at:  # noqa: ASYNC110 — thousands
            await asyncio.sleep(_POLL_S)

    def _expire_handshakes(self) -> None:
        """Forget connections whose time for a handshake has passed: asyncio's own server does not report that it failed."""
        handshaking, before = self._handshaking, self._loop.time() - self._settings.request_head_s
        while handshaking and next(iter(handshaking.values())) < before:
            handshaking.popitem(last=False)
