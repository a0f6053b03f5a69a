"""A stored answer: everything a later request needs, computed once when it is stored.

Entries are values. Freshening makes a new one; nothing edits one in place, so a reader never sees half a change.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Protocol

import msgspec

from .answer_shape import Pick, Shape, shape_of, shape_of_head
from .byte_ranges import ContentRange, parse_content_range
from .cache_control import ResponseDirectives, response_directives
from .conditional import is_etag, none_match
from .freshness import age_value, corrected_age, lifetime, year_of
from .http_date import parse_date
from .messages import Field, Fields, ResponseHead, first, joined, lower

# Never stored (RFC 9111 §3.1, RFC 9110 §7.6.1), just as whatever else `Connection` names.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# A 304 describes the stored octets and can't change what they are (§3.2).
_NOT_UPDATED = frozenset({b"content-encoding", b"content-length", b"content-md5", b"content-range", b"etag"})
# A 304 has no content of its own to describe.
_OF_CONTENT = frozenset({b"content-encoding", b"content-length", b"content-range", b"content-type"})
# The gateway computes its own anew for each answer.
_COMPUTED = frozenset({b"age"})

_FIELD_COST = 100  # octets for one (name, value) tuple and its two bytes objects, measured with sys.getsizeof
_ENTRY_COST = 600  # the struct, its tuples, the store's slot and index


class LazyEntry(Protocol):
    """An entry, or something that becomes one when it is first asked for: most of what is stored never is."""

    @property
    def size_bytes(self) -> int:
        """The memory that the entry takes once it is made."""
        ...

    def materialise(self) -> Entry: ...


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One stored representation. Instants are Unix seconds; -1 means *not given*, which keeps the codec simple."""

    status: int
    reason: bytes
    fields: Fields
    """The fields as they will be sent, without ``Age``; ``Content-Length`` is always present where content may follow."""
    body: bytes
    received_at: float
    """When the answer came, or was last validated."""
    initial_age_s: float
    lifetime_s: float
    etag: bytes = b""
    """Well formed, or empty."""
    modified_at: float = -1.0
    last_modified: bytes = b""
    """As the origin wrote it, because a validator goes back as it came."""
    date_at: float = -1.0
    selecting: tuple[tuple[bytes, bytes], ...] = ()
    """The fields that ``Vary`` names: (lower-cased name, normalised value in the request that brought this answer)."""
    language: bytes = b""
    """``Content-Language`` in lower case, if ``Vary`` names ``Accept-Language``."""
    no_cache: bool = False
    must_revalidate: bool = False
    stale_while_revalidate_s: float = -1.0
    stale_if_error_s: float = -1.0
    first_octet: int = -1
    """For a partial answer (206): where ``body`` begins; -1 if the answer is whole."""
    total: int = -1
    """For a partial answer: the complete length."""
    asked_range: bytes = b""
    """For a partial answer: the ``Range`` that brought it."""

    @property
    def partial(self) -> bool:
        return self.first_octet >= 0

    @property
    def size_bytes(self) -> int:
        octets = len(b"".join(chain.from_iterable(self.fields)))
        return _ENTRY_COST + len(self.body) + octets + _FIELD_COST * (len(self.fields) + len(self.selecting))

    def materialise(self) -> Entry:
        return self

    def age_s(self, now: float) -> float:
        """``current_age`` (RFC 9111 §4.2.3). A clock that stepped back makes no answer younger than it was on arrival."""
        return self.initial_age_s + max(0.0, now - self.received_at)

    def holds(self, piece: ContentRange) -> bytes | None:
        """The octets of ``piece``; None unless this entry has them all."""
        start = max(0, self.first_octet)
        if start <= piece.first and piece.last < start + len(self.body):
            return self.body[piece.first - start : piece.last + 1 - start]
        return None


def nominated(fields: Fields) -> frozenset[bytes]:
    """The fields that ``Connection`` names, and the hop-by-hop fields that need no naming."""
    value = joined(fields, b"connection")
    if value is None:
        return HOP_BY_HOP
    return HOP_BY_HOP | {name.strip(b" \t").lower() for name in value.split(b",")}


