"""Token buckets shared by every gateway: one script call for all takes of one turn of the event loop.

No request waits longer than the link's timeout, and none waits at all while Redis is known to be away: the failure policy
decides instead, and never raises. A refusal that is certain from the last answers costs Redis nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial

from ..core.limits import LEASE_S, BucketState, Decision, Limit, OnOutage, Scope, Take, Takes, affordable, bucket_state
from ..ports import Cancellable
from .bucket_local import LocalBuckets
from .bucket_peek import peek
from .bucket_script import BatchItem, BucketOp, Script, TakePacker, decisions
from .redis_link import RedisError, RedisLink, RedisUnavailable, RedisValue

_BATCH = 128
"""The most requests in one script call: about a millisecond of Redis's time, in which it serves nobody else."""
_FAILURES_TO_OPEN = 5
_PROBE_EVERY_S = 0.5
_KNOWN_BOUND = 32_768
_GATEWAYS = "{gw}:gateways"
_COUNT_EVERY_S = 5.0
_SILENT_AFTER_S = 15
_TRUSTED_S = 1.0
"""How long a refusal stays certain without asking Redis: another gateway or an operator may have given tokens back."""
_RENEW_EVERY_S = LEASE_S / 3
_PROBE = Take("{gw}:probe", Limit("probe", Scope.ORGANISATION, 1.0, 1e6))

# A global, since it is read for every request: an enum's class looks its members up anew each time.
_TAKE = BucketOp.TAKE

log = logging.getLogger("gateway.stores")


