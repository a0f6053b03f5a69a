"""The cache as the pipeline sees it: one ``fetch`` between a permitted request and its upstream.

Which cache it is (``PrivateCache`` for GitLab, ``SharedCache`` for RFC 9111, ``NoCache``) is chosen once, in
``app/cache_room.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from ..core.answer_shape import Shape, shaped
from ..core.cache_control import RequestDirectives
from ..core.cache_entry import replaced
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.caching import conditions
from ..core.catalogue import Operation
from ..core.head_form import Blanks, Values
from ..core.messages import Field, Fields, ResponseHead, first, joined
from ..ports import Asked, Lookup
from ..reply import Reply
from .again import Again
from .mould import Cast, Mould, Told


class Like(msgspec.Struct, gc=False):
    """What a cache found out about one request, for those of its kind: only their targets' queries differ, and in nothing
    that anybody reads."""

    kind: CacheRequest | None = None
    """One of these requests, to find it out from; None: that takes a ``fetch``."""
    version: int = -1
    """Of the projects' names, when it was found out."""
    refused: CacheReason | None = None
    asked: RequestDirectives | None = None
    if_none_match: bytes | None = None
    key: bytes = b""
    """Behind the target."""
    tags: tuple[bytes, ...] = ()
    reuse_s: float = 0.0
    keep_s: float = 0.0
    immutable: bool = False
    taught: bool = False
    """An answer names no project that is not known by now."""
    fields: Fields = ()
    """The request's."""
    validates: bool = False
    """Where something is stored that must be asked about, it may be asked about for all who wait. Where nothing is, an
    answer may be stored and shared with them, but for ``given``."""
    given: Fields = ()
    """The client's own conditions: where nothing is stored they go up, and what they bring is for it alone. None where an
    answer would be reused without asking: then the whole one is fetched for all."""
    moulds: dict[tuple[Shape, Fields, float], Mould] = {}
    """Of its answers, by what these say that decides, and ``reuse_s``: others of the same fields have the same."""


class Found(msgspec.Struct, gc=False):
    """What the store held when a request was about to go up without a ``fetch``."""

    lookup: Lookup
    version: int
    """Of the ``Like``: its key and its tags were these."""
    over: bool = False
    """The store was asked again since, for the same request: what GitLab said before that is no answer to what is known
    now."""


class CacheRequest(msgspec.Struct, frozen=True, gc=False):
    """What the pipeline knows when it comes to the cache."""

    method: str
    target: bytes
    """The raw target less credentials."""
    fields: Fields
    """The request's, as forwarded upstream less credentials: conditional, range and cache directives included."""
    operation: Operation
    partition: bytes = b""
    """Who may see the answer; empty in shared mode."""
    has_body: bool = False
    sudo: str = ""
    session: bool = False
    """It comes with a browser session."""
    reached_as: bytes = b""
    """How the client addressed the gateway (scheme, host): ``Link`` and ``Location`` of the answer are made of it."""
    like: Like | None = None
    """One for all requests of a kind, where there are others."""
    found: Found | None = None
    """Where the store was asked already."""

    @property
    def has_authorization(self) -> bool:
        return first(self.fields, b"authorization") is not None


class CacheOutcome:
    """What happened, for telemetry. ``stored`` is final only once the reply's body was read to its end or released."""

    __slots__ = ("again", "age_s", "cache_status_field", "reason", "status", "stored", "upstream_status")

    def __init__(self, status: CacheStatus = CacheStatus.BYPASS, reason: CacheReason = CacheReason.NONE) -> None:
        self.status = status
        self.reason = reason
        self.stored = Stored.NOT_ASKED
        self.upstream_status = 0
        """What upstream answered to the request that the cache made; 0 where it was not asked or failed."""
        self.age_s = -1.0
        """Of a stored answer; -1 for one that just came."""
        self.cache_status_field = b""
        """This cache's own member of ``Cache-Status``, already in the reply's head."""
        self.again: Again | None = None
        """Where the same request may be answered in the same way."""


Forward = Callable[[Fields], Awaitable[Reply]]
"""Ask upstream. The argument is the whole set of conditional and range fields to send, in place of the client's own. May be
called more than once, and after ``fetch`` returned (stale-while-revalidate)."""


