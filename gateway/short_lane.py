"""The short lane: for a request whose very octets were answered from the cache, or refused by a bucket, before.

    proof ──── memory still knows the credential as the same principal       otherwise the road
    cache ──── the answer is there, and fresh; its credential, still good    otherwise the road
    buckets ── as the limits are now; at once, or with one round trip        refused: said as before, or by the road
    answer ─── the same octets as the road's, the same line in the audit

Nothing is decided here that the road has not decided for the same head. What may change between two requests is checked
again, by the parts that know; what cannot change (route, claim, permit, key of the answer) is kept. If anything is not as
it was, the request takes the road, and no bucket has been taken from by then.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import msgspec

from .asking import Asker, Asking
from .cache import Again
from .core.access import Principal
from .core.cache_entry import Entry
from .core.catalogue import Operation
from .core.correlation import mark
from .core.errors import Code, drained, rate_limited
from .core.exchange import Exchange, Kin
from .core.http_date import date_line
from .core.limits import Decision, Takes
from .core.messages import Fields, RequestHead, first, joined
from .core.refusal import render
from .core.status import status_line
from .core.target import Target
from .limit_stage import is_final, note
from .ports import Asked, Standing, UpstreamCredential
from .road import Road

log = logging.getLogger("gateway.pipeline")

_PLACE = 1
"""Where in its head's memo a way stands: after what the entry left there."""
_NAMED = b"X-Gateway-Request-Id: "
_ID = "{id}"
"""Stands in a refusal's body where it names the request; no limit's id has such characters."""


class Whole(msgspec.Struct, gc=False):
    """The octets of an answer without a body, less what is each request's own: the lines about limits and the id. An answer
    with a body is never kept like this (see ``Served.rendered``): its octets have to be put together each time."""

    received_at: float
    """When the cache entry that it was made from was received."""
    since: float
    until: float
    """From when until when it says the right thing, in Unix seconds."""
    before: bytes
    behind: bytes


class Served(msgspec.Struct, gc=False):
    """How the cache answered one head."""

    again: Again
    facts: Exchange
    standing: Standing | None
    """That of the credential GitLab would have been asked with: when that is no longer given out, nor are its answers."""
    rendered: Fields | None = None
    """The stored fields that ``lines`` were made from: each entry has its own. Never the entry itself: its body would live
    on here beyond the cache's bound, and beyond a purge."""
    lines: bytes = b""
    """Status line and stored fields."""
    has_body: bool = True
    whole: Whole | None = None
    """The latest answer, where it has no body."""
    kin: Kin | None = None
    """The kin of the requests answered with these lines."""


class Refused(msgspec.Struct, gc=False):
    """How the buckets' refusals of one head are told to its client."""

    facts: Exchange
    operation: Operation
    accept: bytes
    cross_origin: bool
    texts: dict[str, tuple[bytes, bytes, bytes, Kin]] = {}
    """By the refusing limit: the lines of the head that stay the same; the head's end with the body; nothing; the kin. If
    the body names the request, its octets before and after that name are the second and the third."""
    latest: bool = True
    """Whether the last request was refused, so that the next one may well be."""


class Way(msgspec.Struct, gc=False):
    """What one head came to on the road."""

    proof: Callable[[], object]
    principal: Principal
    operation: Operation
    target: Target
    method: str
    client: str
    trusted_peer: bool
    served: Served | None = None
    refused: Refused | None = None
    takes: Takes | None = None
    owing: bool = False
    """Whether something of ``takes`` is to be settled or given back afterwards, which is for the road to do."""


class Found(msgspec.Struct, gc=False):
    """An answer at hand, for a caller who is still who it was; no bucket has been asked yet."""

    head: RequestHead
    way: Way
    takes: Takes
    served: Served
    entry: Entry
    x: Exchange
    at: float
    """Unix seconds."""


