"""The road: every request walks these stages in this order, in plain sight.

    target → operation → claim → principal → permit → buckets → [ cache ⇄ upstream ] → answer
                                                                       └── audit, metrics (one finally)

A stage is a function of earlier stages' values, so none can be forgotten: there is no Permit without a Principal, and
nothing goes up, or comes out of the cache, without a Permit. A stage that refuses raises ``Rejection``; it becomes an
answer in ``_refuse``, nowhere else. After the first octet of an answer nothing is appended: the connection is cut.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from .answer_stage import AnswerStage
from .body_stage import BodyStage
from .cache import Cache, CacheRequest, with_conditions
from .core.access import Permit, Principal, PrincipalKind
from .core.catalogue import Access as CatalogueAccess
from .core.catalogue import Operation, Surface
from .core.cost import Spent
from .core.credentials import Claim, Kind, injection
from .core.cross_origin import asker, is_preflight
from .core.entry import Admitted
from .core.errors import Code, Rejection, Source
from .core.exchange import Exchange
from .core.graphql import is_graphql
from .core.headers import request_id
from .core.limits import Decision, Take, heavier
from .core.messages import Fields, RequestHead, ResponseHead, first, joined
from .core.refusal import render
from .core.rule_match import Place, Question, Resolved, spellings
from .core.target import Target
from .core.upgrade import SWITCH, switched
from .limit_stage import LimitStage, Ticket
from .pacing_stage import PacingStage
from .ports import (
    Authenticator,
    Downstream,
    Places,
    Reply,
    RequestBody,
    TokenSource,
    Upstream,
    UpstreamCredential,
    UpstreamRequest,
)
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


# GitLab answers these late by design: runners poll for work (doc/ci/runners/long_polling.md), Gitaly counts objects before
# its first octet. Its own NGINX waits an hour.
_PATIENT = frozenset({Surface.RUNNER, Surface.GIT, Surface.LFS})
_PATIENT_S = 300.0


# What the gateway itself asks about a place: on the REST surface, whatever the request is.
_ASKING = Operation("GET /api/v4/projects/:id", CatalogueAccess.READ, Surface.REST)


_NEAR = 0.1
"""Of a bucket: a caller that has less left is about to be refused."""


class Observer(Protocol):
    """Telemetry: sees each exchange once, finished. Never blocks, never raises."""

    def observe(self, exchange: Exchange, duration_s: float) -> None: ...


class Entry(Protocol):
    """The pure stages that read a request's head (``core.entry``)."""

    def target(self, head: RequestHead) -> Target: ...
    def operation(self, head: RequestHead, target: Target) -> Operation: ...
    def admit(self, head: RequestHead, target: Target, operation: Operation) -> Admitted: ...


class Access(Protocol):
    """The rules (``core.access``)."""

    def questions(
        self, principal: Principal, operation: Operation, target: Target, method: str, *, screened: bool = ...
    ) -> tuple[Question, ...]: ...

    def credentials_of(self, identity: str) -> tuple[str, ...]: ...

    def authorise(
        self,
        principal: Principal,
        operation: Operation,
        target: Target,
        method: str,
        sudo: str | None = None,
        *,
        resolved: Resolved = ...,
        screened: bool = ...,
    ) -> Permit: ...


class Dialect(Protocol):
    """Which buckets a request takes from, and how callers are told (``core.dialect``)."""

    def takes_for(
        self, principal: Principal, operation: Operation, target: Target, method: str, peer: str
    ) -> tuple[Take, ...]: ...

    def told(self, decision: Decision | None, principal: Principal | None) -> Fields:
        """The limits' fields of an answer the gateway makes itself."""
        ...

    def merged(self, decision: Decision | None, principal: Principal, status: int, fields: Fields, now: float) -> Fields:
        """An answer's ``fields`` with exactly one set of limits, ours or GitLab's, as a unit."""
        ...


class Passing(Protocol):
    """Which fields go up and come down (``core.passage``)."""

    def end_to_end(self, head: RequestHead, admitted: Admitted) -> Fields: ...
    def upward(
        self, fields: Fields, head: RequestHead, admitted: Admitted, request_id: str, credential: Fields
    ) -> Fields: ...
    def downward(self, reply: ResponseHead, head: RequestHead, admitted: Admitted) -> ResponseHead: ...


