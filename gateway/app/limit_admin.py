"""Limits while the gateway runs: the hottest callers, and single buckets raised, lowered, paused or reset for a time.

A bucket stays changed until its time is over. With a store that gateways share, the others learn of the change within two
seconds, and those that start later do, too; without one, the change is this gateway's alone and ends when it restarts. A
reset acts on the store, and every gateway sees it at once. Each change is one line of the audit, at the gateway asked.
"""

from __future__ import annotations

import asyncio
import logging
import string
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from ..core.exchange import Exchange
from ..core.limit_plan import Limits, bucket_key, parse_bucket_key
from ..core.limits import BucketState, Limit, Scope, Take
from ..limit_stage import LimitStage
from ..pacing_stage import PacingStage
from ..ports import StoreUnavailable
from ..telemetry.audit import AuditLog
from .explaining import Explained
from .limit_changes import LONGEST_S, LimitChange, StoredChange, changed_limit, decode_change, limit_to_change
from .limit_levels import Levels, levels

log = logging.getLogger("gateway.limits")

_BOUND = 1000
_MOST_NAMED = 20
_PLAIN = frozenset(string.ascii_letters.encode() + string.digits.encode() + b"-._~/:@,*")
"""Octets found in subjects that can't break a query apart; all others are percent-encoded in the audit."""
FOLLOW_EVERY_S = 2.0
_KEPT_S = 3600.0
"""How long a change stays in the store after its time is over: by another gateway's clock it may not be."""


class ChangeStore(Protocol):
    """Changes that all gateways see, encoded, by bucket key. Every method may raise StoreUnavailable."""

    async def read(self) -> dict[str, bytes]: ...
    async def put(self, name: str, octets: bytes) -> None: ...
    async def drop(self, names: Iterable[str]) -> None: ...


class _ActiveChange(msgspec.Struct, frozen=True):
    stored: StoredChange
    timer: asyncio.TimerHandle
    shared: bool
    """Whether the change is in the store, and so ends when it is gone from there."""


