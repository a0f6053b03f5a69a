"""Caching decisions for GitLab's answers, which are kept in many private caches, one per partition. No I/O.

GitLab sends nearly everything with ``max-age=0, private, must-revalidate``: such an answer may be kept by its caller's own
cache and must be revalidated before each reuse. That is the default here. With a ``ttl`` the operator permits the gateway
to ask less often, and ``access_ttl`` bounds every such permission.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .answer_shape import Shape, make_picker, shape_of_head
from .cache_control import RequestDirectives, ResponseDirectives, plain_directives
from .cache_entry import Entry
from .cache_key import vary_list
from .cache_status import CacheReason, Stored
from .catalogue import Operation, Surface
from .conditional import is_etag
from .correlation import CORRELATION_FIELDS
from .errors import Code
from .messages import Fields, ResponseHead, first, lower

# Made anew for each answer, never replayed.
PER_ANSWER = frozenset(
    {
        b"date",
        b"ratelimit",
        b"ratelimit-limit",
        b"ratelimit-name",
        b"ratelimit-observed",
        b"ratelimit-policy",
        b"ratelimit-remaining",
        b"ratelimit-reset",
        b"ratelimit-resettime",
        b"retry-after",
        b"server-timing",
        b"set-cookie",
        b"x-gitlab-meta",
        b"x-request-id",
        b"x-runtime",
    }
)
_CODINGS = frozenset({b"gzip", b"x-gzip", b"br", b"deflate", b"zstd", b"identity"})
# Statuses that say that the caller may not, or no longer, have the stored answer.
_DROPPING_STATUSES = frozenset({401, 403, 404, 410})
_FAILURES = frozenset({429, 500, 502, 503, 504})


class PrivatePolicy(msgspec.Struct, frozen=True):
    """What the operator permits. Durations are in seconds."""

    ttl_s: float = 0.0
    access_ttl_s: float = 60.0
    stale_if_error_s: float = 0.0
    max_entry_bytes: int = 2 << 20
    keep_s: float = 86_400.0
    """How long a body is kept in order to be revalidated."""
    route_ttl_s: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Operation name → the ``ttl_s`` of that operation."""
    immutable: bool = True
    """Answers that a full commit SHA names are reused for ``access_ttl_s``, whatever the ``ttl``, and kept for longer."""
    hold_s: float = 0.0
    """How long after a purge the purged answers are not stored again."""
    prefix: str = ""
    """GitLab's relative URL root, as ``/gitlab``."""

    def reuse_s(self, operation: str) -> float:
        """How long answers of the operation with this name may be reused without asking upstream."""
        return min(self.route_ttl_s.get(operation, self.ttl_s), self.access_ttl_s)


def bypass_reason(
    operation: Operation, refused_field: bytes, *, partition: bytes, has_body: bool, session: bool
) -> CacheReason | None:
    """Why this GET must bypass the cache; None: it may be looked up and stored."""
    if not partition:
        return CacheReason.NO_PARTITION
    if session:
        return CacheReason.SESSION
    if has_body:
        return CacheReason.BODY
    if operation.surface is not _REST:
        return CacheReason.SURFACE
    if not operation.known:
        return CacheReason.UNKNOWN_OPERATION
    if operation.secret_answer:
        return CacheReason.SECRET_ANSWER
    if operation.side_effect:
        return CacheReason.SIDE_EFFECT
    if operation.binary:
        return CacheReason.BINARY
    return REFUSED_FIELDS[refused_field] if refused_field else None


_REST = Surface.REST
REFUSED_FIELDS = {
    b"range": CacheReason.RANGE,
    b"if-match": CacheReason.CONDITIONAL,
    b"if-modified-since": CacheReason.CONDITIONAL,
    b"if-unmodified-since": CacheReason.CONDITIONAL,
    b"if-range": CacheReason.CONDITIONAL,
    b"cookie": CacheReason.SESSION,
}
"""Request fields with which only GitLab may answer a GET."""


_NOT_RAILS = frozenset({b"gitlab-workhorse-send-data", b"content-range", b"content-disposition"})
"""Fields that show that something other than Rails makes the body."""
STORAGE_FIELDS = frozenset({b"cache-control", b"content-encoding", b"content-type", b"vary"})
"""The fields whose values decide whether an answer is stored, besides the presence of others."""
_VERDICTS_BOUND = 64
_STORED = Stored.STORED


class StorageVerdict(msgspec.Struct, frozen=True, gc=False):
    """Whether an answer to an eligible GET may be stored for its partition."""

    stored: Stored
    """``STORED`` if it may; any other value says why not."""
    said: ResponseDirectives
    varies: tuple[bytes, ...]
    """The fields that ``Vary`` names."""


