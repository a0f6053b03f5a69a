"""Asks GitLab about what a partition holds, or lacks: once for all who want to know, here and at other gateways.

in flight? → wait, collapsed      leased by another gateway? → wait, collapsed      else ask, with the stored validator
                                  304 → freshened · 200 → stored · 401/403/404 → dropped
                                  5xx, 429, no answer → stale, where the operator allows it
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import msgspec

from ..core.cache_control import RequestDirectives, response_directives
from ..core.cache_entry import Entry, freshen, make_entry, may_answer_304, not_modified, pick_kept
from ..core.cache_key import INERT, selecting, selects
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.cache_tags import ANONYMOUS, partition_tag
from ..core.caching import conditions, validators
from ..core.conditional import is_etag, none_match
from ..core.errors import Code, Rejection, Source
from ..core.messages import Fields, ResponseHead, first
from ..core.private_caching import (
    PER_ANSWER,
    PrivatePolicy,
    StorageVerdict,
    is_failure,
    may_serve_stale,
    must_drop_entry,
    per_answer_fields,
    revalidation_reason,
    storable,
    validator_matches,
)
from ..ports import CacheStore, Lookup
from ..reply import Reply
from ..singleflight import Flight, Flights
from .contract import CacheOutcome, CacheProfile, CacheRequest, Forward, Leases
from .entry_template import EntryTemplate, MissOutcome, storage_fields
from .fill import promised_length, read_ahead, tee
from .status_writer import CacheStatusWriter
from .tagging import Tagging, hides_secret

# Globals, since they are read for every answer: an enum's class looks its members up anew each time.
_MISS, _UPDATED, _STORED = CacheStatus.MISS, CacheStatus.UPDATED, Stored.STORED
_REQUEST = CacheReason.REQUEST
_TEMPLATES_BOUND = 16
_ANY_S = 1.0
_DROPPED = PER_ANSWER | {b"cache-status"}


class FlightResult(msgspec.Struct, frozen=True, gc=False):
    """What the leader of a flight brings to those who waited."""

    entry: Entry
    upstream_status: int
    stale: bool = False


AnswerFlight = Flight[FlightResult]
"""A fetch under way, which one request leads and others may wait for."""


class _PendingAnswer(msgspec.Struct, frozen=True):
    """An answer on its way into the store."""

    job: FetchJob
    lookup: Lookup
    head: ResponseHead
    verdict: StorageVerdict
    outcome: CacheOutcome
    flight: Flight[FlightResult] | None
    requested_at: float
    received_at: float


class FetchJob(msgspec.Struct, frozen=True):
    """One eligible GET, with everything computed once."""

    request: CacheRequest
    forward: Forward
    now: Callable[[], float]
    key: bytes
    tags: tuple[bytes, ...]
    reuse_s: float
    keep_s: float
    directives: RequestDirectives | None
    if_none_match: bytes | None
    nothing_to_learn: bool = False
    """Whether the answer can name no project that is not known."""


class PrivateFetcher:
    """One gateway's fetches under way.

    Args:
        store: Where answers go.
        policy: What the operator allows.
        status_writer: Writes the member of ``Cache-Status``.
        wait_s: How long a request waits for an identical one in flight before it goes up itself.
        tagging: Learns names from answers.
        leases: Where gateways share the store: one of them asks for what all may reuse.
    """

    def __init__(
        self,
        store: CacheStore,
        policy: PrivatePolicy,
        status_writer: CacheStatusWriter,
        *,
        wait_s: float,
        tagging: Tagging,
        leases: Leases | None = None,
    ) -> None:
        self._store = store
        self._policy = policy
        self.max_entry_bytes = policy.max_entry_bytes
        self.status_writer = status_writer
        self._wait_s = wait_s
        self.tagging = tagging
        self._leases = leases
        self.flights: Flights[FlightResult] = Flights()

    def ask(
        self, job: FetchJob, lookup: Lookup, entry: Entry | None, reason: CacheReason
    ) -> Awaitable[tuple[Reply, CacheOutcome]]:
        """Ask, unless somebody asks the very same thing already. Must be awaited at once: a flight may depend on it."""
        upstream_conditions = self._upstream_conditions(job, entry)
        if reason is _REQUEST or (entry is None and upstream_conditions) or _wants_fresh(job.directives):
            return self._lead(job, lookup, entry, reason, upstream_conditions, None)
        # The version is part of the key: whoever asks after a write must not get what was asked for before it.
        request = job.request
        leads, flight = self.flights.join(b"%d\n%b" % (lookup.version, job.key), request.priority, request.gives_way)
        if not leads:
            return self._follow(job, lookup, entry, reason, flight)
        if self._leases is not None and job.reuse_s > 0 and not flight.overtakes:
            return self._lead_all(job, lookup, entry, reason, flight, self._leases)
        return self._lead(job, lookup, entry, reason, upstream_conditions, flight)

    async def _follow(
        self, job: FetchJob, lookup: Lookup, entry: Entry | None, reason: CacheReason, flight: Flight[FlightResult]
    ) -> tuple[Reply, CacheOutcome]:
        """Wait for whoever leads, and for the next leader should that one leave; lead where nobody does."""
        request, now = job.request, job.now
        started = now()
        while True:
            left = self._wait_s - max(0.0, now() - started)
            settled, result = await flight.wait(left) if left > 0 else (True, None)
            if result is not None and self._fits(result.entry, job):
                status = CacheStatus.STALE if result.stale else CacheStatus.COLLAPSED
                why = CacheReason.STALE_IF_ERROR if result.stale else reason
                return self._serve(result.entry, job, status, why, upstream_status=result.upstream_status)
            if settled:
                return await self._lead(job, lookup, entry, reason, self._upstream_conditions(job, entry), None)
            # The leader is gone. Another may have led, and landed, before our turn came: look again.
            lookup = await self._look_again(job)
            entry, new_reason = judge_lookup(lookup, request.fields, job.directives, job.reuse_s, now())
            if new_reason is None:
                assert entry is not None, "only a stored answer needs no asking"
                return self._serve(entry, job, CacheStatus.HIT, CacheReason.FRESH)
            reason = new_reason
            upstream_conditions = self._upstream_conditions(job, entry)
            if reason is _REQUEST or (entry is None and upstream_conditions):
                return await self._lead(job, lookup, entry, reason, upstream_conditions, None)
            leads, flight = self.flights.join(b"%d\n%b" % (lookup.version, job.key), request.priority, request.gives_way)
            if leads and self._leases is not None and job.reuse_s > 0 and not flight.overtakes:
                return await self._lead_all(job, lookup, entry, reason, flight, self._leases)
            if leads:
                return await self._lead(job, lookup, entry, reason, upstream_conditions, flight)

    async def _look_again(self, job: FetchJob) -> Lookup:
        if job.request.prior_lookup is not None:
            job.request.prior_lookup.superseded = True
        return await self._store.get(job.key, job.tags, anew=True)

    @staticmethod
    def _upstream_conditions(job: FetchJob, entry: Entry | None) -> Fields:
        """The conditions to ask GitLab with."""
        if entry is not None:
            return validators(entry)
        # No conditions where an answer is reused: the full one is fetched once, for all who come within its lifetime.
        return () if job.reuse_s > 0 else conditions(job.request.fields)

    async def _lead_all(
        self,
        job: FetchJob,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        flight: Flight[FlightResult],
        leases: Leases,
    ) -> tuple[Reply, CacheOutcome]:
        """Lead for all gateways, or wait for the one that does; only once, so that nobody waits for several in turn."""
        try:
            flight.on_end = await leases.lead(b"%d\n%b" % (lookup.version, job.key))
            if flight.on_end is None:
                lookup = await self._look_again(job)
                entry, new_reason = judge_lookup(lookup, job.request.fields, job.directives, job.reuse_s, job.now())
                if new_reason is None:
                    assert entry is not None, "only a stored answer needs no asking"
                    flight.land(FlightResult(entry, 0))
                    return self._serve(entry, job, CacheStatus.COLLAPSED, reason)
                reason = new_reason
        except BaseException:
            flight.abandon()
            raise
        return await self._lead(job, lookup, entry, reason, self._upstream_conditions(job, entry), flight)

    @staticmethod
    def _fits(entry: Entry, job: FetchJob) -> bool:
        return not entry.selecting or selects(entry.selecting, entry.language, job.request.fields)

    async def _lead(
        self,
        job: FetchJob,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        upstream_conditions: Fields,
        flight: Flight[FlightResult] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Ask GitLab. Whatever happens, the flight ends: landed, or abandoned to the next leader."""
        handed_on = False
        try:
            requested_at = job.now()
            try:
                reply = await job.forward(upstream_conditions)
            except Rejection as failure:
                if failure.code is Code.BROKER_CREDENTIAL_REFUSED:  # GitLab answered: nothing may stand in for that
                    raise
                if failure.source is not Source.UPSTREAM or not self._may_stand_in(entry, job):
                    raise
                assert entry is not None, "judged to stand in"
                return self._stand_in(entry, job, flight, 0)
            try:
                if reply.head.status == 304 and entry is not None:
                    if validator_matches(entry, reply.head):
                        return await self._freshen(job, lookup, entry, reason, reply, requested_at, flight)
                    reply.release()  # it is about something that we do not hold: ask for the whole answer
                    requested_at = job.now()
                    reply = await job.forward(())
                if is_failure(reply.head.status) and self._may_stand_in(entry, job):
                    assert entry is not None, "judged to stand in"
                    status = reply.head.status
                    reply.release()
                    return self._stand_in(entry, job, flight, status)
                answered = await self._relay(job, lookup, entry, reason, reply, requested_at, flight)
                handed_on = True
                return answered
            except BaseException:
                reply.release()
                raise
        finally:
            if flight is not None and not handed_on:
                flight.abandon()

    def _may_stand_in(self, entry: Entry | None, job: FetchJob) -> bool:
        return entry is not None and may_serve_stale(entry, job.directives, self._policy, job.now())

    def _stand_in(
        self, entry: Entry, job: FetchJob, flight: Flight[FlightResult] | None, upstream_status: int
    ) -> tuple[Reply, CacheOutcome]:
        if flight is not None:
            flight.land(FlightResult(entry, upstream_status, stale=True))
        return self._serve(entry, job, CacheStatus.STALE, CacheReason.STALE_IF_ERROR, upstream_status=upstream_status)

    async def _freshen(
        self,
        job: FetchJob,
        lookup: Lookup,
        entry: Entry,
        reason: CacheReason,
        reply: Reply,
        requested_at: float,
        flight: Flight[FlightResult] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Handle a 304: GitLab vouches for body and access; fields that it sent again replace the stored ones."""
        head = reply.head
        reply.release()
        fresh = self.freshened_entry(entry, head, requested_at, job.now())
        stored = Stored.FRESHENED
        if response_directives(head.fields).no_store:
            await self._store.delete(job.key)
            stored = Stored.NO_STORE
        elif lookup.version > lookup.stamp:
            stored = Stored.HELD
        elif not await self._store.put(job.key, (fresh,), job.keep_s, job.tags, lookup.stamp):
            stored = Stored.INVALIDATED
        if flight is not None:
            flight.land(FlightResult(fresh, 304))
        return self._serve(
            fresh,
            job,
            CacheStatus.REVALIDATED,
            reason,
            upstream_status=304,
            stored=stored,
            extra_fields=per_answer_fields(head.fields),
        )

    @staticmethod
    def freshened_entry(entry: Entry, head: ResponseHead, requested_at: float, received_at: float) -> Entry:
        """``entry`` after a 304 about it."""
        return freshen(entry, head, requested_at=requested_at, received_at=received_at, dropped=_DROPPED)

    async def _relay(
        self,
        job: FetchJob,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        reply: Reply,
        requested_at: float,
        flight: Flight[FlightResult] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Pass a full answer on to the client, and into the store where that is allowed."""
        head, received_at = reply.head, job.now()
        outcome = CacheOutcome(_MISS if entry is None else _UPDATED, reason)
        outcome.upstream_status = head.status
        verdict = storable(head, job.reuse_s)
        outcome.stored = verdict.stored
        if verdict.stored is not _STORED:
            if flight is not None:
                flight.land(None)  # nothing to share: each asks for itself
            if head.status == 401 and job.request.partition != ANONYMOUS:
                await self._store.purge((partition_tag(job.request.partition),))
                outcome.stored = Stored.DROPPED
            elif must_drop_entry(head.status) or (entry is not None and head.status == 200):
                await self._store.delete(job.key)
                outcome.stored = Stored.DROPPED if head.status != 200 else outcome.stored
            return self.status_writer.upstream_answer(reply, outcome), outcome
        pending = _PendingAnswer(job, lookup, head, verdict, outcome, flight, requested_at, received_at)
        ready = reply if reply.chunks is None else await read_ahead(reply)
        whole = ready.whole
        if whole is not None and len(whole) <= self.max_entry_bytes and promised_length(ready) in {None, len(whole)}:
            await self._commit(pending, whole)
            ready = _unless_held(ready, job.if_none_match)
        else:
            if ready.whole is None:
                if flight is not None:
                    flight.land(None)  # it ends when its client has read it all: nobody should wait for that
                if entry is not None:
                    # Even should the new answer not arrive whole, the old one is wrong already.
                    await self._store.delete(job.key)
            ready = await tee(
                ready,
                self.max_entry_bytes,
                functools.partial(self._commit, pending),
                functools.partial(_void, pending),
            )
        # The head says what is intended (RFC 9211 §2.5); the answer is stored once its last octet has arrived.
        return self.status_writer.upstream_answer(ready, outcome, job.reuse_s), outcome

    async def _commit(self, pending: _PendingAnswer, body: bytes) -> None:
        """Store an answer that has arrived whole."""
        job, lookup, head, outcome = pending.job, pending.lookup, pending.head, pending.outcome
        flight = pending.flight
        try:
            if job.request.operation.may_hold_secret and hides_secret(head, body):
                outcome.stored = Stored.SECRET
                await self._store.delete(job.key)
                return
            fresh = self.entry_of(
                head, body, pending.verdict, job.request.fields, pending.requested_at, pending.received_at
            )
            if not job.nothing_to_learn:
                self.tagging.learn(job.request.target, head, body)
            if lookup.version > lookup.stamp:
                outcome.stored = Stored.HELD
            elif not await self._store.put(job.key, (fresh,), job.keep_s, job.tags, lookup.stamp):
                outcome.stored = Stored.INVALIDATED
                await self._store.delete(job.key)
            if flight is not None:
                flight.land(FlightResult(fresh, head.status))
        finally:
            if flight is not None and not flight.landed:
                if outcome.stored is Stored.SECRET:
                    flight.land(None)
                flight.abandon()

    def entry_of(
        self,
        head: ResponseHead,
        body: bytes,
        verdict: StorageVerdict,
        fields: Fields,
        requested_at: float,
        received_at: float,
    ) -> Entry:
        """The entry to store for an answer to a request with ``fields``."""
        return make_entry(
            head,
            body,
            verdict.said,
            requested_at=requested_at,
            received_at=received_at,
            dropped=_DROPPED,
            selecting=self._selecting(verdict, fields),
        )

    def _selecting(self, verdict: StorageVerdict, fields: Fields) -> tuple[tuple[bytes, bytes], ...]:
        varies = verdict.varies
        names = tuple([name for name in varies if name in INERT]) if varies else ()
        return selecting(names, fields) if names else ()

    def make_template(self, head: ResponseHead, profile: CacheProfile) -> EntryTemplate | None:
        """The template for answers like ``head``, remembered in ``profile``; None: each has to be examined."""
        shape = head.shape
        assert shape is not None, "who asks knows it"
        if b"last-modified" in shape.place or head.status != 200:
            return None
        verdict = storable(head, _ANY_S)  # whether an answer has an ETag, where it needs one, is checked for each
        keep = None
        if verdict.stored is _STORED:
            keep = pick_kept(shape, verdict.said, _DROPPED)
            if keep is None:
                return None
        miss_outcome = MissOutcome(verdict.stored, self.status_writer.miss(verdict.stored, profile.reuse_s))
        overtaken = MissOutcome(Stored.INVALIDATED, self.status_writer.miss(Stored.INVALIDATED, profile.reuse_s))
        selecting_ = self._selecting(verdict, profile.fields)
        template = EntryTemplate(shape, keep, selecting_, miss_outcome, overtaken, needs_etag=profile.reuse_s <= 0)
        if len(profile.templates) >= _TEMPLATES_BOUND:
            profile.templates.clear()
        profile.templates[shape, storage_fields(shape)(head.fields), profile.reuse_s] = template
        return template

    def _serve(
        self,
        entry: Entry,
        job: FetchJob,
        status: CacheStatus,
        reason: CacheReason,
        *,
        upstream_status: int = 0,
        stored: Stored = Stored.NOT_ASKED,
        extra_fields: Fields = (),
    ) -> tuple[Reply, CacheOutcome]:
        """Reply with a stored answer after asking, or after waiting for somebody who asked."""
        outcome = CacheOutcome(status, reason)
        outcome.stored = stored
        outcome.upstream_status = upstream_status
        return self.stored_reply(entry, outcome, job.if_none_match, job.reuse_s, job.now(), extra_fields), outcome

    def stored_reply(
        self, entry: Entry, outcome: CacheOutcome, condition: bytes | None, reuse_s: float, at: float, extra_fields: Fields
    ) -> Reply:
        """``entry`` as it goes down at ``at`` (Unix seconds), with the fields of GitLab's answer that are for it alone."""
        age = max(0.0, at - entry.received_at)
        member = self.status_writer.stored_answer(outcome, reuse_s - age)
        return as_reply(entry, condition, (*extra_fields, (b"Age", b"%d" % age), (b"Cache-Status", member)))


def _wants_fresh(directives: RequestDirectives | None) -> bool:
    """Whether the client wants a fresh answer: not one to an earlier request, nor one that stands in for it."""
    return directives is not None and (directives.no_cache or directives.max_age_s == 0)


def client_holds(head: ResponseHead, condition: bytes) -> bool:
    """Whether a client whose ``If-None-Match`` is ``condition`` holds GitLab's answer already."""
    etag = (first(head.fields, b"etag") or b"").strip()
    return is_etag(etag) and not none_match(condition, etag)


def _unless_held(reply: Reply, condition: bytes | None) -> Reply:
    """GitLab's answer, or a 304 where the client holds the same: GitLab was asked with our validator, or with none."""
    if condition is None or not client_holds(reply.head, condition):
        return reply
    head = ResponseHead(304, not_modified(reply.head.fields), b"Not Modified")
    return Reply(head, b"", None, reply.release, reply.connect_s, reply.first_byte_s)


def _void(pending: _PendingAnswer, why: Stored) -> None:
    """Note that an answer did not arrive whole, or is too large."""
    pending.outcome.stored = why
    if pending.flight is not None:
        pending.flight.land(None)


def judge_lookup(
    lookup: Lookup, fields: Fields, directives: RequestDirectives | None, reuse_s: float, at: float
) -> tuple[Entry | None, CacheReason | None]:
    """The stored answer, and why GitLab has to be asked all the same (None: it need not be)."""
    if not lookup.entries:
        return None, CacheReason.URI_MISS
    entry = lookup.entries[0]
    if entry.selecting and not selects(entry.selecting, entry.language, fields):
        return None, CacheReason.VARY_MISS
    return entry, revalidation_reason(entry, directives, reuse_s, at)


def as_reply(entry: Entry, condition: bytes | None, computed: Fields) -> Reply:
    """A stored answer, or a 304 where the client holds the same. ``Date`` is left for the edge to make."""
    if condition is not None and may_answer_304(entry, condition, None):
        return Reply(ResponseHead(304, not_modified(entry.fields) + computed, b"Not Modified"), b"")
    return Reply(ResponseHead(entry.status, entry.fields + computed, entry.reason), entry.body)
