"""The pace at which GitLab is asked with a shared credential: what GitLab's own numbers allow, callers in turn.

The bucket is shared like every other, so that gateways on one Redis spread what is left between them. What one of them
hears of GitLab's limit the others hear within a second or so, through a store that no request waits for:

    answer ── learn ── changed? ── noted ─┐
                                          ├── sync: put, read, hear
    every second ─────────────────────────┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf
from typing import Protocol

from .core.access import Principal
from .core.errors import Code, Rejection, Source
from .core.limits import Take
from .core.messages import ResponseHead
from .core.pacing import PATIENCE_S, Pace, PaceReport
from .limit_stage import LimitStage
from .ports import StoreUnavailable

READ_EVERY_S = 1.0
_PUT_AT_MOST_EVERY_S = 0.1


class PaceStore(Protocol):
    """What the gateways have heard from GitLab, by credential. Every method may raise StoreUnavailable."""

    async def read(self, credentials: Sequence[str]) -> dict[str, PaceReport]: ...
    async def put(self, notes: Mapping[str, PaceReport]) -> None: ...


class PacingStage:
    """The paces of one event loop, by credential id. ``wall`` gives Unix seconds, in which GitLab says when its window
    ends; ``monotonic`` times everything else.

    Args:
        credentials: The ids of those that other gateways may use, too.
        store: What the gateways share; None: there are no others.
    """

    def __init__(
        self,
        limits: LimitStage,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        credentials: Sequence[str] = (),
        store: PaceStore | None = None,
    ) -> None:
        self._limits = limits
        self._wall = wall
        self._monotonic = monotonic
        self._credentials = tuple(credentials)
        self._store = store
        self._paces: dict[str, Pace] = {}
        self._unsent: set[str] = set()
        self._changed = asyncio.Event()
        self._sync_task: asyncio.Task[None] | None = None
        self.refused_total = 0

    def is_free(self, credential: str) -> bool:
        """Whether nobody has to wait for the credential, so that ``await_turn`` need not be called."""
        pace = self._paces.get(credential)
        return pace is None or not pace.holds_until or pace.holds_until <= self._monotonic()

    async def await_turn(self, credential: str, principal: Principal, lease: str, operation: str = "") -> None:
        """Wait for the caller's turn. Raises Rejection RATE_LIMITED when that would take too long."""
        pace = self._paces.get(credential)
        if pace is None:
            return
        now = self._monotonic()
        wait_s = pace.blocked_s(now, operation)
        limit = pace.limit(now)
        if not wait_s and limit is not None:
            takes = (Take(f"{{gw}}:p:{credential}", limit),)
            ticket = await self._limits.admit(takes, principal, lease, PATIENCE_S)
            refusal = ticket.decision.refusal
            # GitLab may have refused another request while this one stood in line.
            wait_s = refusal.retry_after_s if refusal is not None else pace.blocked_s(self._monotonic(), operation)
        if wait_s:
            self.refused_total += 1
            raise Rejection(
                Code.RATE_LIMITED,
                429,
                "429 Too Many Requests",
                headers=((b"Retry-After", b"%d" % max(1, ceil(wait_s))),),
                source=Source.UPSTREAM,
                proxy_error="http_request_denied",
                detail="GitLab's limit on the credential",
            )

    def remaining(self, credential: str) -> float:
        """How many requests GitLab still allows the credential; see ``Pace.remaining``."""
        pace = self._paces.get(credential)
        return inf if pace is None else pace.remaining(self._monotonic())

    def learn(self, credential: str, head: ResponseHead, operation: str = "") -> None:
        """Learn from GitLab's answer to a request with that credential."""
        now = self._monotonic()
        news = self._pace(credential).learn(head, now, operation, unix_ahead_s=self._wall() - now)
        if news and self._store is not None:
            self._unsent.add(credential)
            self._changed.set()

    def report(self, credential: str) -> PaceReport:
        """What is known of GitLab's limit on the credential at the moment."""
        pace = self._paces.get(credential)
        return pace.report(self._monotonic()) if pace is not None else PaceReport()

    def _pace(self, credential: str) -> Pace:
        pace = self._paces.get(credential)
        if pace is None:
            pace = self._paces[credential] = Pace()
        return pace

    # Among gateways

    def start(self) -> None:
        """Exchange reports with the other gateways, where there are any, until closed."""
        if self._store is not None and self._credentials:
            self._sync_task = asyncio.get_running_loop().create_task(self._sync_forever(), name="paces")

    def close(self) -> None:
        if self._sync_task is not None:
            self._sync_task.cancel()

    async def sync(self) -> None:
        """Send the others what has changed, and read what they know. What can't be sent now is sent later, as it stands
        then."""
        if self._store is None:
            return
        unsent, self._unsent = self._unsent, set()
        try:
            if unsent:
                await self._store.put({credential: self.report(credential) for credential in unsent})
                unsent = set()
            reports = await self._store.read(self._credentials)
        except StoreUnavailable:
            self._unsent |= unsent
            return
        now = self._monotonic()
        for credential, report in reports.items():
            self._pace(credential).merge(report, now)

    async def _sync_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            await self.sync()
            await asyncio.sleep(_PUT_AT_MOST_EVERY_S)
            timer = loop.call_later(READ_EVERY_S - _PUT_AT_MOST_EVERY_S, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()
