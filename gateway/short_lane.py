"""The short lane: a request whose very octets were answered from the cache before, and can be so again.

    proof ──── memory still knows the credential as the same principal       otherwise the road
    cache ──── the stored answer is there, not purged, and fresh             otherwise the road
    buckets ── as the limits are now; at once, or with one round trip        refused: the road says so
    answer ─── the same octets as the road's, the same line in the audit

Nothing is decided here that the road has not decided for the same head. What may change between two requests is asked
again, of the parts that know; what cannot (route, claim, permit, key of the answer) is kept. Whatever is not as it was
goes the long way, and nothing has been taken from anybody then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec

from .cache import Again
from .core.access import Principal
from .core.cache_entry import Entry
from .core.catalogue import Operation
from .core.exchange import Exchange
from .core.http_date import format_date
from .core.limits import Decision, Take, owes
from .core.messages import Fields, RequestHead
from .core.status import status_line
from .core.target import Target
from .road import Road

_NEAR = 0.1
"""Of a bucket: a caller that has less left is about to be refused."""
_PLACE = 1
"""Of a way in its head's memo, behind what the entry left there."""


class Way(msgspec.Struct, gc=False):
    """What one head came to on the road."""

    proof: Callable[[], object]
    principal: Principal
    operation: Operation
    target: Target
    method: str
    client: str
    again: Again
    facts: Exchange
    takes: tuple[Take, ...] = ()
    """Seen to owe nothing afterwards."""
    rendered: Fields | None = None
    """The stored fields that ``lines`` were made of: each entry has its own. Never the entry itself: its body would live on
    here beyond the cache's bound, and beyond a purge."""
    lines: bytes = b""
    """Status line and stored fields."""
    has_body: bool = True


class Found(msgspec.Struct, gc=False):
    """An answer at hand for a caller who is still who it was; no bucket has been asked yet."""

    way: Way
    takes: tuple[Take, ...]
    entry: Entry
    x: Exchange
    at: float
    """Unix seconds."""
    computed: bytes
    """``Age`` and ``Cache-Status``, as lines."""


class ShortLane:
    """Beside one road.

    Args:
        road: Its stages.
        mint_id: For a request.
        monotonic: Seconds, of ``Exchange.started_at``.
        wall: Unix seconds.
    """

    def __init__(
        self, road: Road, *, mint_id: Callable[[], str], monotonic: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._road = road
        self._mint_id = mint_id
        self._monotonic = monotonic
        self._wall = wall
        self._date_second = -1
        self._date_lines = b""

    @staticmethod
    def learn(head: RequestHead, way: Way) -> None:
        """``head`` was answered from the cache, without a word to anybody else."""
        memo = head.memo
        assert memo, "the entry was there first"
        way.facts = copy.copy(way.facts)
        way.facts.request_id = ""
        way.facts.upstream_s = 0.0
        memo[_PLACE:] = [way]

    @staticmethod
    def unlearn(head: RequestHead) -> None:
        """Back to the road for good."""
        if head.memo:
            del head.memo[_PLACE:]

    def find(self, head: RequestHead) -> Found | None:
        """The answer, if all is as it was."""
        memo = head.memo
        if memo is None or len(memo) <= _PLACE or self._road.record.closed:
            return None
        way = memo[_PLACE]
        assert isinstance(way, Way)
        if way.proof() is not way.principal:
            return None
        at = self._wall()
        still = way.again.still(at)
        if still is None:
            return None
        entry, computed = still
        if entry.fields is not way.rendered and not _prepare(way, entry):
            return None
        # As copy.copy, which looks for this first.
        x: Exchange = way.facts.__copy__()  # type: ignore[attr-defined]
        x.request_id = self._mint_id()
        x.started_at = self._monotonic()
        takes = self._road.dialect.takes_for(way.principal, way.operation, way.target, way.method, way.client)
        if takes is not way.takes:
            # An operator changed a limit, or a project's number was learnt.
            if owes(takes):
                return None
            way.takes = takes
        return Found(way, takes, entry, x, at, computed)

    def at_once(self, head: RequestHead) -> tuple[bytes, Exchange] | None:
        """The answer's octets and facts, where nobody has to be waited for."""
        found = self.find(head)
        if found is None:
            return None
        decision = None
        if found.takes:
            decision = self._road.limits.admit_now(found.takes, found.way.principal)
            if decision is None:
                return None
        return self.answer(found, decision), found.x

    async def admit(self, found: Found) -> Decision | None:
        """Of the buckets; None: refused, or there was nothing to take (``found.takes``)."""
        return await self._road.limits.admit_once(found.takes, found.way.principal) if found.takes else None

    def answer(self, found: Found, decision: Decision | None) -> bytes:
        """The whole answer; its facts are in ``found.x``."""
        way, x = found.way, found.x
        if decision is not None:
            note(decision, x)
        octets = b"".join(
            (
                way.lines,
                found.computed,
                self._road.dialect.lines(decision, way.principal),
                b"X-Gateway-Request-Id: %b\r\n" % x.request_id.encode("ascii"),
                self._date(found.at),
                found.entry.body if way.has_body else b"",
            )
        )
        x.bytes_out = len(octets)
        return octets

    def _date(self, at: float) -> bytes:
        """``Date`` and the end of the head, formatted once a second."""
        second = int(at)
        if second != self._date_second:
            self._date_lines = b"Date: %b\r\n\r\n" % format_date(second)
            self._date_second = second
        return self._date_lines


def forget(x: Exchange) -> None:
    """The facts of an answer that will not be given: what the road finds takes their place."""
    x.status = 0
    x.cache_status = x.cache_reason = x.cache_stored = ""


def note(decision: Decision, x: Exchange) -> None:
    """What the buckets said, for the audit and the metrics."""
    limit = decision.limit
    if limit is not None:
        remaining = decision.remaining
        x.limit_id, x.limit_remaining, x.limit_near, x.limit_shadow = (
            limit.id,
            remaining,
            remaining < _NEAR * limit.burst,
            "",
        )
        return
    state = decision.refusal or decision.tightest
    if state is not None:
        x.limit_id, x.limit_remaining = state.limit.id, state.remaining
        x.limit_near = decision.allowed and state.remaining < _NEAR * state.limit.burst
    x.limit_shadow = decision.shadowed


def _prepare(way: Way, entry: Entry) -> bool:
    """Render what stays the same from answer to answer; False: the entry answers another request."""
    shown = way.again.shown(entry)
    if shown is None:
        return False
    lines = _rendered(shown.fields)
    named = b"\n" + lines.lower()
    if b"\ndate:" in named:  # the edge would leave that one
        return False
    way.has_body = shown.status not in {204, 304}
    if way.has_body and b"\ncontent-length:" not in named:
        lines += b"Content-Length: %d\r\n" % len(entry.body)
    way.lines = status_line(shown.status) + lines
    way.facts.status = shown.status
    way.rendered = entry.fields
    return True


def _rendered(fields: Fields) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])
