"""Before GitLab is asked with a shared credential: at the pace its own numbers allow, callers in turn.

The bucket is shared like every other, so that gateways on one Redis spread what is left between them. That GitLab has
refused is known to the gateway that heard it; the others hear it at most once each.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf

from .core.access import Principal
from .core.errors import Code, Rejection, Source
from .core.limits import Take
from .core.messages import Fields
from .core.pacing import PATIENCE_S, Pace
from .limit_stage import LimitStage


class PacingStage:
    """Paces by credential id; of one event loop. ``wall`` gives Unix seconds."""

    def __init__(self, limits: LimitStage, *, wall: Callable[[], float]) -> None:
        self._limits = limits
        self._wall = wall
        self._paces: dict[str, Pace] = {}
        self.refused_total = 0

    async def go(self, credential: str, principal: Principal, lease: str) -> None:
        """Wait for the turn. Raises Rejection RATE_LIMITED when that would take too long."""
        pace = self._paces.get(credential)
        if pace is None:
            return
        now = self._wall()
        wait_s = pace.blocked_s(now)
        limit = pace.limit(now)
        if not wait_s and limit is not None:
            takes = (Take(f"{{gw}}:p:{credential}", limit),)
            ticket = await self._limits.admit(takes, principal, lease, PATIENCE_S)
            refusal = ticket.decision.refusal
            wait_s = refusal.retry_after_s if refusal is not None else 0.0
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
        """How many requests GitLab leaves it; see ``Pace.remaining``."""
        pace = self._paces.get(credential)
        return inf if pace is None else pace.remaining(self._wall())

    def learn(self, credential: str, status: int, fields: Fields) -> None:
        """An answer of GitLab's to that credential."""
        pace = self._paces.get(credential)
        if pace is None:
            pace = self._paces[credential] = Pace()
        pace.learn(status, fields, self._wall())
