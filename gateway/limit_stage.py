"""The limit stage: takes from the buckets, or waits for its turn where that was asked for; settles at the end.

    takes ── bucket store ── allowed ───────────────────────────→ Ticket ── close: settle, release
                   │                                                ↑
                   └─ refused, may wait ── room of that bucket ─────┘     in turn between callers
                                            └─ no place, no time ──→ refused

There is one waiting room for each bucket that is waited for, and one task per room, which takes for the request whose turn
it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from .core.access import Principal, Priority
from .core.cost import Usage
from .core.errors import Code, Rejection, Source, rate_limited
from .core.exchange import Exchange
from .core.fair_queue import FairQueue
from .core.limits import BucketState, Decision, Take, affordable, needs_settling, paired, refusal_after
from .core.top_talkers import TopTalkers
from .ports import BucketStore, Cancellable

MOST_WAITING = 1000
"""How many requests may wait, in all rooms together: a waiting one costs memory and a connection, nothing else."""
_PER_CALLER = 100
_NEAR = 0.1
"""The part of a bucket: a caller that has less of it left is about to be refused."""
_SOONEST_S = 0.001
_LOOK_EVERY_S = 0.05
"""How soon, at the earliest, to look for a free place again: when one comes free is a guess, and those that this gateway
frees are announced at once."""


class Ticket:
    """A decision, and what is to be settled or given back when the request is over."""

    __slots__ = ("_kept", "_lease", "_stage", "_undone", "decision", "takes", "waited_s")

    def __init__(
        self, stage: LimitStage, takes: Sequence[Take], lease: bytes, decision: Decision, waited_s: float = 0.0
    ) -> None:
        self._stage = stage
        self._lease = lease
        self._kept = self._undone = False
        self.takes = takes
        self.decision = decision
        self.waited_s = waited_s

    def close(self, spent: Usage | None) -> None:
        """The request is over. ``spent`` is None where nothing is known of an answer: the cost then stays as taken."""
        if self.needs_settling():
            self._settle(spent)

    def undo(self) -> None:
        """Give back what was taken. Only the first call has an effect, as with the next two methods."""
        if not self._undone:
            self._undone = True
            self._stage.undo(self.takes, self.decision, self._lease)

    def keep(self) -> None:
        """Let what was taken stay taken, except for places, even if it has been undone."""
        if self._kept:
            return
        self._kept = True
        if self._undone:
            self._stage.settle(_tokens(self.takes, self.decision))
        else:
            self.close(None)

    def charge_undone(self, takes: Sequence[Take], refused: Decision) -> Decision:
        """Charge after all what was undone in favour of ``takes``, which were then ``refused``: work was done for it. Not
        where these are the very same takes, and others were quicker. Returns the refusal as it is then, with a wait that
        suffices."""
        if self.takes == takes:
            self._kept = True
            return refused
        self.keep()
        return refusal_after(takes, refused, _tokens(self.takes, self.decision))

    def needs_settling(self) -> bool:
        """Whether there is something to settle or to give back."""
        return self.decision.allowed and needs_settling(self.takes)

    def _settle(self, spent: Usage | None) -> None:
        changes: list[Take] = []
        for take, bucket in paired(self.takes, self.decision):
            settlement = take.limit.settlement
            if settlement is not None and spent is not None and bucket.allowed:
                change = settlement.change(take.cost, spent)
                if change:
                    changes.append(Take(take.key, take.limit, change))
        if changes:
            self._stage.settle(changes)
        places = [take for take in self.takes if take.limit.concurrent]
        if places:
            self._stage.release(places, self._lease)


class _Waiter:
    __slots__ = ("caller", "deadline", "decided", "last_refusal", "lease", "priority", "refused_at", "room", "takes")

    def __init__(
        self,
        takes: Sequence[Take],
        lease: bytes,
        principal: Principal,
        decided: asyncio.Future[Decision],
        last_refusal: Decision,
        now: float,
        wait_s: float,
    ) -> None:
        self.takes = takes
        self.lease = lease
        self.caller = principal.id
        self.priority: Priority = principal.priority
        self.decided = decided
        self.last_refusal = last_refusal
        """The latest refusal."""
        self.refused_at = now
        self.deadline = now + wait_s
        self.room = ""

    def refuse(self) -> None:
        """Refuse as the bucket did when it was last asked, and for as long from now on: others have taken from it since."""
        if not self.decided.done():
            since_s = self.decided.get_loop().time() - self.refused_at
            self.decided.set_result(msgspec.structs.replace(self.last_refusal, now=self.last_refusal.now + since_s))


class _WaitingRoom:
    """The requests that wait for one bucket."""

    __slots__ = ("nudged", "queue", "server")

    def __init__(self) -> None:
        self.queue: FairQueue[_Waiter] = FairQueue(bound=MOST_WAITING, per_caller=_PER_CALLER)
        self.nudged = asyncio.Event()
        self.server: asyncio.Task[None] | None = None


class LimitStage:
    """The limit stage of one event loop."""

    def __init__(self, buckets: BucketStore) -> None:
        self._buckets = buckets
        self._rooms: dict[str, _WaitingRoom] = {}
        self.top_talkers = TopTalkers()
        self.waiting = 0
        self._waiting_of: dict[str, int] = {}
        """How many requests of each caller wait, in all rooms."""
        self.absorbed_total = 0
        """Requests that waited and were then admitted."""

    async def admit(self, takes: Sequence[Take], principal: Principal, lease: str, patience_s: float = 0.0) -> Ticket:
        """Take, or wait to take. ``patience_s`` is the wait that the caller asks for; a limit's ``absorb_s`` may be more.

        The ticket's decision may be a refusal. When cancelled, it leaves no place held.
        """
        name = lease.encode("ascii")
        decision = self._buckets.take_now(takes, name) or await self._buckets.take(takes, name)
        refusal = decision.refusal
        self.top_talkers.note(principal.id, refusal is not None, decision.now)
        if refusal is not None:
            wait_s = max(patience_s, refusal.limit.absorb_s)
            if wait_s and refusal.retry_after_s <= wait_s and self._has_room(principal.id):  # as in ``is_final``
                return await self._wait(takes, name, principal, decision, wait_s)
        return Ticket(self, takes, name, decision)

    def admit_now(self, takes: Sequence[Take], principal: Principal, *, refusing: bool = False) -> Decision | None:
        """As ``admit``, for takes that need no settling (``Ticket.needs_settling``), where the store can decide at once;
        None otherwise, with nothing taken. ``refusing``: as in ``accept_decision``."""
        decision = self._buckets.take_now(takes)
        if decision is not None and (decision.allowed or (refusing and is_final(decision))):
            self.top_talkers.note(principal.id, not decision.allowed, decision.now)
        return decision

    def admit_soon(self, takes: Sequence[Take], then: Callable[[Decision], None]) -> Cancellable:
        """As ``admit_now``, where the store must be asked; ``then`` is called once, later."""
        return self._buckets.take_soon(takes, then)

    def accept_decision(self, decision: Decision, principal: Principal, *, refusing: bool) -> bool:
        """Whether a decision from ``admit_soon`` holds: an admission does, and a refusal where it is of use (``refusing``)
        and its limit lets nobody wait. Otherwise nothing was taken, and ``admit`` is to be asked."""
        if not (decision.allowed or (refusing and is_final(decision))):
            return False
        self.top_talkers.note(principal.id, not decision.allowed, decision.now)
        return True

    def refuse_now(self, takes: Sequence[Take], principal: Principal) -> Decision | None:
        """The refusal of ``admit``, where it would refuse at once, for certain and without a wait; None otherwise. Nothing
        is taken."""
        decision = self._buckets.refused_now(takes)
        if decision is None or not is_final(decision):
            return None
        self.top_talkers.note(principal.id, True, decision.now)
        return decision

    def settle(self, changes: Sequence[Take]) -> None:
        """As the store's ``settle``; those who wait for one of the buckets look again."""
        self._buckets.settle(changes)
        self._nudge(changes)

    def release(self, takes: Sequence[Take], lease: bytes) -> None:
        """As the store's ``release``; those who wait for one of the places look again."""
        self._buckets.release(takes, lease)
        self._nudge(takes)

    def undo(self, takes: Sequence[Take], decision: Decision, lease: bytes) -> None:
        """Give back what ``decision`` allowed; a refusal took nothing."""
        if not decision.allowed:
            return
        self.settle([Take(take.key, take.limit, -take.cost) for take in _tokens(takes, decision)])
        self.release([take for take in takes if take.limit.concurrent], lease)

    async def look(self, takes: Sequence[Take]) -> Decision:
        """As the store's ``look``: nothing is taken."""
        return await self._buckets.look(takes)

    async def close(self) -> None:
        """Refuse all who wait."""
        rooms, self._rooms = self._rooms, {}
        for room in rooms.values():
            while (waiter := room.queue.pop()) is not None:
                waiter.refuse()
            if room.server is not None:
                room.server.cancel()
        await asyncio.gather(*[room.server for room in rooms.values() if room.server], return_exceptions=True)

    async def _wait(
        self, takes: Sequence[Take], lease: bytes, principal: Principal, last_refusal: Decision, wait_s: float
    ) -> Ticket:
        loop = asyncio.get_running_loop()
        started = loop.time()
        waiter = _Waiter(takes, lease, principal, loop.create_future(), last_refusal, started, wait_s)
        timer = loop.call_at(waiter.deadline, waiter.refuse)
        self.waiting += 1
        self._waiting_of[waiter.caller] = self._waiting_of.get(waiter.caller, 0) + 1
        self._enter(waiter)
        try:
            decision = await waiter.decided
        except asyncio.CancelledError:
            if waiter.decided.done() and not waiter.decided.cancelled():
                self.undo(takes, waiter.decided.result(), lease)  # its turn came at the very moment it left
            raise
        finally:
            # A client that went away leaves its place at once: those behind it must not wait for a ghost.
            self.waiting -= 1
            self._waiting_of[waiter.caller] -= 1
            if not self._waiting_of[waiter.caller]:
                del self._waiting_of[waiter.caller]
            timer.cancel()
            room = self._rooms.get(waiter.room)
            if room is not None:
                room.queue.discard(waiter.caller, waiter.priority, waiter)
        if decision.allowed:
            self.absorbed_total += 1
        return Ticket(self, takes, lease, decision, loop.time() - started)

    def _has_room(self, caller: str) -> bool:
        return self.waiting < MOST_WAITING and self._waiting_of.get(caller, 0) < _PER_CALLER

    def _nudge(self, takes: Sequence[Take]) -> None:
        if self._rooms:
            for take in takes:
                room = self._rooms.get(take.key)
                if room is not None:
                    room.nudged.set()

    def _enter(self, waiter: _Waiter) -> None:
        """Put the waiter into the room of the bucket that refused it."""
        key = _refusing(waiter.takes, waiter.last_refusal)
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = _WaitingRoom()
        waiter.room = key
        shed = room.queue.push(waiter.caller, waiter.priority, waiter)
        if shed is not None:
            shed.refuse()
        if room.queue and (room.server is None or room.server.done()):
            refusal = waiter.last_refusal.refusal
            wait_s = _soonest(refusal) if refusal is not None else _SOONEST_S
            room.server = asyncio.get_running_loop().create_task(self._serve(key, room, wait_s), name="limit-room")

    async def _serve(self, key: str, room: _WaitingRoom, wait_s: float) -> None:
        """Admit from the room until nobody waits there any more."""
        while room.queue:
            await _pause(room, wait_s)
            wait_s = await self._admit_in_turn(key, room)
        if self._rooms.get(key) is room:
            del self._rooms[key]

    async def _admit_in_turn(self, key: str, room: _WaitingRoom) -> float:
        """Admit in turn until the bucket refuses; return for how long it will, in seconds."""
        now = asyncio.get_running_loop().time
        while (waiter := room.queue.pop()) is not None:
            if waiter.decided.done():
                continue
            try:
                decision = await self._buckets.take(waiter.takes, waiter.lease)
            except asyncio.CancelledError:
                waiter.refuse()
                raise
            refusal = decision.refusal
            if waiter.decided.done():
                self.undo(waiter.takes, decision, waiter.lease)  # the request is no longer there
            elif refusal is None:  # admitted, or the store is away and fails closed
                waiter.decided.set_result(decision)
            else:
                waiter.last_refusal, waiter.refused_at = decision, now()
                if now() + refusal.retry_after_s > waiter.deadline and not refusal.limit.concurrent:
                    waiter.refuse()
                elif _refusing(waiter.takes, decision) != key:
                    self._enter(waiter)
                else:
                    room.queue.push_front(waiter.caller, waiter.priority, waiter)
                    return _soonest(refusal)
        return _SOONEST_S


