"""GitLab's answers, kept apart by partition: one ``fetch``, whose decisions are made in ``core/private_caching.py``.

refused? → bypass      changes something? → bypass, and purge      fresh? → hit      else ask (``private_fetcher``)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

from ..core.cache_control import parse_request_cache_control, request_directives
from ..core.cache_entry import Entry
from ..core.cache_key import RequestReader, private_key
from ..core.cache_status import CacheReason, CacheStatus
from ..core.cache_tags import ANONYMOUS, partition_tag, resource_of
from ..core.caching import SAFE_METHODS, conditions, validators
from ..core.catalogue import Access, Surface
from ..core.errors import Rejection
from ..core.immutable import KEEP_S, is_immutable
from ..core.json_urls import is_json
from ..core.messages import first
from ..core.private_caching import REFUSED_FIELDS, PrivatePolicy, bypass_reason, may_have_written
from ..core.project_names import ProjectNames
from ..core.structured_fields import serialise_name
from ..ports import CacheStore, Cancellable, Lookup
from ..reply import Reply
from .contract import CacheOutcome, CacheProfile, CacheRequest, Forward, Leader, Leases, PriorLookup
from .fill import read_ahead
from .hook_watch import HookWatch
from .private_conditional import PrivateConditional
from .private_fetcher import FetchJob, PrivateFetcher, as_reply, judge_lookup
from .private_lead_lookup import PrivateLeadLookup
from .private_miss import LocalStore, NoWaitStore, PrivateMiss, RemoteStore
from .private_revalidation import PrivateRevalidation
from .repeat_hit import FinderFor, RepeatHit
from .status_writer import CacheStatusWriter
from .tagging import Tagging

_BEFORE_TARGET = len(b"private\n")
# Globals, since they are read on every hit: an enum's class looks its members up anew each time.
_HIT, _FRESH = CacheStatus.HIT, CacheReason.FRESH


class PrivateCache:
    """Many private caches over one store.

    Args:
        store: Shared by all partitions; keys keep them apart.
        policy: What the operator allows.
        name: What this cache calls itself in ``Cache-Status``.
        wait_s: How long a request waits for an identical one in flight before it goes up itself.
        names: Names of projects, shared with others.
        finder_for: Looks into that part of ``store`` which is in memory.
        hooks: Where lifetimes depend on GitLab's hooks: while none come, every reuse is revalidated.
        leases: Where gateways share the store: one of them asks for what all may reuse.
        local_store: ``store``, where it is in this process and nowhere else; then there are no ``leases``.
        remote_store: ``store``, where it is elsewhere.
        form_digest: Of how answers are rewritten on their way down: one rewritten in another way, in a store that outlives
            this process or is shared with others, is not used.
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
        finder_for: FinderFor | None = None,
        leases: Leases | None = None,
        local_store: LocalStore | None = None,
        remote_store: RemoteStore | None = None,
        form_digest: bytes = b"",
    ) -> None:
        self._store = store
        self._form_digest = b"\x00" + form_digest if form_digest else b""
        self._local_store = local_store if leases is None else None
        self._remote_store = remote_store
        self._leases = leases
        self._policy = policy
        self._names = names if names is not None else ProjectNames()
        self._tagging = Tagging(self._names, policy.prefix)
        self._hooks = hooks
        self._finder_for = finder_for
        self._default_reuse_s = policy.reuse_s("")
        self._reuse_s = {operation: policy.reuse_s(operation) for operation in policy.route_ttl_s}
        self._reader = RequestReader(refused=frozenset(REFUSED_FIELDS))
        self._hit_member = serialise_name(name).encode("ascii") + b"; hit; ttl=%d"
        self._status_writer = CacheStatusWriter(name)
        self._fetcher = PrivateFetcher(
            store,
            policy,
            self._status_writer,
            wait_s=wait_s,
            tagging=self._tagging,
            leases=leases,
        )
        self._flights = self._fetcher.flights

    async def close(self) -> None:
        await self._store.close()

    async def drop_partition(self, partition: bytes) -> None:
        await self._store.purge((partition_tag(partition),))

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        if request.method != "GET":
            return await self._forward_other_method(request, forward)
        profile = request.profile or CacheProfile()
        if profile.version != self._names.version:
            self._fill_profile(profile, request)
        if profile.refused is not None:
            return await self._bypass(request, forward, profile.refused)
        directives, tags, reuse_s = profile.directives, profile.tags, profile.reuse_s
        key = b"private\n%b%b" % (request.target, profile.key)
        if reuse_s > 0 and self._hooks is not None and not profile.immutable and not await self._hooks.check_alive():
            reuse_s = 0.0
        prior_lookup = request.prior_lookup
        if prior_lookup is not None and prior_lookup.version == profile.version and not prior_lookup.superseded:
            lookup = prior_lookup.lookup
        else:
            if prior_lookup is not None:
                prior_lookup.superseded = True
            # Where every reuse is revalidated, a copy in this process is of no use.
            lookup = await self._store.get(key, tags, anew=reuse_s <= 0)
        at = now()
        entry, reason = judge_lookup(lookup, request.fields, directives, reuse_s, at)
        if lookup.near and reason is not None:
            lookup = await self._store.get(key, tags, anew=True)
            entry, reason = judge_lookup(lookup, request.fields, directives, reuse_s, at)
        if not lookup.available:
            return await self._bypass(request, forward, CacheReason.STORE_UNAVAILABLE)
        if reason is None:
            assert entry is not None, "only a stored answer needs no asking"
            reply, outcome = self._serve_hit(entry, profile.if_none_match, reuse_s, max(0.0, at - entry.received_at))
            if directives is None and self._finder_for is not None:
                outcome.repeat_hit = self._repeat_hit(self._finder_for(key, tags), request, reuse_s, profile.if_none_match)
            return reply, outcome
        if directives is not None and directives.only_if_cached:
            raise self._status_writer.only_if_cached(reason)
        job = FetchJob(
            request,
            forward,
            now,
            key,
            tags,
            reuse_s,
            profile.keep_s,
            directives,
            profile.if_none_match,
            profile.nothing_to_learn,
        )
        return await self._fetcher.ask(job, lookup, entry, reason)

    def lead_now(self, target: bytes, profile: CacheProfile, now: Callable[[], float]) -> Leader | None:
        store = self._local_store
        if store is None or not self._may_lead(profile):
            return None
        key = b"private\n%b%b" % (target, profile.key)
        return self._leader_for(store, store.get_now(key, profile.tags), target, profile, key, now)

    def lead_soon(
        self,
        target: bytes,
        profile: CacheProfile,
        now: Callable[[], float],
        then: Callable[[Leader | PriorLookup | None], None],
    ) -> Cancellable | None:
        store = self._remote_store
        if store is None or not self._may_lead(profile):
            return None
        key, version = b"private\n%b%b" % (target, profile.key), profile.version

        def decide(lookup: Lookup) -> Leader | PriorLookup | None:
            if self._names.version != version or not self._may_lead(profile):
                return None  # names were learnt while the store was asked: it was asked for too few tags
            leader = self._leader_for(store, lookup, target, profile, key, now)
            if leader is None and (not lookup.available or not store.copies):
                return PriorLookup(lookup, version)
            return leader  # None for a fresh answer in a store with copies: a ``fetch`` makes one

        lead_lookup = PrivateLeadLookup(decide, then, self._leases if profile.reuse_s > 0 else None, key)
        pending = store.get_soon(key, profile.tags, lead_lookup.on_lookup)
        if pending is None:
            return None
        lead_lookup.pending = pending
        return lead_lookup

    def _may_lead(self, profile: CacheProfile) -> bool:
        """Whether requests of this kind may go up, and their answers be stored, without a ``fetch``."""
        if profile.version != self._names.version:
            if profile.sample is None:
                return False
            self._fill_profile(profile, profile.sample)
        if not profile.may_share or profile.refused is not None:
            return False
        return not (
            self._hooks is not None and profile.reuse_s > 0 and not profile.immutable and not self._hooks.known_alive
        )

    def _leader_for(
        self, store: NoWaitStore, lookup: Lookup, target: bytes, profile: CacheProfile, key: bytes, now: Callable[[], float]
    ) -> Leader | None:
        if lookup.version > lookup.stamp or not lookup.available:
            return None
        flight_key = b"%d\n%b" % (lookup.version, key)  # as ``PrivateFetcher.ask`` has it
        if not lookup.entries:
            if profile.client_conditions:
                return PrivateConditional(self._status_writer, profile, lookup, profile.version)
            flight = self._flights.lead(flight_key)
            if flight is None:
                return None
            return PrivateMiss(self._fetcher, store, target, profile, key, lookup, flight, now, profile.version)
        at = now()
        entry, reason = judge_lookup(lookup, profile.fields, None, profile.reuse_s, at)
        if entry is None or reason is None or not validators(entry):
            return None
        flight = self._flights.lead(flight_key)
        if flight is None:
            return None
        return PrivateRevalidation(
            self._fetcher, store, profile, key, lookup, flight, now, profile.version, entry, reason, at
        )

    def _fill_profile(self, profile: CacheProfile, request: CacheRequest) -> None:
        """Fill ``profile`` with what a request's fields, path and caller say."""
        profile.version = self._names.version
        reading = self._reader.read(request.fields)
        profile.refused = bypass_reason(
            request.operation,
            reading.refused,
            partition=request.partition,
            has_body=request.has_body,
            session=request.session,
        )
        if profile.refused is not None:
            return
        if reading.cache_control is not None:
            profile.directives = parse_request_cache_control(reading.cache_control)
            if profile.directives.no_store:
                profile.refused = CacheReason.REQUEST
                return
        profile.if_none_match = reading.if_none_match
        reached_as = request.reached_as + self._form_digest
        profile.key = private_key(request.partition, b"", request.sudo, reading.variance, reached_as)[_BEFORE_TARGET:]
        profile.tags = self._tagging.tags_of_answer(request.partition, request.target)
        profile.nothing_to_learn = self._tagging.has_nothing_to_learn(request.target)
        profile.immutable = self._policy.immutable and is_immutable(request.operation.name, request.target)
        if profile.immutable:
            profile.reuse_s, profile.keep_s = self._policy.access_ttl_s, KEEP_S
        else:
            profile.reuse_s = self._reuse_s.get(request.operation.name, self._default_reuse_s)
            profile.keep_s = self._policy.keep_s
        profile.fields = request.fields
        profile.may_share = profile.directives is None and not request.operation.may_hold_secret
        profile.client_conditions = conditions(request.fields) if profile.reuse_s <= 0 else ()

    def _serve_hit(self, entry: Entry, condition: bytes | None, reuse_s: float, age_s: float) -> tuple[Reply, CacheOutcome]:
        """The shortest way out: nothing is asked, parsed or encoded."""
        outcome = CacheOutcome(_HIT, _FRESH)
        member = self._hit_member % (reuse_s - age_s)
        return as_reply(entry, condition, ((b"Age", b"%d" % age_s), (b"Cache-Status", member))), outcome

    def _repeat_hit(
        self, look: Callable[[], Entry | None], request: CacheRequest, reuse_s: float, condition: bytes | None
    ) -> RepeatHit:
        place = resource_of(request.target)
        return RepeatHit(
            look,
            names=self._names,
            spelt=place.spelt if place.owner == b"project" else b"",
            hooks=self._hooks,
            reuse_s=reuse_s,
            fields=request.fields,
            condition=condition,
            member=self._hit_member,
        )

    # Bypassing the cache

    async def _bypass(self, request: CacheRequest, forward: Forward, reason: CacheReason) -> tuple[Reply, CacheOutcome]:
        # RFC 9111 §4: an unsafe request must be written through.
        if request.method in SAFE_METHODS and request_directives(request.fields).only_if_cached:
            raise self._status_writer.only_if_cached(reason)
        outcome = CacheOutcome(CacheStatus.BYPASS, reason)
        reply = await forward(conditions(request.fields))
        outcome.upstream_status = reply.head.status
        if reply.head.status == 401 and request.partition not in {b"", ANONYMOUS}:
            try:
                await self.drop_partition(request.partition)
            except BaseException:
                reply.release()
                raise
        return self._status_writer.upstream_answer(reply, outcome), outcome

    async def _forward_other_method(self, request: CacheRequest, forward: Forward) -> tuple[Reply, CacheOutcome]:
        """HEAD always goes up: GitLab answers it with fields that a GET's answer lacks. A write purges what it may have
        changed."""
        writes = request.method not in SAFE_METHODS and request.operation.access is not Access.READ
        if not writes:
            return await self._bypass(request, forward, CacheReason.METHOD)
        try:
            reply, outcome = await self._bypass(request, forward, CacheReason.METHOD)
        except BaseException as failure:
            # A write whose answer never came may have succeeded.
            if may_have_written(failure.code if isinstance(failure, Rejection) else None):
                await self._purge(self._write_tags(request))
            raise
        if may_have_written(reply.head.status):
            try:
                reply = await self._purge_written(request, reply)
            except BaseException:
                reply.release()
                raise
        return reply, outcome

    def _write_tags(self, request: CacheRequest) -> tuple[bytes, ...]:
        return self._tagging.tags_of_write(request.target, request.operation, request.partition)

    async def _purge(self, tags: tuple[bytes, ...]) -> None:
        await self._store.purge(tags, self._policy.hold_s)

    async def _purge_written(self, request: CacheRequest, reply: Reply) -> Reply:
        """Purge what a write may have changed before its answer goes down, and again at the end of an answer that streams:
        that to a push begins before its branches are moved."""
        tags = self._write_tags(request)
        if reply.chunks is not None:
            await self._purge(tags)
            if request.operation.surface is Surface.REST and is_json(first(reply.head.fields, b"content-type")):
                reply = await read_ahead(reply)
        if reply.chunks is None:
            await self._purge(tuple(dict.fromkeys((*tags, *self._tagging.tags_of_written(request.target, reply)))))
            return reply
        return Reply(
            reply.head, None, self._purge_at_end(reply.chunks, tags), reply.release, reply.connect_s, reply.first_byte_s
        )

    async def _purge_at_end(self, chunks: AsyncIterator[bytes], tags: tuple[bytes, ...]) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await self._purge(tags)