class Leading(Protocol):
    """One request that asks upstream for all who ask the same."""

    @property
    def conditions(self) -> Fields:
        """What it goes up with."""
        ...

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome] | None:
        """A 304 is there, as it goes down: what is stored is kept on, shared with all who wait, and told. None, and nothing
        was done, where that takes a ``fetch``."""
        ...

    def answered(self, head: ResponseHead, whole: bytes) -> Told | None:
        """A 200 is there: stored where it may be, shared with all who wait. None, and nothing was done, where that takes a
        ``fetch``."""
        ...

    def cast(self, blanks: Blanks, head: ResponseHead) -> Cast | None:
        """What to make of answers of one form. ``head`` is made of ``blanks``, as it goes down. None: each has to be looked
        at. Raises ValueError where the values that differ don't come out whole."""
        ...

    def likewise(self, cast: Cast, values: Values, whole: bytes) -> Told | None:
        """As ``answered``, of one of that form. None, and nothing was done, where it takes ``answered``."""
        ...

    def abandon(self) -> None:
        """There is no answer: whoever waits asks next. Harmless afterwards."""
        ...

    def found(self) -> Found:
        """For the ``fetch`` that goes on from here: an answer that is there already is not taken for a later one."""
        ...


class Cache(Protocol):
    """A cache policy over a store."""

    def lead_now(self, target: bytes, like: Like, now: Callable[[], float]) -> Leading | None:
        """Nothing is stored for ``target``, or something that must be asked about; nobody asks for it, and its answer can
        be dealt with without a wait: it is to go up with ``Leading.conditions``, and a word is owed then. None for any
        other: that is for ``fetch``.

        Args:
            target: The raw one, of a GET less credentials.
            like: What ``fetch`` found out about one of its kind.
            now: Unix seconds.
        """
        ...

    def lead_soon(
        self, target: bytes, like: Like, now: Callable[[], float], then: Callable[[Leading | Found | None], None]
    ) -> Asked | None:
        """As ``lead_now``, of a store that has to be asked: ``then`` is called once, later, with what ``lead_now`` would
        have said, or with what there is for the ``fetch`` that it takes. None, and nobody is asked, where that takes one
        anyway. What ``then`` raises is logged.
        """
        ...

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        """The answer to send, complete: stored fields, ``Age``, ``Cache-Status``, the client's preconditions judged.

        Its body, when it streams, is copied into the store on the way and becomes visible only when it arrived whole.
        ``release()`` on the reply is owed on every path. Raises what ``forward`` raises, and Rejection ONLY_IF_CACHED.

        Args:
            request: Permitted; nothing is looked up for one that is not.
            forward: The way up.
            now: Unix seconds.
        """
        ...

    async def drop_partition(self, partition: bytes) -> None:
        """Forget everything of one credential."""
        ...

    async def close(self) -> None: ...


class Leases(Protocol):
    """Which gateway asks, where several share a store."""

    async def lead(self, question: bytes) -> Callable[[], None] | None:
        """Ask for all: what must be called when the answer is stored, or will not be. Never fails.

        None: another gateway asked the same. It is done now, or has taken too long.
        """
        ...

    def lead_soon(self, question: bytes, then: Callable[[Callable[[], None] | None], None]) -> Asked | None:
        """As ``lead``, but that nobody waits for another gateway: ``then`` is called once, later, with None where one
        asks. None, and nothing was sent, where that cannot be said."""
        ...


def with_status(head: ResponseHead, member: bytes, age_s: float = -1.0) -> ResponseHead:
    """``head`` with this cache's member appended to ``Cache-Status`` and, for a stored answer, its ``Age``."""
    fields, shape = head.fields, head.shape or shaped(head)
    if b"cache-status" in shape.place:
        before = joined(fields, b"cache-status")
        fields = replaced(fields, (b"Cache-Status", (before or b"") + b", " + member))
        return ResponseHead(head.status, fields if age_s < 0 else (*fields, _age(age_s)), head.reason)
    if age_s < 0:
        return ResponseHead(head.status, (*fields, (b"Cache-Status", member)), head.reason, shape.plus(b"Cache-Status"))
    return ResponseHead(
        head.status,
        (*fields, _age(age_s), (b"Cache-Status", member)),
        head.reason,
        shape.plus(b"Age", b"Cache-Status"),
    )


def _age(age_s: float) -> Field:
    return (b"Age", b"%d" % int(age_s))


class NoCache:
    """No cache at all."""

    def lead_now(self, target: bytes, like: Like, now: Callable[[], float]) -> Leading | None:
        del target, like, now
        return None

    def lead_soon(
        self, target: bytes, like: Like, now: Callable[[], float], then: Callable[[Leading | Found | None], None]
    ) -> Asked | None:
        del target, like, now, then
        return None

    async def fetch(self, request: CacheRequest, forward: Forward, now: Callable[[], float]) -> tuple[Reply, CacheOutcome]:
        del now
        return await forward(conditions(request.fields)), CacheOutcome(CacheStatus.OFF)

    async def drop_partition(self, partition: bytes) -> None:
        del partition

    async def close(self) -> None:
        return None