class Road(msgspec.Struct, frozen=True):
    """What a gateway is made of. ``app.py`` wires it; null objects stand for what is off."""

    entry: Entry
    bodies: BodyStage
    authenticator: Authenticator
    access: Access
    dialect: Dialect
    limits: LimitStage
    pacing: PacingStage
    tokens: TokenSource
    places: Places
    passing: Passing
    answers: AnswerStage
    cache: Cache
    upstream: Upstream
    observers: tuple[Observer, ...]
    anonymous: bool = False
    """Anonymous callers are let in: refusals do not challenge."""
    tunnel_idle_s: float = 3600.0
    """How long nothing may move through a tunnel."""


class _Told:
    """What is known so far of the caller, for whoever must refuse: filled as the stages pass."""

    __slots__ = ("decision", "errand", "lease", "principal", "surface", "ticket")

    def __init__(self, lease: str) -> None:
        self.lease = lease
        """Names the request among those in progress, whatever id it goes by: a trusted proxy's may not be unique."""
        self.surface = Surface.REST
        self.principal: Principal | None = None
        self.decision: Decision | None = None
        self.ticket: Ticket | None = None
        self.errand: _Errand | None = None


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
        self.in_flight = 0

    async def handle(self, down: Downstream) -> None:
        """Walk one request down the road and answer it, whatever happens."""
        head = down.head
        x = Exchange(self.mint_id(), self.monotonic(), head.method, head.peer)
        told = _Told(x.request_id)
        self.in_flight += 1
        try:
            try:
                await self._serve(down, x, told)
            except Rejection as rejection:
                await self._refuse(down, x, told, rejection)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                # The one place: a fault of ours is a 500 and a trace in the log, never a hang or a half-told answer.
                log.exception("fault while serving %s", x.request_id)
                await self._refuse(down, x, told, _FAULT)
        except (ConnectionError, asyncio.CancelledError) as gone:
            x.status, x.aborted = x.status if x.status == 101 else 499, "client"
            if isinstance(gone, asyncio.CancelledError):
                raise
        finally:
            self.in_flight -= 1
            x.bytes_out = down.sent_bytes
            x.bytes_in = down.received_bytes
            if told.ticket is not None:
                told.ticket.close(told.errand.spent(down.sent_bytes) if told.errand is not None else None)
            self.observe(x)

    def mint_id(self) -> str:
        """A request's id: unique to this process by its prefix, and then by counting."""
        return f"{self._id_prefix}-{next(self._ids):x}"

    def observe(self, x: Exchange) -> None:
        """Hand a finished exchange to telemetry."""
        duration_s = self.monotonic() - x.started_at
        for observer in self.road.observers:
            observer.observe(x, duration_s)

    async def _serve(self, down: Downstream, x: Exchange, told: _Told) -> None:
        road = self.road
        head = down.head

        target = road.entry.target(head)
        operation = road.entry.operation(head, target)
        x.operation, told.surface = operation.name, operation.surface
        admitted = road.entry.admit(head, target, operation)
        x.peer, x.target = admitted.client, admitted.claim.target
        if admitted.trusted_peer:
            x.request_id = request_id(first(head.fields, b"x-request-id"), x.request_id, trusted=True)
        x.user_agent = admitted.user_agent

        claim, body = admitted.claim, down.body
        if body is not None and claim.kind is Kind.NONE:
            claim, body = await road.bodies.claim(admitted, head, body)
        x.credential_kind = claim.kind.value

        if claim.kind is Kind.NONE and is_preflight(head, target):
            principal = asker(admitted.client)
        else:
            principal = await road.authenticator.authenticate(claim, operation, _seen_from(head, admitted))
        told.principal = principal
        x.principal, x.principal_kind, x.identity = principal.id, principal.kind.value, principal.identity
        x.team, x.credential_fingerprint = principal.team, principal.fingerprint

        weight = 1
        if is_graphql(operation):
            operation, body, weight = await road.bodies.look(operation, head, target, body)

        questions = road.access.questions(principal, operation, target, head.method, screened=True)
        resolved = await self._resolve(questions, principal) if questions else {}
        permit = road.access.authorise(
            principal, operation, target, head.method, claim.sudo, resolved=resolved, screened=True
        )
        x.rule, x.permit_use, x.sudo = permit.rule, permit.use, permit.sudo

        takes = road.dialect.takes_for(principal, operation, target, head.method, admitted.client)
        if weight > 1:
            takes = heavier(takes, weight)
        if takes:
            ticket = told.ticket = await road.limits.admit(takes, principal, told.lease, admitted.wait_s)
            decision = told.decision = ticket.decision
            x.limit_waited_s = ticket.waited_s
            _note(decision, x)
            if not decision.allowed:
                raise _limited(decision)

        credential = await road.tokens.credential(permit, principal, operation) if permit.use else None
        if body is not None:
            body = road.bodies.guard(
                claim,
                principal,
                permit,
                head,
                body,
                operation,
                places=spellings(operation, target, resolved) if permit.confined else None,
            )
        errand = told.errand = _Errand(self, head, x, admitted, claim, principal, permit, credential, body)
        if admitted.websocket:
            await self._tunnel(down, x, told, errand, admitted.websocket)
            return
        reply, outcome = await road.cache.fetch(errand.cache_request(), errand.forward, self._wall)
        try:
            x.cache_status, x.cache_reason = outcome.status.value, outcome.reason.value
            await self._relay(down, x, reply, self._answer(reply.head, x, told, principal))
        finally:
            reply.release()
            x.cache_stored = outcome.stored.value
            if errand.started_at:
                x.upstream_s = self.monotonic() - errand.started_at

    async def _resolve(self, questions: tuple[Question, ...], principal: Principal) -> dict[Question, Place]:
        """What GitLab calls the places of a request otherwise, by the credentials of this identity's own rules."""
        road = self.road
        resolved: dict[Question, Place] = {}
        for use in road.access.credentials_of(principal.identity):
            credential = await road.tokens.credential(Permit("", use), principal, _ASKING)
            left = [question for question in questions if question not in resolved]
            resolved |= await road.places.resolve(left, credential)
            if len(resolved) == len(questions):
                break
        return resolved

    async def _tunnel(self, down: Downstream, x: Exchange, told: _Told, errand: _Errand, key: bytes) -> None:
        """A WebSocket: the handshake went through every stage; behind the 101 there are only octets."""
        reply = await errand.forward(())
        try:
            if reply.tunnel is None:
                assert told.principal is not None
                await self._relay(down, x, reply, self._answer(reply.head, x, told, told.principal))
                return
            head = switched(reply.head, key)
            tunnel = await down.switch(ResponseHead(101, (*head.fields, _id_field(x)), head.reason))
            x.status = 101
            x.aborted = (await relay(tunnel, reply.tunnel, idle_s=self.road.tunnel_idle_s)).value
        finally:
            reply.release()
            x.upstream_s = self.monotonic() - errand.started_at

    def _answer(self, head: ResponseHead, x: Exchange, told: _Told, principal: Principal) -> ResponseHead:
        fields = self.road.dialect.merged(told.decision, principal, head.status, head.fields, self._wall())
        return ResponseHead(head.status, (*fields, _id_field(x)), head.reason)

    async def _relay(self, down: Downstream, x: Exchange, reply: Reply, head: ResponseHead) -> None:
        """The answer, whole or streamed. Cut, never completed, when the upstream dies in mid-body."""
        x.status = head.status
        if reply.chunks is None:
            await down.respond(head, reply.whole or b"")
            return
        await down.start(head)
        try:
            async for chunk in reply.chunks:
                await down.write(chunk)
        except Rejection as rejection:
            x.aborted, x.code = "upstream", rejection.code.value
            down.abort()
            return
        await down.finish()

    def _told_of(self, told: _Told, rejection: Rejection) -> Fields:
        """The limits' fields of a refusal. GitLab's limit on a shared credential is told as the caller's own wait."""
        dialect, decision, principal = self.road.dialect, told.decision, told.principal
        if rejection.status != 429 or principal is None or (decision is not None and not decision.allowed):
            return dialect.told(decision, principal)
        merged = dialect.merged(decision, principal, 429, rejection.headers, self._wall())
        return tuple([field for field in merged if field not in rejection.headers])

    async def _refuse(self, down: Downstream, x: Exchange, told: _Told, rejection: Rejection) -> None:
        x.code = rejection.code.value
        if down.started:
            x.aborted = "upstream" if rejection.source is Source.UPSTREAM else "gateway"
            down.abort()
            return
        x.status = rejection.status
        fields = down.head.fields
        decision = told.decision
        refusing = decision.refusal if decision is not None and rejection.code is Code.RATE_LIMITED else None
        head, body = render(
            rejection,
            surface=told.surface,
            accept=joined(fields, b"accept") or b"",
            request_id=x.request_id,
            violated=(refusing.limit.id,) if refusing is not None else (),
            extra=(*self._told_of(told, rejection), _id_field(x)),
            cross_origin=first(fields, b"origin") is not None,
            challenge=not self.road.anonymous,
        )
        await down.respond(head, body, close=rejection.close)


