"""How a caller learns of its limits: GitLab's header set, and the IETF fields beside it.

GitLab's set keeps the names of early IETF drafts, with its own meanings: ``RateLimit-Limit`` is requests per minute,
``RateLimit-Reset`` a Unix time. The current draft (draft-ietf-httpapi-ratelimit-headers) uses two other fields,
``RateLimit-Policy`` and ``RateLimit``, which no GitLab client reads. The names differ, so both are sent.

``RateLimit-Limit`` never changes for a caller, whichever bucket is tight at the moment: client-go reads it once and paces
itself by it. The other numbers are those of the tightest bucket.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from math import ceil

from .http_date import format_date
from .limit_plan import Limits
from .limits import BucketState, Decision, Limit
from .messages import Field, Fields, lower

NOMINAL_PER_MINUTE = 6000
"""The number sent where no limit applies: client-go takes a missing header for a fault, and paces itself at two thirds of
the one that it gets."""

_LIMIT = b"RateLimit-Limit"
_NAME = b"RateLimit-Name"
_OBSERVED = b"RateLimit-Observed"
_REMAINING = b"RateLimit-Remaining"
_RESET = b"RateLimit-Reset"
_RESET_TIME = b"RateLimit-ResetTime"
_RETRY_AFTER = b"Retry-After"
_POLICY = b"RateLimit-Policy"
_IETF = b"RateLimit"

GITLAB_SET = frozenset(name.lower() for name in (_LIMIT, _NAME, _OBSERVED, _REMAINING, _RESET, _RESET_TIME))
"""Sent and replaced as a unit: two copies of one of them break ``int()`` in python-gitlab."""
IETF_SET = frozenset({_POLICY.lower(), _IETF.lower()})
LIMIT_FIELDS = GITLAB_SET | IETF_SET
_MEMO_BOUND = 4096


class _Spellings(dict[bytes, bool]):
    """Name as spelt → whether it is one of ``LIMIT_FIELDS``; remembered up to a bound."""

    def __missing__(self, name: bytes) -> bool:
        found = name.lower() in LIMIT_FIELDS
        if len(name) <= 64:
            if len(self) >= _MEMO_BOUND:
                self.clear()
            self[name] = found
        return found


_is_limit = _Spellings()

_LARGEST = 999_999_999_999_999
"""The largest integer of a structured field (RFC 9651 §3.3.1)."""
_FURTHEST_S = 366 * 86400


class LimitHeaders:
    """The header fields of both dialects, compiled for one set of limits.

    Args:
        limits: The limits that callers are told about.
        key: Keys the hash of the caller's id in the IETF partition key, so that the hash means nothing to anyone else.
    """

    def __init__(self, limits: Limits, *, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"limit-headers").digest()
        advertised = limits.advertised
        self._nominal: Fields = (
            (_LIMIT, b"%d" % (advertised.per_minute if advertised is not None else NOMINAL_PER_MINUTE)),
        )
        self._rank = limits.rank
        self._name_fields: dict[str, Field] = {limit.id: (_NAME, limit.id.encode()) for limit in limits.limits}
        self._caller_fields: dict[str, _CallerFields] = {}

    def nominal(self) -> Fields:
        """The fields for answers without a decision of their own: the probe of Go clients, refusals before the limiter."""
        return self._nominal

    def fields_for(self, decision: Decision, caller: str) -> Fields:
        """The fields of one answer, with ``Retry-After`` and ``RateLimit-ResetTime`` if the decision is a refusal.

        ``caller`` is the principal's id. A decision without buckets (no limits, or an outage) gets the nominal set.
        """
        if decision.takes is not None:
            return _fields_of(self.lines_for(decision, caller))
        refusal = decision.refusal
        if refusal is not None:
            return self._refused(decision, refusal, caller)
        tightest: BucketState | None = None
        for found in decision.states:
            limit = found.limit
            if not (limit.shadow or limit.concurrent) and (tightest is None or found.remaining < tightest.remaining):
                tightest = found
        if tightest is None:
            return self._nominal
        caller_fields = self._caller_fields_for(caller, decision.states)
        remaining = max(0, int(tightest.remaining))
        return (
            caller_fields.quota,
            self._name_fields[tightest.limit.id],
            (_OBSERVED, b"%d" % max(0, ceil(tightest.limit.burst) - remaining)),
            (_REMAINING, b"%d" % remaining),
            (_RESET, b"%d" % ceil(decision.now + min(tightest.full_in_s, _FURTHEST_S))),
            caller_fields.policy,
            caller_fields.ratelimit_field(decision.states, 0),
        )

    def lines_for(self, decision: Decision, caller: str) -> bytes:
        """``fields_for`` as header lines: formatted in one step instead of seven, and in none if nothing has changed."""
        takes = decision.takes
        if takes is None:
            refusal = None if decision.allowed else decision.refusal
            if refusal is not None:
                return self._refused_lines(decision, refusal, caller)
            return self._lines_of(decision, caller)
        caller_fields = takes.caller_fields
        if not isinstance(caller_fields, _CallerFields) or caller_fields.by is not self or caller_fields.caller != caller:
            caller_fields = takes.caller_fields = self._caller_fields_for(caller, decision.states)
        # Callers within their rate find their buckets full, and leave the same number of tokens each time.
        if decision.lefts == caller_fields.lefts and ceil(decision.now + caller_fields.full_in_s) == caller_fields.reset:
            return caller_fields.lines
        return self._render_lines(caller_fields, decision)

    def _render_lines(self, caller_fields: _CallerFields, decision: Decision) -> bytes:
        """The lines where plain takes have left other levels than last time, or a second has passed."""
        lefts, tight, least = decision.lefts, decision.limit, decision.remaining
        assert tight is not None, "one of them is"
        remaining = int(least)
        full_in_s = (tight.burst - least) / tight.rate
        if full_in_s > _FURTHEST_S:  # noqa: PLR1730 — a call of `min` costs more than all the rest of the line
            full_in_s = _FURTHEST_S
        reset = ceil(decision.now + full_in_s)
        numbers: list[float] = [ceil(tight.burst) - remaining, remaining, reset]
        for at, limit in enumerate(caller_fields.limits):  # `zip` with its `strict` costs as much as all the rest
            left = lefts[at]
            until = ceil((limit.burst - left) / limit.rate)
            if until > _FURTHEST_S:  # noqa: PLR1730 — as above
                until = _FURTHEST_S
            numbers += (left, until)  # sent in whole tokens: the template drops the fraction
        template = caller_fields.templates.get(tight.id) or self._template(caller_fields, tight.id)
        caller_fields.lefts = lefts
        caller_fields.full_in_s = full_in_s
        caller_fields.reset = reset
        lines = caller_fields.lines = template % tuple(numbers)
        return lines

    def _lines_of(self, decision: Decision, caller: str) -> bytes:
        """``lines_for`` where the takes were not plain ones."""
        states = decision.states
        tightest: BucketState | None = None
        for found in states:
            limit = found.limit
            if not (limit.shadow or limit.concurrent) and (tightest is None or found.remaining < tightest.remaining):
                tightest = found
        if tightest is None or not decision.allowed:
            return b"".join([b"%b: %b\r\n" % field for field in self.fields_for(decision, caller)])
        caller_fields = self._caller_fields_for(caller, states)
        limit = tightest.limit
        template = self._template(caller_fields, limit.id)
        remaining = max(0, int(tightest.remaining))
        numbers = [
            max(0, ceil(limit.burst) - remaining),
            remaining,
            ceil(decision.now + min(tightest.full_in_s, _FURTHEST_S)),
        ]
        for found in states:
            if not found.limit.shadow:
                numbers += caller_fields.numbers(found)
        return template % tuple(numbers)

    def _template(self, caller_fields: _CallerFields, limit_id: str) -> bytes:
        template = caller_fields.templates.get(limit_id)
        if template is None:
            template = caller_fields.templates[limit_id] = caller_fields.template(self._name_fields[limit_id])
        return template

    def _refused(self, decision: Decision, refusal: BucketState, caller: str) -> Fields:
        caller_fields = self._caller_fields_for(caller, decision.states)
        wait_s = whole_wait_s(refusal.retry_after_s)
        # Counted from the end of the current second: a client that waits for Reset by its own truncated clock is not early.
        reset = ceil(decision.now) + wait_s
        return (
            caller_fields.quota,
            self._name_fields[refusal.limit.id],
            (_OBSERVED, b"%d" % ceil(refusal.limit.burst)),
            (_REMAINING, b"0"),
            (_RESET, b"%d" % reset),
            (_RESET_TIME, format_date(reset)),
            (_RETRY_AFTER, b"%d" % wait_s),
            caller_fields.policy,
            caller_fields.ratelimit_field(decision.states, wait_s),
        )

    def _refused_lines(self, decision: Decision, refusal: BucketState, caller: str) -> bytes:
        """``lines_for`` of a refusal. A caller that asks again and again gets the same lines until a second has passed."""
        states = decision.given_states
        asked = decision.asked
        caller_fields = asked.caller_fields if asked is not None else None
        if not isinstance(caller_fields, _CallerFields) or caller_fields.by is not self or caller_fields.caller != caller:
            caller_fields = self._caller_fields_for(caller, states)
            if asked is not None:
                asked.caller_fields = caller_fields
        wait_s = ceil(refusal.retry_after_s - 1e-6)
        if not 1 <= wait_s <= _FURTHEST_S:
            wait_s = whole_wait_s(refusal.retry_after_s)
        numbers: list[object] = [refusal.limit, wait_s, ceil(decision.now)]
        for found in states:
            if found.allowed:
                numbers += (int(found.remaining), ceil(found.full_in_s))
            elif found is not refusal:
                numbers += (None, whole_wait_s(found.retry_after_s))
        if caller_fields.refused[0] != numbers:
            fields = self._refused(decision, refusal, caller)
            caller_fields.refused = (numbers, b"".join([b"%b: %b\r\n" % field for field in fields]))
        return caller_fields.refused[1]

    def _caller_fields_for(self, caller: str, states: tuple[BucketState, ...]) -> _CallerFields:
        caller_fields = self._caller_fields.get(caller)
        if caller_fields is None or not caller_fields.covers(states):
            digest = hashlib.blake2b(caller.encode("utf-8", "surrogatepass"), key=self._key, digest_size=6).digest()
            applying = [found.limit for found in states if not found.limit.shadow]
            ranked = [limit for limit in applying if not limit.concurrent]
            quota = min(ranked, key=lambda limit: self._rank[limit.id], default=None)
            caller_fields = _CallerFields(
                by=self,
                caller=caller,
                limits=tuple([found.limit for found in states]),
                quota=(_LIMIT, b"%d" % quota.per_minute) if quota is not None else self._nominal[0],
                policies=[_policy(limit) for limit in applying],
                partition=b";pk=:%s:" % base64.b64encode(digest),
            )
            if len(self._caller_fields) >= _MEMO_BOUND:
                self._caller_fields.clear()
            self._caller_fields[caller] = caller_fields
        return caller_fields


class _CallerFields:
    """The parts that stay the same from answer to answer for one caller, ready as octets."""

    __slots__ = (
        "_names",
        "_partition",
        "by",
        "caller",
        "full_in_s",
        "lefts",
        "limits",
        "lines",
        "policy",
        "quota",
        "refused",
        "reset",
        "templates",
    )

    def __init__(
        self,
        by: LimitHeaders,
        caller: str,
        limits: tuple[Limit, ...],
        quota: Field,
        policies: list[bytes],
        partition: bytes,
    ) -> None:
        self.by = by
        self.caller = caller
        self.limits = limits
        self.quota = quota
        self.policy: Field = (_POLICY, b", ".join([policy + partition for policy in policies]))
        self._partition = partition
        self._names = [b'"%s";r=' % limit.id.encode() for limit in limits]
        self.templates: dict[str, bytes] = {}
        self.refused: tuple[list[object], bytes] = ([], b"")
        """The numbers that the last refusal was made of, and its lines."""
        # The last answer to plain takes: what was left in each bucket, and what was sent about that.
        self.lefts: Sequence[float] = ()
        self.full_in_s = 0.0
        self.reset = 0
        self.lines = b""

    def covers(self, states: tuple[BucketState, ...]) -> bool:
        """Whether ``states`` are of exactly these limits."""
        limits = self.limits
        if len(limits) != len(states):
            return False
        for limit, found in zip(limits, states, strict=True):  # noqa: SIM110 — half of what `all` with a generator costs
            if found.limit is not limit:
                return False
        return True

    def template(self, name: Field) -> bytes:
        """The lines of an answer, with placeholders for the numbers."""
        before = (self.quota, name, (_OBSERVED, b"\0"), (_REMAINING, b"\0"), (_RESET, b"\0"), self.policy)
        items = [
            b"%s\0%s%s" % (named, b"" if limit.concurrent else b";t=\0", self._partition)
            for named, limit in zip(self._names, self.limits, strict=True)
            if not limit.shadow
        ]
        lines = b"".join([b"%b: %b\r\n" % field for field in (*before, (_IETF, b", ".join(items)))])
        return lines.replace(b"%", b"%%").replace(b"\0", b"%d")

    @staticmethod
    def numbers(found: BucketState) -> tuple[int, ...]:
        """The numbers of one bucket of an admitted request, for ``template``."""
        left = max(0, int(found.remaining)) if found.allowed else 0
        if found.limit.concurrent:
            return (left,)
        until = ceil(found.full_in_s) if found.allowed else min(0, whole_wait_s(found.retry_after_s))
        return (left, min(_FURTHEST_S, until))

    def ratelimit_field(self, states: tuple[BucketState, ...], wait_s: int) -> Field:
        """The ``RateLimit`` field (draft-ietf-httpapi-ratelimit-headers-11 §4). ``wait_s`` is sent as ``Retry-After``."""
        items = []
        for name, found in zip(self._names, states, strict=True):
            if found.limit.shadow:
                continue
            if found.allowed:
                left, until = max(0, int(found.remaining)), ceil(found.full_in_s)
            else:
                # Retry-After must not be earlier than `t`, so it is sent with the longest wait of all.
                left, until = 0, min(wait_s, whole_wait_s(found.retry_after_s))
            if found.limit.concurrent:  # there is no window (§4.2): a place becomes free when a request ends
                items.append(b"%s%d%s" % (name, left, self._partition))
                continue
            items.append(b"%s%d;t=%d%s" % (name, left, min(_FURTHEST_S, until), self._partition))
        return (_IETF, b", ".join(items) if len(items) > 1 else items[0])


def _fields_of(lines: bytes) -> Fields:
    return tuple([(name, value) for name, _, value in [line.partition(b": ") for line in lines.splitlines()]])


def _policy(limit: Limit) -> bytes:
    if limit.concurrent:
        return b'"%s";q=%d;qu="concurrent-requests"' % (limit.id.encode(), int(limit.burst))
    window_s = max(1, round(limit.period_s))
    quota = min(_LARGEST, max(1, ceil(limit.rate * window_s - 1e-9)))
    return b'"%s";q=%d;w=%d' % (limit.id.encode(), quota, window_s)


def whole_wait_s(seconds: float) -> int:
    """The value of ``Retry-After``: whole seconds, never too few, never 0 (python-gitlab accepts only an integer).

    A microsecond over a whole second is a rounding error, no reason to wait longer: the answer takes more time than that to
    reach the caller.
    """
    return max(1, min(_FURTHEST_S, ceil(seconds - 1e-6)))


# Beside GitLab's own set


def replace_limit_fields(ours: Fields, upstream: Fields, *, status: int, now: float) -> Fields:
    """The fields for brokered callers: GitLab's set describes the shared credential and is replaced by ours, as a unit.

    GitLab's ``Retry-After`` stays, and on a 429 our set is adapted to it: client-go waits for ``RateLimit-Reset`` alone.
    """
    kept = tuple([field for field in upstream if not _is_limit[field[0]]])
    if status == 429:
        ours = _with_upstream_wait(ours, upstream, now)
    return kept + ours


def merge_limit_fields(ours: Fields, upstream: Fields, *, status: int, now: float) -> Fields:
    """The fields for callers with their own token: the upstream's, with exactly one set, the stricter of GitLab's and ours.

    Stricter means the lower ``RateLimit-Limit``, so that the choice stays the same from answer to answer; if those are
    equal, the lower ``RateLimit-Remaining``. GitLab's own refusals always carry GitLab's numbers if it sent any (its
    application limits send ``Retry-After`` alone). A set that is malformed or sent twice loses.
    """
    theirs = _numbers(upstream)
    if theirs is not None and (status == 429 or _is_stricter(theirs, _numbers(ours))):
        kept = [field for field in upstream if lower(field[0]) not in IETF_SET]
        return tuple(kept)
    return replace_limit_fields(ours, upstream, status=status, now=now)


def _is_stricter(theirs: tuple[int, int], ours: tuple[int, int] | None) -> bool:
    return ours is None or theirs < ours


def _numbers(fields: Fields) -> tuple[int, int] | None:
    """Limit and remaining of a complete, well-formed set; None otherwise. Our nominal set is not complete: it has no
    ``Remaining``."""
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        key = lower(name)
        if key in GITLAB_SET:
            if key in found:
                return None
            found[key] = value.strip()
    numbers = [_number(found.get(name.lower())) for name in (_LIMIT, _REMAINING, _RESET)]
    if numbers[0] is None or numbers[1] is None or numbers[2] is None or numbers[0] < 1:
        return None
    return numbers[0], numbers[1]


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) <= 15 else None


def _with_upstream_wait(ours: Fields, upstream: Fields, now: float) -> Fields:
    """Our set, changed to a refusal that ends when GitLab's ``Retry-After`` does."""
    wait_s = next((_number(value.strip()) for name, value in upstream if lower(name) == b"retry-after"), None)
    if wait_s is None:
        return ours
    reset = ceil(now) + min(wait_s, _FURTHEST_S)
    kept = tuple([field for field in ours if field[0] not in {_REMAINING, _RESET, _RESET_TIME, _IETF}])
    return (*kept, (_REMAINING, b"0"), (_RESET, b"%d" % reset), (_RESET_TIME, format_date(reset)))