class ShortLane:
    """The short lane beside one road.

    Args:
        road: The road's stages.
        mint_id: Makes a request's id.
        monotonic: Gives seconds, as for ``Exchange.started_at``.
        wall: Gives Unix seconds.
        observe: Hands a finished exchange to telemetry.
    """

    def __init__(
        self,
        road: Road,
        *,
        mint_id: Callable[[], str],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        observe: Callable[[Exchange], None],
    ) -> None:
        self._road = road
        self._mint_id = mint_id
        self._monotonic = monotonic
        self._wall = wall
        self._observe = observe
        self.asking = 0
        """Requests whose buckets are being asked."""

    @staticmethod
    def learn(head: RequestHead, way: Way) -> None:
        """Remember that ``head`` was answered from the cache, with nobody else asked, or that a bucket refused it."""
        memo = head.memo
        assert memo, "the entry was there first"
        known = memo[_PLACE] if len(memo) > _PLACE else None
        if isinstance(known, Way) and known.principal is way.principal:
            way.served = way.served or known.served
            way.refused = way.refused or known.refused
        memo[_PLACE:] = [way]

    @staticmethod
    def unlearn(head: RequestHead) -> None:
        """Forget what was learnt of ``head``, so that it takes the road again."""
        if head.memo:
            del head.memo[_PLACE:]

    def at_once(self, head: RequestHead, asker: Asker) -> bytes | Asking | None:
        """The answer's octets, audited and counted, where nothing has to be waited for; or the ``Asking`` that will tell
        them to ``asker``. None: the request takes the road, and nothing has been taken."""
        way = self._way(head)
        if way is None:
            return None
        takes, refused = way.takes, way.refused
        likely = refused is not None and refused.latest
        if refused is not None and likely:
            decision = self._road.limits.refuse_now(takes, way.principal) if takes else None
            if decision is not None:
                return self._refusal(head, way, refused, decision)
            refused.latest = False
        found = self._found(head, way)
        if found is None:
            return None if refused is None or likely else self._refuse(head, way, refused)
        decision = None
        if takes:
            decision = self._road.limits.admit_now(takes, way.principal, refusing=refused is not None)
            if decision is None:
                asking = _Asking(self, found, asker)
                asking.asked = self._ask(found, asking.decided)
                return asking
            if not decision.allowed:
                if refused is None or not is_final(decision):
                    return None
                return self._refusal(head, way, refused, decision)
        return self._answer(found, decision)

    def _ask(self, found: Found, then: Callable[[Decision], None]) -> Asked:
        """Ask the buckets, where that takes a while."""
        self.asking += 1
        return self._road.limits.admit_soon(found.takes, then)

    def decided(self, found: Found, decision: Decision) -> bytes | None:
        """What ``at_once`` would have returned, had it known the decision."""
        way, refused = found.way, found.way.refused
        if not self._road.limits.heard(decision, way.principal, refusing=refused is not None):
            return None
        if decision.allowed:
            return self._answer(found, decision)
        assert refused is not None, "what is no use is not heard"
        return self._refusal(found.head, way, refused, decision, found.x.started_at)

    def ended(self, x: Exchange) -> None:
        """Count and audit a request that ended without its answer."""
        self.asking -= 1
        x.cache_status = x.cache_reason = x.cache_stored = ""
        self._observe(x)

    def drained(self, found: Found) -> bytes:
        """The refusal by a gateway that shuts down and can't wait any longer."""
        way = found.way
        return drained_answer(self._road, found.head, way.operation, way.principal, found.x, self._wall())

    def _answer(self, found: Found, decision: Decision | None) -> bytes:
        way, served, x = found.way, found.served, found.x
        if decision is not None:
            note(decision, x)
        entry, at = found.entry, found.at
        limits, request_id = self._road.dialect.lines(decision, way.principal), x.request_id.encode("ascii")
        if served.has_body:
            octets = b"".join(
                (
                    served.lines,
                    served.again.computed(entry, at),
                    limits,
                    b"X-Gateway-Request-Id: %b\r\n" % request_id,
                    date_line(at),
                    b"\r\n",
                    entry.body,
                )
            )
        else:
            whole = served.whole
            if whole is None or not whole.since <= at < whole.until or whole.received_at != entry.received_at:
                whole = served.whole = _whole(served, entry, at)
            octets = b"".join((whole.before, limits, _NAMED, request_id, whole.behind))
        x.bytes_out = len(octets)
        if not (x.limit_near or x.limit_shadow):
            x.kin = served.kin
        self._observe(x)
        return octets

    # What may have changed

    def _way(self, head: RequestHead) -> Way | None:
        """What is known of ``head``, if its caller is still who it was."""
        memo = head.memo
        if memo is None or len(memo) <= _PLACE or self._road.record.closed:
            return None
        way: Way = memo[_PLACE]  # type: ignore[assignment]  # nobody else writes after the entry
        if way.proof() is not way.principal:
            return None
        takes = way.takes
        if takes is None or takes.era.over:
            # Not known yet; or an operator changed a limit, or a project's number may have been learnt.
            takes = self._road.dialect.takes_for(way.principal, way.operation, way.target, way.method, way.client)
            way.takes, way.owing = takes, takes.owing
        return way

    def _found(self, head: RequestHead, way: Way) -> Found | None:
        served = way.served
        if served is None or way.owing or (served.standing is not None and not served.standing.good):
            return None
        at = self._wall()
        entry = served.again.still(at)
        if entry is None:
            return None
        if entry.fields is not served.rendered and not _prepare(served, entry):
            return None
        assert way.takes is not None, "as of this moment"
        return Found(head, way, way.takes, served, entry, self._facts(head, way, served.facts), at)

    def _facts(self, head: RequestHead, way: Way, facts: Exchange) -> Exchange:
        # What copy.copy would call after looking for it.
        x: Exchange = facts.__copy__()  # type: ignore[attr-defined]
        x.request_id = self._mint_id()
        x.started_at = self._monotonic()
        if head.correlation:
            mark(x, head, trusted=way.trusted_peer)
        return x

    # Refusals

    def _refuse(self, head: RequestHead, way: Way, refused: Refused) -> bytes | None:
        """The refusal, where a bucket refuses for certain."""
        if not way.takes:
            return None
        decision = self._road.limits.refuse_now(way.takes, way.principal)
        return self._refusal(head, way, refused, decision) if decision is not None else None

    def _refusal(
        self, head: RequestHead, way: Way, refused: Refused, decision: Decision, started_at: float | None = None
    ) -> bytes:
        refused.latest = True
        x = self._facts(head, way, refused.facts)
        if started_at is not None:
            x.started_at = started_at
        refusal = decision.refusal
        assert refusal is not None, "the stage told it from an outage"
        x.limit_id, x.limit_remaining, x.limit_shadow = refusal.limit.id, refusal.remaining, decision.shadowed
        text = refused.texts.get(x.limit_id)
        if text is None:
            text = refused.texts[x.limit_id] = (*_text(way.method, refused, x.limit_id), Kin())
        lines, ending, behind, kin = text
        request_id = x.request_id.encode("ascii")
        if behind:
            ending = _ending(way.method, b"%b%b%b" % (ending, request_id, behind))
        octets = b"".join(
            (
                lines,
                self._road.dialect.lines(decision, way.principal),
                b"X-Gateway-Request-Id: %b\r\n" % request_id,
                date_line(self._wall()),
                ending,
            )
        )
        x.bytes_out = len(octets)
        if not x.limit_shadow:
            x.kin = kin
        self._observe(x)
        return octets


