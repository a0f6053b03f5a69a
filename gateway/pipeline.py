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

from .asking import Asker, Asking
from .bandwidth_stage import Flow
from .core.access import Principal
from .core.asked import is_told_by_body, readings
from .core.cache_status import CacheReason, CacheStatus, Stored
from .core.catalogue import Access, Operation, Surface
from .core.correlation import mark
from .core.credentials import Kind
from .core.cross_origin import asker, is_preflight
from .core.entry import Admitted
from .core.errors import Code, Rejection, Source, drained
from .core.exchange import Exchange
from .core.handed_out import refuse_token
from .core.limits import Decision, Take, Takes, beforehand, heavier
from .core.messages import Fields, RequestHead, ResponseHead, first, joined
from .core.refusal import render
from .core.rule_match import Place, Question, questions_of, spellings
from .core.upgrade import SWITCH
from .errand import Case, Errand, seen_from
from .forward_lane import Forwarding, ForwardLane
from .limit_stage import Ticket, lasts_s, limited, note
from .narrow_stage import narrowable, narrowed
from .place_stage import resolve
from .plans import Plan, Plans, admitted_for
from .ports import DRAINED, Downstream
from .reply import Reply
from .road import Road
from .short_lane import Served, ShortLane, Way, refused, served
from .tunnel_stage import relay

log = logging.getLogger("gateway.pipeline")

_FAULT = Rejection(
    Code.INTERNAL,
    500,
    "500 Internal Server Error",
    source=Source.INTERNAL,
    close=True,
    proxy_error="proxy_internal_error",
)


_READ = Access.READ  # an enum's class looks up its members anew each time
_STATUSES = {status: status.value for status in CacheStatus}
_REASONS = {reason: reason.value for reason in CacheReason}
_STORED = {stored: stored.value for stored in Stored}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_UNSEEN = Operation("", Access.WRITE, Surface.REST)
_CUT_BY = {Source.DOWNSTREAM: "client", Source.UPSTREAM: "upstream", Source.INTERNAL: "gateway"}


class _Told:
    """What is known of the caller so far, for a refusal: filled in as the stages pass."""

    __slots__ = ("ahead", "begun", "decision", "errand", "lease", "operation", "principal", "room", "ticket")

    def __init__(self, lease: str) -> None:
        self.lease = lease
        """Names the request among those in progress, whatever its id: one from a trusted proxy may not be unique."""
        self.operation = _UNSEEN
        self.principal: Principal | None = None
        self.decision: Decision | None = None
        self.ticket: Ticket | None = None
        self.ahead: Ticket | None = None
        """What was taken for the work of finding out what the request takes."""
        self.room = 0
        """For how many requests in one that was taken."""
        self.errand: Errand | None = None
        self.begun: Forwarding | None = None


