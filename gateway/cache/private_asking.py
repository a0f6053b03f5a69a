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
from ..core.cache_entry import Entry, freshen, kept_of, make_entry, may_answer_304, not_modified
from ..core.cache_key import INERT, selecting, selects
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.cache_tags import ANONYMOUS, partition_tag
from ..core.caching import conditions, validators
from ..core.errors import Code, Rejection, Source
from ..core.messages import Fields, ResponseHead
from ..core.private_caching import (
    PER_ANSWER,
    PrivatePolicy,
    Verdict,
    is_failure,
    may_stand_in,
    must_ask,
    of_this_answer,
    storable,
    takes_entry,
    validator_matches,
)
from ..ports import CacheStore, Lookup
from ..reply import Reply
from ..singleflight import Flight, Flights
from .contract import CacheOutcome, CacheRequest, Forward, Leases, Like
from .fill import filled, promised_length, read_ahead
from .labels import Labels
from .mould import Mould, Told, saying
from .tagging import Tagging, hides_secret

# Globals, since they are read for every answer: an enum's class looks its members up anew each time.
_MISS, _UPDATED, _STORED = CacheStatus.MISS, CacheStatus.UPDATED, Stored.STORED
_REQUEST = CacheReason.REQUEST
_MOULDS_BOUND = 16
_ANY_S = 1.0
_DROPPED = PER_ANSWER | {b"cache-status"}


class Landing(msgspec.Struct, frozen=True, gc=False):
    """What a leader brings to those who waited."""

    entry: Entry
    upstream_status: int
    stale: bool = False


Joined = Flight[Landing]
"""The flight of a question that somebody leads."""


class _Taking(msgspec.Struct, frozen=True):
    """An answer on its way into the store."""

    question: Question
    lookup: Lookup
    head: ResponseHead
    verdict: Verdict
    outcome: CacheOutcome
    flight: Flight[Landing] | None
    requested_at: float
    received_at: float


class Question(msgspec.Struct, frozen=True):
    """One eligible GET, with everything computed once."""

    request: CacheRequest
    forward: Forward
    now: Callable[[], float]
    key: bytes
    tags: tuple[bytes, ...]
    reuse_s: float
    keep_s: float
    asked: RequestDirectives | None
    if_none_match: bytes | None
    taught: bool = False
    """Whether the answer can name no project that is not known."""


