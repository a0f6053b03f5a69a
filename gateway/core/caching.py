"""A shared cache's decisions (RFC 9111), pure: may this be stored, may that be reused, what does a change invalidate.

``gateway/cache/shared.py`` acts on them.
"""

from __future__ import annotations

import enum
from urllib.parse import urljoin, urlsplit

import msgspec

from .byte_ranges import content_range, parse_content_range, parse_range, unsatisfied
from .cache_control import RequestDirectives, ResponseDirectives, response_directives
from .cache_entry import Entry, may_answer_304, not_modified, replace_fields, updated_fields
from .cache_key import selects, vary_names
from .cache_status import CacheReason, Stored
from .conditional import is_etag, is_strong, strong_equal, weak_equal
from .freshness import HEURISTIC_STATUSES, date_of, has_explicit_lifetime
from .messages import Fields, ResponseHead, first, joined, lower

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# Fields that make a request conditional or partial. A cache that asks on its own behalf replaces the client's by its own.
CONDITIONS = frozenset({b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"range"})
# The statuses whose caching rules are implemented here, which is what must-understand asks for (RFC 9111 §5.2.2.3).
_UNDERSTOOD = frozenset(
    {200, 203, 204, 206, 300, 301, 302, 303, 307, 308, 400, 403, 404, 405, 410, 414, 500, 501, 502, 503, 504}
)
_STALE_STATUSES = frozenset({500, 502, 503, 504})
# Statuses about what a single request asked for besides its target: its conditions, its range.
_OF_ONE_REQUEST = frozenset({304, 412, 416})


def conditions(fields: Fields) -> Fields:
    """The client's own conditional and range fields."""
    return tuple(field for field in fields if lower(field[0]) in CONDITIONS)


# Storing (§3)


def storable(
    method: str, target: bytes, head: ResponseHead, said: ResponseDirectives, *, no_store: bool, authorized: bool
) -> Stored:
    """Whether a shared cache may keep an answer: ``STORED`` means yes, anything else says why not.

    Args:
        method: The request's method.
        target: The request's target.
        head: The answer's head.
        said: The answer's directives.
        no_store: Whether the request said ``no-store``.
        authorized: Whether the request carried ``Authorization`` (§3.5).
    """
    status, fields = head.status, head.fields
    understood = said.must_understand and status in _UNDERSTOOD
    if no_store:
        return Stored.REQUEST
    if said.must_understand and not understood:
        return Stored.MUST_UNDERSTAND
    if said.no_store and not understood:
        return Stored.NO_STORE
    if said.private:
        return Stored.PRIVATE
    if authorized and not _is_everybodys(said):
        return Stored.AUTHORIZATION
    if vary_names(fields) is None:
        return Stored.VARY_ANY
    explicit = has_explicit_lifetime(fields, said)
    if method != "GET":
        return Stored.STORED if method == "POST" and _describes_itself(head, target, explicit) else Stored.METHOD
    if status < 200 or status in _OF_ONE_REQUEST or (status not in HEURISTIC_STATUSES and not explicit and not said.public):
        return Stored.STATUS
    if status == 206 and parse_content_range(first(fields, b"content-range") or b"") is None:
        return Stored.STATUS  # an unknown piece (several, other units), which would pass for the whole
    if explicit or is_etag((first(fields, b"etag") or b"").strip()) or first(fields, b"last-modified") is not None:
        return Stored.STORED
    return Stored.UNVALIDATABLE


def may_update(entry: Entry, target: bytes, head: ResponseHead, name: str, *, no_store: bool, authorized: bool) -> Stored:
    """Whether what a 304 or a HEAD's answer says about a stored answer may be told to other clients. The rules are those
    for storing a whole answer, because its fields may be meant for one client.

    Args:
        entry: The stored answer.
        target: The request's target.
        head: The head that came.
        name: The gateway's name as a surrogate.
        no_store: As for ``storable``.
        authorized: As for ``storable``.
    """
    said = ResponseHead(entry.status, updated_fields(entry.fields, head.fields), entry.reason)
    directives = response_directives(said.fields, name)
    verdict = storable("GET", target, said, directives, no_store=no_store, authorized=authorized)
    if verdict is Stored.STORED and authorized and not _is_everybodys(response_directives(head.fields, name)):
        return Stored.AUTHORIZATION  # the stored answer is everybody's, but what this client was told need not be
    return verdict


