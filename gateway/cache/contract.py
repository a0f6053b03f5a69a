"""The cache as the pipeline sees it: one ``fetch`` between a permitted request and its upstream.

Which cache it is (``PrivateCache`` for GitLab, ``SharedCache`` for RFC 9111, ``NoCache``) is chosen once, in
``app/cache_assembly.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from ..core.access import Priority
from ..core.answer_shape import Shape, shape_of_head
from ..core.cache_control import RequestDirectives
from ..core.cache_entry import replace_fields
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.caching import conditions
from ..core.catalogue import Operation
from ..core.head_form import HeadPlaceholders, Values
from ..core.messages import Field, Fields, ResponseHead, first, joined
from ..ports import Cancellable, Lookup
from ..reply import Reply
from .entry_template import EntryTemplate, FormTemplate, MissOutcome
from .repeat_hit import RepeatHit


class CacheProfile(msgspec.Struct, gc=False):
    """What a cache knows of the requests of one kind, by one of them: they differ only in their targets' queries, and in
    nothing there that the gateway looks at."""

    sample: CacheRequest | None = None
    """One of these requests, from which to fill the profile; None: only a ``fetch`` can."""
    version: int = -1
    """The version of the project names when it was filled."""
    refused: CacheReason | None = None
    directives: RequestDirectives | None = None
    if_none_match: bytes | None = None
    key: bytes = b""
    """The part of the cache key behind the target."""
    tags: tuple[bytes, ...] = ()
    reuse_s: float = 0.0
    keep_s: float = 0.0
    immutable: bool = False
    nothing_to_learn: bool = False
    """Whether an answer can name no project that is not known by now."""
    fields: Fields = ()
    """The request's fields."""
    may_share: bool = False
    """Whether a stored answer that must be revalidated may be revalidated for all who wait. Where nothing is stored, the
    answer may then be stored and shared with them, unless ``client_conditions`` holds conditions."""
    client_conditions: Fields = ()
    """The client's own conditions: where nothing is stored they are forwarded, and the answer is for this client alone.
    Empty where an answer would be reused without asking: then the whole answer is fetched for all."""
    templates: dict[tuple[Shape, Fields, float], EntryTemplate] = {}
    """By the answers' shape, by the fields that decide about storing, and by ``reuse_s``: answers that agree in these share
    one."""


class PriorLookup(msgspec.Struct, gc=False):
    """What the store held when a request was about to go up without a ``fetch``."""

    lookup: Lookup
    version: int
    """The version of the ``CacheProfile`` whose key and tags the store was asked for."""
    superseded: bool = False
    """Whether the store has been asked again since, for the same request: what GitLab said before that is no answer to
    what is known now."""


class CacheRequest(msgspec.Struct, frozen=True, gc=False):
    """What the pipeline knows of a request when it comes to the cache."""

    method: str
    target: bytes
    """The raw target without credentials."""
    fields: Fields
    """The request's fields as forwarded upstream, without credentials: conditions, range and cache directives included."""
    operation: Operation
    partition: bytes = b""
    """Who may see the answer; empty in shared mode."""
    has_body: bool = False
    sudo: str = ""
    session: bool = False
    """Whether it comes with a browser session."""
    reached_as: bytes = b""
    """How the client addressed the gateway (scheme, host): the answer's ``Link`` and ``Location`` are made from it."""
    profile: CacheProfile | None = None
    """Shared by all requests of its kind, where there are others."""
    prior_lookup: PriorLookup | None = None
    """What the store held, where it was asked already."""
    priority: Priority = Priority.INTERACTIVE
    gives_way: Callable[[Priority], bool] | None = None
    """Whether at present one of this priority that asks the same should not wait for this one's answer."""

    @property
    def has_authorization(self) -> bool:
        return first(self.fields, b"authorization") is not None


class CacheOutcome:
    """What happened, for telemetry. ``stored`` is final only once the reply's body was read to its end or released."""

    __slots__ = ("reason", "repeat_hit", "status", "stored", "upstream_status")

    def __init__(self, status: CacheStatus = CacheStatus.BYPASS, reason: CacheReason = CacheReason.NONE) -> None:
        self.status = status
        self.reason = reason
        self.stored = Stored.NOT_ASKED
        self.upstream_status = 0
        """What upstream answered to the request that the cache made; 0 where it was not asked or failed."""
        self.repeat_hit: RepeatHit | None = None
        """How to answer the same request again without a ``fetch``, where that may be possible."""


Forward = Callable[[Fields], Awaitable[Reply]]
"""Ask upstream. The argument is the whole set of conditional and range fields to send, in place of the client's own. May be
called more than once, and after ``fetch`` returned (stale-while-revalidate)."""