class PrivateAsking:
    """One gateway's questions under way.

    Args:
        store: Where answers go.
        policy: What the operator allows.
        labels: What this cache says of itself.
        wait_s: How long a request waits for an identical one in flight before it goes up itself.
        tagging: Learns names from answers.
        leases: Where gateways share the store: one of them asks for what all may reuse.
    """

    def __init__(
        self,
        store: CacheStore,
        policy: PrivatePolicy,
        labels: Labels,
        *,
        wait_s: float,
        tagging: Tagging,
        leases: Leases | None = None,
    ) -> None:
        self._store = store
        self._policy = policy
        self.max_entry_bytes = policy.max_entry_bytes
        self.labels = labels
        self._wait_s = wait_s
        self.tagging = tagging
        self._leases = leases
        self.flights: Flights[Landing] = Flights()

    def ask(
        self, question: Question, lookup: Lookup, entry: Entry | None, reason: CacheReason
    ) -> Awaitable[tuple[Reply, CacheOutcome]]:
        """Ask, unless somebody asks the very same thing already. Must be awaited at once: a flight may depend on it."""
        given = self._given(question, entry)
        if reason is _REQUEST or (entry is None and given) or _asks_afresh(question.asked):
            return self._lead(question, lookup, entry, reason, given, None)
        # The version is part of the key: whoever asks after a write must not get what was asked for before it.
        leads, flight = self.flights.join(b"%d\n%b" % (lookup.version, question.key))
        if not leads:
            return self._follow(question, lookup, entry, reason, flight)
        if self._leases is not None and question.reuse_s > 0:
            return self._lead_all(question, lookup, entry, reason, flight, self._leases)
        return self._lead(question, lookup, entry, reason, given, flight)

    async def _follow(
        self, question: Question, lookup: Lookup, entry: Entry | None, reason: CacheReason, flight: Flight[Landing]
    ) -> tuple[Reply, CacheOutcome]:
        """Wait for whoever leads, and for the next leader should that one leave; lead where nobody does."""
        request, now = question.request, question.now
        started = now()
        while True:
            left = self._wait_s - max(0.0, now() - started)
            settled, landing = await flight.wait(left) if left > 0 else (True, None)
            if landing is not None and self._fits(landing.entry, question):
                status = CacheStatus.STALE if landing.stale else CacheStatus.COLLAPSED
                why = CacheReason.STALE_IF_ERROR if landing.stale else reason
                return self._serve(landing.entry, question, status, why, upstream_status=landing.upstream_status)
            if settled:
                return await self._lead(question, lookup, entry, reason, self._given(question, entry), None)
            # The leader is gone. Another may have led, and landed, before our turn came: look again.
            lookup = await self._look_again(question)
            entry, still = usable(lookup, request.fields, question.asked, question.reuse_s, now())
            if still is None:
                assert entry is not None, "only a stored answer needs no asking"
                return self._serve(entry, question, CacheStatus.HIT, CacheReason.FRESH)
            reason = still
            given = self._given(question, entry)
            if reason is _REQUEST or (entry is None and given):
                return await self._lead(question, lookup, entry, reason, given, None)
            leads, flight = self.flights.join(b"%d\n%b" % (lookup.version, question.key))
            if leads and self._leases is not None and question.reuse_s > 0:
                return await self._lead_all(question, lookup, entry, reason, flight, self._leases)
            if leads:
                return await self._lead(question, lookup, entry, reason, given, flight)

    async def _look_again(self, question: Question) -> Lookup:
        if question.request.found is not None:
            question.request.found.over = True
        return await self._store.get(question.key, question.tags, anew=True)

    @staticmethod
    def _given(question: Question, entry: Entry | None) -> Fields:
        """The conditions to ask GitLab with."""
        if entry is not None:
            return validators(entry)
        # No conditions where an answer is reused: the full one is fetched once, for all who come within its lifetime.
        return () if question.reuse_s > 0 else conditions(question.request.fields)

    async def _lead_all(
        self,
        question: Question,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        flight: Flight[Landing],
        leases: Leases,
    ) -> tuple[Reply, CacheOutcome]:
        """Lead for all gateways, or wait for the one that does; only once, so that nobody waits for several in turn."""
        try:
            flight.ended = await leases.lead(b"%d\n%b" % (lookup.version, question.key))
            if flight.ended is None:
                lookup = await self._look_again(question)
                entry, still = usable(lookup, question.request.fields, question.asked, question.reuse_s, question.now())
                if still is None:
                    assert entry is not None, "only a stored answer needs no asking"
                    flight.land(Landing(entry, 0))
                    return self._serve(entry, question, CacheStatus.COLLAPSED, reason)
                reason = still
        except BaseException:
            flight.abandon()
            raise
        return await self._lead(question, lookup, entry, reason, self._given(question, entry), flight)

    @staticmethod
    def _fits(entry: Entry, question: Question) -> bool:
        return not entry.selecting or selects(entry.selecting, entry.language, question.request.fields)

    async def _lead(
        self,
        question: Question,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        own: Fields,
        flight: Flight[Landing] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Ask GitLab. Whatever happens, the flight ends: landed, or abandoned to the next leader."""
        handed_on = False
        try:
            requested_at = question.now()
            try:
                reply = await question.forward(own)
            except Rejection as failure:
                if failure.code is Code.BROKER_CREDENTIAL_REFUSED:  # GitLab answered: nothing may stand in for that
                    raise
                if failure.source is not Source.UPSTREAM or not self._may_stand_in(entry, question):
                    raise
                assert entry is not None, "judged to stand in"
                return self._stand_in(entry, question, flight, 0)
            try:
                if reply.head.status == 304 and entry is not None:
                    if validator_matches(entry, reply.head):
                        return await self._freshen(question, lookup, entry, reason, reply, requested_at, flight)
                    reply.release()  # it is about something that we do not hold: ask for the whole answer
                    requested_at = question.now()
                    reply = await question.forward(())
                if is_failure(reply.head.status) and self._may_stand_in(entry, question):
                    assert entry is not None, "judged to stand in"
                    status = reply.head.status
                    reply.release()
                    return self._stand_in(entry, question, flight, status)
                answered = await self._take(question, lookup, entry, reason, reply, requested_at, flight)
                handed_on = True
                return answered
            except BaseException:
                reply.release()
                raise
        finally:
            if flight is not None and not handed_on:
                flight.abandon()

    def _may_stand_in(self, entry: Entry | None, question: Question) -> bool:
        return entry is not None and may_stand_in(entry, question.asked, self._policy, question.now())

    def _stand_in(
        self, entry: Entry, question: Question, flight: Flight[Landing] | None, upstream_status: int
    ) -> tuple[Reply, CacheOutcome]:
        if flight is not None:
            flight.land(Landing(entry, upstream_status, stale=True))
        return self._serve(entry, question, CacheStatus.STALE, CacheReason.STALE_IF_ERROR, upstream_status=upstream_status)

    async def _freshen(
        self,
        question: Question,
        lookup: Lookup,
        entry: Entry,
        reason: CacheReason,
        reply: Reply,
        requested_at: float,
        flight: Flight[Landing] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Deal with a 304: GitLab vouches for body and access; fields that it sent again replace the stored ones."""
        head = reply.head
        reply.release()
        fresh = self.freshened(entry, head, requested_at, question.now())
        stored = Stored.FRESHENED
        if response_directives(head.fields).no_store:
            await self._store.delete(question.key)
            stored = Stored.NO_STORE
        elif lookup.version > lookup.stamp:
            stored = Stored.HELD
        elif not await self._store.put(question.key, (fresh,), question.keep_s, question.tags, lookup.stamp):
            stored = Stored.INVALIDATED
        if flight is not None:
            flight.land(Landing(fresh, 304))
        return self._serve(
            fresh,
            question,
            CacheStatus.REVALIDATED,
            reason,
            upstream_status=304,
            stored=stored,
            of_answer=of_this_answer(head.fields),
        )

    @staticmethod
    def freshened(entry: Entry, head: ResponseHead, requested_at: float, received_at: float) -> Entry:
        """``entry`` after a 304 about it."""
        return freshen(entry, head, requested_at=requested_at, received_at=received_at, dropped=_DROPPED)

    async def _take(
        self,
        question: Question,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        reply: Reply,
        requested_at: float,
        flight: Flight[Landing] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Pass a full answer on to the client, and into the store where that is allowed."""
        head, received_at = reply.head, question.now()
        outcome = CacheOutcome(_MISS if entry is None else _UPDATED, reason)
        outcome.upstream_status = head.status
        verdict = storable(head, question.reuse_s)
        outcome.stored = verdict.stored
        if verdict.stored is not _STORED:
            if flight is not None:
                flight.land(None)  # nothing to share: each asks for itself
            if head.status == 401 and question.request.partition != ANONYMOUS:
                await self._store.purge((partition_tag(question.request.partition),))
                outcome.stored = Stored.DROPPED
            elif takes_entry(head.status) or (entry is not None and head.status == 200):
                await self._store.delete(question.key)
                outcome.stored = Stored.DROPPED if head.status != 200 else outcome.stored
            return self.labels.upstream_answer(reply, outcome), outcome
        taking = _Taking(question, lookup, head, verdict, outcome, flight, requested_at, received_at)
        ready = reply if reply.chunks is None else await read_ahead(reply)
        whole = ready.whole
        if whole is not None and len(whole) <= self.max_entry_bytes and promised_length(ready) in {None, len(whole)}:
            await self._commit(taking, whole)
        else:
            if ready.whole is None:
                if flight is not None:
                    flight.land(None)  # it ends when its client has read it all: nobody should wait for that
                if entry is not None:
                    # Even should the new answer not arrive whole, the old one is wrong already.
                    await self._store.delete(question.key)
            ready = await filled(
                ready,
                self.max_entry_bytes,
                functools.partial(self._commit, taking),
                functools.partial(_void, taking),
            )
        # The head says what is intended (RFC 9211 §2.5); the answer is stored once its last octet has arrived.
        return self.labels.upstream_answer(ready, outcome, question.reuse_s), outcome

    async def _commit(self, taking: _Taking, body: bytes) -> None:
        """Store an answer that has arrived whole."""
        question, lookup, head, outcome = taking.question, taking.lookup, taking.head, taking.outcome
        flight = taking.flight
        try:
            if question.request.operation.may_hold_secret and hides_secret(head, body):
                outcome.stored = Stored.SECRET
                await self._store.delete(question.key)
                return
            fresh = self.entry_of(
                head, body, taking.verdict, question.request.fields, taking.requested_at, taking.received_at
            )
            if not question.taught:
                self.tagging.learn(question.request.target, head, body)
            if lookup.version > lookup.stamp:
                outcome.stored = Stored.HELD
            elif not await self._store.put(question.key, (fresh,), question.keep_s, question.tags, lookup.stamp):
                outcome.stored = Stored.INVALIDATED
                await self._store.delete(question.key)
            if flight is not None:
                flight.land(Landing(fresh, head.status))
        finally:
            if flight is not None and not flight.landed:
                if outcome.stored is Stored.SECRET:
                    flight.land(None)
                flight.abandon()

    def entry_of(
        self,
        head: ResponseHead,
        body: bytes,
        verdict: Verdict,
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

    def _selecting(self, verdict: Verdict, fields: Fields) -> tuple[tuple[bytes, bytes], ...]:
        varies = verdict.varies
        names = tuple([name for name in varies if name in INERT]) if varies else ()
        return selecting(names, fields) if names else ()

    def moulded(self, head: ResponseHead, like: Like) -> Mould | None:
        """What the answers like ``head`` have in common, remembered in ``like``; None: each has to be examined."""
        shape = head.shape
        assert shape is not None, "who asks knows it"
        if b"last-modified" in shape.place or head.status != 200:
            return None
        verdict = storable(head, _ANY_S)  # whether an answer has an ETag, where it needs one, is checked for each
        keep = None
        if verdict.stored is _STORED:
            keep = kept_of(shape, verdict.said, _DROPPED)
            if keep is None:
                return None
        told = Told(verdict.stored, self.labels.miss(verdict.stored, like.reuse_s))
        overtaken = Told(Stored.INVALIDATED, self.labels.miss(Stored.INVALIDATED, like.reuse_s))
        selecting_ = self._selecting(verdict, like.fields)
        mould = Mould(shape, keep, selecting_, told, overtaken, validated=like.reuse_s <= 0)
        if len(like.moulds) >= _MOULDS_BOUND:
            like.moulds.clear()
        like.moulds[shape, saying(shape)(head.fields), like.reuse_s] = mould
        return mould

    def _serve(
        self,
        entry: Entry,
        question: Question,
        status: CacheStatus,
        reason: CacheReason,
        *,
        upstream_status: int = 0,
        stored: Stored = Stored.NOT_ASKED,
        of_answer: Fields = (),
    ) -> tuple[Reply, CacheOutcome]:
        """Reply with a stored answer after asking, or after waiting for somebody who asked."""
        outcome = CacheOutcome(status, reason)
        outcome.stored = stored
        outcome.upstream_status = upstream_status
        return self.served(entry, outcome, question.if_none_match, question.reuse_s, question.now(), of_answer), outcome

    def served(
        self, entry: Entry, outcome: CacheOutcome, condition: bytes | None, reuse_s: float, at: float, of_answer: Fields
    ) -> Reply:
        """``entry`` as it goes down at ``at`` (Unix seconds), with the fields of GitLab's answer that are for it alone."""
        age = max(0.0, at - entry.received_at)
        member = self.labels.stored_answer(outcome, age, reuse_s - age)
        return as_reply(entry, condition, (*of_answer, (b"Age", b"%d" % age), (b"Cache-Status", member)))


def _asks_afresh(asked: RequestDirectives | None) -> bool:
    """Whether the client wants a fresh answer: not one to an earlier request, nor one that stands in for it."""
    return asked is not None and (asked.no_cache or asked.max_age_s == 0)


def _void(taking: _Taking, why: Stored) -> None:
    """Note that an answer did not arrive whole, or is too large."""
    taking.outcome.stored = why
    if taking.flight is not None:
        taking.flight.land(None)


def usable(
    lookup: Lookup, fields: Fields, asked: RequestDirectives | None, reuse_s: float, at: float
) -> tuple[Entry | None, CacheReason | None]:
    """The stored answer, and why GitLab has to be asked all the same (None: it need not be)."""
    if not lookup.entries:
        return None, CacheReason.URI_MISS
    entry = lookup.entries[0]
    if entry.selecting and not selects(entry.selecting, entry.language, fields):
        return None, CacheReason.VARY_MISS
    return entry, must_ask(entry, asked, reuse_s, at)


def as_reply(entry: Entry, condition: bytes | None, computed: Fields) -> Reply:
    """A stored answer, or a 304 where the client holds the same. ``Date`` is left for the edge to make."""
    if condition is not None and may_answer_304(entry, condition, None):
        return Reply(ResponseHead(304, not_modified(entry.fields) + computed, b"Not Modified"), b"")
    return Reply(ResponseHead(entry.status, entry.fields + computed, entry.reason), entry.body)
