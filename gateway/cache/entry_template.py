"""What the cache entries of answers to one kind of request have in common: found out from the first, applied to the others.

GitLab's answers for the pages of a list have the same fields, and those that decide about storing say the same in all.
"""

from __future__ import annotations

import msgspec

from ..core.answer_shape import Pick, Shape, make_picker
from ..core.cache_entry import Entry, LazyEntry
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.conditional import is_etag
from ..core.head_form import HeadPlaceholders, Values
from ..core.messages import Field, Fields, ResponseHead, first
from ..core.private_caching import STORAGE_FIELDS

_STORED = Stored.STORED


class MissOutcome:
    """The outcome of a request that missed the cache, for telemetry and for the client; the same for all such answers."""

    __slots__ = ("field", "line", "reason", "status", "stored")

    def __init__(self, stored: Stored, member: bytes) -> None:
        self.status = CacheStatus.MISS.value
        self.reason = CacheReason.URI_MISS.value
        self.stored = stored.value
        self.field: Field = (b"Cache-Status", member)
        self.line = b"Cache-Status: %b\r\n" % member


class EntryTemplate:
    """Makes the entries of answers of one shape: those with status 200 to requests that missed the cache.

    Args:
        shape: The answers' shape; without ``Last-Modified``.
        keep: Picks the fields that are replayed; None: nothing is stored.
        selecting: The request fields that ``Vary`` names, with their values.
        miss_outcome: The outcome where the answer is stored; of all, where ``keep`` is None.
        overtaken: The outcome where a write overtook the answer.
        needs_etag: GitLab is asked before each reuse, so an ``Etag`` is needed.
    """

    __slots__ = ("_etag", "_length", "keep", "miss_outcome", "needs_etag", "overtaken", "selecting")

    def __init__(
        self,
        shape: Shape,
        keep: Pick | None,
        selecting: tuple[tuple[bytes, bytes], ...],
        miss_outcome: MissOutcome,
        overtaken: MissOutcome,
        *,
        needs_etag: bool = False,
    ) -> None:
        self._length = shape.place.get(b"content-length", -1)
        self._etag = shape.place.get(b"etag", -1)
        self.selecting = selecting
        self.needs_etag = needs_etag
        self.keep = keep
        self.miss_outcome = miss_outcome
        self.overtaken = overtaken

    def entry(self, head: ResponseHead, body: bytes, received_at: float) -> Entry | None:
        """The entry of one answer; None: its length is not the one it states, or it has no ``Etag`` where one is needed."""
        fields = head.fields
        length = b"%d" % len(body)
        kept: Fields = self.keep(fields) if self.keep is not None else ()
        if self._length < 0:
            kept = (*kept, (b"Content-Length", length))
        elif fields[self._length][1] != length:
            return None
        etag = b""
        if self._etag >= 0:
            etag = fields[self._etag][1].strip()
            if not is_etag(etag):
                etag = b""
        if self.needs_etag and not etag:
            return None
        # The zeros: a private cache does not ask GitLab how long an answer may live.
        return Entry(200, head.reason, kept, body, received_at, 0.0, 0.0, etag, selecting=self.selecting)


class FormTemplate:
    """As ``EntryTemplate``, for heads of one form.

    Args:
        template: That of these answers.
        reuse_s: ``CacheProfile.reuse_s`` of the requests.
        placeholders: The form's placeholders.
        head: The head made from them, as it goes down.

    Raises:
        ValueError: A value that differs can't be recovered whole.
    """

    __slots__ = ("_bare_bytes", "_etag", "_fill", "_pick_kept", "_reason", "coding", "reuse_s", "template")

    def __init__(self, template: EntryTemplate, reuse_s: float, placeholders: HeadPlaceholders, head: ResponseHead) -> None:
        self.template = template
        self.reuse_s = reuse_s
        self._reason = head.reason
        self.coding = first(head.fields, b"content-encoding")
        self._etag = placeholders.form.place.get(b"etag", -1)
        kept = template.keep(head.fields) if template.keep is not None else ()
        self._fill = placeholders.filler_for(kept)
        self._pick_kept = placeholders.picker_for(kept)
        bare = self._fill(self._pick_kept([b""] * len(placeholders.form.names)))
        self._bare_bytes = Entry(200, b"", bare, b"", 0.0, 0.0, 0.0, selecting=template.selecting).size_bytes

    def late(self, values: Values, body: bytes, received_at: float) -> LazyEntry | None:
        """As ``EntryTemplate.entry``, for a head that states the body's length."""
        etag = values[self._etag] if self._etag >= 0 else b""
        if self.template.needs_etag and not is_etag(etag):
            return None
        kept = self._pick_kept(values)  # no other values: what is not counted must not be held
        return _TemplateEntry(self, kept, etag, body, received_at, self._bare_bytes + len(body) + len(b"".join(kept)))

    def entry(self, kept: Values, etag: bytes, body: bytes, received_at: float) -> Entry:
        """The entry of an answer that ``late`` took. ``kept``: its values that are replayed; ``etag``: as received."""
        fields = self._fill(kept)
        if not is_etag(etag):
            etag = b""
        return Entry(200, self._reason, fields, body, received_at, 0.0, 0.0, etag, selecting=self.template.selecting)


class _TemplateEntry(msgspec.Struct, gc=False):
    """What one answer has of its own, kept until somebody asks for the entry."""

    _form_template: FormTemplate
    _kept: Values
    _etag: bytes
    _body: bytes
    _received_at: float
    size_bytes: int

    __repr__ = object.__repr__

    def materialise(self) -> Entry:
        return self._form_template.entry(self._kept, self._etag, self._body, self._received_at)


def storage_fields(shape: Shape) -> Pick:
    """Picks the fields of an answer that decide about storing it."""
    pick: Pick | None = shape.memo.get(storage_fields)
    if pick is None:
        pick = shape.memo[storage_fields] = make_picker(
            [at for at, name in enumerate(shape.names) if name in STORAGE_FIELDS]
        )
    return pick