def end_to_end(fields: Fields) -> Fields:
    """``fields`` without those that belong to one connection."""
    dropped = nominated(fields)
    return tuple([field for field in fields if lower(field[0]) not in dropped])


def make_entry(
    head: ResponseHead,
    body: bytes,
    directives: ResponseDirectives,
    *,
    requested_at: float,
    received_at: float,
    dropped: frozenset[bytes] = frozenset(),
    selecting: tuple[tuple[bytes, bytes], ...] = (),
    asked_range: bytes = b"",
) -> Entry:
    """Make an answer ready to be served again.

    Args:
        head: The head as it came; hop-by-hop fields are allowed.
        body: The complete body.
        directives: The directives that the head carries, already parsed.
        requested_at: When the request went up.
        received_at: When the head came.
        dropped: Lower-cased names of fields that must not be replayed.
        selecting: The request's side of ``Vary``.
        asked_range: For a 206: the request's ``Range``.
    """
    fields, describing, shape, has_length = _select_fields(head, directives, dropped)
    if not has_length and head.status != 204:
        fields = (*fields, (b"Content-Length", b"%d" % len(body)))
    place = shape.place
    etag = describing[place[b"etag"]][1].strip() if b"etag" in place else b""
    date_at = _date(describing, shape, b"date", received_at)
    modified_at = _date(describing, shape, b"last-modified", received_at) if b"last-modified" in place else None
    language = b""
    if selecting and any(name == b"accept-language" for name, _ in selecting):
        language = shape.first(describing, b"content-language") or b""
    piece = None
    if head.status == 206:
        piece = parse_content_range(shape.first(describing, b"content-range") or b"")
    lifetime_s = directives.max_age_s
    if lifetime_s is None:
        lifetime_s = lifetime(head.status, describing, directives, received_at)
    age_s = age_value(describing) if b"age" in place else 0.0
    revalidate_s, if_error_s = directives.stale_while_revalidate_s, directives.stale_if_error_s
    return Entry(
        status=head.status,
        reason=head.reason,
        fields=fields,
        body=body,
        received_at=received_at,
        initial_age_s=corrected_age(date_at, age_s, requested_at, received_at),
        lifetime_s=lifetime_s,
        etag=etag if is_etag(etag) else b"",
        modified_at=-1.0 if modified_at is None else modified_at,
        last_modified=b"" if modified_at is None else shape.first(describing, b"last-modified") or b"",
        date_at=-1.0 if date_at is None else date_at,
        selecting=selecting,
        language=language.strip().lower() if language else b"",
        no_cache=directives.no_cache,
        must_revalidate=directives.must_revalidate,
        stale_while_revalidate_s=-1.0 if revalidate_s is None else revalidate_s,
        stale_if_error_s=-1.0 if if_error_s is None else if_error_s,
        first_octet=-1 if piece is None else piece.first,
        total=-1 if piece is None else piece.total,
        asked_range=asked_range if piece is not None else b"",
    )


def _date(fields: Fields, shape: Shape, name: bytes, now: float) -> float | None:
    """The same as ``freshness.date_of``, with the shape known."""
    place = shape.place.get(name)
    if place is None or (shape.repeated and shape.names.count(name) > 1):
        return None
    return parse_date(fields[place][1].strip(), year_of(now))


def _select_fields(
    head: ResponseHead, directives: ResponseDirectives, dropped: frozenset[bytes]
) -> tuple[Fields, Fields, Shape, bool]:
    """The fields to keep; the fields that may describe the entry, and their shape; whether a length is among the kept."""
    fields, shape = head.fields, head.shape or shape_of_head(head)
    keep = pick_kept(shape, directives, dropped)
    if keep is not None:
        return keep(fields), fields, shape, b"content-length" in shape.place and b"content-length" not in dropped
    hop = nominated(fields)
    unkept = _together(hop, dropped) | directives.no_cache_fields | directives.private_fields
    kept = [field for field in fields if lower(field[0]) not in unkept]
    describing = tuple([field for field in fields if lower(field[0]) not in hop])
    return tuple(kept), describing, shape_of(describing), any(lower(field[0]) == b"content-length" for field in kept)


