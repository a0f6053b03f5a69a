"""The road: every request walks these stages in this order, in plain sight.

    target → operation → claim → principal → permit → buckets → [ cache ⇄ upstream ] → answer
                                                                       └── audit, metrics (one finally)

A stage is a function of earlier stages' values, so none can be forgotten: there is no Permit without a Principal, and
nothing goes up, or comes out of the cache, without a Permit. A stage that refuses raises ``Rejection``, which becomes an
answer in ``_refuse`` and nowhere else; where octets of an answer have left already, the connection is cut instead.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial

from .bandwidth_stage import Flow
from .core.access import Principal
from .core.cache_status import CacheReason, CacheStatus, Stored
from .core.catalogue import Access, Operation
from .core.correlation import record_ids
from .core.credentials import CredentialKind
from .core.cross_origin import is_preflight, preflight_principal
from .core.errors import Code, Rejection, Source, drained
from .core.exchange import Exchange
from .core.limits import Decision, Take, Takes, preliminary_takes, scale_takes
from .core.messages import Fields, RequestHead, ResponseHead, first, joined
from .core.refusal import render
from .core.request_intent import is_decided_by_body, possible_operations
from .core.request_validation import AdmittedRequest
from .core.rule_match import Place, PlaceLookup, lookups_of, spellings
from .core.token_answers import check_token_service
from .core.upgrade import SWITCH
from .forward_lane import ForwardLane, LaneRequest
from .lane_answers import CachedAnswer, make_cached_answer, make_refusal_template
from .limit_stage import lasts_s, limit_rejection, note
from .narrow_stage import narrowed, require_list_shape
from .pending_answer import AnswerSink, PendingAnswer
from .place_stage import resolve
from .plans import Plan, Plans, admitted_for
from .ports import DRAINED, Downstream
from .progress import Progress
from .reply import Reply
from .short_lane import Shortcut, ShortLane
from .stages import Stages
from .tunnel_stage import relay
from .upstream_call import AuthorisedRequest, UpstreamCall, with_client_peer

log = logging.getLogger("gateway.pipeline")

_FAULT = Rejection(
    Code.INTERNAL, 500, "500 Internal Server Error", source=Source.INTERNAL, close=True, proxy_error="proxy_internal_error"
)

_READ = Access.READ  # an enum's class looks up its members anew each time
_STATUSES = {status: status.value for status in CacheStatus}
_REASONS = {reason: reason.value for reason in CacheReason}
_STORED = {stored: stored.value for stored in Stored}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_CUT_BY = {Source.DOWNSTREAM: "client", Source.UPSTREAM: "upstream", Source.INTERNAL: "gateway"}


class Gateway:
    """One gateway: ``handle`` is the whole of it."""

    def __init__(
        self,
        stages: Stages,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.stages = stages
        self.monotonic = monotonic
        self._wall = wall
        self._ids = itertools.count()
        self._id_prefix = secrets.token_hex(8)
        self.active = 0
        """Requests on the road."""
        self.plans = Plans()
        self.lane = ShortLane(stages, mint_id=self.mint_id, monotonic=monotonic, wall=wall, observe=self.observe)
        self.forward_lane = ForwardLane(
            stages, self.plans, mint_id=self.mint_id, monotonic=monotonic, wall=wall, observe=self.observe
        )

    @property
    def in_flight(self) -> int:
        """Requests being served."""
        return self.active + self.lane.pending + self.forward_lane.active

    async def handle(self, down: Downstream) -> None:
        """Walk one request down the road and answer it, whatever happens."""
        head, handover, minted = down.head, down.handover, self.mint_id()
        if handover is None:
            plan = self._plan(head) if down.plain else None
            if plan is None:
                x = Exchange(minted, self.monotonic(), head.method, head.peer)
            else:
                x = plan.facts_for(head, minted, self.monotonic())
        else:
            assert isinstance(handover, LaneRequest), "no other lane hands anything over"
            handover.taken_on()
            plan, x = handover.plan, handover.x
        progress = Progress(minted)
        self.active += 1
        try:
            try:
                if plan is None:
                    authorised = await self._authorise(down, x, progress)
                else:
                    authorised = plan.authorised(head)
                    progress.principal, progress.operation = authorised.principal, authorised.operation
                if handover is not None:
                    progress.decision, progress.handover = handover.decision, handover
                    if handover.rejection is not None and not handover.conditions:
                        raise handover.rejection  # no stored answer could stand in
                await self._serve(down, x, progress, authorised)
            except Rejection as rejection:
                await self._refuse(down, x, progress, rejection)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                # A fault of ours is a 500 and a traceback in the log, never a hang or half an answer.
                log.exception("fault while serving %s", x.request_id)
                await self._refuse(down, x, progress, _FAULT)
        except (ConnectionError, asyncio.CancelledError) as gone:
            if gone.args == (DRAINED,) and x.status != 101:
                asked = progress.call is not None and progress.call.started_at > 0
                await self._refuse(down, x, progress, drained(unsure=asked and head.method not in _SAFE))
                raise
            x.status, x.aborted = x.status if x.status == 101 else 499, "client"
            if isinstance(gone, asyncio.CancelledError):
                raise
        finally:
            self.active -= 1
            if handover is not None and handover.reply is not None:
                handover.reply.release()
            x.bytes_out = down.sent_bytes
            x.bytes_in = down.received_bytes
            if progress.preliminary is not None:
                progress.preliminary.keep()
            if progress.ticket is not None and progress.ticket.needs_settling():
                progress.ticket.close(progress.call.spent(down.sent_bytes) if progress.call is not None else None)
            self.observe(x)

    def try_answer(self, head: RequestHead, sink: AnswerSink) -> bytes | PendingAnswer | None:
        """The whole answer, audited and counted, where the short lane has it without waiting; or a lane's
        ``PendingAnswer``, which will give it to ``sink``. None: ``handle`` the request."""
        try:
            if head.memo:
                answer = self.lane.try_answer(head, sink)
                if answer is not None:
                    return answer
            return self.forward_lane.try_answer(head, sink)
        except Exception:
            # The road has its own way to report a fault, to this request and to all like it; the caller here is the
            # connection itself, which an exception would end.
            log.exception("fault in a lane")
            self.lane.forget(head)
            return None

    def mint_id(self) -> str:
        """A new request id: its prefix is unique to this process, and a counter makes it unique within it."""
        return f"{self._id_prefix}-{next(self._ids):x}"

    def observe(self, x: Exchange) -> None:
        """Hand a finished exchange to telemetry."""
        duration_s = self.monotonic() - x.started_at
        for observer in self.stages.observers:
            observer.observe(x, duration_s)

    def _plan(self, head: RequestHead) -> Plan | None:
        try:
            return self.plans.find(head)
        except Exception:
            log.exception("fault in the plans")  # the road has its own way to report it
            return None

    async def _authorise(self, down: Downstream, x: Exchange, progress: Progress) -> AuthorisedRequest:
        """Who asks for what, and may they? Everything before the buckets."""
        stages = self.stages
        head = down.head

        target = stages.entry.target(head)
        operation = stages.entry.operation(head, target)
        x.operation, progress.operation = operation.name, operation
        admitted = stages.entry.admit(head, target, operation)
        x.peer, x.target = admitted.client, admitted.claim.target
        named = record_ids(x, head, trusted=admitted.trusted_peer)
        x.user_agent = admitted.user_agent

        claim, body = admitted.claim, down.body
        if body is not None and claim.kind is CredentialKind.NONE:
            claim, body = await stages.bodies.claim(admitted, head, body)
        x.credential_kind = claim.kind.value

        if claim.kind is CredentialKind.NONE and is_preflight(head, target):
            principal = preflight_principal(admitted.client)
        else:
            principal = await stages.authenticator.authenticate(claim, operation, with_client_peer(head, admitted))
        progress.principal = principal
        x.principal, x.principal_kind, x.identity = principal.id, principal.kind.value, principal.identity
        x.team, x.credential_fingerprint = principal.team, principal.fingerprint
        x.credential_id, x.credential_subject = principal.credential_id, principal.credential_subject

        weight = 1
        if is_decided_by_body(operation):
            reserve = partial(self._reserve, operation, head, admitted, x, progress)
            if body is not None and first(head.fields, b"expect") is not None:
                await reserve(1)
            browser = claim.kind is CredentialKind.SESSION
            operation, body, weight = await stages.bodies.classify(operation, head, target, body, reserve, browser=browser)

        lookups = stages.access.lookups(principal, operation, target, head.method, screened=True)
        resolved = dict[PlaceLookup, Place]()
        if lookups:
            reserve_one = partial(self._reserve, operation, head, admitted, x, progress, 1)
            resolved = await resolve(stages, lookups, principal, reserve_one)
        permit = stages.access.authorise(
            principal, operation, target, head.method, claim.sudo, resolved=resolved, screened=True
        )
        x.rule, x.permit_use, x.sudo = permit.rule, permit.use, permit.sudo
        x.rule_shadow = permit.shadow
        if principal.brokered:
            check_token_service(operation, target, has_body=body is not None)
        repeatable = not (lookups or named or weight > 1)
        authorised = AuthorisedRequest(
            admitted, operation, claim, principal, permit, claim.target, body, weight, resolved, repeatable
        )
        if repeatable and down.plain:
            proof = stages.authenticator.proof(claim, operation, principal)
            if proof is not None and proof() is principal:
                self.plans.learn(head, proof, authorised, x)
        return authorised

    async def _serve(self, down: Downstream, x: Exchange, progress: Progress, authorised: AuthorisedRequest) -> None:
        """Do what was permitted: take from the buckets, ask the cache or GitLab, answer."""
        stages = self.stages
        head = down.head
        admitted, operation = authorised.admitted, authorised.operation
        principal, permit = authorised.principal, authorised.permit
        target = admitted.target

        shape = require_list_shape(operation, target, head) if permit.narrowing is not None else None

        preliminary = progress.preliminary
        if preliminary is not None:
            preliminary.undo()
        decision = progress.decision
        known = authorised.shared_memo.takes if decision is None else None
        if known and not known.validity.over:
            decision = stages.limits.admit_now(known, principal)
        if decision is not None and decision.allowed:
            if progress.decision is None:
                progress.decision = decision
                note(decision, x)
        elif takes := self._takes(authorised, head):
            ticket = progress.ticket = await stages.limits.admit(takes, principal, progress.lease, admitted.wait_s)
            decision = progress.decision = ticket.decision
            x.limit_waited_s += ticket.waited_s
            if preliminary is not None and not decision.allowed:
                decision = progress.decision = preliminary.charge_undone(takes, decision)
            note(decision, x)
            if not decision.allowed:
                if authorised.repeatable and not (decision.unavailable or admitted.wait_s):
                    self._learn(head, x, progress, authorised)
                raise limit_rejection(decision)
        progress.preliminary = None

        handover = progress.handover
        if handover is not None and handover.started_at:
            # GitLab's answer was to this credential: where several take turns, answers to another are kept elsewhere.
            credential = handover.credential
        else:
            credential = await stages.tokens.credential(permit, operation) if permit.use else None
            if handover is not None and credential is not handover.credential:
                handover.prior_lookup = None  # it was looked up for another credential
        if credential is not None:
            x.permit_use = credential.id
        body = authorised.body
        if body is not None:
            resolved = authorised.resolved
            if permit.confined and operation.names_in_body and not resolved:
                # Clients name a project by its full path in the URL, and by its number in the body.
                resolved = await resolve(stages, lookups_of(operation, target), principal)
            body = stages.bodies.guard(
                authorised.claim,
                principal,
                permit,
                head,
                body,
                operation,
                places=spellings(operation, target, resolved) if permit.confined else None,
                acting=partial(setattr, x, "sudo"),
            )
        if operation.access is not _READ or stages.audit.closed:
            await stages.audit.admit(x)
        call = progress.call = UpstreamCall(stages, self.monotonic, head, x, authorised, credential, body)
        if handover is not None:
            call.started_at, call.prior_lookup = handover.started_at, handover.prior_lookup
            call.early_reply, call.early_rejection = handover.reply, handover.rejection
            call.early_conditions = handover.conditions
        if admitted.websocket:
            await self._tunnel(down, x, progress, call, authorised)
            return
        reply, outcome = await stages.cache.fetch(call.cache_request(), call.forward, self._wall)
        try:
            x.cache_status, x.cache_reason = _STATUSES[outcome.status], _REASONS[outcome.reason]
            if shape is not None:
                reply = await narrowed(reply, shape, permit, head)
            elif outcome.repeat_hit is not None and authorised.repeatable:
                x.cache_stored = _STORED[outcome.stored]
                self._learn(head, x, progress, authorised, make_cached_answer(outcome.repeat_hit, x, credential))
            flow = None
            if reply.chunks is not None:
                flow = stages.bandwidth.flow(principal, operation, target, head.method, admitted.client)
            await self._relay(down, x, progress, reply, principal, stored=not call.started_at, flow=flow)
        finally:
            reply.release()
            x.cache_stored = _STORED[outcome.stored]
            if call.started_at:
                x.upstream_s = self.monotonic() - call.started_at

    def _takes(self, authorised: AuthorisedRequest, head: RequestHead) -> tuple[Take, ...]:
        admitted = authorised.admitted
        takes = self.stages.dialect.takes_for(
            authorised.principal, authorised.operation, admitted.target, head.method, admitted.client
        )
        if authorised.weight > 1:
            return scale_takes(takes, authorised.weight)
        if authorised.repeatable and not takes.settles_later:
            authorised.shared_memo.takes = takes
        return takes

    async def _reserve(
        self,
        operation: Operation,
        head: RequestHead,
        admitted: AdmittedRequest,
        x: Exchange,
        progress: Progress,
        weight: int,
    ) -> None:
        """Make sure that there is room at all, before GitLab is asked about a place, and before a body that tells what the
        request takes is let in (``100 Continue``) or parsed. What is taken is given back when the request takes its own.
        One that never gets so far, because it is refused or its client leaves, is charged with it: work was done for it."""
        if weight <= progress.reserved:
            return
        preliminary, principal, before = progress.preliminary, progress.principal, Takes()
        refusals: list[tuple[Takes, Decision]] = []
        assert principal is not None
        if preliminary is not None:
            preliminary.undo()
        for kind in possible_operations(operation):
            takes = self.stages.dialect.takes_for(principal, kind, admitted.target, head.method, admitted.client)
            wanted = preliminary_takes(takes, weight)
            if not wanted:
                return
            if takes is before:
                break
            before = takes
            ticket = await self.stages.limits.admit(wanted, principal, progress.lease, admitted.wait_s)
            x.limit_waited_s += ticket.waited_s
            if ticket.decision.allowed:
                progress.preliminary, progress.reserved = ticket, weight
                return
            refusals.append((wanted, ticket.decision))
        wanted, refused = min(refusals, key=lambda one: lasts_s(one[1]))
        progress.decision = refused if preliminary is None else preliminary.charge_undone(wanted, refused)
        note(progress.decision, x)
        raise limit_rejection(progress.decision)

    def _learn(
        self,
        head: RequestHead,
        x: Exchange,
        progress: Progress,
        authorised: AuthorisedRequest,
        hit: CachedAnswer | None = None,
    ) -> None:
        """Let the next request with the same head take the short lane. ``hit`` is None where a bucket refused."""
        memo, admitted = head.memo, authorised.admitted
        if memo is None or (progress.ticket is not None and progress.ticket.needs_settling()):
            return
        proof = self.stages.authenticator.proof(authorised.claim, authorised.operation, authorised.principal)
        if proof is None or proof() is not authorised.principal:
            return
        if not memo:
            # It came by a plan: leave what the entry would have left there.
            admitted = admitted_for(head, admitted)
            memo.append(admitted)
        trusted = admitted.trusted_peer
        shortcut = Shortcut(
            proof, authorised.principal, authorised.operation, admitted.target, head.method, admitted.client, trusted
        )
        if hit is not None:
            shortcut.cached_answer = hit
        else:
            shortcut.refusal_template = make_refusal_template(head, authorised.operation, x)
        self.lane.learn(head, shortcut)

    async def _tunnel(
        self, down: Downstream, x: Exchange, progress: Progress, call: UpstreamCall, authorised: AuthorisedRequest
    ) -> None:
        """A WebSocket: the handshake went through every stage; after the 101 there are only octets."""
        reply = await call.forward(())
        try:
            if reply.tunnel is None:
                await self._relay(down, x, progress, reply, authorised.principal)
                return
            tunnel = await down.switch(ResponseHead(101, (*reply.head.fields, *SWITCH, _id_field(x))))
            x.status = 101
            check = None
            if authorised.principal.brokered:  # with a credential of GitLab's own, it is for GitLab to end the tunnel
                check = functools.partial(self.stages.authenticator.still_accepts, authorised.claim)
            x.aborted = (await relay(tunnel, reply.tunnel, idle_s=self.stages.tunnel_idle_s, check=check)).value
        finally:
            reply.release()
            x.upstream_s = self.monotonic() - call.started_at

    async def _relay(
        self,
        down: Downstream,
        x: Exchange,
        progress: Progress,
        reply: Reply,
        principal: Principal,
        *,
        stored: bool = False,
        flow: Flow | None = None,
    ) -> None:
        """Send the answer, whole or streamed, as fast as ``flow`` lets it. A rejection in mid-body, as when the upstream
        dies, cuts it off (``_refuse``). ``stored``: GitLab was not asked."""
        dialect, decision, head, lines = self.stages.dialect, progress.decision, reply.head, b""
        merged_parts = dialect.merged_parts(decision, principal, head)
        if merged_parts is None:
            fields = dialect.merged(decision, principal, head.status, head.fields, self._wall(), stored=stored)
        else:
            fields, lines = merged_parts
        if fields is not head.fields:
            head = ResponseHead(head.status, fields, head.reason)
        lines += b"X-Gateway-Request-Id: %b\r\n" % x.request_id.encode("ascii")
        x.status = head.status
        if reply.chunks is None:
            await down.respond(head, reply.whole or b"", lines=lines)
            return
        await down.start(head, lines=lines)
        async for chunk in reply.chunks:
            if flow is not None:
                await flow.pace(len(chunk))
            await down.write(chunk)
        await down.finish()

    def _limit_fields(self, progress: Progress, rejection: Rejection) -> Fields:
        """The rate-limit fields of a refusal. GitLab's limit on a shared credential appears as the caller's own wait."""
        dialect, decision, principal = self.stages.dialect, progress.decision, progress.principal
        if rejection.status != 429 or principal is None or (decision is not None and not decision.allowed):
            return dialect.own_fields(decision, principal)
        merged = dialect.merged(decision, principal, 429, rejection.headers, self._wall())
        return tuple([field for field in merged if field not in rejection.headers])

    async def _refuse(self, down: Downstream, x: Exchange, progress: Progress, rejection: Rejection) -> None:
        x.code, x.detail = rejection.code.value, rejection.detail
        if rejection.rule:
            x.rule = rejection.rule
        if rejection.shadow:
            x.rule_shadow = rejection.shadow
        if down.started:
            x.aborted = _CUT_BY[rejection.source]
            down.abort()
            return
        x.status = rejection.status
        if rejection.code is Code.RATE_LIMITED and rejection.source is Source.UPSTREAM:
            x.limit_id, x.limit_near = "upstream", False  # GitLab's own limit on the credential, none of ours
        fields = down.head.fields
        decision = progress.decision
        refusing = decision.refusal if decision is not None and rejection.code is Code.RATE_LIMITED else None
        head, body = render(
            rejection,
            surface=progress.operation.surface,
            route=progress.operation.route,
            accept=joined(fields, b"accept") or b"",
            request_id=x.request_id,
            violated=(refusing.limit.id,) if refusing is not None else (),
            extra=(*self._limit_fields(progress, rejection), _id_field(x)),
            cross_origin=first(fields, b"origin") is not None,
            challenge=not self.stages.anonymous,
        )
        await down.respond(head, body, close=rejection.close)


def _id_field(x: Exchange) -> tuple[bytes, bytes]:
    return (b"X-Gateway-Request-Id", x.request_id.encode("ascii"))