class Gateway:
    """One gateway: ``handle`` is the whole of it."""

    def __init__(
        self,
        road: Road,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.road = road
        self.monotonic = monotonic
        self._wall = wall
        self._ids = itertools.count()
        self._id_prefix = secrets.token_hex(8)
        self.walking = 0
        """Requests on the road."""
        self.plans = Plans()
        self.lane = ShortLane(road, mint_id=self.mint_id, monotonic=monotonic, wall=wall, observe=self.observe)
        self.forward_lane = ForwardLane(
            road, self.plans, mint_id=self.mint_id, monotonic=monotonic, wall=wall, observe=self.observe
        )

    @property
    def in_flight(self) -> int:
        """Requests being served."""
        return self.walking + self.lane.asking + self.forward_lane.walking

    async def handle(self, down: Downstream) -> None:
        """Walk one request down the road and answer it, whatever happens."""
        head, begun, minted = down.head, down.begun, self.mint_id()
        if begun is None:
            plan = self._plan(head) if down.plain else None
            if plan is None:
                x = Exchange(minted, self.monotonic(), head.method, head.peer)
            else:
                x = plan.facts_of(head, minted, self.monotonic())
        else:
            assert isinstance(begun, Forwarding), "who begins anything"
            begun.taken_on()
            plan, x = begun.plan, begun.x
        told = _Told(minted)
        self.walking += 1
        try:
            try:
                if plan is None:
                    case = await self._judge(down, x, told)
                else:
                    case = plan.case(head)
                    told.principal, told.operation = case.principal, case.operation
                if begun is not None:
                    told.decision, told.begun = begun.decision, begun
                    if begun.rejection is not None and not begun.conditions:
                        raise begun.rejection  # no stored answer could stand in
                await self._act(down, x, told, case)
            except Rejection as rejection:
                await self._refuse(down, x, told, rejection)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                # A fault of ours is a 500 and a traceback in the log, never a hang or half an answer.
                log.exception("fault while serving %s", x.request_id)
                await self._refuse(down, x, told, _FAULT)
        except (ConnectionError, asyncio.CancelledError) as gone:
            if gone.args == (DRAINED,) and x.status != 101:
                asked = told.errand is not None and told.errand.started_at > 0
                await self._refuse(down, x, told, drained(unsure=asked and head.method not in _SAFE))
                raise
            x.status, x.aborted = x.status if x.status == 101 else 499, "client"
            if isinstance(gone, asyncio.CancelledError):
                raise
        finally:
            self.walking -= 1
            if begun is not None and begun.reply is not None:
                begun.reply.release()
            x.bytes_out = down.sent_bytes
            x.bytes_in = down.received_bytes
            if told.ahead is not None:
                told.ahead.keep()
            if told.ticket is not None and told.ticket.owes():
                told.ticket.close(told.errand.spent(down.sent_bytes) if told.errand is not None else None)
            self.observe(x)

    def at_once(self, head: RequestHead, asker: Asker) -> bytes | Asking | None:
        """The whole answer, audited and counted, where the short lane has it without waiting; or a lane's ``Asking``, which
        will tell it to ``asker``. None: ``handle`` the request."""
        try:
            if head.memo:
                answer = self.lane.at_once(head, asker)
                if answer is not None:
                    return answer
            return self.forward_lane.at_once(head, asker)
        except Exception:
            # The road has its own way to report a fault, to this request and to all like it; the caller here is the
            # connection itself, which an exception would end.
            log.exception("fault in the short lane")
            self.lane.unlearn(head)
            return None

    def mint_id(self) -> str:
        """A new request id: its prefix is unique to this process, and a counter makes it unique within it."""
        return f"{self._id_prefix}-{next(self._ids):x}"

    def observe(self, x: Exchange) -> None:
        """Hand a finished exchange to telemetry."""
        duration_s = self.monotonic() - x.started_at
        for observer in self.road.observers:
            observer.observe(x, duration_s)

    def _plan(self, head: RequestHead) -> Plan | None:
        try:
            return self.plans.find(head)
        except Exception:
            log.exception("fault in the plans")  # the road has its own way to report it
            return None

    async def _judge(self, down: Downstream, x: Exchange, told: _Told) -> Case:
        """Who asks for what, and may they? Everything before the buckets."""
        road = self.road
        head = down.head

        target = road.entry.target(head)
        operation = road.entry.operation(head, target)
        x.operation, told.operation = operation.name, operation
        admitted = road.entry.admit(head, target, operation)
        x.peer, x.target = admitted.client, admitted.claim.target
        named = mark(x, head, trusted=admitted.trusted_peer)
        x.user_agent = admitted.user_agent

        claim, body = admitted.claim, down.body
        if body is not None and claim.kind is Kind.NONE:
            claim, body = await road.bodies.claim(admitted, head, body)
        x.credential_kind = claim.kind.value

        if claim.kind is Kind.NONE and is_preflight(head, target):
            principal = asker(admitted.client)
        else:
            principal = await road.authenticator.authenticate(claim, operation, seen_from(head, admitted))
        told.principal = principal
        x.principal, x.principal_kind, x.identity = principal.id, principal.kind.value, principal.identity
        x.team, x.credential_fingerprint = principal.team, principal.fingerprint

        weight = 1
        if is_told_by_body(operation):
            room = partial(self._limit_first, operation, head, admitted, x, told)
            if body is not None and first(head.fields, b"expect") is not None:
                await room(1)
            browser = claim.kind is Kind.SESSION
            operation, body, weight = await road.bodies.look(operation, head, target, body, room, browser=browser)

        questions = road.access.questions(principal, operation, target, head.method, screened=True)
        resolved = dict[Question, Place]()
        if questions:
            some = partial(self._limit_first, operation, head, admitted, x, told, 1)
            resolved = await resolve(road, questions, principal, some)
        permit = road.access.authorise(
            principal, operation, target, head.method, claim.sudo, resolved=resolved, screened=True
        )
        x.rule, x.permit_use, x.sudo = permit.rule, permit.use, permit.sudo
        x.rule_shadow = permit.shadow
        if principal.brokered:
            refuse_token(operation, target, has_body=body is not None)
        alike = not (questions or named or weight > 1)
        case = Case(admitted, operation, claim, principal, permit, claim.target, body, weight, resolved, alike)
        if alike and down.plain:
            proof = road.authenticator.proof(claim, operation, principal)
            if proof is not None and proof() is principal:
                self.plans.learn(head, proof, case, x)
        return case

    async def _act(self, down: Downstream, x: Exchange, told: _Told, case: Case) -> None:
        """Do what was permitted: take from the buckets, ask the cache or GitLab, answer."""
        road = self.road
        head = down.head
        admitted, operation, principal, permit = case.admitted, case.operation, case.principal, case.permit
        target = admitted.target

        shape = narrowable(operation, target, head) if permit.narrowing is not None else None

        ahead = told.ahead
        if ahead is not None:
            ahead.undo()
        decision = told.decision
        known = case.kept.takes if decision is None else None
        if known and not known.era.over:
            decision = road.limits.admit_now(known, principal)
        if decision is not None and decision.allowed:
            if told.decision is None:
                told.decision = decision
                note(decision, x)
        elif takes := self._takes(case, head):
            ticket = told.ticket = await road.limits.admit(takes, principal, told.lease, admitted.wait_s)
            decision = told.decision = ticket.decision
            x.limit_waited_s += ticket.waited_s
            if ahead is not None and not decision.allowed:
                decision = told.decision = ahead.pay(takes, decision)
            note(decision, x)
            if not decision.allowed:
                if case.alike and not (decision.unavailable or admitted.wait_s):
                    self._learn(head, x, told, case)
                raise limited(decision)
        told.ahead = None

        begun = told.begun
        if begun is not None and begun.started_at:
            # GitLab's answer was to this credential: where several take turns, answers to another are kept elsewhere.
            credential = begun.credential
        else:
            credential = await road.tokens.credential(permit, principal, operation) if permit.use else None
            if begun is not None and credential is not begun.credential:
                begun.found = None  # it was looked up for another credential
        if credential is not None:
            x.permit_use = credential.id
        body = case.body
        if body is not None:
            resolved = case.resolved
            if permit.confined and operation.names_in_body and not resolved:
                # Clients name a project by its full path in the URL, and by its number in the body.
                resolved = await resolve(road, questions_of(operation, target), principal)
            body = road.bodies.guard(
                case.claim,
                principal,
                permit,
                head,
                body,
                operation,
                places=spellings(operation, target, resolved) if permit.confined else None,
                acting=partial(setattr, x, "sudo"),
            )
        if operation.access is not _READ or road.record.closed:
            await road.record.admit(x)
        errand = told.errand = Errand(road, self.monotonic, head, x, case, credential, body)
        if begun is not None:
            errand.brought, errand.started_at, errand.found = begun.reply, begun.started_at, begun.found
            errand.failed, errand.asked_with = begun.rejection, begun.conditions
        if admitted.websocket:
            await self._tunnel(down, x, told, errand, case)
            return
        reply, outcome = await road.cache.fetch(errand.cache_request(), errand.forward, self._wall)
        try:
            x.cache_status, x.cache_reason = _STATUSES[outcome.status], _REASONS[outcome.reason]
            if shape is not None:
                reply = await narrowed(reply, shape, permit, head)
            elif outcome.again is not None and case.alike:
                x.cache_stored = _STORED[outcome.stored]
                self._learn(head, x, told, case, served(outcome.again, x, credential))
            flow = None
            if reply.chunks is not None:
                flow = road.bandwidth.flow(principal, operation, target, head.method, admitted.client)
            await self._relay(down, x, told, reply, principal, stored=not errand.started_at, flow=flow)
        finally:
            reply.release()
            x.cache_stored = _STORED[outcome.stored]
            if errand.started_at:
                x.upstream_s = self.monotonic() - errand.started_at

    def _takes(self, case: Case, head: RequestHead) -> tuple[Take, ...]:
        admitted = case.admitted
        takes = self.road.dialect.takes_for(case.principal, case.operation, admitted.target, head.method, admitted.client)
        if case.weight > 1:
            return heavier(takes, case.weight)
        if case.alike and not takes.owing:
            case.kept.takes = takes
        return takes

    async def _limit_first(
        self, operation: Operation, head: RequestHead, admitted: Admitted, x: Exchange, told: _Told, weight: int
    ) -> None:
        """Make sure that there is room at all, before GitLab is asked about a place, and before a body that tells what the
        request takes is let in (``100 Continue``) or parsed. What is taken is given back when the request takes its own.
        One that never gets so far, because it is refused or its client leaves, is charged with it: work was done for it."""
        if weight <= told.room:
            return
        ahead, principal, before = told.ahead, told.principal, Takes()
        refusals: list[tuple[Takes, Decision]] = []
        assert principal is not None
        if ahead is not None:
            ahead.undo()
        for kind in readings(operation):
            takes = self.road.dialect.takes_for(principal, kind, admitted.target, head.method, admitted.client)
            wanted = beforehand(takes, weight)
            if not wanted:
                return
            if takes is before:
                break
            before = takes
            ticket = await self.road.limits.admit(wanted, principal, told.lease, admitted.wait_s)
            x.limit_waited_s += ticket.waited_s
            if ticket.decision.allowed:
                told.ahead, told.room = ticket, weight
                return
            refusals.append((wanted, ticket.decision))
        wanted, refused = min(refusals, key=lambda one: lasts_s(one[1]))
        told.decision = refused if ahead is None else ahead.pay(wanted, refused)
        note(told.decision, x)
        raise limited(told.decision)

    def _learn(self, head: RequestHead, x: Exchange, told: _Told, case: Case, found: Served | None = None) -> None:
        """Let the next request with the same head take the short lane. ``found`` is None where a bucket refused."""
        memo, admitted = head.memo, case.admitted
        if memo is None or (told.ticket is not None and told.ticket.owes()):
            return
        proof = self.road.authenticator.proof(case.claim, case.operation, case.principal)
        if proof is None or proof() is not case.principal:
            return
        if not memo:
            # It came by a plan: leave what the entry would have left there.
            admitted = admitted_for(head, admitted)
            memo.append(admitted)
        trusted = admitted.trusted_peer
        way = Way(proof, case.principal, case.operation, admitted.target, head.method, admitted.client, trusted)
        if found is not None:
            way.served = found
        else:
            way.refused = refused(head, case.operation, x)
        self.lane.learn(head, way)

    async def _tunnel(self, down: Downstream, x: Exchange, told: _Told, errand: Errand, case: Case) -> None:
        """A WebSocket: the handshake went through every stage; after the 101 there are only octets."""
        reply = await errand.forward(())
        try:
            if reply.tunnel is None:
                await self._relay(down, x, told, reply, case.principal)
                return
            tunnel = await down.switch(ResponseHead(101, (*reply.head.fields, *SWITCH, _id_field(x))))
            x.status = 101
            known = None
            if case.principal.brokered:  # with a credential of GitLab's own, it is for GitLab to end the tunnel
                known = functools.partial(self.road.authenticator.still_knows, case.claim)
            x.aborted = (await relay(tunnel, reply.tunnel, idle_s=self.road.tunnel_idle_s, known=known)).value
        finally:
            reply.release()
            x.upstream_s = self.monotonic() - errand.started_at

    async def _relay(
        self,
        down: Downstream,
        x: Exchange,
        told: _Told,
        reply: Reply,
        principal: Principal,
        *,
        stored: bool = False,
        flow: Flow | None = None,
    ) -> None:
        """Send the answer, whole or streamed, as fast as ``flow`` lets it. A rejection in mid-body, as when the upstream
        dies, cuts it off (``_refuse``). ``stored``: GitLab was not asked."""
        dialect, decision, head, lines = self.road.dialect, told.decision, reply.head, b""
        beside = dialect.beside(decision, principal, head)
        if beside is None:
            fields = dialect.merged(decision, principal, head.status, head.fields, self._wall(), stored=stored)
        else:
            fields, lines = beside
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

    def _told_of(self, told: _Told, rejection: Rejection) -> Fields:
        """The rate-limit fields of a refusal. GitLab's limit on a shared credential is told as the caller's own wait."""
        dialect, decision, principal = self.road.dialect, told.decision, told.principal
        if rejection.status != 429 or principal is None or (decision is not None and not decision.allowed):
            return dialect.told(decision, principal)
        merged = dialect.merged(decision, principal, 429, rejection.headers, self._wall())
        return tuple([field for field in merged if field not in rejection.headers])

    async def _refuse(self, down: Downstream, x: Exchange, told: _Told, rejection: Rejection) -> None:
        x.code = rejection.code.value
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
        decision = told.decision
        refusing = decision.refusal if decision is not None and rejection.code is Code.RATE_LIMITED else None
        head, body = render(
            rejection,
            surface=told.operation.surface,
            route=told.operation.route,
            accept=joined(fields, b"accept") or b"",
            request_id=x.request_id,
            violated=(refusing.limit.id,) if refusing is not None else (),
            extra=(*self._told_of(told, rejection), _id_field(x)),
            cross_origin=first(fields, b"origin") is not None,
            challenge=not self.road.anonymous,
        )
        await down.respond(head, body, close=rejection.close)


def _id_field(x: Exchange) -> tuple[bytes, bytes]:
    return (b"X-Gateway-Request-Id", x.request_id.encode("ascii"))