def is_final(decision: Decision) -> bool:
    """Whether a bucket has refused and its limit lets nobody wait for it."""
    refusal = decision.refusal
    return refusal is not None and not (refusal.limit.absorb_s and refusal.retry_after_s <= refusal.limit.absorb_s)


def limit_rejection(decision: Decision) -> Rejection:
    """A refusal as the rejection that its client gets."""
    if decision.unavailable:
        return Rejection(
            Code.LIMITER_UNAVAILABLE,
            503,
            "503 Service Unavailable",
            headers=((b"Retry-After", b"1"),),
            source=Source.INTERNAL,
            proxy_error="destination_unavailable",
        )
    return rate_limited()


def lasts_s(decision: Decision) -> float:
    """How long a refusal lasts."""
    refusal = decision.refusal
    return refusal.retry_after_s if refusal is not None else 0.0


def note(decision: Decision, x: Exchange) -> None:
    """Note in ``x`` what the buckets said, for the audit and the metrics."""
    limit = decision.limit
    if limit is not None:
        remaining = decision.remaining
        x.limit_id = limit.id
        x.limit_remaining = remaining
        x.limit_near = remaining < _NEAR * limit.burst
        x.limit_shadow = ""
        return
    state = decision.refusal or decision.tightest
    if state is not None:
        x.limit_id, x.limit_remaining = state.limit.id, state.remaining
        x.limit_near = decision.allowed and state.remaining < _NEAR * state.limit.burst
    x.limit_shadow = decision.shadowed


def _tokens(takes: Sequence[Take], decision: Decision) -> list[Take]:
    """The tokens that were taken for ``takes``; places are left out."""
    return [
        Take(take.key, take.limit, affordable(take.limit, take.cost))
        for take, bucket in paired(takes, decision)
        if bucket.allowed and not take.limit.concurrent
    ]


def _refusing(takes: Sequence[Take], decision: Decision) -> str:
    refusal = decision.refusal
    return next((take.key for take, bucket in paired(takes, decision) if bucket is refusal), "")


def _soonest(refusal: BucketState) -> float:
    """How soon it is worth asking again, in seconds from now."""
    return max(_LOOK_EVERY_S if refusal.limit.concurrent else _SOONEST_S, refusal.retry_after_s)


async def _pause(room: _WaitingRoom, wait_s: float) -> None:
    """Wait until it is worth asking again."""
    timer = asyncio.get_running_loop().call_later(wait_s, room.nudged.set)
    try:
        await room.nudged.wait()
        room.nudged.clear()
    finally:
        timer.cancel()