def pick_kept(shape: Shape, directives: ResponseDirectives, dropped: frozenset[bytes]) -> Pick | None:
    """The pick of fields kept from answers of ``shape``; None where each answer names fields that are not kept."""
    if b"connection" in shape.place or directives.no_cache_fields or directives.private_fields:
        return None
    key = (pick_kept, dropped)
    keep: Pick | None = shape.memo.get(key)
    if keep is None:
        keep = shape.memo[key] = shape.without(_together(HOP_BY_HOP, dropped))
    return keep


@lru_cache(64)
def _together(hop: frozenset[bytes], dropped: frozenset[bytes]) -> frozenset[bytes]:
    return hop | dropped | _COMPUTED


def updated_fields(stored: Fields, update: Fields, dropped: frozenset[bytes] = frozenset()) -> Fields:
    """The stored fields after a 304 or a HEAD (RFC 9111 §3.2): each field it carries replaces all lines of that name."""
    new = [field for field in end_to_end(update) if (name := lower(field[0])) not in _NOT_UPDATED and name not in dropped]
    names = {lower(name) for name, _ in new}
    return (*(field for field in stored if lower(field[0]) not in names), *new)


def freshen(
    entry: Entry,
    head: ResponseHead,
    *,
    requested_at: float,
    received_at: float,
    dropped: frozenset[bytes] = frozenset(),
    selecting: tuple[tuple[bytes, bytes], ...] | None = None,
    surrogate: str | None = None,
) -> Entry:
    """``entry`` after a 304, or a HEAD that described the same answer (RFC 9111 §4.3.4, §4.3.5).

    Args:
        entry: The stored answer.
        head: The head of the 304, or of the HEAD's answer.
        requested_at: When the request went up.
        received_at: When the head came.
        dropped: As for ``make_entry``.
        selecting: The request's side of ``Vary``, if a request for another variant was told that this is its answer, too.
        surrogate: As for ``response_directives``.
    """
    merged = updated_fields(entry.fields, head.fields, dropped)
    # Age and Date come from the new message or not at all: an old Date would make the validated answer look old at once.
    timed = merged if first(head.fields, b"date") is not None else _without_date(merged)
    age = first(head.fields, b"age")
    described = ResponseHead(entry.status, (*timed, (b"Age", age)) if age is not None else timed, entry.reason)
    return make_entry(
        described,
        entry.body,
        response_directives(merged, surrogate),
        requested_at=requested_at,
        received_at=received_at,
        dropped=dropped,
        selecting=entry.selecting if selecting is None else selecting,
        asked_range=entry.asked_range,
    )


def _without_date(fields: Fields) -> Fields:
    return tuple(field for field in fields if lower(field[0]) != b"date")


def may_answer_304(entry: Entry, if_none_match: bytes | None, if_modified_since: float | None) -> bool:
    """Whether the client holds what is stored (RFC 9110 §13.2.2). ``If-None-Match`` alone decides where it is present."""
    if entry.status != 200:
        return False
    if if_none_match is not None:
        return not none_match(if_none_match, entry.etag)
    if if_modified_since is None:
        return False
    # RFC 9111 §4.3.2: without Last-Modified its Date counts, and without Date the time when it came.
    changed_at = entry.modified_at if entry.modified_at >= 0 else entry.date_at if entry.date_at >= 0 else None
    return (entry.received_at if changed_at is None else changed_at) <= if_modified_since


def not_modified(fields: Fields) -> Fields:
    """The fields of a 304 made from a stored answer: all except those that describe content. GitLab's own 304 keeps
    ``Link`` and ``X-Total`` (Rack::ConditionalGet), so cached and uncached answers agree."""
    return tuple(field for field in fields if lower(field[0]) not in _OF_CONTENT)


def replace_fields(fields: Fields, *new: Field) -> Fields:
    """``fields`` with each of ``new`` in place of all lines of its name."""
    names = {lower(name) for name, _ in new}
    return (*(field for field in fields if lower(field[0]) not in names), *new)
