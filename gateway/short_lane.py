"""The short lane: for a request whose very octets were answered from the cache, or refused by a bucket, before.

    proof ──── memory still knows the credential as the same principal       otherwise the road
    cache ──── the answer is there, and fresh; its credential, still good    otherwise the road
    buckets ── as the limits are now; at once, or with one round trip        refused: answered as before, or by the road
    answer ─── the same octets as the road's, the same line in the audit

Nothing is decided here that the road has not decided for the same head. What may change between two requests is checked
again, by the parts that know; what cannot change (route, claim, permit, key of the answer) is kept. If anything is not as
it was, the request takes the road, and no bucket has been taken from by then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from .core.access import Principal
from .core.cache_entry import Entry
from .core.catalogue import Operation
from .core.correlation import record_ids
from .core.exchange import Exchange, ObserverMemo
from .core.http_date import date_line
from .core.limits import Decision, Takes
from .core.messages import RequestHead
from .core.target import Target
from .lane_answers import (
    CachedAnswer,
    RefusalTemplate,
    drained_answer,
    ending_of,
)
from .limit_stage import is_final, note
from .pending_answer import AnswerSink, PendingAnswer
from .ports import Cancellable
from .stages import Stages

log = logging.getLogger("gateway.pipeline")

_MEMO_INDEX = 1
"""Where in its head's memo a shortcut stands: after what the entry left there."""
_ID_PREFIX = b"X-Gateway-Request-Id: "


class Shortcut(msgspec.Struct, gc=False):
    """What one head came to on the road."""

    proof: Callable[[], object]
    principal: Principal
    operation: Operation
    target: Target
    method: str
    client: str
    trusted_peer: bool
    cached_answer: CachedAnswer | None = None
    refusal_template: RefusalTemplate | None = None
    takes: Takes | None = None
    settles_later: bool = False
    """Whether something of ``takes`` is to be settled or given back afterwards, which is for the road to do."""


class LaneHit(msgspec.Struct, gc=False):
    """An answer at hand, for a caller who is still who it was; no bucket has been asked yet."""

    head: RequestHead
    shortcut: Shortcut
    takes: Takes
    cached_answer: CachedAnswer
    entry: Entry
    x: Exchange
    at: float
    """Unix seconds."""


