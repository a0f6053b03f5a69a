"""The forms that GitLab's answers have come in: a head in one of them need not be parsed line by line.

We remember only what stays the same in heads that ``response.parse_head`` took for those of whole answers, on connections
that stay open; so nothing is understood differently from how that function would understand it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ..core.head_form import HeadForm, Values
from ..core.messages import Fields
from ..ports import Answered

# Fields that differ with each answer, or each page. More are learnt, such as those that a proxy on the way adds.
_VARYING_FIELDS = frozenset(
    {
        b"content-length",
        b"date",
        b"etag",
        b"link",
        b"ratelimit-observed",
        b"ratelimit-remaining",
        b"ratelimit-reset",
        b"ratelimit-resettime",
        b"x-gitlab-meta",
        b"x-next-page",
        b"x-page",
        b"x-prev-page",
        b"x-request-id",
        b"x-runtime",
        b"x-total",
        b"x-total-pages",
    }
)
# Fields that decide how an answer is framed, stored or passed on: within a form, their values never differ.
_FIXED_FIELDS = frozenset(
    {
        b"cache-control",
        b"cache-status",
        b"connection",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"expires",
        b"keep-alive",
        b"last-modified",
        b"pragma",
        b"retry-after",
        b"vary",
        b"warning",
    }
)
# A head with one of these has no form: their values are secrets or addresses, or decide about framing.
_FORBIDDEN_FIELDS = frozenset(
    {
        b"age",
        b"content-location",
        b"location",
        b"proxy-authenticate",
        b"refresh",
        b"set-cookie",
        b"set-cookie2",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"www-authenticate",
    }
)
_VARYING_BOUND = 32
_MOST_DIFFERENCES = 3
"""If two heads are equal except for at most this many fields, these are taken to differ with each answer."""
_PER_COUNT = 8
_COUNTS_BOUND = 64
_LONGEST_BYTES = 16 * 1024
"""The longest head that has a form."""
CHUNKED_LINE = b"Transfer-Encoding: chunked"
_EMPTY_LENGTH_LINE = b"Content-Length: 0"
"""Takes the place of ``CHUNKED_LINE`` in a head, until the length is known."""
_MOST_MISSES = 32
"""After learning from so many heads in a row without meeting one in a known form, only one in as many is learnt from."""


class HeadForms:
    """A bounded number of forms, by their number of lines, the one used last first."""

    def __init__(self) -> None:
        self._forms: dict[int, list[HeadForm]] = {}
        self._varying = _VARYING_FIELDS
        self._misses = 0

    def match_start(self, data: bytes, like: Answered | None) -> tuple[HeadForm, Values, bytes] | None:
        """As ``read``, for a head at the start of ``data``, and with what follows it. None also if the head is not in the
        form in which requests ``like`` it were answered last, or if that form has been met too seldom."""
        form = like.form if like is not None else None
        found = form.match_start(data) if form is not None else None
        if found is None or form is None:
            return None
        values, rest = found
        if len(data) - len(rest) > _LONGEST_BYTES:
            return None
        self._misses = 0
        return form, values, rest

    def read(self, head: bytes, like: Answered | None = None) -> tuple[HeadForm, Values] | None:
        """The form of a head, and its values; that of the length is empty where ``CHUNKED_LINE`` stands in its place. From
        then on answers to requests ``like`` this one are expected in that form."""
        if len(head) > _LONGEST_BYTES:
            return None
        lines = head.split(b"\r\n")
        forms = self._forms.get(len(lines))
        if not forms:
            return None
        first = forms[0]
        values = first.read(lines)
        if values is not None:  # nearly always, where heads state lengths
            self._misses = 0
            first.count_match(CHUNKED_LINE)
            if like is not None:
                like.form = first
            return first, values
        chunked = _replace_chunked(lines)
        for form in forms if chunked else forms[1:]:
            values = form.read(lines)
            if values is not None:
                if form is not first:
                    forms.remove(form)
                    forms.insert(0, form)
                self._misses = 0
                form.count_match(CHUNKED_LINE)
                if like is not None:
                    like.form = form
                at = form.length
                return form, (*values[:at], b"", *values[at + 1 :]) if chunked else values
        return None

    def learn(self, head: bytes, fields: Fields, reason: bytes) -> None:
        """Learn the form of a head of status 200 on a connection that stays open; ``fields`` state the length, 0 if it was
        chunked."""
        self._misses += 1
        if self._misses > _MOST_MISSES and self._misses % _MOST_MISSES:
            return
        if len(head) > _LONGEST_BYTES:
            return
        lines = head.split(b"\r\n")
        _replace_chunked(lines)
        with contextlib.suppress(ValueError):  # it can't have a form
            self._learn(lines, fields, reason)

    def _learn(self, lines: Sequence[bytes], fields: Fields, reason: bytes) -> None:
        form = HeadForm(lines, fields, reason, self._varying)
        if not _FORBIDDEN_FIELDS.isdisjoint(form.shape.names):
            return
        forms = self._forms.get(len(lines))
        if forms is None:
            if len(self._forms) >= _COUNTS_BOUND:
                self._forms.clear()
            forms = self._forms[len(lines)] = []
        for other in [other for other in forms if other.shape is form.shape]:
            conflicting_names = other.conflicting_names(form)
            if conflicting_names is None:
                continue
            if (
                len(conflicting_names) <= _MOST_DIFFERENCES
                and _FIXED_FIELDS.isdisjoint(conflicting_names)
                and len(self._varying) + len(conflicting_names) <= _VARYING_BOUND
            ):
                varying = self._varying | set(conflicting_names)
                form = HeadForm(lines, fields, reason, varying) if conflicting_names else form
                self._varying = varying
                forms.remove(other)
        del forms[_PER_COUNT - 1 :]
        forms.insert(0, form)


def _replace_chunked(lines: list[bytes]) -> bool:
    """Whether a head announces chunks; if so, put a length of 0 in their place, as a form has a length there."""
    if CHUNKED_LINE not in lines:
        return False
    lines[lines.index(CHUNKED_LINE)] = _EMPTY_LENGTH_LINE
    return True
