"""What the cache did with a request and why: closed sets, with one string for header, metric, audit and docs (RFC 9211)."""

from __future__ import annotations

import enum
from functools import lru_cache

from .structured_fields import serialise_name


class CacheStatus(enum.StrEnum):
    """What the client got."""

    OFF = "off"
    """No cache is configured."""
    BYPASS = "bypass"
    """The cache had no part in this request."""
    MISS = "miss"
    """There was nothing to reuse; the origin answered."""
    HIT = "hit"
    """A stored answer, without asking the origin."""
    REVALIDATED = "revalidated"
    """A stored answer, after the origin confirmed that it is still right."""
    UPDATED = "updated"
    """The origin was asked about a stored answer, and sent another."""
    STALE = "stale"
    """A stored answer past its lifetime; ``reason`` says what permits that."""
    COLLAPSED = "collapsed"
    """The answer that another request, in flight at the same time, brought."""


class CacheReason(enum.StrEnum):
    """Why the origin was asked, or why not."""

    NONE = "none"
    FRESH = "fresh"
    METHOD = "method"
    BODY = "body"
    RANGE = "range"
    CONDITIONAL = "conditional"
    """``If-Match`` and its kin are for the origin to judge."""
    SESSION = "session"
    NO_PARTITION = "no-partition"
    SURFACE = "surface"
    UNKNOWN_OPERATION = "unknown-operation"
    SECRET_ANSWER = "secret-answer"  # noqa: S105
    SIDE_EFFECT = "side-effect"
    BINARY = "binary"
    STORE_UNAVAILABLE = "store-unavailable"
    URI_MISS = "uri-miss"
    VARY_MISS = "vary-miss"
    STALE = "stale"
    PARTIAL = "partial"
    REQUEST = "request"
    """The client's ``Cache-Control`` asks for it."""
    NO_CACHE = "no-cache"
    """The origin's ``no-cache`` asks for it."""
    STALE_IF_ERROR = "stale-if-error"
    STALE_WHILE_REVALIDATE = "stale-while-revalidate"
    MAX_STALE = "max-stale"


class Stored(enum.StrEnum):
    """What became of the origin's answer."""

    NOT_ASKED = "not-asked"
    """No answer came that could be stored."""
    STORED = "stored"
    FRESHENED = "freshened"
    DROPPED = "dropped"
    """The answer removed the stored one (401, 403, 404, 410)."""
    METHOD = "method"
    REQUEST = "request"
    """The request itself forbids storing."""
    STATUS = "status"
    NO_STORE = "no-store"
    PRIVATE = "private"
    AUTHORIZATION = "authorization"
    MUST_UNDERSTAND = "must-understand"
    SET_COOKIE = "set-cookie"
    CONTENT_TYPE = "content-type"
    CONTENT_ENCODING = "content-encoding"
    DELEGATED = "delegated"
    """Workhorse or object storage made the body, so its validators are not GitLab's."""
    UNVALIDATABLE = "unvalidatable"
    """It has neither a lifetime nor a validator, and could never be reused."""
    VARY_ANY = "vary-any"
    SECRET = "secret"  # noqa: S105 — why it was not stored
    """It holds a ``runners_token``, or could not be read to make sure that it doesn't."""
    HELD = "held"
    """Something that it shows has just changed, and GitLab's replicas may not know yet."""
    TOO_LARGE = "too-large"
    INCOMPLETE = "incomplete"
    """It did not arrive whole."""
    INVALIDATED = "invalidated"
    """A write passed through while it was on its way."""
    STORE_UNAVAILABLE = "store-unavailable"


# The fwd tokens of RFC 9211 §2.2. A reason that is not here is the gateway's own: `bypass` with a detail.
_FORWARDED = {
    CacheReason.METHOD: "method",
    CacheReason.URI_MISS: "uri-miss",
    CacheReason.VARY_MISS: "vary-miss",
    CacheReason.STALE: "stale",
    CacheReason.NO_CACHE: "stale",
    CacheReason.PARTIAL: "partial",
    CacheReason.REQUEST: "request",
}
_SERVED = frozenset({CacheStatus.HIT, CacheStatus.STALE})


@lru_cache(maxsize=1024)
def cache_status_field(
    name: str,
    status: CacheStatus,
    reason: CacheReason,
    *,
    upstream_status: int = 0,
    stored: bool = False,
    ttl_s: int | None = None,
    collapsed: bool = False,
) -> bytes:
    """One member of ``Cache-Status``.

    Args:
        name: What this cache calls itself.
        status: What it did.
        reason: Why it did that.
        upstream_status: The status of the origin's answer; 0 if it was not asked or did not answer.
        stored: Whether the origin's answer was stored, or freshened the stored one.
        ttl_s: The freshness left; negative once it is over.
        collapsed: Whether another request brought the answer.
    """
    parts = [serialise_name(name)]
    if status in _SERVED:
        parts.append("hit")
    else:
        parts.append("fwd=" + _FORWARDED.get(reason, "bypass"))
        if upstream_status:
            parts.append(f"fwd-status={upstream_status}")
        if stored:
            parts.append("stored")
        if collapsed:
            parts.append("collapsed")
    if ttl_s is not None:
        parts.append(f"ttl={ttl_s}")
    if status is CacheStatus.STALE or (reason not in _FORWARDED and reason not in _PLAIN):
        parts.append(f"detail={reason.value}")
    return "; ".join(parts).encode("ascii")


_PLAIN = frozenset({CacheReason.NONE, CacheReason.FRESH})
