"""Requests that merely wait: while one does, somebody else has its place.

GitLab answers a runner that asks for a job at once, or lets its Workhorse wait for one (50 s by default); who watches a
cluster is told when something happens there. Neither is work to anybody. With a place for each, as many idle runners as
there are places would keep everybody else out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..reply import Reply

PARKED_AFTER_S = 1.0
"""What still goes on by then waits for something else than GitLab."""


class Lot(Protocol):
    """Whoever counts places."""

    def park(self) -> bool:
        """The place of a request may be another's; False: there are too many such requests."""

    def unpark(self) -> None:
        """It is in use again."""


async def parked(
    lot: Lot, answer: Awaitable[Reply], when_over: Callable[[Reply, Callable[[], None]], None] = Reply.on_release
) -> Reply:
    """``answer`` of a request that holds a place, which is parked until the answer is over or nobody waits any more.

    ``when_over`` says when an answer that streams is: when its place is given back.
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
    """One request's, from when it holds a place until its ``end``."""

    __slots__ = ("_lot", "_parked", "_timer")

    def __init__(self, lot: Lot) -> None:
        self._lot = lot
        self._parked = False
        self._timer = asyncio.get_running_loop().call_later(PARKED_AFTER_S, self._park)

    def _park(self) -> None:
        self._parked = self._lot.park()

    def end(self) -> None:
        """It waits no longer. Idempotent."""
        self._timer.cancel()
        if self._parked:
            self._parked = False
            self._lot.unpark()