def _is_everybodys(said: ResponseDirectives) -> bool:
    """Whether an answer is everybody's although it was requested with ``Authorization`` (§3.5)."""
    return said.public or said.must_revalidate or said.shared_max_age


def must_drop_stored(why: Stored) -> bool:
    """Whether the reason not to update a stored answer is also one not to keep it, and not just about one client."""
    return why is not Stored.REQUEST and why is not Stored.AUTHORIZATION


def _describes_itself(head: ResponseHead, target: bytes, explicit: bool) -> bool:
    """Whether a POST's answer represents its own URL (RFC 9110 §9.3.3)."""
    location = first(head.fields, b"content-location")
    return head.status == 200 and explicit and location is not None and _same_origin(target, location, b"") == target


def keep_s(entry: Entry, grace_s: float) -> float:
    """How long a store should hold an entry: while it is fresh, and then while it may be validated or served stale."""
    past = 0.0 if entry.must_revalidate and not (entry.etag or entry.last_modified) else grace_s
    past = max(past, entry.stale_while_revalidate_s, entry.stale_if_error_s)
    return max(0.0, entry.lifetime_s - entry.initial_age_s) + past


# Reusing (§4)


class Use(enum.Enum):
    """What to do with the stored answers."""

    REUSE = "reuse"
    REUSE_STALE = "reuse-stale"
    VALIDATE = "validate"
    MISS = "miss"


class ReuseVerdict(msgspec.Struct, frozen=True):
    """The decision about one request."""

    use: Use
    reason: CacheReason
    entry: Entry | None = None
    background: bool = False
    """Whether to serve the stale entry now and ask again in the background (RFC 5861 §3)."""


def select(entries: tuple[Entry, ...], fields: Fields) -> tuple[Entry, ...]:
    """The stored variants that this request selects (§4.1), newest first, whole answers before partial ones."""
    chosen = [entry for entry in entries if selects(entry.selecting, entry.language, fields)]
    chosen.sort(key=lambda entry: (not entry.partial, entry.date_at, entry.received_at), reverse=True)
    return tuple(chosen)


def judge(
    entries: tuple[Entry, ...], fields: Fields, asked: RequestDirectives, now: float, method: str = "GET"
) -> ReuseVerdict:
    """Whether, and how, a stored answer may be used for this GET or HEAD."""
    if not entries:
        return ReuseVerdict(Use.MISS, CacheReason.URI_MISS)
    chosen = select(entries, fields)
    if not chosen:
        return ReuseVerdict(Use.MISS, CacheReason.VARY_MISS)
    wanted = first(fields, b"range") if method == "GET" else None
    entry = next((candidate for candidate in chosen if _covers(candidate, wanted, fields)), None)
    if entry is None:
        return ReuseVerdict(Use.MISS, CacheReason.PARTIAL, chosen[0])
    age = entry.age_s(now)
    left = entry.lifetime_s - age
    as_asked = CacheReason.REQUEST if left > 0 else CacheReason.STALE  # RFC 9211 §2.2: `request` is for fresh answers
    if asked.no_cache:
        return ReuseVerdict(Use.VALIDATE, as_asked, entry)
    if entry.no_cache:
        return ReuseVerdict(Use.VALIDATE, CacheReason.NO_CACHE, entry)
    if asked.max_age_s is not None and age > asked.max_age_s and not asked.max_stale_s:
        return ReuseVerdict(Use.VALIDATE, as_asked, entry)
    if left > 0:
        if left >= asked.min_fresh_s:
            return ReuseVerdict(Use.REUSE, CacheReason.FRESH, entry)
        return ReuseVerdict(Use.VALIDATE, CacheReason.REQUEST, entry)
    if not entry.must_revalidate:
        if -left < asked.max_stale_s:
            return ReuseVerdict(Use.REUSE_STALE, CacheReason.MAX_STALE, entry)
        if -left < entry.stale_while_revalidate_s:
            return ReuseVerdict(Use.REUSE_STALE, CacheReason.STALE_WHILE_REVALIDATE, entry, background=True)
    return ReuseVerdict(Use.VALIDATE, CacheReason.STALE, entry)