class ShortLane:
    """The short lane beside one road.

    Args:
        stages: The road's stages.
        mint_id: Makes a request's id.
        monotonic: Gives seconds, as for ``Exchange.started_at``.
        wall: Gives Unix seconds.
        observe: Hands a finished exchange to telemetry.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        mint_id: Callable[[], str],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        observe: Callable[[Exchange], None],
    ) -> None:
        self._stages = stages
        self._mint_id = mint_id
        self._monotonic = monotonic
        self._wall = wall
        self._observe = observe
        self.pending = 0
        """Requests that wait for their buckets' decision."""

    @staticmethod
    def learn(head: RequestHead, shortcut: Shortcut) -> None:
        """Remember that ``head`` was answered from the cache, with nobody else asked, or that a bucket refused it."""
        memo = head.memo
        assert memo, "the entry was there first"
        known = memo[_MEMO_INDEX] if len(memo) > _MEMO_INDEX else None
        if isinstance(known, Shortcut) and known.principal is shortcut.principal:
            shortcut.cached_answer = shortcut.cached_answer or known.cached_answer
            shortcut.refusal_template = shortcut.refusal_template or known.refusal_template
        memo[_MEMO_INDEX:] = [shortcut]

    @staticmethod
    def forget(head: RequestHead) -> None:
        """Forget what was learnt of ``head``, so that it takes the road again."""
        if head.memo:
            del head.memo[_MEMO_INDEX:]

    def try_answer(self, head: RequestHead, sink: AnswerSink) -> bytes | PendingAnswer | None:
        """The answer's octets, audited and counted, where nothing has to be waited for; or the ``PendingAnswer`` that will
        give them to ``sink``. None: the request takes the road, and nothing has been taken."""
        shortcut = self._find_shortcut(head)
        if shortcut is None:
            return None
        takes, template = shortcut.takes, shortcut.refusal_template
        likely = template is not None and template.latest
        if template is not None and likely:
            decision = self._stages.limits.refuse_now(takes, shortcut.principal) if takes else None
            if decision is not None:
                return self._refusal(head, shortcut, template, decision)
            template.latest = False
        hit = self._hit(head, shortcut)
        if hit is None:
            return None if template is None or likely else self._refuse(head, shortcut, template)
        decision = None
        if takes:
            decision = self._stages.limits.admit_now(takes, shortcut.principal, refusing=template is not None)
            if decision is None:
                pending = _PendingAnswer(self, hit, sink)
                pending.pending_call = self._ask(hit, pending.on_decision)
                return pending
            if not decision.allowed:
                if template is None or not is_final(decision):
                    return None
                return self._refusal(head, shortcut, template, decision)
        return self._answer(hit, decision)

    def _ask(self, hit: LaneHit, then: Callable[[Decision], None]) -> Cancellable:
        """Ask the buckets, where that takes a while."""
        self.pending += 1
        return self._stages.limits.admit_soon(hit.takes, then)

    def finish(self, hit: LaneHit, decision: Decision) -> bytes | None:
        """What ``try_answer`` would have returned, had it known the decision."""
        shortcut, template = hit.shortcut, hit.shortcut.refusal_template
        if not self._stages.limits.accept_decision(decision, shortcut.principal, refusing=template is not None):
            return None
        if decision.allowed:
            return self._answer(hit, decision)
        assert template is not None, "a refusal that is of no use is not accepted"
        return self._refusal(hit.head, shortcut, template, decision, hit.x.started_at)

    def finish_unanswered(self, x: Exchange) -> None:
        """Count and audit a request that ended without its answer."""
        self.pending -= 1
        x.cache_status = x.cache_reason = x.cache_stored = ""
        self._observe(x)

    def drained(self, hit: LaneHit) -> bytes:
        """The refusal by a gateway that shuts down and can't wait any longer."""
        shortcut = hit.shortcut
        return drained_answer(self._stages, hit.head, shortcut.operation, shortcut.principal, hit.x, self._wall())

    def _answer(self, hit: LaneHit, decision: Decision | None) -> bytes:
        shortcut, answer, x = hit.shortcut, hit.cached_answer, hit.x
        if decision is not None:
            note(decision, x)
        entry, at = hit.entry, hit.at
        limits, request_id = self._stages.dialect.lines(decision, shortcut.principal), x.request_id.encode("ascii")
        if answer.has_body:
            octets = b"".join(
                (
                    answer.lines,
                    answer.repeat_hit.computed_lines(entry, at),
                    limits,
                    b"X-Gateway-Request-Id: %b\r\n" % request_id,
                    date_line(at),
                    b"\r\n",
                    entry.body,
                )
            )
        else:
            bodiless = answer.bodiless
            if bodiless is None or not bodiless.since <= at < bodiless.until or bodiless.received_at != entry.received_at:
                bodiless = answer.bodiless = answer.make_bodiless(entry, at)
            octets = b"".join((bodiless.before, limits, _ID_PREFIX, request_id, bodiless.behind))
        x.bytes_out = len(octets)
        if not (x.limit_near or x.limit_shadow):
            x.observer_memo = answer.observer_memo
        self._observe(x)
        return octets

    # What may have changed

    def _find_shortcut(self, head: RequestHead) -> Shortcut | None:
        """What is known of ``head``, if its caller is still who it was."""
        memo = head.memo
        if memo is None or len(memo) <= _MEMO_INDEX or self._stages.audit.closed:
            return None
        shortcut: Shortcut = memo[_MEMO_INDEX]  # type: ignore[assignment]  # nobody else writes after the entry
        if shortcut.proof() is not shortcut.principal:
            return None
        takes = shortcut.takes
        if takes is None or takes.validity.over:
            # Not known yet; or an operator changed a limit, or a project's number may have been learnt.
            takes = self._stages.dialect.takes_for(
                shortcut.principal, shortcut.operation, shortcut.target, shortcut.method, shortcut.client
            )
            shortcut.takes, shortcut.settles_later = takes, takes.settles_later
        return shortcut

    def _hit(self, head: RequestHead, shortcut: Shortcut) -> LaneHit | None:
        answer = shortcut.cached_answer
        if answer is None or shortcut.settles_later:
            return None
        if answer.token_status is not None and not answer.token_status.usable:
            return None
        at = self._wall()
        entry = answer.repeat_hit.current_entry(at)
        if entry is None:
            return None
        if entry.fields is not answer.rendered and not answer.prepare(entry):
            return None
        assert shortcut.takes is not None, "as of this moment"
        return LaneHit(head, shortcut, shortcut.takes, answer, entry, self._facts(head, shortcut, answer.facts), at)

    def _facts(self, head: RequestHead, shortcut: Shortcut, facts: Exchange) -> Exchange:
        # What copy.copy would call after looking for it.
        x: Exchange = facts.__copy__()  # type: ignore[attr-defined]
        x.request_id = self._mint_id()
        x.started_at = self._monotonic()
        if head.correlation:
            record_ids(x, head, trusted=shortcut.trusted_peer)
        return x

    # Refusals

    def _refuse(self, head: RequestHead, shortcut: Shortcut, template: RefusalTemplate) -> bytes | None:
        """The refusal, where a bucket refuses for certain."""
        if not shortcut.takes:
            return None
        decision = self._stages.limits.refuse_now(shortcut.takes, shortcut.principal)
        return self._refusal(head, shortcut, template, decision) if decision is not None else None

    def _refusal(
        self,
        head: RequestHead,
        shortcut: Shortcut,
        template: RefusalTemplate,
        decision: Decision,
        started_at: float | None = None,
    ) -> bytes:
        template.latest = True
        x = self._facts(head, shortcut, template.facts)
        if started_at is not None:
            x.started_at = started_at
        refusal = decision.refusal
        assert refusal is not None, "the stage told it from an outage"
        x.limit_id, x.limit_remaining, x.limit_shadow = refusal.limit.id, refusal.remaining, decision.shadowed
        text = template.texts.get(x.limit_id)
        if text is None:
            text = template.texts[x.limit_id] = (*template.render(shortcut.method, x.limit_id), ObserverMemo())
        lines, ending, behind, observer_memo = text
        request_id = x.request_id.encode("ascii")
        if behind:
            ending = ending_of(shortcut.method, b"%b%b%b" % (ending, request_id, behind))
        octets = b"".join(
            (
                lines,
                self._stages.dialect.lines(decision, shortcut.principal),
                b"X-Gateway-Request-Id: %b\r\n" % request_id,
                date_line(self._wall()),
                ending,
            )
        )
        x.bytes_out = len(octets)
        if not x.limit_shadow:
            x.observer_memo = observer_memo
        self._observe(x)
        return octets