class _Asking(msgspec.Struct, eq=False):
    """See ``asking.Asking``."""

    _lane: ShortLane
    _found: Found
    _asker: Asker
    asked: Asked = None  # type: ignore[assignment]  # set by whoever makes it

    # Not the struct's own, which would show what leads to a caller's credential.
    __repr__ = object.__repr__

    def leave(self) -> None:
        self.asked.cancel()
        self._gone()

    def drained(self) -> bytes:
        if self._found.x.aborted:
            return b""
        self.asked.cancel()
        octets = self._lane.drained(self._found)
        self._lane.ended(self._found.x)
        return octets

    def _gone(self) -> None:
        x = self._found.x
        if x.aborted:
            return  # counted already, when its answer found the connection closing; the loss is reported only now
        x.status, x.aborted = 499, "client"
        self._lane.ended(x)

    def decided(self, decision: Decision) -> None:
        """The buckets have answered."""
        lane = self._lane
        if self._asker.is_gone():
            self._gone()
            return
        lane.asking -= 1
        try:
            octets = lane.decided(self._found, decision)
        except Exception:
            # As in ``pipeline.Gateway.at_once``: the road has its own way to report a fault.
            log.exception("fault in the short lane")
            lane.unlearn(self._found.head)
            octets = None
        self._asker.told(octets)


