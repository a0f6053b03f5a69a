"""The forward lane: another request of a kind that went up before, sent to GitLab and answered without a coroutine.

    plan ────── the stages up to the permit came to the same for its like       otherwise the road
    buckets ─── as the limits are now; at once, or with one round trip          refused: the road
    credential, pace ───────── at hand; free                                    otherwise the road, from here
    cache ───── nothing is stored, or it must be validated; nobody else asks;   otherwise the road, from here
                known at once, or with a round trip, and one for the lease
    GitLab ──── a connection is there; a whole 200 comes                        otherwise the road, from here
    answer ──── the same octets as the road's, the same line in the audit

What has been done by then stays done: the road goes on from there (``pending_answer.Handover``) and takes from no bucket
twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from .answer_template import AnswerTemplate
from .cache import FormTemplate, Leader, PriorLookup
from .cache.entry_template import MissOutcome
from .core.answer_shape import Shape, shape_of_head
from .core.catalogue import Access
from .core.errors import Rejection
from .core.exchange import Exchange, ObserverMemo
from .core.head_form import HeadForm
from .core.http_date import date_line
from .core.limits import Decision
from .core.messages import Fields, RequestHead, ResponseHead
from .core.pacing import PACE_FIELDS
from .core.response_headers import SENDFILE_FIELDS
from .core.status import status_line
from .lane_answers import drained_answer
from .limit_stage import note
from .pending_answer import AnswerSink, PendingAnswer
from .planner import Planner
from .plans import Plan, Plans
from .ports import Cancellable, UpstreamCredential
from .reply import Reply
from .stages import Stages
from .upstream_call import RequestTemplate, ascii_of, request_template

log = logging.getLogger("gateway.pipeline")

# Read for every request; an enum's class looks up its members anew each time.
_READ = Access.READ
_as_line = b": ".join
_MEMOS_BOUND = 16
_TEMPLATES_BOUND = 16


class _NothingPending:
    """Stands for a pending call while there is none."""

    def cancel(self) -> None:
        return None


_NOTHING_PENDING = _NothingPending()


class ForwardLane:
    """The forward lane beside one road.

    Args:
        stages: The road's stages.
        plans: The plans learnt on the road.
        mint_id: Makes a request's id.
        monotonic: Gives seconds, as for ``Exchange.started_at``.
        wall: Gives Unix seconds.
        observe: Hands a finished exchange to telemetry.
    """

    def __init__(
        self,
        stages: Stages,
        plans: Plans,
        *,
        mint_id: Callable[[], str],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        observe: Callable[[Exchange], None],
    ) -> None:
        self.stages = stages
        self._plans = plans
        self._planner = Planner(stages, plans)
        self._mint_id = mint_id
        self.monotonic = monotonic
        self.wall = wall
        self.observe = observe
        self.active = 0
        """Requests on the lane."""

    def try_answer(self, head: RequestHead, sink: AnswerSink) -> PendingAnswer | None:
        """The ``PendingAnswer`` that gives ``sink`` the answer; None: the request takes the road, and nothing has been
        taken."""
        stages = self.stages
        if stages.audit.closed:
            return None
        plan = self._plans.find(head) or self._planner.plan(head)
        if plan is None:
            return None
        authorised = plan.example
        if authorised.operation.access is not _READ:
            return None
        takes = authorised.shared_memo.takes
        if takes is None or takes.validity.over:
            takes = stages.dialect.takes_for(
                authorised.principal,
                authorised.operation,
                authorised.admitted.target,
                head.method,
                authorised.admitted.client,
            )
            if takes.settles_later:
                return None
            authorised.shared_memo.takes = takes
        credential = None
        if authorised.permit.use:
            credential = stages.tokens.credential_now(authorised.permit, authorised.operation)
            if credential is None:
                return None
        template = authorised.shared_memo.templates.get(credential.id if credential is not None else "")
        if template is None or template.credential is not credential:
            try:
                template = request_template(stages, head, authorised, credential)
            except Rejection:
                return None  # it must not go up, as the road will say
        if template.may_need_body:
            return None
        decision = stages.limits.admit_now(takes, authorised.principal) if takes else None
        if decision is not None and not decision.allowed:
            return None
        x = plan.facts_for(head, self._mint_id(), self.monotonic())
        lane_request = LaneRequest(self, plan, head, template, sink, x)
        self.active += 1
        if decision is None and takes:
            lane_request.pending_call = stages.limits.admit_soon(takes, lane_request.on_decision)
        elif not lane_request.try_send(decision):
            lane_request.pending_call = asyncio.get_running_loop().call_soon(sink.deliver, None, lane_request)
        return lane_request


class LaneRequest(msgspec.Struct, eq=False):
    """One request on the lane: a ``PendingAnswer`` while a call is under way, a ``Handover`` once the road takes over."""

    _lane: ForwardLane
    plan: Plan
    head: RequestHead
    _template: RequestTemplate
    _sink: AnswerSink
    x: Exchange
    pending_call: Cancellable = _NOTHING_PENDING
    """The call under way, to the buckets, the cache's store or GitLab; or none, and the road is about to take over."""
    decision: Decision | None = None
    """The buckets' decision, which admits the request; None: no limit applies."""
    _leader: Leader | None = None
    conditions: Fields = ()
    """The conditions that it went up with."""
    prior_lookup: PriorLookup | None = None
    """What the cache's store held when the request was about to go up."""
    started_at: float = 0.0
    """When GitLab was asked; 0: it was not."""
    reply: Reply | None = None
    """GitLab's answer, where the road is to deal with it."""
    rejection: Rejection | None = None
    """Why GitLab gave no answer, where the road is to deal with that."""

    # Not the struct's own, which would show what leads to a caller's credential.
    __repr__ = object.__repr__

    @property
    def credential(self) -> UpstreamCredential | None:
        """The credential that it goes up with."""
        return self._template.credential

    # pending_answer.PendingAnswer, pending_answer.Handover

    def leave(self) -> None:
        x = self.x
        if x.aborted:
            return  # counted already, when its answer found the connection closing; the loss is reported only now
        self._cancel()
        x.status, x.aborted = 499, "client"
        x.observer_memo = None  # it may have been given that of answered requests already
        self._finish()

    def drained(self) -> bytes:
        if self.x.aborted:
            return b""
        self._cancel()
        authorised, lane = self.plan.example, self._lane
        octets = drained_answer(
            lane.stages, self.head, authorised.operation, authorised.principal, self.x, lane.wall(), self.decision
        )
        self._finish()
        return octets

    def _cancel(self) -> None:
        """Break off whatever is under way."""
        if self.reply is not None:
            self.reply.release()
        elif self.rejection is None:
            self.pending_call.cancel()
        self._abandon()

    def _abandon(self) -> None:
        leader, self._leader = self._leader, None
        if leader is not None:
            self.prior_lookup = leader.prior_lookup()
            leader.abandon()

    def _finish(self) -> None:
        lane = self._lane
        lane.active -= 1
        if self.started_at:
            self.x.upstream_s = lane.monotonic() - self.started_at
        lane.observe(self.x)

    def taken_on(self) -> None:
        """The road has taken the request on: it is no longer on the lane."""
        self._lane.active -= 1

    # The way up

    def on_decision(self, decision: Decision) -> None:
        """The buckets have answered."""
        if self._sink.is_gone():
            self.leave()
        elif not self._lane.stages.limits.accept_decision(decision, self._template.principal, refusing=False):
            self._lane.active -= 1
            self._sink.deliver(None)
        elif not self.try_send(decision):
            self._sink.deliver(None, self)

    def try_send(self, decision: Decision | None) -> bool:
        """Send the request to GitLab, or ask the cache's store first; False: that is for the road."""
        self.decision = decision
        lane, template = self._lane, self._template
        cache = lane.stages.cache
        try:
            if decision is not None:
                note(decision, self.x)
            credential = template.credential
            if credential is not None and not lane.stages.pacing.is_free(credential.id):
                return False
            leader = cache.lead_now(self.head.target, template.profile, lane.wall)
            if leader is not None:
                return self._send(leader)
            pending_call = cache.lead_soon(self.head.target, template.profile, lane.wall, self.on_lead)
            if pending_call is not None:
                self.pending_call = pending_call
                return True
        except Exception:
            log.exception("fault in the forward lane")  # the road has its own way to report it
        self._abandon()
        return False

    def on_lead(self, result: Leader | PriorLookup | None) -> None:
        """The cache's store has answered."""
        self.pending_call = _NOTHING_PENDING
        leader = None
        if isinstance(result, PriorLookup):
            self.prior_lookup = result
        else:
            leader = self._leader = result
        sent = False
        try:
            if leader is not None and not self._sink.is_gone():
                credential = self._template.credential
                free = credential is None or self._lane.stages.pacing.is_free(credential.id)
                sent = free and self._send(leader)
        except Exception:
            log.exception("fault in the forward lane")
        if sent:
            return
        self._abandon()
        if self._sink.is_gone():
            self.leave()
        else:
            self._sink.deliver(None, self)

    def _send(self, leader: Leader) -> bool:
        lane, x, template = self._lane, self.x, self._template
        self._leader = leader
        if template.credential is not None:
            x.permit_use = template.credential.id
        self.conditions = leader.conditions
        own = (*leader.conditions, (b"X-Request-Id", x.request_id.encode("ascii")))
        if self.head.correlation:
            own = (*lane.stages.header_rules.forwardable_correlation(self.head, self.plan.example.admitted), *own)
        sent = lane.stages.upstream.send_soon(self.head.target, own, template.repeated, self.on_answer)
        if sent is None:
            self._abandon()
            return False
        self.pending_call = sent
        self.started_at = lane.monotonic()
        return True

    # The way down

    def on_answer(self, answer: Reply | Rejection | None) -> None:
        """GitLab has answered, or there is no answer."""
        octets = None
        try:
            if isinstance(answer, Reply):
                octets = self._render(answer)
        except Rejection:
            pass  # the road comes to the same, from what GitLab said
        except Exception:
            log.exception("fault in the forward lane")
            answer = None
        if octets is not None and not self._sink.is_gone():
            self.x.bytes_out = len(octets)
            self._finish()
            self._sink.deliver(octets)
            return
        if octets is None:
            self._abandon()
            if isinstance(answer, Reply):
                self.reply = answer
            elif answer is not None:
                self.rejection = answer
        if self._sink.is_gone():
            self.leave()
        else:
            self._sink.deliver(None, self)

    def _render(self, reply: Reply) -> bytes | None:
        """The answer as it goes over the wire; None: that is for the road."""
        form = reply.form
        templates, reuse_s = self._template.answer_templates, self._template.profile.reuse_s
        answer_template = templates.get(form) if form is not None else None
        if answer_template is not None and answer_template.reuse_s != reuse_s:
            answer_template = templates.get((form, reuse_s))
        if answer_template is not None and answer_template.form_template is not None:
            octets = self._render_by_template(answer_template, answer_template.form_template, reply)
            if octets is not None:
                return octets
        leader = self._leader
        head, whole = reply.head, reply.whole
        shape = head.shape or shape_of_head(head)
        if shape.has_any(SENDFILE_FIELDS):
            return None  # the road counts the leak when it passes the answer on: once
        if head.status == 304 and self.conditions and leader is not None:
            return self._render_validated(reply, leader)
        if head.status != 200 or whole is None or leader is None or b"cache-status" in shape.place:
            return None
        stages, authorised = self._lane.stages, self.plan.example
        down = stages.header_rules.response_head(head, self.head, authorised.admitted)
        outcome = leader.answered(down, whole)
        if outcome is None:
            return None
        self._leader = None
        self._note_answer(head, shape)
        octets = self._render_new(down, outcome, whole)
        self._note(reply, outcome)
        if form is not None:
            self._learn(form, leader)
        return octets

    def _note_answer(self, head: ResponseHead, shape: Shape) -> None:
        """Note what GitLab's answer says besides the answer itself."""
        stages, credential = self._lane.stages, self._template.credential
        if credential is not None and shape.has_any(PACE_FIELDS):
            stages.pacing.learn(credential.id, head, self.plan.example.operation.name)
        if stages.tokens.has_unchecked and b"x-gitlab-meta" in shape.place:
            stages.tokens.gitlab_answered()
        place = shape.place.get(b"x-request-id")
        if place is not None:
            self.x.upstream_request_id = ascii_of(head.fields[place][1])

    def _render_validated(self, reply: Reply, leader: Leader) -> bytes | None:
        """As ``_render``, of what is stored and GitLab has just confirmed with a 304."""
        lane, x, head = self._lane, self.x, reply.head
        down = lane.stages.header_rules.response_head(head, self.head, self.plan.example.admitted)
        validated = leader.validated(down)
        if validated is None:
            return None
        self._leader = None
        self._note_answer(head, head.shape or shape_of_head(head))
        answer, outcome = validated
        octets = self._render_stored(answer.head, answer.whole or b"")
        x.status, x.upstream_status = answer.head.status, 304
        x.upstream_first_byte_s = reply.first_byte_s
        x.cache_status, x.cache_reason, x.cache_stored = outcome.status.value, outcome.reason.value, outcome.stored.value
        if not (x.limit_near or x.limit_shadow):
            memos, outcome_key = self._template.observer_memos, (x.status, x.cache_status, x.cache_reason, x.cache_stored)
            x.observer_memo = memos.get(outcome_key) or _add_memo(memos, outcome_key)
        return octets

    def _render_stored(self, head: ResponseHead, body: bytes) -> bytes:
        """A stored answer, or a 304 about it, as it goes over the wire."""
        lane, principal = self._lane, self._template.principal
        dialect = lane.stages.dialect
        merged_parts = dialect.merged_parts(self.decision, principal, head)
        if merged_parts is None:
            fields, lines = dialect.merged(self.decision, principal, head.status, head.fields, lane.wall()), b""
        else:
            fields, lines = merged_parts
        joined = b"\r\n".join(map(_as_line, fields))
        folded = b"\n" + joined.lower()
        return b"%b%b\r\n%bX-Gateway-Request-Id: %b\r\n%b%b\r\n%b" % (
            status_line(head.status),
            joined,
            lines,
            self.x.request_id.encode("ascii"),
            b"" if b"\ndate:" in folded else date_line(lane.wall()),
            b"" if b"\ncontent-length:" in folded or head.status == 304 else b"Content-Length: %d\r\n" % len(body),
            body,
        )

    def _render_by_template(
        self, answer_template: AnswerTemplate, form_template: FormTemplate, reply: Reply
    ) -> bytes | None:
        """As ``_render``, of an answer that differs from earlier ones in a few values alone."""
        leader, whole = self._leader, reply.whole
        if leader is None or whole is None:
            return None
        values = answer_template.rewrite(reply.values) if answer_template.rewritable else reply.values
        outcome = leader.answered_by_form(form_template, values, whole)
        if outcome is None:
            return None
        self._leader = None
        x, template = self.x, self._template
        stages = self._lane.stages
        if answer_template.has_pace and template.credential is not None:
            stages.pacing.learn(template.credential.id, reply.head, self.plan.example.operation.name)
        if answer_template.has_meta and stages.tokens.has_unchecked:
            stages.tokens.gitlab_answered()
        if answer_template.request_id_at >= 0:
            x.upstream_request_id = ascii_of(values[answer_template.request_id_at])
        lines = stages.dialect.lines(self.decision, template.principal)
        octets = answer_template.render(values, outcome.line, lines, x.request_id, self._lane.wall, whole)
        self._note(reply, outcome)
        return octets

    def _note(self, reply: Reply, outcome: MissOutcome) -> None:
        """Note what is known of the answer by now."""
        x = self.x
        x.status = x.upstream_status = 200
        x.upstream_first_byte_s = reply.first_byte_s
        x.cache_status, x.cache_reason, x.cache_stored = outcome.status, outcome.reason, outcome.stored
        if not (x.limit_near or x.limit_shadow):
            x.observer_memo = self._template.observer_memos.get(outcome) or _add_memo(
                self._template.observer_memos, outcome
            )

    def _learn(self, form: HeadForm, leader: Leader) -> None:
        """Learn how to render the answers that will come in the same form."""
        templates, reuse_s = self._template.answer_templates, self._template.profile.reuse_s
        known = templates.get(form)
        key = form if known is None or known.reuse_s == reuse_s else (form, reuse_s)
        if key not in templates:
            # This may be the only answer of its form: only the second one shows that there are more.
            if len(templates) >= _TEMPLATES_BOUND:
                templates.clear()
            templates[key] = None
        elif templates[key] is None:
            templates[key] = AnswerTemplate(
                self._lane.stages, leader, form, self.head, self.plan.example, self.decision, reuse_s
            )

    def _render_new(self, head: ResponseHead, outcome: MissOutcome, whole: bytes) -> bytes:
        """A new answer as it goes over the wire."""
        lane, principal = self._lane, self._template.principal
        dialect = lane.stages.dialect
        merged_parts = dialect.merged_parts(self.decision, principal, head)
        if merged_parts is None:
            fields = dialect.merged(self.decision, principal, 200, (*head.fields, outcome.field), lane.wall())
            cache_status = lines = b""
        else:
            (fields, lines), cache_status = merged_parts, outcome.line
        assert head.shape is not None, "the cache asked for it"
        place = head.shape.place
        ending = b"\r\n"
        if b"content-length" not in place:
            ending = b"Content-Length: %d\r\n\r\n" % len(whole)
        if b"date" not in place:
            ending = date_line(lane.wall()) + ending
        return b"HTTP/1.1 200 OK\r\n%b\r\n%b%bX-Gateway-Request-Id: %b\r\n%b%b" % (
            b"\r\n".join(map(_as_line, fields)),
            cache_status,
            lines,
            self.x.request_id.encode("ascii"),
            ending,
            whole,
        )


def _add_memo(memos: dict[object, ObserverMemo], outcome: object) -> ObserverMemo:
    if len(memos) >= _MEMOS_BOUND:
        memos.clear()
    memo = memos[outcome] = ObserverMemo()
    return memo