def storable(head: ResponseHead, reuse_s: float) -> StorageVerdict:
    """The verdict on an answer with this head. ``reuse_s``: how long it would be reused without asking."""
    fields, shape = head.fields, head.shape or shape_of_head(head)
    verdicts: _StorageVerdicts | None = shape.memo.get(_StorageVerdicts)
    if verdicts is None:
        verdicts = shape.memo[_StorageVerdicts] = _StorageVerdicts(shape)
    verdict = verdicts.of(fields)
    if head.status != 200:
        return StorageVerdict(Stored.STATUS, verdict.said, verdict.varies)
    if verdict.stored is not _STORED:
        return verdict
    modified = shape.first(fields, b"last-modified")
    if modified is not None and modified.strip() == b"0":  # GitLab's way of saying that the ETag is not of this body
        return StorageVerdict(Stored.DELEGATED, verdict.said, verdict.varies)
    if reuse_s <= 0 and not is_etag((shape.first(fields, b"etag") or b"").strip()):
        return StorageVerdict(Stored.UNVALIDATABLE, verdict.said, verdict.varies)
    return verdict


class _StorageVerdicts:
    """The verdicts on answers of one shape, by the values of ``STORAGE_FIELDS``, the same in nearly all of them."""

    __slots__ = ("_known", "_pick", "_shape")

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._pick = make_picker([place for place, name in enumerate(shape.names) if name in STORAGE_FIELDS])
        self._known: dict[Fields, StorageVerdict] = {}

    def of(self, fields: Fields) -> StorageVerdict:
        storage_fields = self._pick(fields)
        verdict = self._known.get(storage_fields)
        if verdict is None:
            if len(self._known) >= _VERDICTS_BOUND:
                self._known.clear()
            verdict = self._known[storage_fields] = self._judged(fields)
        return verdict

    def _judged(self, fields: Fields) -> StorageVerdict:
        shape = self._shape
        said = plain_directives(shape.joined(fields, b"cache-control"))
        varies = vary_list(shape.joined(fields, b"vary"))
        kind = shape.joined(fields, b"content-type")
        coding = shape.joined(fields, b"content-encoding")
        if said.no_store:
            stored = Stored.NO_STORE
        elif shape.has_any(_NOT_RAILS):
            stored = Stored.DELEGATED
        elif b"set-cookie" in shape.place:
            stored = Stored.SET_COOKIE
        elif kind is None or not _is_json(kind):
            stored = Stored.CONTENT_TYPE
        elif coding is not None and coding.strip().lower() not in _CODINGS:
            stored = Stored.CONTENT_ENCODING
        else:
            # What marks a single request is no part of what an answer is stored under, nor need it stand among its fields.
            stored = Stored.VARY_ANY if varies is None or not CORRELATION_FIELDS.isdisjoint(varies) else _STORED
        return StorageVerdict(stored, said, varies or ())


def _is_json(media_type: bytes) -> bool:
    kind = media_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")


def revalidation_reason(entry: Entry, asked: RequestDirectives | None, reuse_s: float, now: float) -> CacheReason | None:
    """Why GitLab has to be asked first about a stored answer; None: it may be served as it is.

    Its age counts from the last time that GitLab vouched for both the body and the caller's access: one request does both.
    """
    age = max(0.0, now - entry.received_at)
    if age >= reuse_s:
        return CacheReason.STALE
    if asked is not None:
        if asked.no_cache or (asked.max_age_s is not None and age >= asked.max_age_s):
            return CacheReason.REQUEST
        if reuse_s - age < asked.min_fresh_s:
            return CacheReason.REQUEST
    return None


def may_serve_stale(entry: Entry, asked: RequestDirectives | None, policy: PrivatePolicy, now: float) -> bool:
    """Whether the last answer that GitLab vouched for may be served while GitLab fails."""
    if asked is not None and asked.no_cache:
        return False
    return now - entry.received_at < policy.stale_if_error_s


_NEVER_SENT = frozenset(
    {
        Code.RATE_LIMITED,
        Code.UPSTREAM_DNS,
        Code.UPSTREAM_REFUSED,
        Code.UPSTREAM_CONNECT_TIMEOUT,
        Code.UPSTREAM_BREAKER_OPEN,
        Code.UPSTREAM_BUSY,
    }
)


def may_have_written(answer: int | Code | None) -> bool:
    """Whether a write may have been carried out, judged by GitLab's status, or by why there is none (None: unknown).

    While GitLab is away or in maintenance, stored answers must not be purged by writes that never reached it.
    """
    if isinstance(answer, int):
        return not 400 <= answer < 500 and answer != 503
    return answer not in _NEVER_SENT


def is_failure(status: int) -> bool:
    """Whether GitLab was unable to answer just now, which says nothing about the stored answer."""
    return status in _FAILURES


def must_drop_entry(status: int) -> bool:
    """Whether the status says that this caller may no longer have the stored answer."""
    return status in _DROPPING_STATUSES


def per_answer_fields(fields: Fields) -> Fields:
    """The fields of a 304 that belong to this one answer: passed on to the client, never stored."""
    return tuple(field for field in fields if lower(field[0]) in PER_ANSWER)


def validator_matches(entry: Entry, head: ResponseHead) -> bool:
    """Whether this 304 is about the stored entry. GitLab may send another ETag, or none."""
    etag = first(head.fields, b"etag")
    return etag is None or etag.strip().removeprefix(b"W/") == entry.etag.removeprefix(b"W/")
