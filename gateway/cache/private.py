"""GitLab's answers, kept apart by partition: one ``fetch``, whose decisions are made in ``core/private_caching.py``.

refused? → bypass      changes something? → past, and purged      fresh? → hit      else ask (``private_asking``)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

from ..core.cache_control import parse_request_cache_control
from ..core.cache_entry import Entry
from ..core.cache_key import RequestReader, private_key
from ..core.cache_status import CacheReason, CacheStatus
from ..core.cache_tags import ANONYMOUS, partition_tag, place_of
from ..core.caching import SAFE_METHODS, conditions, validators
from ..core.catalogue import Access, Surface
from ..core.errors import Rejection
from ..core.immutable import KEEP_S, is_immutable
from ..core.json_addresses import is_json
from ..core.messages import first
from ..core.private_caching import REFUSED_FIELDS, PrivatePolicy, may_have_written, refuses_request
from ..core.project_names import ProjectNames
from ..core.structured_fields import serialise_name
from ..ports import Asked, CacheStore, Lookup
from ..reply import Reply
from .again import Again, Looking
from .contract import CacheOutcome, CacheRequest, Forward, Found, Leading, Leases, Like
from .fill import read_ahead
from .hook_watch import HookWatch
from .labels import Labels
from .private_asking import PrivateAsking, Question, as_reply, usable
from .private_leading import Afar, AtHand, Placing, PrivateLeading
from .private_looking import PrivateLooking
from .private_passing import PrivatePassing
from .private_validating import PrivateValidating
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
        looking: Looks into that part of ``store`` which is in memory.
        hooks: Where lifetimes depend on GitLab's hooks: while none come, every reuse is revalidated.
        leases: Where gateways share the store: one of them asks for what all may reuse.
        at_hand: ``store``, where it is in this process and nowhere else; then there are no ``leases``.
        afar: ``store``, where it is elsewhere.
        dressed: How answers are made ready on their way down: an answer made ready in another way, in a store that outlives
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
        looking: Looking | None = None,
        leases: Leases | None = None,
        at_hand: AtHand | None = None,
        afar: Afar | None = None,
        dressed: bytes = b"",
    ) -> None:
        self._store = store
        self._dressed = b"\x00" + dressed if dressed else b""
        self._at_hand = at_hand if leases is None else None
        self._afar = afar
        self._leases = leases
        self._policy = policy
        self._names = names if names is not None else ProjectNames()
        self._tagging = Tagging(self._names, policy.prefix)
        self._hooks = hooks
        self._looking = looking
        self._default_reuse_s = policy.reuse_s("")
        self._reuse_s = {operation: policy.reuse_s(operation) for operation in policy.route_ttl_s}
        self._reader = RequestReader(refused=frozenset(REFUSED_FIELDS))
        self._hit = serialise_name(name).encode("ascii") + b"; hit; ttl=%d"
        self._labels = Labels(name)
        self._asking = PrivateAsking(
            store,
            policy,
            self._labels,
            wait_s=wait_s,
            tagging=self._tagging,
            leases=leases,
        )
        self._flights = self._asking.flights

    async def close(self) -> None:
        await self._store.close()

    async def drop_partition(self, partition: bytes) -> None:
        await self._store.purge((partition_tag(partition),))

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        if request.method != "GET":
            return await self._not_a_get(request, forward)
        like = request.like or Like()
        if like.version != self._names.version:
            self._find_out(like, request)
        if like.refused is not None:
            return await self._past(request, forward, like.refused)
        asked, tags, reuse_s = like.asked, like.tags, like.reuse_s
        key = b"private\n%b%b" % (request.target, like.key)
        if reuse_s > 0 and self._hooks is not None and not like.immutable and not await self._hooks.listening():
            reuse_s = 0.0
        found = request.found
        if found is not None and found.version == like.version and not found.over:
            lookup = found.lookup
        else:
            if found is not None:
                found.over = True
            # Where every reuse is revalidated, a copy in this process is of no use.
            lookup = await self._store.get(key, tags, anew=reuse_s <= 0)
        at = now()
        entry, reason = usable(lookup, request.fields, asked, reuse_s, at)
        if lookup.near and reason is not None:
            lookup = await self._store.get(key, tags, anew=True)
            entry, reason = usable(lookup, request.fields, asked, reuse_s, at)
        if not lookup.available:
            return await self._past(request, forward, CacheReason.STORE_UNAVAILABLE)
        if reason is None:
            assert entry is not None, "only a stored answer needs no asking"
            reply, outcome = self._hits(entry, like.if_none_match, reuse_s, max(0.0, at - entry.received_at))
            if asked is None and self._looking is not None:
                outcome.again = self._again(self._looking(key, tags), request, reuse_s, like.if_none_match)
            return reply, outcome
        if asked is not None and asked.only_if_cached:
            raise self._labels.only_if_cached(reason)
        question = Question(request, forward, now, key, tags, reuse_s, like.keep_s, asked, like.if_none_match, like.taught)
        return await self._asking.ask(question, lookup, entry, reason)

    def lead_now(self, target: bytes, like: Like, now: Callable[[], float]) -> Leading | None:
        store = self._at_hand
        if store is None or not self._leads(like):
            return None
        key = b"private\n%b%b" % (target, like.key)
        return self._led(store, store.peek(key, like.tags), target, like, key, now)

    def lead_soon(
        self, target: bytes, like: Like, now: Callable[[], float], then: Callable[[Leading | Found | None], None]
    ) -> Asked | None:
        store = self._afar
        if store is None or not self._leads(like):
            return None
        key, version = b"private\n%b%b" % (target, like.key), like.version

        def led(lookup: Lookup) -> Leading | Found | None:
            if self._names.version != version or not self._leads(like):
                return None  # names were learnt while the store was asked: it was asked for too few tags
            leading = self._led(store, lookup, target, like, key, now)
            if leading is None and (not lookup.available or not store.copies):
                return Found(lookup, version)
            return leading  # None for a fresh answer in a store with copies: a ``fetch`` makes one

        looking = PrivateLooking(led, then, self._leases if like.reuse_s > 0 else None, key)
        asked = store.look(key, like.tags, looking.looked)
        if asked is None:
            return None
        looking.asked = asked
        return looking

    def _leads(self, like: Like) -> bool:
        """Whether requests of this kind may go up, and their answers be stored, without a ``fetch``."""
        if like.version != self._names.version:
            if like.kind is None:
                return False
            self._find_out(like, like.kind)
        if not like.validates or like.refused is not None:
            return False
        return not (self._hooks is not None and like.reuse_s > 0 and not like.immutable and not self._hooks.heard_lately)

    def _led(
        self, store: Placing, lookup: Lookup, target: bytes, like: Like, key: bytes, now: Callable[[], float]
    ) -> Leading | None:
        if lookup.version > lookup.stamp or not lookup.available:
            return None
        question = b"%d\n%b" % (lookup.version, key)  # as ``PrivateAsking.ask`` has it
        if not lookup.entries:
            if like.given:
                return PrivatePassing(self._labels, like, lookup, like.version)
            flight = self._flights.lead(question)
            if flight is None:
                return None
            return PrivateLeading(self._asking, store, target, like, key, lookup, flight, now, like.version)
        at = now()
        entry, reason = usable(lookup, like.fields, None, like.reuse_s, at)
        if entry is None or reason is None or not validators(entry):
            return None
        flight = self._flights.lead(question)
        if flight is None:
            return None
        return PrivateValidating(self._asking, store, like, key, lookup, flight, now, like.version, entry, reason, at)

    def _find_out(self, like: Like, request: CacheRequest) -> None:
        """Fill ``like`` with what a request's fields, path and caller say."""
        like.version = self._names.version
        reading = self._reader.read(request.fields)
        like.refused = refuses_request(
            request.operation,
            reading.refused,
            partition=request.partition,
            has_body=request.has_body,
            session=request.session,
        )
        if like.refused is not None:
            return
        if reading.cache_control is not None:
            like.asked = parse_request_cache_control(reading.cache_control)
            if like.asked.no_store:
                like.refused = CacheReason.REQUEST
                return
        like.if_none_match = reading.if_none_match
        reached_as = request.reached_as + self._dressed
        like.key = private_key(request.partition, b"", request.sudo, reading.variance, reached_as)[_BEFORE_TARGET:]
        like.tags = self._tagging.of_answer(request.partition, request.target)
        like.taught = self._tagging.is_taught(request.target)
        like.immutable = self._policy.immutable and is_immutable(request.operation.name, request.target)
        if like.immutable:
            like.reuse_s, like.keep_s = self._policy.access_ttl_s, KEEP_S
        else:
            like.reuse_s = self._reuse_s.get(request.operation.name, self._default_reuse_s)
            like.keep_s = self._policy.keep_s
        like.fields = request.fields
        like.validates = like.asked is None and not request.operation.may_hold_secret
        like.given = conditions(request.fields) if like.reuse_s <= 0 else ()

    def _hits(self, entry: Entry, condition: bytes | None, reuse_s: float, age_s: float) -> tuple[Reply, CacheOutcome]:
        """The shortest way out: nothing is asked, parsed or encoded."""
        outcome = CacheOutcome(_HIT, _FRESH)
        outcome.age_s = age_s
        member = outcome.cache_status_field = self._hit % (reuse_s - age_s)
        return as_reply(entry, condition, ((b"Age", b"%d" % age_s), (b"Cache-Status", member))), outcome

    def _again(
        self, look: Callable[[], Entry | None], request: CacheRequest, reuse_s: float, condition: bytes | None
    ) -> Again:
        place = place_of(request.target)
        return Again(
            look,
            names=self._names,
            spelt=place.spelt if place.owner == b"project" else b"",
            hooks=self._hooks,
            reuse_s=reuse_s,
            fields=request.fields,
            condition=condition,
            member=self._hit,
        )

    # Past the cache

    async def _past(self, request: CacheRequest, forward: Forward, reason: CacheReason) -> tuple[Reply, CacheOutcome]:
        outcome = CacheOutcome(CacheStatus.BYPASS, reason)
        reply = await forward(conditions(request.fields))
        outcome.upstream_status = reply.head.status
        if reply.head.status == 401 and request.partition not in {b"", ANONYMOUS}:
            try:
                await self.drop_partition(request.partition)
            except BaseException:
                reply.release()
                raise
        return self._labels.upstream_answer(reply, outcome), outcome

    async def _not_a_get(self, request: CacheRequest, forward: Forward) -> tuple[Reply, CacheOutcome]:
        """HEAD always goes up: GitLab answers it with fields that a GET's answer lacks. A write purges what it may have
        changed."""
        writes = request.method not in SAFE_METHODS and request.operation.access is not Access.READ
        if not writes:
            return await self._past(request, forward, CacheReason.METHOD)
        try:
            reply, outcome = await self._past(request, forward, CacheReason.METHOD)
        except BaseException as failure:
            # A write whose answer never came may have succeeded.
            if may_have_written(failure.code if isinstance(failure, Rejection) else None):
                await self._purge(self._of_write(request))
            raise
        if may_have_written(reply.head.status):
            try:
                reply = await self._written(request, reply)
            except BaseException:
                reply.release()
                raise
        return reply, outcome

    def _of_write(self, request: CacheRequest) -> tuple[bytes, ...]:
        return self._tagging.of_write(request.target, request.operation, request.partition)

    async def _purge(self, tags: tuple[bytes, ...]) -> None:
        await self._store.purge(tags, self._policy.hold_s)

    async def _written(self, request: CacheRequest, reply: Reply) -> Reply:
        """Purge what a write may have changed before its answer goes down, and again at the end of an answer that streams:
        that to a push begins before its branches are moved."""
        tags = self._of_write(request)
        if reply.chunks is not None:
            await self._purge(tags)
            if request.operation.surface is Surface.REST and is_json(first(reply.head.fields, b"content-type")):
                reply = await read_ahead(reply)
        if reply.chunks is None:
            await self._purge(tuple(dict.fromkeys((*tags, *self._tagging.of_written(request.target, reply)))))
            return reply
        return Reply(
            reply.head, None, self._until_over(reply.chunks, tags), reply.release, reply.connect_s, reply.first_byte_s
        )

    async def _until_over(self, chunks: AsyncIterator[bytes], tags: tuple[bytes, ...]) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await self._purge(tags)
