"""Requests that merely wait: while one does, another has its place.

GitLab answers a runner that asks for a job at once, or has Workhorse wait for one (50 s by default); a client that watches
a cluster is told when something happens there. Neither is work for anybody. If each held a place, as many idle runners as
there are places would keep everybody else out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..reply import Reply

PARKED_AFTER_S = 1.0
"""A request that still goes on after this time is taken to wait for something other than GitLab's work."""


class Lot(Protocol):
    """Counts the places."""

    def park(self) -> bool:
        """Let another request have the place of this one; False: too many are parked already."""

    def unpark(self) -> None:
        """Count a parked request as holding a place again."""


async def parked(
    lot: Lot, answer: Awaitable[Reply], when_over: Callable[[Reply, Callable[[], None]], None] = Reply.on_release
) -> Reply:
    """Await the ``answer`` to a request that holds a place. The request is parked until the answer is over or nobody waits.

    ``when_over`` arranges for a call when a streamed answer is over, that is, when its place is given back.
    """
    parking = Parking(lot)
    try:
        reply = await answer
    except BaseException:
        parking.end()
        raise
    if reply.chunks is None:
        parking.end()
    else:
        when_over(reply, parking.end)
    return reply


class Parking:
    """The parking of one request, from when it gets its place until ``end``."""

    __slots__ = ("_lot", "_parked", "_timer")

    def __init__(self, lot: Lot) -> None:
        self._lot = lot
        self._parked = False
        self._timer = asyncio.get_running_loop().call_later(PARKED_AFTER_S, self._park)

    def _park(self) -> None:
        self._parked = self._lot.park()

    def end(self) -> None:
        """End the parking: the request waits no longer. Idempotent."""
        self._timer.cancel()
        if self._parked:
            self._parked = False
            self._lot.unpark()
