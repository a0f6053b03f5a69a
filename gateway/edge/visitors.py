"""Clients' connections: how many there are, and from where; how they leave, and that nobody's answer ends with the gateway.

accepted ── hands are shaken ── counted in ── … ── closing, its last octets on their way ── counted out
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Protocol

from .presence import Taken, cut, taken, unsent_bytes
from .settings import EdgeSettings

_LAST_WORD_S = 1.0
"""For what a transport may hold and not tell of, and for whoever is slow to say goodbye (TLS)."""
_LOOK_S = 0.01
_GOODBYE_S = 30.0
"""For who has been sent everything to say goodbye, too (TLS): a client that pools connections may not look for that."""


class Visitor(Protocol):
    """A connection."""

    peer: str
    ticket: int
    """Of ``Visitors.accept``."""
    left: bool
    """It is over."""

    def owes(self, transport: asyncio.Transport) -> bool:
        """Its client may have to be sent some of an answer: one is in progress, or on its way out."""
        ...


class Visitors:
    """Of one data port."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: EdgeSettings) -> None:
        self._loop = loop
        self._settings = settings
        self._per_peer: dict[str, int] = {}
        self._tickets = itertools.count()
        self._coming: OrderedDict[int, float] = OrderedDict()
        """Accepted then, and not counted in yet: with TLS that is once hands are shaken. By their tickets, the oldest
        first: nothing of whoever only pretends to shake hands is kept."""
        self._parting: OrderedDict[int, tuple[float, asyncio.Transport]] = OrderedDict()
        """Closed, and sent everything, as far as is known: until when they have, by their tickets, in that order."""
        self._parting_timer: asyncio.TimerHandle | None = None
        self.open = 0
        self.refused = 0
        self.tell: Callable[[int], None] | None = None
        """How many there are, whenever that changes: to who shares them out among several processes."""

    @property
    def deserted(self) -> bool:
        """No client is connected, nor about to be."""
        self._forget_failed()
        return not (self.open or self._coming)

    def accept(self) -> int:
        """A ticket for one that ``admit`` may follow for; or hands are never shaken."""
        self._forget_failed()
        ticket = next(self._tickets)
        self._coming[ticket] = self._loop.time()
        self._tell()
        return ticket

    def miss(self, visitor: Visitor) -> None:
        """Hands were never shaken."""
        self._coming.pop(visitor.ticket, None)
        self._tell()

    def admit(self, visitor: Visitor) -> bool:
        """Count a connection in; False when it is one too many."""
        settings = self._settings
        self._coming.pop(visitor.ticket, None)
        self.open += 1
        count = self._per_peer.get(visitor.peer, 0) + 1
        self._per_peer[visitor.peer] = count
        most = settings.max_connections_per_peer
        if settings.max_connections and self.open > settings.max_connections:
            welcome = False
        else:
            welcome = not most or count <= most or settings.uncounted_peer(visitor.peer)
        self.refused += not welcome
        return welcome

    def leave(self, visitor: Visitor) -> None:
        """Count a connection out."""
        visitor.left = True
        self._parting.pop(visitor.ticket, None)
        self.open -= 1
        count = self._per_peer.get(visitor.peer, 0) - 1
        if count > 0:
            self._per_peer[visitor.peer] = count
        else:
            self._per_peer.pop(visitor.peer, None)
        self._tell()

    def _tell(self) -> None:
        if self.tell is not None:
            self.tell(self.open + len(self._coming))

    def see_off(self, visitor: Visitor, transport: asyncio.Transport) -> None:
        """Close once all is sent. Cut off is who takes nothing for ``write_stall_s``, or has it all and never leaves."""
        if not transport.is_closing():  # asyncio's of TLS, closed twice, can be asked and told nothing more
            transport.close()
        self._watch(visitor, transport)

    def _watch(self, visitor: Visitor, transport: asyncio.Transport) -> None:
        if unsent_bytes(transport):
            self._loop.call_later(self._settings.write_stall_s, self._look, visitor, transport, taken(transport))
        elif not visitor.left:
            self._parting.setdefault(visitor.ticket, (self._loop.time() + _GOODBYE_S, transport))
            if self._parting_timer is None:
                self._parting_timer = self._loop.call_later(_GOODBYE_S, self._part)

    def _look(self, visitor: Visitor, transport: asyncio.Transport, before: Taken) -> None:
        if visitor.left:
            return
        if taken(transport).further_than(before):
            self._watch(visitor, transport)
        else:
            cut(transport)

    def _part(self) -> None:
        """One timer for all of them: most leave at once."""
        self._parting_timer = None
        parting, now = self._parting, self._loop.time()
        while parting:
            until, transport = next(iter(parting.values()))
            if until > now:
                self._parting_timer = self._loop.call_later(until - now, self._part)
                return
            parting.popitem(last=False)
            cut(transport)

    async def gone(self, owed: Collection[Visitor], here: Collection[Visitor], ends_at: float) -> None:
        """Wait until all have left: those who are ``owed`` octets until ``ends_at``, by the loop's clock, and all others a
        moment."""
        await self._all_left(owed, ends_at)
        # TLS does not tell of all that it holds; who is at rest has it all, or is slow to say that it leaves.
        await self._all_left(here, self._loop.time() + _LAST_WORD_S)

    async def _all_left(self, visitors: Collection[Visitor], ends_at: float) -> None:
        while not all(visitor.left for visitor in visitors) and self._loop.time() < ends_at:  # noqa: ASYNC110 — of thousands
            await asyncio.sleep(_LOOK_S)

    def _forget_failed(self) -> None:
        """Nobody tells of a handshake that came to nothing: by its time it has."""
        coming, before = self._coming, self._loop.time() - self._settings.request_head_s
        while coming and next(iter(coming.values())) < before:
            coming.popitem(last=False)