def _covers(entry: Entry, wanted: bytes | None, fields: Fields) -> bool:
    if not entry.partial:
        return True
    if wanted is None or not _if_range_holds(entry, fields):
        return False
    if wanted == entry.asked_range:
        return True
    asked = parse_range(wanted)
    piece = asked.within(entry.total) if asked is not None and entry.total >= 0 else None
    return piece is not None and entry.holds(piece) is not None


def may_serve_stale(entry: Entry, asked: RequestDirectives, now: float, default_s: float) -> bool:
    """Whether a stored answer may be served while the origin fails (RFC 9111 §4.2.4, RFC 5861 §4).

    Args:
        entry: The stored answer.
        asked: The request's directives.
        now: Unix seconds.
        default_s: How long the operator allows it where the origin says nothing; a client may allow longer.
    """
    if entry.must_revalidate or entry.no_cache or asked.no_cache:
        return False
    allowed = entry.stale_if_error_s if entry.stale_if_error_s >= 0 else default_s
    if asked.stale_if_error_s is not None:
        allowed = max(allowed, asked.stale_if_error_s)
    return entry.age_s(now) - entry.lifetime_s < allowed


def is_failure(status: int) -> bool:
    """Whether a stale answer is better than one with this status (RFC 5861 §4)."""
    return status in _STALE_STATUSES


# Asking again (§4.3)


def validators(entry: Entry, others: tuple[Entry, ...] = ()) -> Fields:
    """The conditions to validate with: the validators stored under this URL, this variant's first."""
    etags = list(dict.fromkeys(candidate.etag for candidate in (entry, *others) if candidate.etag))
    found: list[tuple[bytes, bytes]] = [(b"If-None-Match", b", ".join(etags))] if etags else []
    if entry.last_modified:
        found.append((b"If-Modified-Since", entry.last_modified))
    return tuple(found)


def remainder_conditions(entry: Entry) -> Fields:
    """The conditions that fetch what a partial answer lacks. Pieces may only be joined with a strong validator (§3.4)."""
    if not (entry.partial and entry.first_octet == 0 and is_strong(entry.etag) and len(entry.body) < entry.total):
        return ()
    return ((b"Range", b"bytes=%d-" % len(entry.body)), (b"If-Range", entry.etag))


def find_validated(candidates: tuple[Entry, ...], head: ResponseHead) -> Entry | None:
    """The stored answer that a 304 is about (§4.3.4); None if it is none of the candidates.

    If only one answer was asked about, the 304 is about that one, whatever ``ETag`` it carries.
    """
    etag = (first(head.fields, b"etag") or b"").strip()
    if is_etag(etag) and len(candidates) > 1:
        return next((entry for entry in candidates if weak_equal(entry.etag, etag)), None)
    return candidates[0] if candidates else None


def is_continuation(entry: Entry, head: ResponseHead, first_octet: int, total: int) -> bool:
    """Whether a 206 continues what is stored (RFC 9110 §15.3.7.3)."""
    etag = (first(head.fields, b"etag") or b"").strip()
    return strong_equal(entry.etag, etag) and first_octet == len(entry.body) and total == entry.total


def joined_head(entry: Entry, head: ResponseHead) -> ResponseHead:
    """The head of the whole answer, made from two pieces: the newer fields win."""
    fields = replace_fields(updated_fields(entry.fields, head.fields), (b"Content-Length", b"%d" % entry.total))
    return ResponseHead(200, tuple(field for field in fields if lower(field[0]) != b"content-range"), b"OK")


