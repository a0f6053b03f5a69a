"""A plain shared cache in front of one origin: one ``fetch``, its decisions made in ``core/caching.py`` (RFC 9111).

Variants of one target (``Vary``, ranges) live under one key, newest last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from ..core.byte_ranges import parse_content_range
from ..core.cache_control import RequestDirectives, request_directives, response_directives
from ..core.cache_entry import Entry, freshen, make_entry
from ..core.cache_key import selecting, shared_key, vary_names
from ..core.cache_status import CacheReason, CacheStatus, Stored, cache_status_field
from ..core.caching import (
    SAFE_METHODS,
    Use,
    Verdict,
    answer,
    conditions,
    describes,
    invalidated,
    is_failure,
    joinable,
    joined_head,
    judge,
    keep_s,
    may_stand_in,
    rest_of,
    select,
    storable,
    validated,
    validators,
)
from ..core.errors import Code, Rejection, Source
from ..core.messages import Fields, ResponseHead, first
from ..ports import CacheStore, Lookup, Reply
from ..singleflight import Flight, Flights
from .contract import CacheOutcome, CacheRequest, Forward, with_status
from .fill import filled, read_ahead

_DROPPED = frozenset({b"cache-status"})
_MOST_VARIANTS = 16


class SharedPolicy(msgspec.Struct, frozen=True):
    """What the operator decides. Durations in seconds."""

    stale_if_error_s: float = 0.0
    """Where neither origin nor client says anything (RFC 9111 §4.2.4)."""
    max_entry_bytes: int = 2 << 20
    grace_s: float = 86_400.0
    """For how long an expired answer is kept to be validated."""


class _Question(msgspec.Struct, frozen=True):
    """One GET or HEAD."""

    request: CacheRequest
    forward: Forward
    now: Callable[[], float]
    key: bytes
    tags: tuple[bytes, ...]
    asked: RequestDirectives
    lookup: Lookup


class SharedCache:
    """RFC 9111 over a store.

    Args:
        store: Where answers are kept.
        policy: What the operator decides.
        name: What this cache calls itself in ``Cache-Status`` and as a surrogate.
        wait_s: For how long a request waits for an identical one in flight.
    """

    def __init__(self, store: CacheStore, policy: SharedPolicy, *, name: str = "gateway", wait_s: float = 10.0) -> None:
        self._store = store
        self._policy = policy
        self._name = name
        self._wait_s = wait_s
        self._flights: Flights[bool] = Flights()
        self._refreshes: dict[bytes, asyncio.Task[None]] = {}

    async def close(self) -> None:
        for task in tuple(self._refreshes.values()):
            task.cancel()
        await self._store.close()

    async def drop_partition(self, partition: bytes) -> None:
        del partition  # a shared cache has none

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        if request.method not in {"GET", "HEAD"}:
            return await self._changes(request, forward, now)
        if request.has_body:
            return await self._past(request, forward, CacheReason.BODY)
        if any(first(request.fields, name) is not None for name in (b"if-match", b"if-unmodified-since")):
            return await self._past(request, forward, CacheReason.CONDITIONAL)
        key = shared_key(request.target, request.reached_as)
        started, anew = now(), False
        waited_for: CacheReason | None = None
        while True:
            lookup = await self._store.get(key, (key,), anew=anew)
            if not lookup.available:
                return await self._past(request, forward, CacheReason.STORE_UNAVAILABLE)
            question = _Question(request, forward, now, key, (key,), request_directives(request.fields), lookup)
            verdict = judge(lookup.entries, request.fields, question.asked, now())
            if lookup.near and verdict.use is not Use.REUSE:
                anew = True
                continue
            if verdict.use is Use.REUSE or verdict.use is Use.REUSE_STALE:
                return self._reuse(question, verdict, waited_for)
            if question.asked.only_if_cached:
                raise self._only_if_cached(verdict.reason)
            if request.method == "HEAD":
                return await self._head(question, verdict)
            if not self._may_share(request, verdict):
                return await self._ask(question, verdict, None)
            leads, flight = self._flights.join(b"%d\n%b" % (lookup.version, key))
            if leads:
                return await self._ask(question, verdict, flight)
            left = self._wait_s - max(0.0, now() - started)
            waited_for = waited_for or verdict.reason
            settled, shared = await flight.wait(left) if left > 0 else (True, None)
            if settled and not shared:
                return await self._ask(question, verdict, None)
            # It landed in the store, or its leader is gone: look again.

    @staticmethod
    def _may_share(request: CacheRequest, verdict: Verdict) -> bool:
        return (
            verdict.reason is not CacheReason.REQUEST and not request.has_authorization and not conditions(request.fields)
        )

    # Reusing

    def _reuse(self, question: _Question, verdict: Verdict, waited_for: CacheReason | None) -> tuple[Reply, CacheOutcome]:
        entry = verdict.entry
        assert entry is not None, "a verdict to reuse names what"
        if verdict.background:
            self._refresh(question, entry)
        if verdict.use is Use.REUSE_STALE:
            return self._serve(entry, question, CacheOutcome(CacheStatus.STALE, verdict.reason))
        if waited_for is not None:
            return self._serve(entry, question, CacheOutcome(CacheStatus.COLLAPSED, waited_for))
        return self._serve(entry, question, CacheOutcome(CacheStatus.HIT, verdict.reason))

    def _refresh(self, question: _Question, entry: Entry) -> None:
        """Ask again beside the answer (RFC 5861 §3); once at a time, kept so that it is not collected."""
        key = question.key
        if key in self._refreshes:
            return

        async def run() -> None:
            try:
                verdict = Verdict(Use.VALIDATE, CacheReason.STALE, entry)
                reply, _ = await self._ask(question, verdict, None)
                try:
                    if reply.chunks is not None:
                        async for _chunk in reply.chunks:
                            pass  # the copy on the way stores it
                finally:
                    reply.release()
            except Rejection:
                pass  # the next request past the window tells its client
            finally:
                del self._refreshes[key]

        self._refreshes[key] = asyncio.get_running_loop().create_task(run(), name="stale-while-revalidate")

    def _serve(self, entry: Entry, question: _Question, outcome: CacheOutcome) -> tuple[Reply, CacheOutcome]:
        """A stored answer for this client, its preconditions and range applied."""
        now = question.now()
        age = entry.age_s(now)
        outcome.age_s = age
        outcome.cache_status_field = cache_status_field(
            self._name,
            outcome.status,
            outcome.reason,
            upstream_status=outcome.upstream_status,
            stored=outcome.stored is Stored.STORED,
            ttl_s=int(entry.lifetime_s - age),
            collapsed=outcome.status is CacheStatus.COLLAPSED,
        )
        head, content = answer(entry, question.request.method, question.request.fields, now)
        return Reply(with_status(head, outcome.cache_status_field, age), content), outcome

    # Asking the origin

    async def _ask(self, question: _Question, verdict: Verdict, flight: Flight[bool] | None) -> tuple[Reply, CacheOutcome]:
        """Go up, with what validates the stored answers where there are any."""
        handed_on = False
        try:
            entry, fields = verdict.entry, question.request.fields
            rivals: tuple[Entry, ...] = ()
            given = conditions(fields)
            if verdict.use is Use.VALIDATE and entry is not None and not entry.partial:
                rivals = tuple(other for other in select(question.lookup.entries, fields) if not other.partial)
                ours = validators(entry)
                # Without a validator of ours a 304 would answer the client's, of which we hold nothing.
                given, rivals = (ours, rivals) if ours else (given, ())
            elif verdict.reason is CacheReason.VARY_MISS and not given:
                # §4.1: the origin may know one of the other variants to be this request's, too.
                rivals = tuple(other for other in question.lookup.entries if other.etag and not other.partial)
                given = validators(rivals[0], rivals[1:])[:1] if rivals else ()
            elif verdict.reason is CacheReason.PARTIAL and entry is not None and not given:
                given = rest_of(entry)
            requested_at = question.now()
            try:
                reply = await question.forward(self._as_surrogate(given))
            except Rejection as failure:
                stand_in = self._stand_in(question, verdict)
                if failure.source is not Source.UPSTREAM or stand_in is None:
                    raise
                return self._serve(stand_in, question, CacheOutcome(CacheStatus.STALE, CacheReason.STALE_IF_ERROR))
            try:
                if is_failure(reply.head.status) and (stand_in := self._stand_in(question, verdict)) is not None:
                    outcome = CacheOutcome(CacheStatus.STALE, CacheReason.STALE_IF_ERROR)
                    outcome.upstream_status = reply.head.status
                    reply.release()
                    return self._serve(stand_in, question, outcome)
                if reply.head.status == 304 and rivals:
                    known = validated(rivals, reply.head)
                    if known is not None:
                        served = await self._freshen(question, verdict, known, reply, requested_at)
                        if flight is not None:
                            flight.land(True)
                        return served
                    reply.release()
                    requested_at = question.now()
                    reply = await question.forward(self._as_surrogate(()))
                elif given and verdict.reason is CacheReason.PARTIAL and reply.head.status in {206, 416}:
                    assert entry is not None, "there is a piece to complete"
                    whole = await self._complete(question, entry, reply, requested_at)
                    if whole is not None:
                        return whole
                    reply.release()
                    requested_at = question.now()
                    reply = await question.forward(self._as_surrogate(()))
                answered = await self._take(question, verdict, reply, requested_at, flight)
                handed_on = True
                return answered
            except BaseException:
                reply.release()
                raise
        finally:
            if flight is not None and not handed_on:
                flight.abandon()

    def _as_surrogate(self, given: Fields) -> Fields:
        return (*given, (b"Surrogate-Capability", b'%b="Surrogate/1.0"' % self._name.encode()))

    def _stand_in(self, question: _Question, verdict: Verdict) -> Entry | None:
        """The stored answer that may be served while the origin fails."""
        entry = verdict.entry if verdict.use is Use.VALIDATE else None
        if entry is None or not may_stand_in(entry, question.asked, question.now(), self._policy.stale_if_error_s):
            return None
        return entry

    async def _freshen(
        self, question: _Question, verdict: Verdict, known: Entry, reply: Reply, requested_at: float
    ) -> tuple[Reply, CacheOutcome]:
        fields, head = question.request.fields, reply.head
        reply.release()
        names = vary_names(head.fields) if first(head.fields, b"vary") is not None else vary_names(known.fields)
        fresh = freshen(
            known,
            head,
            requested_at=requested_at,
            received_at=question.now(),
            dropped=_DROPPED,
            selecting=selecting(names or (), fields),
            surrogate=self._name,
        )
        outcome = CacheOutcome(CacheStatus.REVALIDATED, verdict.reason)
        outcome.upstream_status = 304
        if names is None or response_directives(head.fields, self._name).no_store:
            await self._store.delete(question.key)
            outcome.stored = Stored.NO_STORE
        else:
            kept = await self._keep(question, fresh)
            outcome.stored = Stored.FRESHENED if kept else Stored.INVALIDATED
        return self._serve(fresh, question, outcome)

    async def _complete(
        self, question: _Question, entry: Entry, reply: Reply, requested_at: float
    ) -> tuple[Reply, CacheOutcome] | None:
        """Join a stored beginning and the rest that just came; None: they do not fit."""
        head = reply.head
        piece = parse_content_range(first(head.fields, b"content-range") or b"")
        if head.status != 206 or piece is None or not joinable(entry, head, piece.first, piece.total):
            return None
        if entry.total > self._policy.max_entry_bytes:
            return None
        rest = (await read_ahead(reply, self._policy.max_entry_bytes)).whole
        if rest is None or len(entry.body) + len(rest) != entry.total:
            return None
        reply.release()
        whole = self._entry(question, joined_head(entry, head), entry.body + rest, requested_at)
        outcome = CacheOutcome(CacheStatus.UPDATED, CacheReason.PARTIAL)
        outcome.upstream_status = 206
        outcome.stored = Stored.STORED if await self._keep(question, whole) else Stored.INVALIDATED
        return self._serve(whole, question, outcome)

    async def _take(
        self,
        question: _Question,
        verdict: Verdict,
        reply: Reply,
        requested_at: float,
        flight: Flight[bool] | None,
    ) -> tuple[Reply, CacheOutcome]:
        """The origin's own answer: to the client, and where it may be, into the store."""
        request, head = question.request, reply.head
        received_at = question.now()
        outcome = CacheOutcome(CacheStatus.MISS, verdict.reason)
        if verdict.use is Use.VALIDATE:
            outcome.status = CacheStatus.UPDATED
        outcome.upstream_status = head.status
        said = response_directives(head.fields, self._name)
        outcome.stored = storable(
            request.method,
            request.target,
            head,
            said,
            no_store=question.asked.no_store,
            authorized=request.has_authorization,
        )
        if outcome.stored is not Stored.STORED or reply.tunnel is not None:
            if flight is not None:
                flight.land(False)
            return self._label(reply, outcome), outcome

        async def commit(body: bytes) -> None:
            fresh = self._entry(question, head, body, requested_at, received_at)
            try:
                if not await self._keep(question, fresh):
                    outcome.stored = Stored.INVALIDATED
                if flight is not None:
                    flight.land(True)
            finally:
                if flight is not None:
                    flight.abandon()

        def void(why: Stored) -> None:
            outcome.stored = why
            if flight is not None:
                flight.land(False)

        ready = await read_ahead(reply)
        if ready.whole is None and flight is not None:
            flight.land(False)  # it ends when its client has read it: nobody should wait for that
        teed = await filled(ready, self._policy.max_entry_bytes, commit, void)
        if first(request.fields, b"if-none-match") is not None and teed.whole is not None and head.status == 200:
            # Another answer than the stored one, and perhaps the client's own.
            lookup = await self._store.get(question.key, question.tags, anew=True)
            chosen = select(lookup.entries, request.fields)
            if chosen and chosen[0].received_at == received_at:
                teed.release()
                return self._serve(chosen[0], question, outcome)
        return self._label(teed, outcome, said.max_age_s), outcome

    def _entry(
        self,
        question: _Question,
        head: ResponseHead,
        body: bytes,
        requested_at: float,
        received_at: float | None = None,
    ) -> Entry:
        fields = question.request.fields
        return make_entry(
            head,
            body,
            response_directives(head.fields, self._name),
            requested_at=requested_at,
            received_at=question.now() if received_at is None else received_at,
            dropped=_DROPPED,
            selecting=selecting(vary_names(head.fields) or (), fields),
            asked_range=first(fields, b"range") or b"",
        )

    async def _keep(self, question: _Question, fresh: Entry) -> bool:
        """Store ``fresh`` beside the other variants, in place of the one that it replaces."""
        lookup = await self._store.get(question.key, question.tags, anew=True)
        if not lookup.available:
            return False
        others = [
            other
            for other in lookup.entries
            if not (other.selecting == fresh.selecting and (other.partial <= fresh.partial or not fresh.partial))
        ]
        entries = (*others, fresh)[-_MOST_VARIANTS:]
        ttl_s = max(keep_s(entry, self._policy.grace_s) for entry in entries)
        return await self._store.put(question.key, entries, ttl_s, question.tags, question.lookup.stamp)

    # HEAD (§4.3.5)

    async def _head(self, question: _Question, verdict: Verdict) -> tuple[Reply, CacheOutcome]:
        requested_at = question.now()
        reply = await question.forward(self._as_surrogate(conditions(question.request.fields)))
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
                        received_at=question.now(),
                        dropped=_DROPPED,
                        surrogate=self._name,
                    )
                    outcome.stored = Stored.FRESHENED if await self._keep(question, fresh) else Stored.STORE_UNAVAILABLE
                else:
                    await self._store.delete(question.key)
                    outcome.stored = Stored.DROPPED
        except BaseException:
            reply.release()
            raise
        return self._label(reply, outcome), outcome

    # Past the cache

    async def _past(self, request: CacheRequest, forward: Forward, reason: CacheReason) -> tuple[Reply, CacheOutcome]:
        outcome = CacheOutcome(CacheStatus.BYPASS, reason)
        reply = await forward(self._as_surrogate(conditions(request.fields)))
        outcome.upstream_status = reply.head.status
        return self._label(reply, outcome), outcome

    async def _changes(
        self, request: CacheRequest, forward: Forward, now: Callable[[], float]
    ) -> tuple[Reply, CacheOutcome]:
        """Other methods: forwarded; what an unsafe one made doubtful is purged; a POST may leave an answer for GET."""
        lookup = Lookup()
        key = shared_key(request.target, request.reached_as)
        requested_at = now()
        reply, outcome = await self._past(request, forward, CacheReason.METHOD)
        try:
            host = request.reached_as.partition(b"\x00")[0].partition(b"://")[2]
            gone = invalidated(request.method, request.target, reply.head, host)
            if gone:
                await self._store.purge(tuple(shared_key(target, request.reached_as) for target in gone))
            if request.method != "POST" or request.method in SAFE_METHODS:
                return reply, outcome
            lookup = await self._store.get(key, (key,), anew=True)
            question = _Question(request, forward, now, key, (key,), request_directives(request.fields), lookup)
            said = response_directives(reply.head.fields, self._name)
            outcome.stored = storable(
                "POST",
                request.target,
                reply.head,
                said,
                no_store=question.asked.no_store,
                authorized=request.has_authorization,
            )
            if outcome.stored is not Stored.STORED or not lookup.available:
                return reply, outcome
            head, received_at = reply.head, now()

            async def commit(body: bytes) -> None:
                if not await self._keep(question, self._entry(question, head, body, requested_at, received_at)):
                    outcome.stored = Stored.INVALIDATED

            def void(why: Stored) -> None:
                outcome.stored = why

            return await filled(reply, self._policy.max_entry_bytes, commit, void), outcome
        except BaseException:
            reply.release()
            raise

    def _label(self, reply: Reply, outcome: CacheOutcome, ttl_s: float | None = None) -> Reply:
        outcome.cache_status_field = cache_status_field(
            self._name,
            outcome.status,
            outcome.reason,
            upstream_status=outcome.upstream_status,
            stored=outcome.stored is Stored.STORED,
            ttl_s=None if ttl_s is None or outcome.stored is not Stored.STORED else int(ttl_s),
        )
        reply.head = with_status(reply.head, outcome.cache_status_field)
        return reply

    def _only_if_cached(self, reason: CacheReason) -> Rejection:
        member = cache_status_field(self._name, CacheStatus.MISS, reason)
        return Rejection(
            Code.ONLY_IF_CACHED,
            504,
            "504 Gateway Timeout",
            headers=((b"Cache-Status", member),),
            source=Source.DOWNSTREAM,
        )