class _Errand:
    """One permitted request on its way up: what the cache calls when GitLab must be asked."""

    __slots__ = (
        "_admitted",
        "_body",
        "_claim",
        "_credential",
        "_fields",
        "_gateway",
        "_head",
        "_permit",
        "_principal",
        "_x",
        "runtime_s",
        "started_at",
    )

    def __init__(
        self,
        gateway: Gateway,
        head: RequestHead,
        x: Exchange,
        admitted: Admitted,
        claim: Claim,
        principal: Principal,
        permit: Permit,
        credential: UpstreamCredential | None,
        body: RequestBody | None,
    ) -> None:
        self._gateway = gateway
        self._head = head
        self._x = x
        self._admitted = admitted
        self._claim = claim
        self._principal = principal
        self._permit = permit
        self._credential = credential
        self._body = body
        self._fields = gateway.road.passing.end_to_end(head, admitted)
        self.started_at = 0.0
        self.runtime_s = 0.0

    def spent(self, sent_bytes: int) -> Spent:
        """What the request used of GitLab."""
        return Spent(
            asked=self.started_at > 0,
            not_modified=self._x.upstream_status == 304,
            runtime_s=self.runtime_s,
            sent_bytes=sent_bytes,
        )

    def cache_request(self) -> CacheRequest:
        """Who may see the answer, and everything that could change it."""
        return CacheRequest(
            self._head.method,
            self._claim.target,
            self._fields,
            self._admitted.operation,
            partition=_partition(self._principal, self._permit, self._credential),
            has_body=self._head.has_body,
            sudo=self._permit.sudo or self._claim.sudo or "",
            session=self._claim.kind is Kind.SESSION,
            reached_as=self._reached_as(),
        )

    def _reached_as(self) -> bytes:
        """Scheme and host as GitLab and the answer's links are told them: one caller's must not be served to another."""
        head, admitted = self._head, self._admitted
        reached = (b"https://" if head.tls else b"http://") + admitted.host
        if not admitted.trusted_peer:
            return reached
        said = (joined(head.fields, b"x-forwarded-" + name) or b"" for name in (b"proto", b"host", b"port"))
        return b"\x00".join((reached, *said))  # an octet that no field value holds

    async def forward(self, conditions: Fields) -> Reply:
        """Ask GitLab; see ``cache.Forward``."""
        gateway, x, body = self._gateway, self._x, self._body
        road = gateway.road
        credential = self._credential
        own = credential.fields + self._claim.sudo_fields if credential is not None else injection(self._claim)
        operation = self._admitted.operation
        fields = with_conditions(self._fields, conditions)
        reads = road.answers.reads(operation)
        if reads:
            fields = road.answers.plainly(fields)
        if self._admitted.websocket:
            own = (*own, *SWITCH)
        request = UpstreamRequest(
            self._head.method,
            self._claim.target,
            road.passing.upward(fields, self._head, self._admitted, x.request_id, own),
            content_length=body.content_length if body is not None else self._head.content_length,
            first_byte_timeout_s=_PATIENT_S if operation.surface in _PATIENT else None,
            caller=self._principal.id,
            priority=self._principal.priority,
            upgrade=bool(self._admitted.websocket),
        )
        if credential is not None:
            await road.pacing.go(credential.id, self._principal, x.request_id)
        if not self.started_at:
            self.started_at = gateway.monotonic()
        reply = await road.upstream.send(request, body)
        try:
            head = reply.head
            if credential is not None:
                road.pacing.learn(credential.id, head.status, head.fields)
            x.upstream_status = head.status
            x.upstream_connect_s, x.upstream_first_byte_s = reply.connect_s, reply.first_byte_s
            self.runtime_s += _seconds(first(head.fields, b"x-runtime"), reply.first_byte_s)
            x.upstream_request_id = _ascii(first(head.fields, b"x-request-id"))
            if head.status == 401:
                await self._refused_upstream()
            elif road.tokens.unchecked and first(head.fields, b"x-gitlab-meta") is not None:
                road.tokens.recognised()
            if reply.tunnel is None:
                reply.head = road.passing.downward(head, self._head, self._admitted)
            if reads:
                reply = await road.answers.mend(reply, self._head, self._admitted, self._claim, self._principal)
        except BaseException:
            reply.release()
            raise
        return reply

    async def _refused_upstream(self) -> None:
        """GitLab said 401: a caller's own credential is no longer believed; a dead one of ours is not the caller's 401."""
        road = self._gateway.road
        if self._credential is None:
            road.authenticator.refused_upstream(self._claim, self._principal, _seen_from(self._head, self._admitted))
        elif await road.tokens.refused(self._credential.id):
            await road.cache.drop_partition(_partition(self._principal, self._permit, self._credential))
            raise Rejection(
                Code.BROKER_CREDENTIAL_REFUSED,
                502,
                "502 Bad Gateway",
                source=Source.UPSTREAM,
                proxy_error="proxy_configuration_error",
            )


