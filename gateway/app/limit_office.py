"""Limits while the gateway runs: who is hot, and one bucket raised, lowered, paused or reset for a time.

A changed bucket is changed in this gateway until its time is over or the gateway restarts; a reset is the store's and seen
by every gateway. Each change is one line of the audit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from ..core.exchange import Exchange
from ..core.limit_plan import Limits, key_of
from ..core.limits import BucketState, Limit, Scope, Take
from ..limit_stage import LimitStage
from ..telemetry.audit import AuditLog

log = logging.getLogger("gateway.limits")

LONGEST_S = 7 * 86_400.0
_MOST = 1000.0
_BOUND = 1000


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator asks for. Exactly one of ``factor``, ``pause`` and ``reset``."""

    limit: str
    subject: str
    """As ``top`` names it: a principal, a team, an address, a project; ``all`` for the organisation's bucket."""
    factor: float | None = None
    """Times the configured rate and burst."""
    pause: bool = False
    """The limit does not apply."""
    reset: bool = False
    """The bucket is full again, and what was changed is as configured."""
    seconds: float = 3600.0


class LimitOffice:
    """See ``edge.admin.LimitDesk``. Of one event loop."""

    def __init__(
        self, limits: Limits, stage: LimitStage, audit: AuditLog | None, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._limits = limits
        self._stage = stage
        self._audit = audit
        self._wall = wall
        self._until: dict[str, tuple[float, asyncio.TimerHandle, Wish]] = {}

    async def top(self, count: int) -> object:
        """The hottest callers with the state of their own buckets, and what is changed at present."""
        callers = []
        for hot in self._stage.hottest.top(count, self._wall()):
            own = [Take(key_of(limit.id, hot.name), limit) for limit in self._limits.limits if limit.by is Scope.CALLER]
            decision = await self._stage.look(own)
            callers.append(
                {
                    "caller": hot.name,
                    "asked": hot.asked,
                    "refused": hot.refused,
                    "buckets": [_shown(state) for state in decision.states],
                }
            )
        changed = [{**msgspec.to_builtins(wish), "until": until} for until, _, wish in self._until.values()]
        return {"callers": callers, "changed": changed, "waiting": self._stage.waiting}

    async def change(self, who: str, peer: str, wish: dict[str, object]) -> object:
        """Raises ValueError with words for the operator."""
        try:
            asked = msgspec.convert(wish, Wish)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
        limit = self._judged(asked)
        key = key_of(limit.id, asked.subject)
        self._restore(key)
        until = 0.0
        if asked.reset:
            self._stage.settle([Take(key, limit, -2 * limit.burst)])
        else:
            until = self._wall() + asked.seconds
            timer = asyncio.get_running_loop().call_later(asked.seconds, self._restore, key)
            self._until[key] = (until, timer, asked)
            self._limits.change(key, None if asked.pause else _times(limit, asked.factor or 1.0))
        deed = "reset" if asked.reset else "pause" if asked.pause else f"factor={asked.factor:g}"
        log.warning("%s: %s of limit %s for %s", who, deed, limit.id, asked.subject)
        self._note(who, peer, f"limit={limit.id} subject={asked.subject} {deed} seconds={asked.seconds:g}")
        return {"limit": limit.id, "subject": asked.subject, "done": deed, "until": until or None}

    def close(self) -> None:
        """Nothing outlives the gateway."""
        for _, timer, _ in self._until.values():
            timer.cancel()
        self._until.clear()

    def _judged(self, wish: Wish) -> Limit:
        limit = next((limit for limit in self._limits.limits if limit.id == wish.limit), None)
        if limit is None:
            raise ValueError("limit: is none of those configured")
        if (wish.factor is not None) + wish.pause + wish.reset != 1:
            raise ValueError("give one of factor, pause and reset")
        if wish.factor is not None and not 1 / _MOST <= wish.factor <= _MOST:
            raise ValueError("factor: from 0.001 to 1000")
        if not 1 <= wish.seconds <= LONGEST_S:
            raise ValueError("seconds: from 1 to 604800, a week")
        if not 1 <= len(wish.subject) <= 256 or not wish.subject.isprintable():
            raise ValueError("subject: is 1 to 256 printable characters")
        if len(self._until) >= _BOUND and not wish.reset:
            raise ValueError("too many buckets are changed already")
        return limit

    def _restore(self, key: str) -> None:
        held = self._until.pop(key, None)
        if held is not None:
            held[1].cancel()
            self._limits.restore(key)

    def _note(self, who: str, peer: str, what: str) -> None:
        if self._audit is None:
            return
        x = Exchange("admin", time.monotonic(), "POST", peer)
        x.operation, x.principal, x.principal_kind, x.status = "POST /-/limits", who, "admin", 200
        x.target = b"/-/limits?" + what.replace(" ", "&").encode()
        self._audit.observe(x)


def _times(limit: Limit, factor: float) -> Limit:
    burst = max(1.0, limit.burst * factor)
    return msgspec.structs.replace(limit, rate=min(1e9, limit.rate * factor), burst=min(1e8, burst))


def _shown(state: BucketState) -> dict[str, object]:
    limit = state.limit
    return {
        "limit": limit.id,
        "remaining": round(state.remaining, 3),
        "burst": limit.burst,
        "per_minute": limit.per_minute,
        "full_in_s": round(state.full_in_s, 3),
        "shadow": limit.shadow,
    }
