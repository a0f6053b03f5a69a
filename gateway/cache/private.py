"""GitLab's answers, kept apart for each partition: one ``fetch``, its decisions made in ``core/private_caching.py``.

refused? → bypass      fresh? → hit      in flight? → wait, collapsed      else ask, with the stored validator
                                                           304 → freshened · 200 → stored · 401/403/404 → dropped
                                                           5xx, 429, no answer → stale, where the operator allows it
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..core.cache_control import RequestDirectives, parse_request_cache_control, response_directives
from ..core.cache_entry import Entry, freshen, make_entry, may_answer_304, not_modified
from ..core.cache_key import RequestReader, private_key, selecting, selects, vary_names
from ..core.cache_status import CacheReason, CacheStatus, Stored, cache_status_field
from ..core.cache_tags import partition_tag, place_of
from ..core.caching import SAFE_METHODS, conditions, validators
from ..core.catalogue import Access
from ..core.errors import Code, Rejection, Source
from ..core.immutable import KEEP_S, is_immutable
from ..core.messages import Fields, ResponseHead
from ..core.private_caching import (
    PER_ANSWER,
    REFUSED_FIELDS,
    PrivatePolicy,
    is_failure,
    may_have_written,
    may_stand_in,
    must_ask,
    of_this_answer,
    refuses_request,
    storable,
    takes_entry,
    validator_matches,
)
from ..core.project_names import ProjectNames
from ..core.structured_fields import serialise_name
from ..ports import CacheStore, Lookup, Reply
from ..singleflight import Flight, Flights
from .again import Again, Looking
from .contract import CacheOutcome, CacheRequest, Forward, with_status
from .fill import filled, read_ahead
from .hook_watch import HookWatch
from .tagging import Tagging, hides_secret

# Read on every hit; an enum's class looks its members up anew each time.
_HIT, _FRESH = CacheStatus.HIT, CacheReason.FRESH
_DROPPED = PER_ANSWER | {b"cache-status"}


class _Landing(msgspec.Struct, frozen=True):
    """What a leader brings to those who waited."""

    entry: Entry
    upstream_status: int
    stale: bool = False


class _Question(msgspec.Struct, frozen=True):
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


class PrivateCache:
    """Many private caches over one store.

    Args:
        store: Shared by all partitions; keys keep them apart.
        policy: What the operator allows.
        name: What this cache calls itself in ``Cache-Status``.
        wait_s: For how long a request waits for an identical one in flight before it goes up itself.
        names: Of projects, known to others too.
        looking: Into what of ``store`` is in memory.
        hooks: Where lifetimes hang on GitLab's hooks: while none come, every reuse is revalidated.
    """

    def __init__(
        self,
        store: CacheStore,
        policy: PrivatePolicy,
        *,
        name: str = "gateway",
        wait_s: float = 10.0,
        names: ProjectNames | None = None,
        hooks: HookWatch | None = None,
        looking: Looking | None = None,
    ) -> None:
        self._store = store
        self._policy = policy
        self._name = name
        self._wait_s = wait_s
        self._tagging = Tagging(names if names is not None else ProjectNames(), policy.prefix)
        self._hooks = hooks
        self._looking = looking
        self._flights: Flights[_Landing] = Flights()
        self._default_reuse_s = policy.reuse_s("")
        self._reuse_s = {operation: policy.reuse_s(operation) for operation in policy.route_ttl_s}
        self._reader = RequestReader(by_address=policy.by_address, refused=frozenset(REFUSED_FIELDS))
        self._hit = serialise_name(name).encode("ascii") + b"; hit; ttl=%d"

    async def close(self) -> None:
        await self._store.close()

    async def drop_partition(self, partition: bytes) -> None:
        await self._store.purge((partition_tag(partition),))

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        if request.method != "GET":
            return await self._not_a_get(request, forward)
        reading = self._reader.read(request.fields)
        refused = refuses_request(
            request.operation,
            reading.refused,
            partition=request.partition,
            has_body=request.has_body,
            session=request.session,
        )
        if refused is not None:
            return await self._past(request, forward, refused)
        asked = None
        if reading.cache_control is not None:
            asked = parse_request_cache_control(reading.cache_control)
            if asked.no_store:
                return await self._past(request, forward, CacheReason.REQUEST)
        key = private_key(request.partition, request.target, request.sudo, reading.variance, request.reached_as)
        tags = self._tagging.of_answer(request.partition, request.target)
        reuse_s = self._reuse_s.get(request.operation.name, self._default_reuse_s)
        keep_s = self._policy.keep_s
        if reuse_s > 0 and self._hooks is not None and not await self._hooks.listening():
            reuse_s = 0.0
        if self._policy.immutable and is_immutable(request.operation.name, request.target):
            reuse_s, keep_s = self._policy.access_ttl_s, KEEP_S
        # Where every reuse is asked for, a copy in this process is good for nothing.
        lookup = await self._store.get(key, tags, anew=reuse_s <= 0)
        at = now()
        entry, reason = self._usable(lookup, request.fields, asked, reuse_s, at)
        if lookup.near and reason is not None:
            lookup = await self._store.get(key, tags, anew=True)
            entry, reason = self._usable(lookup, request.fields, asked, reuse_s, at)
        if not lookup.available:
            return await self._past(request, forward, CacheReason.STORE_UNAVAILABLE)
        if reason is None:
            assert entry is not None, "only a stored answer needs no asking"
            reply, outcome = self._hits(entry, reading.if_none_match, reuse_s, max(0.0, at - entry.received_at))
            if asked is None and self._looking is not None:
                outcome.again = self._again(self._looking(key, tags), request, reuse_s, reading.if_none_match)
            return reply, outcome
        if asked is not None and asked.only_if_cached:
            raise self._only_if_cached(reason)
        question = _Question(request, forward, now, key, tags, reuse_s, keep_s, asked, reading.if_none_match)
        return await self._ask(question, lookup, entry, reason)

    @staticmethod
    def _usable(
        lookup: Lookup, fields: Fields, asked: RequestDirectives | None, reuse_s: float, at: float
    ) -> tuple[Entry | None, CacheReason | None]:
        """The stored answer, and why GitLab has to be asked all the same (None: it has not)."""
        if not lookup.entries:
            return None, CacheReason.URI_MISS
        entry = lookup.entries[0]
        if entry.selecting and not selects(entry.selecting, entry.language, fields):
            return None, CacheReason.VARY_MISS
        return entry, must_ask(entry, asked, reuse_s, at)

    def _hits(self, entry: Entry, condition: bytes | None, reuse_s: float, age_s: float) -> tuple[Reply, CacheOutcome]:
        """The short way out: nothing is asked, parsed or encoded."""
        outcome = CacheOutcome(_HIT, _FRESH)
        outcome.age_s = age_s
        member = outcome.cache_status_field = self._hit % (reuse_s - age_s)
        return _reply(entry, condition, ((b"Age", b"%d" % age_s), (b"Cache-Status", member))), outcome

    def _again(
        self, look: Callable[[], Lookup | None], request: CacheRequest, reuse_s: float, condition: bytes | None
    ) -> Again:
        place = place_of(request.target)
        return Again(
            look,
            names=self._tagging.names,
            spelt=place.spelt if place.owner == b"project" else b"",
            hooks=self._hooks,
            reuse_s=reuse_s,
            fields=request.fields,
            condition=condition,
            member=self._hit,
        )

    # Asking upstream

    async def _ask(
        self, question: _Question, lookup: Lookup, entry: Entry | None, reason: CacheReason
    ) -> tuple[Reply, CacheOutcome]:
        """Ask, unless somebody asks the very same thing already."""
        request, now = question.request, question.now
        started = now()
        while True:
            if entry is not None:
                given = validators(entry)
            elif question.reuse_s > 0:
                given = ()  # the full answer, once, for all who come within the lifetime
            else:
                given = conditions(request.fields)
            if reason is CacheReason.REQUEST or (entry is None and given):
                return await self._lead(question, lookup, entry, reason, given, None)
            # The version is part of it: who asks after a write must not get what was asked before it.
            leads, flight = self._flights.join(b"%d\n%b" % (lookup.version, question.key))
            if leads:
                return await self._lead(question, lookup, entry, reason, given, flight)
            left = self._wait_s - max(0.0, now() - started)
            settled, landing = await flight.wait(left) if left > 0 else (True, None)
            if landing is not None and self._fits(landing.entry, question):
                status = CacheStatus.STALE if landing.stale else CacheStatus.COLLAPSED
                why = CacheReason.STALE_IF_ERROR if landing.stale else reason
                return self._serve(landing.entry, question, status, why, upstream_status=landing.upstream_status)
            if settled:
                return await self._lead(question, lookup, entry, reason, given, None)
            # The leader is gone. Another may have led, and landed, before our turn came: look again.
            lookup = await self._store.get(question.key, question.tags, anew=True)
            entry, still = self._usable(lookup, request.fields, question.asked, question.reuse_s, now())
            if still is None:
                assert entry is not None, "only a stored answer needs no asking"
                return self._serve(entry, question, CacheStatus.HIT, CacheReason.FRESH)
            reason = still

    @staticmethod
    def _fits(entry: Entry, question: _Question) -> bool:
        return not entry.selecting or selects(entry.selecting, entry.language, question.request.fields)

    async def _lead(
        self,
        question: _Question,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        own: Fields,
        flight: Flight[_Landing] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """Go up. Whatever happens, the flight ends: landed, or abandoned to the next."""
        handed_on = False
        try:
            requested_at = question.now()
            try:
                reply = await question.forward(own)
            except Rejection as failure:
                if failure.code is Code.BROKER_CREDENTIAL_REFUSED:  # GitLab answered: nobody may stand in for that
                    raise
                if failure.source is not Source.UPSTREAM or not self._may_stand_in(entry, question):
                    raise
                assert entry is not None, "judged to stand in"
                return self._stand_in(entry, question, flight, 0)
            try:
                if reply.head.status == 304 and entry is not None:
                    if validator_matches(entry, reply.head):
                        return await self._freshen(question, lookup, entry, reason, reply, requested_at, flight)
                    reply.release()  # about something that we do not hold: ask for all of it
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

    def _may_stand_in(self, entry: Entry | None, question: _Question) -> bool:
        return entry is not None and may_stand_in(entry, question.asked, self._policy, question.now())

    def _stand_in(
        self, entry: Entry, question: _Question, flight: Flight[_Landing] | None, upstream_status: int
    ) -> tuple[Reply, CacheOutcome]:
        if flight is not None:
            flight.land(_Landing(entry, upstream_status, stale=True))
        return self._serve(entry, question, CacheStatus.STALE, CacheReason.STALE_IF_ERROR, upstream_status=upstream_status)

    async def _freshen(
        self,
        question: _Question,
        lookup: Lookup,
        entry: Entry,
        reason: CacheReason,
        reply: Reply,
        requested_at: float,
        flight: Flight[_Landing] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """304: GitLab vouches for body and access; headers that it sent again replace the stored ones."""
        head = reply.head
        reply.release()
        fresh = freshen(entry, head, requested_at=requested_at, received_at=question.now(), dropped=_DROPPED)
        stored = Stored.FRESHENED
        if response_directives(head.fields).no_store:
            await self._store.delete(question.key)
            stored = Stored.NO_STORE
        elif lookup.version > lookup.stamp:
            stored = Stored.HELD
        elif not await self._store.put(question.key, (fresh,), question.keep_s, question.tags, lookup.stamp):
            stored = Stored.INVALIDATED
        if flight is not None:
            flight.land(_Landing(fresh, 304))
        return self._serve(
            fresh,
            question,
            CacheStatus.REVALIDATED,
            reason,
            upstream_status=304,
            stored=stored,
            of_answer=of_this_answer(head.fields),
        )

    async def _take(
        self,
        question: _Question,
        lookup: Lookup,
        entry: Entry | None,
        reason: CacheReason,
        reply: Reply,
        requested_at: float,
        flight: Flight[_Landing] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """A full answer: to the client, and where it may be, into the store."""
        head, received_at = reply.head, question.now()
        outcome = CacheOutcome(CacheStatus.MISS if entry is None else CacheStatus.UPDATED, reason)
        outcome.upstream_status = head.status
        said = response_directives(head.fields)
        outcome.stored = storable(head, said, question.reuse_s)
        if outcome.stored is not Stored.STORED:
            if flight is not None:
                flight.land(None)  # nothing to share: each asks for itself
            if head.status == 401:
                await self.drop_partition(question.request.partition)
                outcome.stored = Stored.DROPPED
            elif takes_entry(head.status) or (entry is not None and head.status == 200):
                await self._store.delete(question.key)
                outcome.stored = Stored.DROPPED if head.status != 200 else outcome.stored
            return self._label(reply, outcome, None), outcome
        names = tuple(name for name in vary_names(head.fields) or () if name in self._reader.inert)

        async def commit(body: bytes) -> None:
            try:
                if hides_secret(question.request.operation, head, body):
                    outcome.stored = Stored.SECRET
                    await self._store.delete(question.key)
                    return
                fresh = make_entry(
                    head,
                    body,
                    said,
                    requested_at=requested_at,
                    received_at=received_at,
                    dropped=_DROPPED,
                    selecting=selecting(names, question.request.fields),
                )
                self._tagging.learn(question.request.target, head, body)
                if lookup.version > lookup.stamp:
                    outcome.stored = Stored.HELD
                elif not await self._store.put(question.key, (fresh,), question.keep_s, question.tags, lookup.stamp):
                    outcome.stored = Stored.INVALIDATED
                    await self._store.delete(question.key)
                if flight is not None:
                    flight.land(_Landing(fresh, head.status))
            finally:
                if flight is not None:
                    if outcome.stored is Stored.SECRET:
                        flight.land(None)
                    flight.abandon()

        def void(why: Stored) -> None:
            outcome.stored = why
            if flight is not None:
                flight.land(None)

        ready = await read_ahead(reply)
        if ready.whole is None:
            if flight is not None:
                flight.land(None)  # it ends when its client has read it: nobody should wait for that
            if entry is not None:
                await self._store.delete(question.key)  # should the new one not arrive whole, the old one is wrong already
        # The head says what is intended (RFC 9211 §2.5); it is stored when the last octet came.
        teed = await filled(ready, self._policy.max_entry_bytes, commit, void)
        return self._label(teed, outcome, question), outcome

    # Answering

    def _serve(
        self,
        entry: Entry,
        question: _Question,
        status: CacheStatus,
        reason: CacheReason,
        *,
        upstream_status: int = 0,
        stored: Stored = Stored.NOT_ASKED,
        of_answer: Fields = (),
    ) -> tuple[Reply, CacheOutcome]:
        """A stored answer after asking, or after waiting for somebody who asked."""
        now = question.now()
        age = max(0.0, now - entry.received_at)
        outcome = CacheOutcome(status, reason)
        outcome.age_s = age
        outcome.stored = stored
        outcome.upstream_status = upstream_status
        member = outcome.cache_status_field = cache_status_field(
            self._name,
            status,
            reason,
            upstream_status=upstream_status,
            ttl_s=int(question.reuse_s - age),
            collapsed=status is CacheStatus.COLLAPSED,
        )
        computed: Fields = (*of_answer, (b"Age", b"%d" % age), (b"Cache-Status", member))
        return _reply(entry, question.if_none_match, computed), outcome

    def _label(self, reply: Reply, outcome: CacheOutcome, question: _Question | None) -> Reply:
        """An upstream answer with our member of ``Cache-Status``."""
        stored = outcome.stored is Stored.STORED
        outcome.cache_status_field = cache_status_field(
            self._name,
            outcome.status,
            outcome.reason,
            upstream_status=outcome.upstream_status,
            stored=stored,
            ttl_s=int(question.reuse_s) if stored and question is not None else None,
        )
        reply.head = with_status(reply.head, outcome.cache_status_field)
        return reply

    # Past the cache

    async def _past(self, request: CacheRequest, forward: Forward, reason: CacheReason) -> tuple[Reply, CacheOutcome]:
        outcome = CacheOutcome(CacheStatus.BYPASS, reason)
        reply = await forward(conditions(request.fields))
        outcome.upstream_status = reply.head.status
        if reply.head.status == 401 and request.partition:
            try:
                await self.drop_partition(request.partition)
            except BaseException:
                reply.release()
                raise
        return self._label(reply, outcome, None), outcome

    async def _not_a_get(self, request: CacheRequest, forward: Forward) -> tuple[Reply, CacheOutcome]:
        """HEAD always goes up: GitLab's carries what its GET does not. A write takes what it may have changed with it."""
        writes = request.method not in SAFE_METHODS and request.operation.access is not Access.READ
        if not writes:
            return await self._past(request, forward, CacheReason.METHOD)
        try:
            reply, outcome = await self._past(request, forward, CacheReason.METHOD)
        except BaseException as failure:
            # An answer that never came may have been a success.
            if may_have_written(failure.code if isinstance(failure, Rejection) else None):
                await self._store.purge(self._tagging.of_write(request.target, None), self._policy.hold_s)
            raise
        if may_have_written(reply.head.status):
            try:
                await self._store.purge(self._tagging.of_write(request.target, reply), self._policy.hold_s)
            except BaseException:
                reply.release()
                raise
        return reply, outcome

    def _only_if_cached(self, reason: CacheReason) -> Rejection:
        member = cache_status_field(self._name, CacheStatus.MISS, reason)
        return Rejection(
            Code.ONLY_IF_CACHED, 504, "504 Gateway Timeout", headers=((b"Cache-Status", member),), source=Source.DOWNSTREAM
        )


def _reply(entry: Entry, condition: bytes | None, computed: Fields) -> Reply:
    """A stored answer, or a 304 where the client holds the same. ``Date`` is left for the edge to make."""
    if condition is not None and may_answer_304(entry, condition, None):
        return Reply(ResponseHead(304, not_modified(entry.fields) + computed, b"Not Modified"), b"")
    return Reply(ResponseHead(entry.status, entry.fields + computed, entry.reason), entry.body)