def _partition(principal: Principal, permit: Permit, credential: UpstreamCredential | None) -> bytes:
    """Whose answers these are; empty for callers whom only GitLab can tell apart: theirs are never stored."""
    if credential is not None:
        sudo = permit.sudo.lower().encode("utf-8", "surrogateescape")
        return b"%b/%b/%b" % (credential.partition, permit.digest, sudo)
    if principal.kind is PrincipalKind.ANONYMOUS:
        return b"anonymous"
    return principal.token_hash


def _seen_from(head: RequestHead, admitted: Admitted) -> RequestHead:
    """``head`` with the client's own address as its peer."""
    return head if head.peer == admitted.client else msgspec.structs.replace(head, peer=admitted.client)


def _note(decision: Decision, x: Exchange) -> None:
    state = decision.refusal or decision.tightest
    if state is not None:
        x.limit_id, x.limit_remaining = state.limit.id, state.remaining
        x.limit_near = decision.allowed and state.remaining < _NEAR * state.limit.burst
    x.limit_shadow = decision.shadowed


def _limited(decision: Decision) -> Rejection:
    if decision.unavailable:
        return Rejection(
            Code.LIMITER_UNAVAILABLE,
            503,
            "503 Service Unavailable",
            headers=((b"Retry-After", b"1"),),
            source=Source.INTERNAL,
            proxy_error="destination_unavailable",
        )
    return Rejection(Code.RATE_LIMITED, 429, "429 Too Many Requests", proxy_error="http_request_denied")


def _id_field(x: Exchange) -> tuple[bytes, bytes]:
    return (b"X-Gateway-Request-Id", x.request_id.encode("ascii"))


def _seconds(value: bytes | None, otherwise: float) -> float:
    """``X-Runtime``, as Rack writes it: ``0.031337``."""
    if value is None or len(value) > 32:
        return otherwise
    try:
        return float(value)
    except ValueError:
        return otherwise


def _ascii(value: bytes | None) -> str:
    return value[:128].decode("ascii", "replace") if value is not None else ""