class _PendingAnswer(msgspec.Struct, eq=False):
    """See ``pending_answer.PendingAnswer``."""

    _lane: ShortLane
    _hit: LaneHit
    _sink: AnswerSink
    pending_call: Cancellable = None  # type: ignore[assignment]  # set by whoever makes it

    # Not the struct's own, which would show what leads to a caller's credential.
    __repr__ = object.__repr__

    def leave(self) -> None:
        self.pending_call.cancel()
        self._finish_aborted()

    def drained(self) -> bytes:
        if self._hit.x.aborted:
            return b""
        self.pending_call.cancel()
        octets = self._lane.drained(self._hit)
        self._lane.finish_unanswered(self._hit.x)
        return octets

    def _finish_aborted(self) -> None:
        x = self._hit.x
        if x.aborted:
            return  # counted already, when its answer found the connection closing; the loss is reported only now
        x.status, x.aborted = 499, "client"
        self._lane.finish_unanswered(x)

    def on_decision(self, decision: Decision) -> None:
        """The buckets have answered."""
        lane = self._lane
        if self._sink.is_gone():
            self._finish_aborted()
            return
        lane.pending -= 1
        try:
            octets = lane.finish(self._hit, decision)
        except Exception:
            # As in ``pipeline.Gateway.try_answer``: the road has its own way to report a fault.
            log.exception("fault in the short lane")
            lane.forget(self._hit.head)
            octets = None
        self._sink.deliver(octets)