def drained_answer(
    road: Road,
    head: RequestHead,
    operation: Operation,
    principal: Principal,
    x: Exchange,
    at: float,
    decision: Decision | None = None,
) -> bytes:
    """The refusal, in octets, of a read that ends because the gateway shuts down. ``decision``: that of its buckets."""
    rejection = drained(unsure=False)
    x.status, x.code = rejection.status, rejection.code.value
    answer, body = render(
        rejection,
        surface=operation.surface,
        accept=joined(head.fields, b"accept") or b"",
        request_id=x.request_id,
        extra=road.dialect.told(decision, principal),
        cross_origin=first(head.fields, b"origin") is not None,
    )
    octets = b"%b%bX-Gateway-Request-Id: %b\r\n%b%b" % (
        status_line(answer.status),
        _rendered(answer.fields),
        x.request_id.encode("ascii"),
        date_line(at),
        _ending(head.method, body, b"Connection: close\r\n"),
    )
    x.bytes_out = len(octets)
    return octets


def served(again: Again, x: Exchange, credential: UpstreamCredential | None) -> Served:
    """What is kept of an answer from the cache, whose facts are those in ``x``."""
    return Served(again, _kept(x), None if credential is None else credential.standing)


def refused(head: RequestHead, operation: Operation, x: Exchange) -> Refused:
    """What is kept of a bucket's refusal of ``head``; ``x`` has the facts as far as the request had come."""
    facts = _kept(x)
    facts.status, facts.code = 429, Code.RATE_LIMITED.value
    return Refused(facts, operation, joined(head.fields, b"accept") or b"", first(head.fields, b"origin") is not None)


def _kept(x: Exchange) -> Exchange:
    """``x`` less what is that request's own: its id, its times, and what its buckets said."""
    facts = copy.copy(x)
    facts.request_id = ""
    facts.upstream_s = facts.limit_waited_s = 0.0
    facts.limit_id, facts.limit_remaining, facts.limit_near, facts.limit_shadow = "", -1.0, False, ""
    return facts


def _ending(method: str, body: bytes, close: bytes = b"") -> bytes:
    """The end of a refusal, after ``Date``."""
    if method == "HEAD":
        return close + b"\r\n"
    return b"Content-Length: %d\r\n%b\r\n%b" % (len(body), close, body)


def _text(method: str, refused: Refused, limit_id: str) -> tuple[bytes, bytes, bytes]:
    """What ``Refused.texts`` holds for one limit, less the kin."""
    head, body = render(
        rate_limited(),
        surface=refused.operation.surface,
        route=refused.operation.route,
        accept=refused.accept,
        request_id=_ID,
        violated=(limit_id,),
        cross_origin=refused.cross_origin,
    )
    before, _, behind = body.partition(_ID.encode())
    lines = status_line(head.status) + _rendered(head.fields)
    return (lines, before, behind) if behind else (lines, _ending(method, body), b"")


def _prepare(served: Served, entry: Entry) -> bool:
    """Render what stays the same from answer to answer; False: the entry answers another request, or has its own Date."""
    shown = served.again.shown(entry)
    if shown is None:
        return False
    lines = _rendered(shown.fields)
    named = b"\n" + lines.lower()
    if b"\ndate:" in named:  # the edge would keep that one
        return False
    served.has_body = shown.status not in {204, 304}
    if served.has_body and b"\ncontent-length:" not in named:
        lines += b"Content-Length: %d\r\n" % len(entry.body)
    served.lines = status_line(shown.status) + lines
    served.facts.status = shown.status
    served.rendered = entry.fields
    served.whole = None
    served.kin = Kin()
    return True


def _whole(served: Served, entry: Entry, at: float) -> Whole:
    """Make what ``Served.whole`` holds."""
    date = date_line(at)
    return Whole(
        entry.received_at,
        at,
        min(int(at) + 1, served.again.same_until(entry, at)),
        served.lines + served.again.computed(entry, at),
        b"\r\n%b\r\n" % date,
    )


def _rendered(fields: Fields) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])