def describes(entry: Entry, head: ResponseHead) -> bool:
    """Whether a HEAD's answer still fits the stored answer to a GET (§4.3.5); if not, the stored one is out of date."""
    etag = first(head.fields, b"etag")
    modified = first(head.fields, b"last-modified")
    length = first(head.fields, b"content-length")
    return (
        head.status == entry.status
        and (etag is None or etag.strip() == entry.etag)
        and (modified is None or modified == entry.last_modified)
        and (length is None or length == first(entry.fields, b"content-length"))
    )


# Answering (§4.3.2, RFC 9110 §14)


def answer_from_entry(entry: Entry, method: str, fields: Fields, now: float) -> tuple[ResponseHead, bytes]:
    """The head and content that a client gets from a stored answer; ``Age`` and ``Cache-Status`` are added elsewhere."""
    condition = joined(fields, b"if-none-match")
    since = date_of(fields, b"if-modified-since", now) if condition is None else None
    if (condition is not None or since is not None) and may_answer_304(entry, condition, since):
        return ResponseHead(304, not_modified(entry.fields), b"Not Modified"), b""
    wanted = first(fields, b"range") if method == "GET" else None
    if wanted is not None and (entry.partial or (entry.status == 200 and _if_range_holds(entry, fields))):
        return _piece(entry, wanted)
    return ResponseHead(entry.status, entry.fields, entry.reason), b"" if method == "HEAD" else entry.body


def _if_range_holds(entry: Entry, fields: Fields) -> bool:
    """Whether ``If-Range`` allows a piece: only of the very same octets, else the whole is sent (RFC 9110 §13.1.5)."""
    value = first(fields, b"if-range")
    if value is None:
        return True
    value = value.strip()
    if is_etag(value):
        return strong_equal(value, entry.etag)
    # A date is a strong validator only if the answer was a second old when it was made (RFC 9110 §8.8.2.2).
    return value == entry.last_modified and entry.date_at - entry.modified_at >= 1.0


def _piece(entry: Entry, wanted: bytes) -> tuple[ResponseHead, bytes]:
    if entry.partial and wanted == entry.asked_range:
        return ResponseHead(206, entry.fields, entry.reason), entry.body
    asked = parse_range(wanted)
    if asked is None:  # several ranges or other units: a server may send the whole
        return ResponseHead(entry.status, entry.fields, entry.reason), entry.body
    total = entry.total if entry.partial else len(entry.body)
    piece = asked.within(total)
    if piece is None:
        fields = replace_fields(entry.fields, (b"Content-Range", unsatisfied(total)), (b"Content-Length", b"0"))
        return ResponseHead(416, fields, b"Range Not Satisfiable"), b""
    content = entry.holds(piece)
    assert content is not None, "judged to hold it"
    fields = replace_fields(
        entry.fields, (b"Content-Range", content_range(piece)), (b"Content-Length", b"%d" % len(content))
    )
    return ResponseHead(206, fields, b"Partial Content"), content


# Invalidating (§4.4)


def invalidated_targets(method: str, target: bytes, head: ResponseHead, host: bytes) -> tuple[bytes, ...]:
    """The targets whose stored answers a successful unsafe request has made doubtful."""
    if method in SAFE_METHODS or not 200 <= head.status < 400:
        return ()
    found = [target]
    for name in (b"location", b"content-location"):
        value = first(head.fields, name)
        other = _same_origin(target, value, host) if value is not None else None
        if other is not None:
            found.append(other)
    return tuple(dict.fromkeys(found))


def _same_origin(target: bytes, reference: bytes, host: bytes) -> bytes | None:
    """``reference`` as a target of this origin; None if it leads elsewhere."""
    try:
        base = "http://" + host.decode("ascii")
        resolved = urlsplit(urljoin(base + target.decode("latin-1"), reference.strip().decode("latin-1")))
        if resolved.netloc.lower() != host.decode("ascii").lower():
            return None
    except ValueError:
        return None
    found = resolved.path or "/"
    return (found + ("?" + resolved.query if resolved.query else "")).encode("latin-1", "replace")
