"""Asks the origin for a plain shared cache, with the stored answers' validators; the answer is served and stored.

Variants of one target (``Vary``, ranges) live under one key, newest last.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..core.byte_ranges import parse_content_range
from ..core.cache_control import RequestDirectives, response_directives
from ..core.cache_entry import Entry, freshen, make_entry
from ..core.cache_key import selecting, vary_names
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.caching import (
    ReuseVerdict,
    Use,
    answer_from_entry,
    conditions,
    find_validated,
    is_continuation,
    is_failure,
    joined_head,
    judge,
    keep_s,
    may_serve_stale,
    may_update,
    must_drop_stored,
    remainder_conditions,
    select,
    storable,
    validators,
)
from ..core.errors import Rejection, Source
from ..core.messages import Fields, ResponseHead, first
from ..ports import CacheStore, Lookup
from ..reply import Reply
from ..singleflight import Flight
from .contract import CacheOutcome, CacheRequest, Forward, with_status
from .fill import read_ahead, tee
from .status_writer import CacheStatusWriter

DROPPED = frozenset({b"cache-status"})
_MOST_VARIANTS = 16
_NO_DIRECTIVES = RequestDirectives()


class SharedPolicy(msgspec.Struct, frozen=True):
    """What the operator decides. Durations in seconds."""

    stale_if_error_s: float = 0.0
    """Applies where neither origin nor client says anything (RFC 9111 §4.2.4)."""
    max_entry_bytes: int = 2 << 20
    grace_s: float = 86_400.0
    """How long an expired answer is kept to be validated."""


class FetchJob(msgspec.Struct, frozen=True):
    """One GET or HEAD."""

    request: CacheRequest
    forward: Forward
    now: Callable[[], float]
    key: bytes
    tags: tuple[bytes, ...]
    directives: RequestDirectives
    lookup: Lookup


class SharedFetcher:
    """One gateway's fetches from the origin.

    Args:
        store: Where answers go.
        policy: What the operator decides.
        status_writer: Writes the member of ``Cache-Status``; its name is also this cache's as a surrogate.
    """

    def __init__(self, store: CacheStore, policy: SharedPolicy, status_writer: CacheStatusWriter) -> None:
        self._store = store
        self._policy = policy
        self._status_writer = status_writer

    async def ask(self, job: FetchJob, verdict: ReuseVerdict, flight: Flight[bool] | None) -> tuple[Reply, CacheOutcome]:
        """Ask the origin, with the stored answers' validators where there are any."""
        handed_on = False
        try:
            entry, fields = verdict.entry, job.request.fields
            rivals: tuple[Entry, ...] = ()
            client_conditions = upstream_conditions = conditions(fields)
            if verdict.use is Use.VALIDATE and entry is not None and not entry.partial:
                rivals = tuple(other for other in select(job.lookup.entries, fields) if not other.partial)
                ours = validators(entry)
                # Without a validator of ours, a 304 would be about the client's validator, of which we hold nothing.
                upstream_conditions, rivals = (ours, rivals) if ours else (upstream_conditions, ())
            elif verdict.reason is CacheReason.VARY_MISS and not upstream_conditions:
                # §4.1: the origin may know that one of the other variants also answers this request.
                rivals = tuple(other for other in job.lookup.entries if other.etag and not other.partial)
                upstream_conditions = validators(rivals[0], rivals[1:])[:1] if rivals else ()
            elif verdict.reason is CacheReason.PARTIAL and entry is not None and not upstream_conditions:
                upstream_conditions = remainder_conditions(entry)
            requested_at = job.now()
            try:
                reply = await job.forward(self.as_surrogate(upstream_conditions))
            except Rejection as failure:
                stand_in = self._stand_in(job, verdict)
                if failure.source is not Source.UPSTREAM or stand_in is None:
                    raise
                return self.serve(stand_in, job, CacheOutcome(CacheStatus.STALE, CacheReason.STALE_IF_ERROR))
            try:
                if is_failure(reply.head.status) and (stand_in := self._stand_in(job, verdict)) is not None:
                    outcome = CacheOutcome(CacheStatus.STALE, CacheReason.STALE_IF_ERROR)
                    outcome.upstream_status = reply.head.status
                    reply.release()
                    return self.serve(stand_in, job, outcome)
                if reply.head.status == 304 and rivals:
                    known = find_validated(rivals, reply.head)
                    if known is not None:
                        return await self._freshen(job, verdict, known, reply, requested_at, flight)
                    reply.release()
                    requested_at = job.now()
                    reply = await job.forward(self.as_surrogate(()))
                elif upstream_conditions and verdict.reason is CacheReason.PARTIAL and reply.head.status in {206, 416}:
                    assert entry is not None, "there is a piece to complete"
                    whole = await self._complete(job, entry, reply, requested_at)
                    if whole is not None:
                        return whole
                    if not client_conditions:
                        reply.release()
                        requested_at = job.now()
                        reply = await job.forward(self.as_surrogate(()))
                answered = await self._relay(job, verdict, reply, requested_at, flight)
                handed_on = True
                return answered
            except BaseException:
                reply.release()
                raise
        finally:
            if flight is not None and not handed_on:
                flight.abandon()

    def as_surrogate(self, fields: Fields) -> Fields:
        return (*fields, (b"Surrogate-Capability", b'%b="Surrogate/1.0"' % self._status_writer.name.encode()))

    def _stand_in(self, job: FetchJob, verdict: ReuseVerdict) -> Entry | None:
        """The stored answer that may be served while the origin fails."""
        entry = verdict.entry if verdict.use is Use.VALIDATE else None
        if entry is None or not may_serve_stale(entry, job.directives, job.now(), self._policy.stale_if_error_s):
            return None
        return entry

    async def _freshen(
        self,
        job: FetchJob,
        verdict: ReuseVerdict,
        known: Entry,
        reply: Reply,
        requested_at: float,
        flight: Flight[bool] | None,
    ) -> tuple[Reply, CacheOutcome]:
        fields, head = job.request.fields, reply.head
        reply.release()
        names = vary_names(head.fields) if first(head.fields, b"vary") is not None else vary_names(known.fields)
        fresh = freshen(
            known,
            head,
            requested_at=requested_at,
            received_at=job.now(),
            dropped=DROPPED,
            selecting=selecting(names or (), fields),
            surrogate=self._status_writer.name,
        )
        outcome = CacheOutcome(CacheStatus.REVALIDATED, verdict.reason)
        outcome.upstream_status = 304
        outcome.stored = await self.update(job, known, head, fresh)
        if flight is not None:
            flight.land(outcome.stored is Stored.FRESHENED and _is_reusable(fresh, job))
        return self.serve(fresh, job, outcome)

    async def update(self, job: FetchJob, known: Entry, head: ResponseHead, fresh: Entry) -> Stored:
        """Store ``fresh``, which is ``known`` as ``head`` updates it, in its place, where others may have it."""
        verdict = may_update(
            known,
            job.request.target,
            head,
            self._status_writer.name,
            no_store=job.directives.no_store,
            authorized=job.request.has_authorization,
        )
        if verdict is Stored.STORED:
            return Stored.FRESHENED if await self.keep(job, fresh) else Stored.INVALIDATED
        if must_drop_stored(verdict):
            await self._store.delete(job.key)
        return verdict

    async def _complete(
        self, job: FetchJob, entry: Entry, reply: Reply, requested_at: float
    ) -> tuple[Reply, CacheOutcome] | None:
        """Join a stored beginning and the rest that has just arrived; None: they do not fit, and ``reply`` stands."""
        head = reply.head
        piece = parse_content_range(first(head.fields, b"content-range") or b"")
        if head.status != 206 or piece is None or not is_continuation(entry, head, piece.first, piece.total):
            return None
        if entry.total > self._policy.max_entry_bytes:
            return None
        ahead = await read_ahead(reply, self._policy.max_entry_bytes)
        reply.whole, reply.chunks = ahead.whole, ahead.chunks
        rest = reply.whole
        if rest is None or len(entry.body) + len(rest) != entry.total:
            return None
        reply.release()
        whole = self.entry(job, joined_head(entry, head), entry.body + rest, requested_at)
        outcome = CacheOutcome(CacheStatus.UPDATED, CacheReason.PARTIAL)
        outcome.upstream_status = 206
        outcome.stored = await self.update(job, entry, head, whole)
        if outcome.stored is Stored.FRESHENED:
            outcome.stored = Stored.STORED
        return self.serve(whole, job, outcome)

    async def _relay(
        self,
        job: FetchJob,
        verdict: ReuseVerdict,
        reply: Reply,
        requested_at: float,
        flight: Flight[bool] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Pass the origin's own answer on to the client, and into the store where that is allowed."""
        request, head = job.request, reply.head
        received_at = job.now()
        outcome = CacheOutcome(CacheStatus.MISS, verdict.reason)
        if verdict.use is Use.VALIDATE:
            outcome.status = CacheStatus.UPDATED
        outcome.upstream_status = head.status
        answer_directives = response_directives(head.fields, self._status_writer.name)
        outcome.stored = storable(
            request.method,
            request.target,
            head,
            answer_directives,
            no_store=job.directives.no_store,
            authorized=request.has_authorization,
        )
        if outcome.stored is not Stored.STORED or reply.tunnel is not None:
            if flight is not None:
                flight.land(False)
            return self._status_writer.upstream_answer(reply, outcome), outcome

        async def commit(body: bytes) -> None:
            fresh = self.entry(job, head, body, requested_at, received_at)
            try:
                if not await self.keep(job, fresh):
                    outcome.stored = Stored.INVALIDATED
                if flight is not None:
                    flight.land(_is_reusable(fresh, job))
            finally:
                if flight is not None:
                    flight.abandon()

        def void(why: Stored) -> None:
            outcome.stored = why
            if flight is not None:
                flight.land(False)

        ready = await read_ahead(reply)
        if ready.whole is None and flight is not None:
            flight.land(False)  # it ends when its client has read it all: nobody should wait for that
        teed = await tee(ready, self._policy.max_entry_bytes, commit, void)
        if first(request.fields, b"if-none-match") is not None and teed.whole is not None and head.status == 200:
            # A different answer from the stored one, and perhaps the one that the client holds.
            lookup = await self._store.get(job.key, job.tags, anew=True)
            chosen = select(lookup.entries, request.fields)
            if chosen and chosen[0].received_at == received_at:
                teed.release()
                return self.serve(chosen[0], job, outcome)
        return self._status_writer.upstream_answer(teed, outcome, answer_directives.max_age_s), outcome

    def entry(
        self,
        job: FetchJob,
        head: ResponseHead,
        body: bytes,
        requested_at: float,
        received_at: float | None = None,
    ) -> Entry:
        fields = job.request.fields
        return make_entry(
            head,
            body,
            response_directives(head.fields, self._status_writer.name),
            requested_at=requested_at,
            received_at=job.now() if received_at is None else received_at,
            dropped=DROPPED,
            selecting=selecting(vary_names(head.fields) or (), fields),
            asked_range=first(fields, b"range") or b"",
        )

    async def keep(self, job: FetchJob, fresh: Entry) -> bool:
        """Store ``fresh`` beside the other variants, in place of the one that it replaces."""
        lookup = await self._store.get(job.key, job.tags, anew=True)
        if not lookup.available:
            return False
        others = [
            other
            for other in lookup.entries
            if not (other.selecting == fresh.selecting and (other.partial <= fresh.partial or not fresh.partial))
        ]
        entries = (*others, fresh)[-_MOST_VARIANTS:]
        ttl_s = max(keep_s(entry, self._policy.grace_s) for entry in entries)
        return await self._store.put(job.key, entries, ttl_s, job.tags, job.lookup.stamp)

    def serve(self, entry: Entry, job: FetchJob, outcome: CacheOutcome) -> tuple[Reply, CacheOutcome]:
        """A stored answer for this client, its preconditions and range applied."""
        now = job.now()
        age = entry.age_s(now)
        member = self._status_writer.stored_answer(outcome, entry.lifetime_s - age)
        head, content = answer_from_entry(entry, job.request.method, job.request.fields, now)
        return Reply(with_status(head, member, age), content), outcome


def _is_reusable(entry: Entry, job: FetchJob) -> bool:
    """Whether those who waited may have it as it is. Where each must ask about it, they ask together, not in turn."""
    return judge((entry,), job.request.fields, _NO_DIRECTIVES, job.now()).use is Use.REUSE