class RedisBuckets:
    """A bucket store with a Redis link of its own, for one event loop."""

    def __init__(
        self,
        link: RedisLink,
        *,
        on_outage: OnOutage = OnOutage.LOCAL,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` (Unix seconds) serves the local fallback only: while Redis answers, only Redis's clock counts."""
        self._link = link
        self._on_outage = on_outage
        self._clock = clock
        self._monotonic = monotonic
        self._take_script = Script.named("take.lua")
        self._count_script = Script.named("gateways.lua")
        self._packer = TakePacker()
        self._name = secrets.token_hex(8)
        self._waiting: list[BatchItem] = []
        """Items to be sent at the end of this turn of the event loop."""
        self._known: dict[str, tuple[float, float, float]] = {}
        self._known_before: dict[str, tuple[float, float, float]] = {}
        self._short: set[str] = set()
        """Buckets that refused or held less than one token when last heard of: of others no refusal is certain."""
        self._redis_ahead = clock() - monotonic()
        self._failures = 0
        self._prober: asyncio.Task[None] | None = None
        self._counted_at = float("-inf")
        self._gateways = 1
        """How many gateways share these buckets, by the last count."""
        self._local = LocalBuckets(clock=clock)
        self._closed = False
        self._held: dict[bytes, Sequence[Take]] = {}
        """Places of requests in progress, by lease: those that Redis gave, or may have given without answering."""
        self._unreleased: dict[bytes, Sequence[Take]] = {}
        """Places of finished requests that Redis could not be told to free: at most those held as an outage began."""
        self._renewal: asyncio.TimerHandle | None = None

    @property
    def degraded(self) -> bool:
        """Whether the last script calls failed, so that the failure policy decides until a probe succeeds."""
        return self._failures >= _FAILURES_TO_OPEN

    async def take(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
        if not takes:
            return Decision(True, (), self._clock())
        if self._failures >= _FAILURES_TO_OPEN or self._closed:
            return self._without_redis(takes, lease)
        certain = self.refused_now(takes)
        if certain is not None:
            return certain
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        item = BatchItem(takes, lease, _TAKE, partial(_resolve, decided))
        self._enqueue(item)
        try:
            return await decided
        except asyncio.CancelledError:
            if item.then is None and lease:
                self.release(takes, lease)  # it was decided meanwhile, and the decision reached nobody
            item.cancel()
            raise

    def take_now(self, takes: Sequence[Take], lease: bytes = b"") -> Decision | None:
        if self._failures >= _FAILURES_TO_OPEN or self._closed:
            return self._without_redis(takes, lease)
        return self._certainly_refused(takes) if self._short else None

    def take_soon(self, takes: Sequence[Take], then: Callable[[Decision], None]) -> Cancellable:
        if self._failures >= _FAILURES_TO_OPEN or self._closed:
            return asyncio.get_running_loop().call_soon(then, self._without_redis(takes, b""))
        item = BatchItem(takes, b"", _TAKE, then)
        self._enqueue(item)
        return item

    def refused_now(self, takes: Sequence[Take]) -> Decision | None:
        if self._failures >= _FAILURES_TO_OPEN or self._closed:
            return None
        return self._certainly_refused(takes) if self._short else None

    async def look(self, takes: Sequence[Take]) -> Decision:
        try:
            return await peek(self._link, takes)
        except RedisUnavailable:
            return Decision(True, (), self._clock(), degraded=True)

    def settle(self, changes: Sequence[Take]) -> None:
        if self._failures >= _FAILURES_TO_OPEN:
            self._local.settle(changes)
        elif changes and not self._closed:
            for change in changes:
                if change.cost < 0:  # a refusal that was certain before no longer is
                    self._known.pop(change.key, None)
                    self._known_before.pop(change.key, None)
            self._enqueue(BatchItem(changes, op=BucketOp.SETTLE))

    def release(self, takes: Sequence[Take], lease: bytes) -> None:
        self._local.release(takes, lease)
        places = self._held.pop(lease, None)  # only the places among `takes`: the script would empty the other buckets
        if places is None or self._closed:
            return
        if self._failures < _FAILURES_TO_OPEN:
            self._enqueue(BatchItem(places, lease, BucketOp.RELEASE))
        else:
            self._unreleased[lease] = places

    async def close(self) -> None:
        """Close the store and its link. The failure policy decides for the requests that still wait."""
        self._closed = True
        if self._renewal is not None:
            self._renewal.cancel()
        prober, self._prober = self._prober, None
        if prober is not None:
            prober.cancel()
            await asyncio.gather(prober, return_exceptions=True)
        await self._leave()
        await self._link.close()

    # One turn's takes

    def _enqueue(self, item: BatchItem) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(item)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        # A request that was given up takes nothing.
        waiting = [item for item in waiting if item.then is not None or item.op is not _TAKE]
        for start in range(0, len(waiting), _BATCH):
            self._send(waiting[start : start + _BATCH], in_full=False)

    def _send(self, batch: list[BatchItem], *, in_full: bool) -> None:
        octets = self._packer.command(self._take_script.in_full if in_full else self._take_script.by_hash, batch)
        sent_at = self._monotonic()
        try:
            self._link.call_now(octets, partial(self._on_reply, batch, sent_at))
        except RedisUnavailable:
            self._on_failure(batch)
            return
        if sent_at - self._counted_at >= _COUNT_EVERY_S:
            self._counted_at = sent_at
            self._recount()

    def _on_reply(
        self, batch: list[BatchItem], sent_at: float, replies: list[RedisValue | RedisError] | RedisUnavailable
    ) -> None:
        answer = replies if isinstance(replies, RedisUnavailable) else replies[0]
        if isinstance(answer, RedisError) and answer.kind == "NOSCRIPT":
            # Redis lost the script in a restart, a flush or a failover. Sent in full, it runs and is known again; nothing
            # has been taken yet.
            self._send(batch, in_full=True)
            return
        try:
            results = decisions(batch, answer)
        except ValueError:
            self._link.mark_unwell(answer)
            self._on_failure(batch)
            return
        if self._failures:
            if any(map(_proves_writable, batch, results)):
                self._on_recovery()
            elif self._unreleased:
                asyncio.get_running_loop().call_soon(self._release_rest)
        self._learn(batch, results, sent_at)
        for item, decision in zip(batch, results, strict=True):
            if item.lease and item.op is _TAKE:
                if decision.allowed:
                    self._hold_places(item)
                if item.then is None:
                    self.release(item.takes, item.lease)  # given up in the meantime: not in progress
            _deliver(item, decision)

    # Places

    def _hold_places(self, item: BatchItem) -> None:
        places = [take for take in item.takes if take.limit.concurrent]
        if places:
            self._held[item.lease] = places
            if self._renewal is None and not self._closed:
                self._renewal = asyncio.get_running_loop().call_later(_RENEW_EVERY_S, self._renew)

    def _renew(self) -> None:
        """Renew the leases of all requests in progress."""
        self._renewal = None
        if not self._held or self._closed:
            return
        if self._failures < _FAILURES_TO_OPEN:
            for lease, places in self._held.items():
                self._enqueue(BatchItem(places, lease, BucketOp.RENEW))
        self._renewal = asyncio.get_running_loop().call_later(_RENEW_EVERY_S, self._renew)

    def _release_rest(self) -> None:
        """Release what Redis could not be told of while it was away, except leases that were taken anew since."""
        unreleased, self._unreleased = self._unreleased, {}
        for lease, places in unreleased.items():
            if lease not in self._held and not self._closed:
                self._enqueue(BatchItem(places, lease, BucketOp.RELEASE))

    # What the last answers said

    def _learn(self, batch: list[BatchItem], results: list[Decision], sent_at: float) -> None:
        heard_at = self._monotonic()
        self._redis_ahead = results[-1].now - sent_at
        last: dict[str, float] = {}
        short: list[str] = []
        learnt: Takes | None = None
        for at in range(len(results) - 1, -1, -1):  # the last decision about a bucket says what is left in it
            decision = results[at]
            takes = decision.takes
            if takes is not None:
                if takes is not learnt:  # requests of one caller often come together
                    learnt = takes
                    for number, key in enumerate(takes.keys):
                        if key not in last:
                            last[key] = decision.lefts[number]
                continue
            for take, bucket in zip(batch[at].takes, decision.given_states, strict=True):
                if not take.limit.concurrent:  # a place may come free at any moment
                    last.setdefault(take.key, bucket.remaining)
                    if not bucket.allowed:
                        short.append(take.key)
        known = self._known
        for key, left in last.items():
            known[key] = (left, sent_at, heard_at)
            if left < 1.0:
                short.append(key)
        if self._short or short:
            self._short.difference_update(last)
            self._short.update(short)
        if len(known) >= _KNOWN_BOUND:
            # Two generations, the older one dropped whole: bounded without ordering every entry.
            self._known, self._known_before = {}, known
            self._short.intersection_update(known)

    def _upper_bound(self, take: Take, now: float, within_s: float = float("inf")) -> float | None:
        """The most that the bucket can hold by now: others may have taken from it since, and few give back. None when
        nothing is known, or when it was asked for longer ago than ``within_s``.

        The refill is reckoned from when the call was *sent*: Redis answered later, so less has flowed back than this says.
        """
        known = self._known.get(take.key) or self._known_before.get(take.key)
        if known is None or now - known[1] > within_s:
            return None
        return min(take.limit.burst, known[0] + (now - known[1]) * take.limit.rate)

    def _certainly_refused(self, takes: Sequence[Take]) -> Decision | None:
        for take in takes:
            if take.key in self._short:
                break
        else:
            return None
        now = self._monotonic()
        for take in takes:
            most = self._upper_bound(take, now, within_s=_TRUSTED_S)
            if most is not None and most < affordable(take.limit, take.cost) and not take.limit.shadow:
                break
        else:
            return None
        states: list[BucketState] = []
        for take in takes:
            # Reckoned from when the answer was heard: a client that waits as long as this says is not too early.
            known = self._known.get(take.key) or self._known_before.get(take.key)
            burst = take.limit.burst
            tokens = burst if known is None else min(burst, known[0] + (now - known[2]) * take.limit.rate)
            states.append(bucket_state(take.limit, tokens >= affordable(take.limit, take.cost), tokens, take.cost))
        return Decision(False, tuple(states), now + self._redis_ahead)

    # Without Redis

    def _on_recovery(self) -> None:
        """Note that Redis accepts writes again."""
        self._failures = 0
        self._local.clear()
        if self._unreleased:
            asyncio.get_running_loop().call_soon(self._release_rest)

    def _on_failure(self, batch: list[BatchItem]) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_OPEN and self._prober is None and not self._closed:
            self._prober = asyncio.get_running_loop().create_task(self._probe(), name="bucket-probe")
        for item in batch:
            if item.op is BucketOp.RELEASE:
                self._unreleased[item.lease] = item.takes
            elif item.op is _TAKE:
                decision = self._without_redis(item.takes, item.lease) if item.then is not None else None
                if item.lease:
                    # A script that was not answered may have run all the same.
                    self._hold_places(item)
                    if decision is None or not decision.allowed:
                        self.release(item.takes, item.lease)
                if decision is not None:
                    _deliver(item, decision)

    def _without_redis(self, takes: Sequence[Take], lease: bytes) -> Decision:
        """Decide by each limit's own failure policy, or by the store's where it has none."""
        counted: list[Take] = []
        for take in takes:
            policy = take.limit.on_outage or self._on_outage
            if policy is OnOutage.LOCAL:
                counted.append(take)
            elif policy is OnOutage.CLOSED and not take.limit.shadow:
                return Decision(False, (), self._clock(), degraded=True, unavailable=True)
        if not counted:
            return Decision(True, (), self._clock(), degraded=True)
        now = self._monotonic()
        known = [self._upper_bound(take, now) for take in counted]
        return self._local.take(counted, known, 1 / self._gateways, lease)

    async def _probe(self) -> None:
        """Try a take that writes until Redis accepts it: a replica or a full Redis answers everything but that."""
        while self._failures >= _FAILURES_TO_OPEN:
            await asyncio.sleep(_PROBE_EVERY_S)
            arguments = self._packer.arguments([BatchItem((_PROBE,))])
            try:
                (answer,) = await self._link.execute_many([("EVAL", self._take_script.text, *arguments)])
            except RedisUnavailable:
                continue
            try:
                decisions([BatchItem((_PROBE,))], answer)
            except ValueError:
                self._link.mark_unwell(answer)
                continue
            self._on_recovery()
        self._prober = None

    # How many share the buckets

    async def _leave(self) -> None:
        """Stop being counted: the other gateways' shares grow from their next count on."""
        if self._counted_at > float("-inf") and self._link.healthy:
            with contextlib.suppress(RedisUnavailable, RedisError):  # otherwise forgotten once it has been silent
                await self._link.execute("ZREM", _GATEWAYS, self._name)

    def _recount(self) -> None:
        """Count the gateways without delaying any request; the answer is for the next outage."""
        if self._closed:
            return
        try:
            counted = self._link.submit([("EVAL", self._count_script.text, 1, _GATEWAYS, self._name, _SILENT_AFTER_S)])
        except RedisUnavailable:
            return
        counted.add_done_callback(self._on_count)

    def _on_count(self, counted: asyncio.Future[list[RedisValue | RedisError]]) -> None:
        if counted.cancelled() or counted.exception() is not None:
            return
        answer = counted.result()[0]
        if isinstance(answer, int) and answer > 0:
            self._gateways = answer


def _proves_writable(item: BatchItem, decision: Decision) -> bool:
    """Whether the decision proves that Redis accepts writes. A replica or a full Redis still answers refusals, which write
    nothing; a full one also still frees places."""
    return decision.allowed and item.op is _TAKE


def _deliver(item: BatchItem, decision: Decision) -> None:
    """Pass the decision on, once, to whoever still waits for it. A fault there goes no further: behind this call others
    wait for their decisions, and the link for its replies."""
    then, item.then = item.then, None
    if then is None:
        return
    try:
        then(decision)
    except Exception:
        log.exception("bucket decision callback failed")


def _resolve(decided: asyncio.Future[Decision], decision: Decision) -> None:
    if not decided.done():
        decided.set_result(decision)