class LimitAdmin:
    """Shows and changes limits at run time. Belongs to one event loop."""

    def __init__(
        self,
        limits: Limits,
        stage: LimitStage,
        audit: AuditLog | None,
        change_store: ChangeStore | None = None,
        *,
        pacing: PacingStage | None = None,
        subjects: Mapping[Scope, frozenset[str]] = {},
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``subjects``: all whom buckets of a scope can be for, where the configuration says so."""
        self._limits = limits
        self._stage = stage
        self._pacing = pacing
        self._audit = audit
        self._subjects = subjects
        self._wall = wall
        self._change_store = change_store
        self._active: dict[str, _ActiveChange] = {}
        self._changes = 0
        """Grows with each change asked of this gateway: what was read from the store before a change is outdated after."""
        self._follower: asyncio.Task[None] | None = None

    async def top(self, count: int) -> object:
        """The hottest callers with the state of their own buckets, and the changes in force."""
        callers = []
        now = (await self._stage.look([])).now  # callers were noted by the store's clock
        for hot in self._stage.top_talkers.top(count, now):
            keys = [bucket_key(limit.id, hot.name) for limit in self._limits.limits if limit.by is Scope.CALLER]
            own = [Take(key, limit) for key in keys if (limit := self._in_force(key)) is not None]
            decision = await self._stage.look(own)
            callers.append(
                {
                    "caller": hot.name,
                    "asked": hot.asked,
                    "refused": hot.refused,
                    "buckets": [_shown(state) for state in decision.states],
                }
            )
        changed = [{**msgspec.to_builtins(one.stored.change), "until": one.stored.until} for one in self._active.values()]
        return {"callers": callers, "changed": changed, "waiting": self._stage.waiting}

    async def levels(self, explained: Explained) -> Levels:
        """The buckets of that request, and GitLab's limit on the credentials that it may go up with."""
        takes = [Take(take.key, limit) for take in explained.takes if (limit := self._in_force(take.key)) is not None]
        changes = {key: change.stored for key, change in self._active.items()}
        paces = {one: self._pacing.report(one) for one in explained.credentials} if self._pacing is not None else {}
        return levels(await self._stage.look(takes), takes, changes, paces)

    async def change(self, who: str, peer: str, body: dict[str, object]) -> object:
        """Change or reset one bucket, and return what was done, as JSON. Raises ValueError with a message for the
        operator."""
        try:
            change = msgspec.convert(body, LimitChange)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
        limit = self._limit_to_change(change)
        key = bucket_key(limit.id, change.subject)
        self._changes += 1
        self._restore(key)
        until = 0.0
        if change.reset:
            self._fill(key)
        else:
            until = self._wall() + change.seconds
        stored = StoredChange(change, until)
        shared = await self._publish(key, None if change.reset else stored)
        if not change.reset:
            self._apply(key, limit, stored, shared=shared)
        action = "reset" if change.reset else "pause" if change.pause else f"factor={change.factor:g}"
        log.warning("%s: %s of limit %s for %s", who, action, limit.id, change.subject)
        self._write_audit(
            who, peer, f"limit={limit.id}&subject={_quoted(change.subject)}&{action}&seconds={change.seconds:g}"
        )
        return {"limit": limit.id, "subject": change.subject, "done": action, "until": until or None, "shared": shared}

    def start(self) -> None:
        """Follow the store, where there is one, until closed."""
        if self._change_store is not None:
            self._follower = asyncio.get_running_loop().create_task(self._follow(), name="limit-changes")

    async def refresh(self) -> None:
        """Apply what the store holds. While it is unavailable, each known change holds until its time is over."""
        if self._change_store is None:
            return
        before = self._changes
        try:
            found = await self._change_store.read()
            over = self._catch_up(found) if before == self._changes else []
            await self._change_store.drop(over)
        except StoreUnavailable:
            return

    def close(self) -> None:
        """Stop following the store and drop all changes: none outlives the gateway."""
        if self._follower is not None:
            self._follower.cancel()
        for change in self._active.values():
            change.timer.cancel()
        self._active.clear()

    # Among gateways

    async def _follow(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(FOLLOW_EVERY_S)

    def _catch_up(self, found: dict[str, bytes]) -> list[str]:
        """Apply changes that are new and restore limits whose change is gone; returns the names of those to delete."""
        now = self._wall()
        wanted: dict[str, tuple[Limit, StoredChange]] = {}
        over = []
        for name, octets in found.items():
            try:
                limit, stored = decode_change(octets, self._limits.limits)
            except ValueError:
                continue  # from a gateway with another configuration, or a newer version
            if stored.until <= now:
                if stored.until <= now - _KEPT_S:
                    over.append(name)
            elif name == bucket_key(limit.id, stored.change.subject) and len(wanted) < _BOUND:
                wanted[name] = (limit, stored)
        for key in [key for key, change in self._active.items() if change.shared and key not in wanted]:
            self._restore(key)
            self._fill(key)  # reset elsewhere; but until now, this gateway has cut it down to the burst of the change
        for key, (limit, stored) in wanted.items():
            active = self._active.get(key)
            if active is None or active.stored != stored:
                log.info("another gateway changed limit %s for %s", limit.id, stored.change.subject)
                self._apply(key, limit, stored, shared=True)
        return over

    async def _publish(self, key: str, stored: StoredChange | None) -> bool:
        """Put a change into the store; None: remove it. Returns whether the other gateways will learn of it."""
        if self._change_store is None:
            return False
        try:
            if stored is None:
                await self._change_store.drop([key])
            else:
                await self._change_store.put(key, msgspec.json.encode(stored))
        except StoreUnavailable:
            return False
        finally:
            self._changes += 1
        return True

    def _apply(self, key: str, limit: Limit, stored: StoredChange, *, shared: bool) -> None:
        self._restore(key)
        lasting_s = min(LONGEST_S, max(0.0, stored.until - self._wall()))
        timer = asyncio.get_running_loop().call_later(lasting_s, self._restore, key)
        self._active[key] = _ActiveChange(stored, timer, shared)
        self._limits.change(key, changed_limit(limit, stored.change))

    def _limit_to_change(self, change: LimitChange) -> Limit:
        limit = limit_to_change(change, self._limits.limits)
        known = self._subjects.get(limit.by)
        # A change may be undone after its subject has left the configuration.
        if known is not None and change.subject not in known and bucket_key(limit.id, change.subject) not in self._active:
            names = ", ".join(sorted(known)[:_MOST_NAMED]) + ", …" * (len(known) > _MOST_NAMED)
            raise ValueError(f"subject: has no bucket of `{limit.id}`, which is by {limit.by.value}: {names or 'none'}")
        if len(self._active) >= _BOUND and not change.reset:
            raise ValueError("too many buckets are changed already")
        return limit

    def _in_force(self, key: str) -> Limit | None:
        """The limit of a bucket, as changed by an operator; a paused one as configured. None: no limit has this bucket."""
        limit_id, _ = parse_bucket_key(key)
        configured = next((limit for limit in self._limits.limits if limit.id == limit_id), None)
        active = self._active.get(key)
        if configured is None or active is None:
            return configured
        return changed_limit(configured, active.stored.change) or configured

    def _restore(self, key: str) -> None:
        active = self._active.pop(key, None)
        if active is not None:
            active.timer.cancel()
            self._limits.restore(key)

    def _fill(self, key: str) -> None:
        limit = self._in_force(key)
        if limit is not None:
            self._stage.settle([Take(key, limit, -2 * limit.burst)])

    def _write_audit(self, who: str, peer: str, what: str) -> None:
        if self._audit is None:
            return
        x = Exchange("admin", time.monotonic(), "POST", peer)
        x.operation, x.principal, x.principal_kind, x.status = "POST /-/limits", who, "admin", 200
        x.target = f"/-/limits?{what}".encode()
        self._audit.observe(x)


def _quoted(text: str) -> str:
    return "".join(chr(octet) if octet in _PLAIN else f"%{octet:02X}" for octet in text.encode())


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