class Leader(Protocol):
    """One request that asks upstream on behalf of all identical ones."""

    @property
    def conditions(self) -> Fields:
        """The conditions to forward it with."""
        ...

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome] | None:
        """Handle a 304, given as it goes down: keep what is stored, share it with all who wait, and return the reply.
        None, with nothing done, where that takes a ``fetch``."""
        ...

    def answered(self, head: ResponseHead, whole: bytes) -> MissOutcome | None:
        """Handle a 200: store it where that is allowed, and share it with all who wait. None, with nothing done, where
        that takes a ``fetch``."""
        ...

    def form_template(self, placeholders: HeadPlaceholders, head: ResponseHead) -> FormTemplate | None:
        """The template for answers of one form. ``head`` is made from ``placeholders``, as it goes down. None: each answer
        has to be examined. Raises ValueError where the values that differ can't be recovered whole."""
        ...

    def answered_by_form(self, form_template: FormTemplate, values: Values, whole: bytes) -> MissOutcome | None:
        """As ``answered``, for an answer of that form. None, with nothing done, where it takes ``answered``."""
        ...

    def abandon(self) -> None:
        """Give up without an answer: one of those who wait asks next. Harmless after an answer."""
        ...

    def prior_lookup(self) -> PriorLookup:
        """What a ``fetch`` needs to go on from here: an answer that is there already must not be taken for a later one."""
        ...


class Cache(Protocol):
    """A cache policy over a store."""

    def lead_now(self, target: bytes, profile: CacheProfile, now: Callable[[], float]) -> Leader | None:
        """Lead a request, if nothing is stored for ``target``, or something that must be revalidated, and if nobody else
        asks for it and its answer can be dealt with without waiting. It must then be forwarded with ``Leader.conditions``,
        and the ``Leader`` must hear how that ended. None for any other request: that is for ``fetch``.

        Args:
            target: The raw target of a GET, without credentials.
            profile: That of the requests of its kind.
            now: Unix seconds.
        """
        ...

    def lead_soon(
        self,
        target: bytes,
        profile: CacheProfile,
        now: Callable[[], float],
        then: Callable[[Leader | PriorLookup | None], None],
    ) -> Cancellable | None:
        """As ``lead_now``, for a store that has to be asked: ``then`` is called once, later, with what ``lead_now`` would
        return, or with what the store held, where a ``fetch`` is needed. Returns None, with nobody asked, where one is
        needed anyway. What ``then`` raises is logged.
        """
        ...

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        """Return the complete answer to send: stored fields, ``Age``, ``Cache-Status``, the client's preconditions judged.

        A body that streams is copied into the store on the way, and becomes visible there only once it has arrived whole.
        The caller owes ``release()`` on the reply on every path. Raises what ``forward`` raises, and Rejection
        ONLY_IF_CACHED.

        Args:
            request: A permitted request; nothing is looked up for any other.
            forward: Asks upstream.
            now: Unix seconds.
        """
        ...

    async def drop_partition(self, partition: bytes) -> None:
        """Forget everything stored for one credential."""
        ...

    async def close(self) -> None: ...


class Leases(Protocol):
    """Decides which gateway asks, where several share a store."""

    async def lead(self, flight_key: bytes) -> Callable[[], None] | None:
        """Take the lease to ask on behalf of all gateways. Returns what must be called when the answer is stored, or will
        not be. Never fails.

        None: another gateway asked the same. It is done by now, or has taken too long.
        """
        ...

    def lead_soon(self, flight_key: bytes, then: Callable[[Callable[[], None] | None], None]) -> Cancellable | None:
        """As ``lead``, but without waiting for another gateway: ``then`` is called once, later, with None where one asks.
        Returns None, with nothing sent, where that can't be known."""
        ...


def with_status(head: ResponseHead, member: bytes, age_s: float = -1.0) -> ResponseHead:
    """``head`` with this cache's member appended to ``Cache-Status`` and, for a stored answer, its ``Age``."""
    fields, shape = head.fields, head.shape or shape_of_head(head)
    if b"cache-status" in shape.place:
        before = joined(fields, b"cache-status")
        fields = replace_fields(fields, (b"Cache-Status", (before or b"") + b", " + member))
        return ResponseHead(head.status, fields if age_s < 0 else (*fields, _age(age_s)), head.reason)
    if age_s < 0:
        return ResponseHead(
            head.status, (*fields, (b"Cache-Status", member)), head.reason, shape.with_names(b"Cache-Status")
        )
    return ResponseHead(
        head.status,
        (*fields, _age(age_s), (b"Cache-Status", member)),
        head.reason,
        shape.with_names(b"Age", b"Cache-Status"),
    )


def _age(age_s: float) -> Field:
    return (b"Age", b"%d" % int(age_s))


class NoCache:
    """No cache at all."""

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
        del now
        return await forward(conditions(request.fields)), CacheOutcome(CacheStatus.OFF)

    async def drop_partition(self, partition: bytes) -> None:
        del partition

    async def close(self) -> None:
        return None
