"""What this cache says of itself: its member of ``Cache-Status`` (RFC 9211), on answers and on refusals."""

from __future__ import annotations

from ..core.cache_status import CacheReason, CacheStatus, Stored, cache_status_field
from ..core.errors import Code, Rejection, Source
from ..core.structured_fields import serialise_name
from ..reply import Reply
from .contract import CacheOutcome, with_status


class CacheStatusWriter:
    """Writes one cache's members of ``Cache-Status``.

    Args:
        name: What this cache calls itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def upstream_answer(self, reply: Reply, outcome: CacheOutcome, ttl_s: float | None = None) -> Reply:
        """An answer that has just arrived, with our member. ``ttl_s``: how long it will be reused, if it is stored."""
        stored = outcome.stored is Stored.STORED
        member = cache_status_field(
            self.name,
            outcome.status,
            outcome.reason,
            upstream_status=outcome.upstream_status,
            stored=stored,
            ttl_s=int(ttl_s) if stored and ttl_s is not None else None,
        )
        reply.head = with_status(reply.head, member)
        return reply

    def miss(self, stored: Stored, reuse_s: float) -> bytes:
        """The member for a 200 to a request that missed the cache, as ``upstream_answer`` writes it."""
        return cache_status_field(
            self.name,
            CacheStatus.MISS,
            CacheReason.URI_MISS,
            upstream_status=200,
            stored=stored is Stored.STORED,
            ttl_s=int(reuse_s) if stored is Stored.STORED else None,
        )

    def stored_answer(self, outcome: CacheOutcome, ttl_s: float) -> bytes:
        """The member for an answer from the store."""
        return cache_status_field(
            self.name,
            outcome.status,
            outcome.reason,
            upstream_status=outcome.upstream_status,
            stored=outcome.stored is Stored.STORED,
            ttl_s=int(ttl_s),
            collapsed=outcome.status is CacheStatus.COLLAPSED,
        )

    def only_if_cached(self, reason: CacheReason) -> Rejection:
        """The refusal for a client that wants a stored answer or none (RFC 9111 §5.2.1.7). Its member has no
        ``fwd``, which would say that the request went up (RFC 9211 §2.2)."""
        member = serialise_name(self.name).encode("ascii") + b"; detail=" + reason.value.encode("ascii")
        return Rejection(
            Code.ONLY_IF_CACHED, 504, "504 Gateway Timeout", headers=((b"Cache-Status", member),), source=Source.DOWNSTREAM
        )
