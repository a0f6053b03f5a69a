"""A plain shared cache in front of one origin: one ``fetch``, whose decisions are made in ``core/caching.py`` (RFC 9111).

Variants of one target (``Vary``, ranges) live under one key, newest last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from ..core.cache_control import RequestDirectives, request_directives, response_directives
from ..core.cache_entry import Entry, freshen
from ..core.cache_key import shared_key
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.caching import (
    CONDITIONS,
    SAFE_METHODS,
    ReuseVerdict,
    Use,
    conditions,
    describes,
    invalidated_targets,
    judge,
    storable,
)
from ..core.errors import Rejection
from ..core.messages import first, without
from ..ports import CacheStore, Cancellable, Lookup
from ..reply import Reply
from ..singleflight import Flights
from .contract import CacheOutcome, CacheProfile, CacheRequest, Forward, Leader, PriorLookup
from .fill import tee
from .shared_fetcher import DROPPED, FetchJob, SharedFetcher, SharedPolicy
from .status_writer import CacheStatusWriter


class SharedCache:
    """RFC 9111 over a store.

    Args:
        store: Where answers are kept.
        policy: What the operator decides.
        name: What this cache calls itself in ``Cache-Status`` and as a surrogate.
        wait_s: How long a request waits for an identical one in flight.
    """

    def __init__(self, store: CacheStore, policy: SharedPolicy, *, name: str = "gateway", wait_s: float = 10.0) -> None:
        self._store = store
        self._policy = policy
        self._status_writer = CacheStatusWriter(name)
        self._fetcher = SharedFetcher(store, policy, self._status_writer)
        self._wait_s = wait_s
        self._flights: Flights[bool] = Flights()
        self._refreshes: dict[bytes, asyncio.Task[None]] = {}

    async def close(self) -> None:
        for task in tuple(self._refreshes.values()):
            task.cancel()
        await self._store.close()

    async def drop_partition(self, partition: bytes) -> None:
        del partition  # a shared cache has none

    def lead_now(self, target: bytes, profile: CacheProfile, now: Callable[[], float]) -> Leader | None:
        del target, profile, now
        return None

    def lead_soon(
        self,
        target: bytes,
        profile: CacheProfile,
        now: Callable[[], float],
        then: Callable[[Leader | PriorLookup | None], None],
    ) -> Cancellable | None:
        del target, profile, now, then
        return None

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        if request.method not in {"GET", "HEAD"}:
            return await self._forward_other_method(request, forward, now)
        if request.has_body:
            return await self._bypass(request, forward, CacheReason.BODY)
        if any(first(request.fields, name) is not None for name in (b"if-match", b"if-unmodified-since")):
            return await self._bypass(request, forward, CacheReason.CONDITIONAL)
        key = shared_key(request.target, request.reached_as)
        started, anew = now(), False
        waited_for: CacheReason | None = None
        while True:
            lookup = await self._store.get(key, (key,), anew=anew)
            if not lookup.available:
                return await self._bypass(request, forward, CacheReason.STORE_UNAVAILABLE)
            job = FetchJob(request, forward, now, key, (key,), request_directives(request.fields), lookup)
            verdict = judge(lookup.entries, request.fields, job.directives, now(), request.method)
            if lookup.near and verdict.use is not Use.REUSE:
                anew = True
                continue
            if verdict.use is Use.REUSE or verdict.use is Use.REUSE_STALE:
                return self._reuse(job, verdict, waited_for)
            if job.directives.only_if_cached:
                raise self._status_writer.only_if_cached(verdict.reason)
            if request.method == "HEAD":
                return await self._forward_head(job, verdict)
            if not self._may_share(request, job.directives, verdict):
                return await self._fetcher.ask(job, verdict, None)
            leads, flight = self._flights.join(b"%d\n%b" % (lookup.version, key))
            if leads:
                return await self._fetcher.ask(job, verdict, flight)
            left = self._wait_s - max(0.0, now() - started)
            waited_for = waited_for or verdict.reason
            settled, shared = await flight.wait(left) if left > 0 else (True, None)
            if settled and not shared:
                return await self._fetcher.ask(job, verdict, None)
            # The answer landed in the store, or the leader is gone: look again.

    @staticmethod
    def _may_share(request: CacheRequest, directives: RequestDirectives, verdict: ReuseVerdict) -> bool:
        if verdict.reason is CacheReason.REQUEST or directives.no_cache or directives.max_age_s == 0:
            return False  # an answer to an earlier request will not do
        return not request.has_authorization and not conditions(request.fields)

    # Reusing

    def _reuse(self, job: FetchJob, verdict: ReuseVerdict, waited_for: CacheReason | None) -> tuple[Reply, CacheOutcome]:
        entry = verdict.entry
        assert entry is not None, "a verdict to reuse names what"
        if verdict.background:
            self._refresh(job, entry)
        if verdict.use is Use.REUSE_STALE:
            return self._fetcher.serve(entry, job, CacheOutcome(CacheStatus.STALE, verdict.reason))
        if waited_for is not None:
            return self._fetcher.serve(entry, job, CacheOutcome(CacheStatus.COLLAPSED, waited_for))
        return self._fetcher.serve(entry, job, CacheOutcome(CacheStatus.HIT, verdict.reason))

    def _refresh(self, job: FetchJob, entry: Entry) -> None:
        """Revalidate in the background (RFC 5861 §3): one task per key at a time, kept so that it is not collected."""
        key = job.key
        if key in self._refreshes:
            return
        if not entry.partial:
            # Ask for all clients: a piece of the answer, or a 304 about what one of them holds, would not serve the others.
            request = job.request
            request = msgspec.structs.replace(request, fields=without(request.fields, CONDITIONS))
            job = msgspec.structs.replace(job, request=request)

        async def run() -> None:
            try:
                verdict = ReuseVerdict(Use.VALIDATE, CacheReason.STALE, entry)
                reply, _ = await self._fetcher.ask(job, verdict, None)
                try:
                    if reply.chunks is not None:
                        async for _chunk in reply.chunks:
                            pass  # the copy made on the way is stored
                finally:
                    reply.release()
            except Rejection:
                pass  # the next request after the window tells its client
            finally:
                del self._refreshes[key]

        self._refreshes[key] = asyncio.get_running_loop().create_task(run(), name="stale-while-revalidate")

    # HEAD (§4.3.5)

    async def _forward_head(self, job: FetchJob, verdict: ReuseVerdict) -> tuple[Reply, CacheOutcome]:
        requested_at = job.now()
        reply = await job.forward(self._fetcher.as_surrogate(conditions(job.request.fields)))
        outcome = CacheOutcome(CacheStatus.MISS, verdict.reason)
        outcome.upstream_status = reply.head.status
        try:
            stored = verdict.entry
            if stored is not None and reply.head.status == 200 and not stored.partial:
                if describes(stored, reply.head):
                    fresh = freshen(
                        stored,
                        reply.head,
                        requested_at=requested_at,
                        received_at=job.now(),
                        dropped=DROPPED,
                        surrogate=self._status_writer.name,
                    )
                    outcome.stored = await self._fetcher.update(job, stored, reply.head, fresh)
                else:
                    await self._store.delete(job.key)
                    outcome.stored = Stored.DROPPED
        except BaseException:
            reply.release()
            raise
        return self._status_writer.upstream_answer(reply, outcome), outcome

    # Bypassing the cache

    async def _bypass(self, request: CacheRequest, forward: Forward, reason: CacheReason) -> tuple[Reply, CacheOutcome]:
        # RFC 9111 §4: an unsafe request must be written through.
        if request.method in SAFE_METHODS and request_directives(request.fields).only_if_cached:
            raise self._status_writer.only_if_cached(reason)
        outcome = CacheOutcome(CacheStatus.BYPASS, reason)
        reply = await forward(self._fetcher.as_surrogate(conditions(request.fields)))
        outcome.upstream_status = reply.head.status
        return self._status_writer.upstream_answer(reply, outcome), outcome

    async def _forward_other_method(
        self, request: CacheRequest, forward: Forward, now: Callable[[], float]
    ) -> tuple[Reply, CacheOutcome]:
        """Forward another method. What an unsafe one made doubtful is purged; a POST may leave an answer for GET."""
        lookup = Lookup()
        key = shared_key(request.target, request.reached_as)
        requested_at = now()
        reply, outcome = await self._bypass(request, forward, CacheReason.METHOD)
        try:
            host = request.reached_as.partition(b"\x00")[0].partition(b"://")[2]
            gone = invalidated_targets(request.method, request.target, reply.head, host)
            if gone:
                await self._store.purge(tuple(shared_key(target, request.reached_as) for target in gone))
            if request.method != "POST" or request.method in SAFE_METHODS:
                return reply, outcome
            lookup = await self._store.get(key, (key,), anew=True)
            job = FetchJob(request, forward, now, key, (key,), request_directives(request.fields), lookup)
            answer_directives = response_directives(reply.head.fields, self._status_writer.name)
            outcome.stored = storable(
                "POST",
                request.target,
                reply.head,
                answer_directives,
                no_store=job.directives.no_store,
                authorized=request.has_authorization,
            )
            if outcome.stored is not Stored.STORED or not lookup.available:
                return reply, outcome
            head, received_at = reply.head, now()

            async def commit(body: bytes) -> None:
                if not await self._fetcher.keep(job, self._fetcher.entry(job, head, body, requested_at, received_at)):
                    outcome.stored = Stored.INVALIDATED

            def void(why: Stored) -> None:
                outcome.stored = why

            return await tee(reply, self._policy.max_entry_bytes, commit, void), outcome
        except BaseException:
            reply.release()
            raise
