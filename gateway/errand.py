"""One permitted request on its way up to GitLab, and what its answer teaches on the way down."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from .cache import CacheRequest, Found, Like
from .core.access import Permit, Principal, PrincipalKind
from .core.answer_shape import shaped
from .core.cache_tags import ANONYMOUS
from .core.caching import CONDITIONS
from .core.catalogue import Operation, Surface
from .core.cost import Spent
from .core.credentials import Claim, Kind, injection
from .core.entry import Admitted
from .core.errors import Code, Rejection, Source
from .core.exchange import Exchange, Kin
from .core.limits import Takes
from .core.messages import Fields, RequestHead, joined, without
from .core.pacing import TELLING
from .core.rule_match import Place, Question
from .core.upgrade import SWITCH, switched
from .narrow_stage import unconditionally
from .ports import Repeated, RequestBody, UpstreamCredential, UpstreamRequest
from .reply import Reply
from .road import Road

# GitLab answers these late by design: runners poll for work (doc/ci/runners/long_polling.md), Gitaly counts objects before
# its first octet. GitLab's own NGINX waits an hour.
_PATIENT = frozenset({Surface.RUNNER, Surface.GIT, Surface.LFS})
_PATIENT_S = 300.0
_WORKED = frozenset({Code.UPSTREAM_TIMEOUT, Code.UPSTREAM_RESET})
# Workhorse holds the first, the agent server passes the second on (`kubectl get --watch`): neither keeps a Puma thread.
_WAITING = frozenset({"POST /api/v4/jobs/request", "ANY /-/kubernetes-agent/k8s-proxy/*path"})
_SESSION = Kind.SESSION
_NOTHING: Mapping[Question, Place] = MappingProxyType({})


class Kept(msgspec.Struct, gc=False):
    """What later requests of one kind need not find out again, as the last of them left it."""

    takes: Takes | None = None
    """What each of them takes, where nothing is owed for it afterwards."""
    upward: dict[str, Upward] = {}
    """By the id of the credential that goes up; a pool has several. Once a credential is replaced, its own is made anew."""
    akin: dict[str, Upward] = {}
    """As ``upward``, of another kind that differs in its path alone."""


class Case(msgspec.Struct, gc=False):
    """One request, judged: who asks for what, and by which permit."""

    admitted: Admitted
    operation: Operation
    """The operation, as the body tells it where the body decides (GraphQL)."""
    claim: Claim
    principal: Principal
    permit: Permit
    target: bytes
    """The raw target less credentials."""
    body: RequestBody | None = None
    weight: int = 1
    """How many requests it counts as."""
    resolved: Mapping[Question, Place] = _NOTHING
    """What GitLab calls the places that the request names."""
    alike: bool = True
    """Whether another request with the same head would come to the same."""
    kept: Kept = msgspec.field(default_factory=Kept)
    """Shared by all cases of one kind."""


class Upward(msgspec.Struct, gc=False):
    """What goes up with each request of one kind, and what the cache is told about it."""

    principal: Principal
    credential: UpstreamCredential | None
    fields: Fields
    """The request's own end-to-end fields."""
    repeated: Repeated
    reads: bool
    """Whether the answer may have to be read."""
    partition: bytes
    reached_as: bytes
    """Scheme and host as they are told to GitLab and stand in the answer's links: an answer made for one pair must not be
    served for another."""
    like: Like
    alike: dict[object, Any] = {}
    """How answers of one form are rendered: a ``likeness.Likeness``, which is of a layer above. By form; by form and
    ``Like.reuse_s`` for answers of a known form that may be reused for another time. None: one such answer has come."""
    kin: dict[object, Kin] = {}
    """The kin of the requests whose answers came to the same, by what that is."""


class Errand:
    """One permitted request on its way up: what the cache calls when GitLab must be asked."""

    __slots__ = (
        "_admitted",
        "_body",
        "_case",
        "_claim",
        "_credential",
        "_head",
        "_monotonic",
        "_permit",
        "_principal",
        "_road",
        "_upward",
        "_waiting_since",
        "_waits",
        "_x",
        "asked_with",
        "brought",
        "failed",
        "found",
        "runtime_s",
        "started_at",
    )

    def __init__(
        self,
        road: Road,
        monotonic: Callable[[], float],
        head: RequestHead,
        x: Exchange,
        case: Case,
        credential: UpstreamCredential | None,
        body: RequestBody | None,
    ) -> None:
        self._road = road
        self._monotonic = monotonic
        self._head = head
        self._x = x
        self._case = case
        self._admitted = case.admitted
        self._claim = case.claim
        self._principal = case.principal
        self._permit = case.permit
        self._credential = credential
        self._body = body
        self._upward = upward_of(road, head, case, credential)
        self.started_at = 0.0
        self.runtime_s = 0.0
        self._waits = case.admitted.operation.name in _WAITING
        self._waiting_since = 0.0
        """Since when GitLab has had the whole request without answering it, as far as is known; 0: it has not, or the
        request merely waits (``UpstreamRequest.waits``)."""
        self.brought: Reply | None = None
        """GitLab's answer, where it has come already."""
        self.failed: Rejection | None = None
        """Why there is no answer, where that is known already."""
        self.asked_with: Fields = ()
        """The conditions that GitLab was asked with for either."""
        self.found: Found | None = None
        """What the cache's store held before GitLab was asked."""

    def spent(self, sent_bytes: int) -> Spent:
        """What the request used of GitLab; without an answer, the time for which one was waited counts."""
        unanswered_s = self._monotonic() - self._waiting_since if self._waiting_since else 0.0
        return Spent(
            asked=self.started_at > 0,
            not_modified=self._x.upstream_status == 304,
            runtime_s=self.runtime_s + unanswered_s,
            sent_bytes=sent_bytes,
        )

    def cache_request(self) -> CacheRequest:
        """Who may see the answer, and everything that could change it."""
        return _cache_request(self._head, self._case, self._upward, like=self._upward.like, found=self.found)

    def _request(self, conditions: Fields) -> UpstreamRequest:
        """The request that goes up to GitLab."""
        head, body, principal = self._head, self._body, self._principal
        return UpstreamRequest(
            head.method,
            self._case.target,
            (
                *conditions,
                *self._road.passing.correlated(head, self._admitted),
                (b"X-Request-Id", self._x.request_id.encode("ascii")),
            ),
            body.content_length if body is not None else head.content_length,
            _PATIENT_S if self._admitted.operation.surface in _PATIENT else None,
            bool(self._admitted.websocket),
            principal.id,
            principal.priority,
            self._upward.repeated,
            self._waits,
            None if self._waits else self._sent,
        )

    def _sent(self) -> None:
        self._waiting_since = self._monotonic()

    async def forward(self, conditions: Fields) -> Reply:
        """Ask GitLab; see ``cache.Forward``."""
        road, x, body = self._road, self._x, self._body
        credential = self._credential
        reply, self.brought = self.brought, None
        failed, self.failed = self.failed, None
        if failed is not None and conditions == self.asked_with:
            raise failed
        if reply is not None:
            # Had the cache looked again since, it would store this as if asked after that look; a write may lie between.
            if conditions == self.asked_with and (self.found is None or not self.found.over):
                return await self._dealt_with(reply)
            reply.release()
        operation = self._admitted.operation
        request = self._request(conditions)
        if credential is not None and not road.pacing.is_free(credential.id):
            await road.pacing.go(credential.id, self._principal, x.request_id, operation.name)
        self.started_at = self.started_at or self._monotonic()
        try:
            reply = await road.upstream.send(request, body)
        except Rejection as rejection:
            if rejection.code not in _WORKED:
                self._waiting_since = 0.0
            raise
        return await self._dealt_with(reply)

    async def _dealt_with(self, reply: Reply) -> Reply:
        road = self._road
        try:
            self._heard(reply)
            head = reply.head
            if head.status == 401:
                await self._refused_upstream()
            if reply.tunnel is not None:
                head = switched(head, self._admitted.websocket)
            reply.head = road.passing.downward(head, self._head, self._admitted)
            if self._upward.reads:
                reply = await road.answers.mend(reply, self._head, self._admitted, self._claim, self._principal)
        except BaseException:
            reply.release()
            raise
        return reply

    def _heard(self, reply: Reply) -> None:
        """Note what GitLab's answer says besides the answer itself."""
        road, x, credential = self._road, self._x, self._credential
        head = reply.head
        shape = head.shape or shaped(head)
        if credential is not None and shape.has_any(TELLING):
            road.pacing.learn(credential.id, head, self._admitted.operation.name)
        self._waiting_since = 0.0
        x.upstream_status = head.status
        x.upstream_connect_s, x.upstream_first_byte_s = reply.connect_s, reply.first_byte_s
        # Workhorse itself answers a poll that it kept waiting, without a word of how long Rails took.
        first_byte_s = 0.0 if self._waits else reply.first_byte_s
        self.runtime_s += _seconds(shape.first(head.fields, b"x-runtime"), first_byte_s)
        x.upstream_request_id = ascii_of(shape.first(head.fields, b"x-request-id"))
        if head.status != 401 and road.tokens.unchecked and b"x-gitlab-meta" in shape.place:
            road.tokens.recognised()

    async def _refused_upstream(self) -> None:
        """GitLab said 401: a caller's own credential is no longer believed; if one of ours is dead, the answer is a 502."""
        road = self._road
        if self._credential is None:
            road.authenticator.refused_upstream(self._claim, self._principal, seen_from(self._head, self._admitted))
        elif await road.tokens.refused(self._credential):
            await road.cache.drop_partition(_partition(self._principal, self._permit, self._credential))
            raise Rejection(
                Code.BROKER_CREDENTIAL_REFUSED,
                502,
                "502 Bad Gateway",
                source=Source.UPSTREAM,
                proxy_error="proxy_configuration_error",
            )


def upward_of(road: Road, head: RequestHead, case: Case, credential: UpstreamCredential | None) -> Upward:
    """What goes up with requests like ``head``, as kept or made now."""
    name = credential.id if credential is not None else ""
    upward = case.kept.upward.get(name)
    if upward is None or upward.credential is not credential:
        akin = case.kept.akin.get(name)
        if akin is not None and akin.credential is credential:
            upward = copy.copy(akin)
            upward.like = Like(moulds=akin.like.moulds)
        else:
            upward = _upward(road, head, case, credential)
        case.kept.upward[name] = upward
        upward.like.kind = _cache_request(head, case, upward)
    return upward


def _cache_request(
    head: RequestHead, case: Case, upward: Upward, *, like: Like | None = None, found: Found | None = None
) -> CacheRequest:
    return CacheRequest(
        head.method,
        case.target,
        upward.fields,
        case.admitted.operation,
        partition=upward.partition,
        has_body=head.has_body,
        sudo=case.permit.sudo or case.claim.sudo or "",
        session=case.claim.kind is _SESSION,
        reached_as=upward.reached_as,
        like=like,
        found=found,
    )


def _upward(road: Road, head: RequestHead, case: Case, credential: UpstreamCredential | None) -> Upward:
    admitted, claim = case.admitted, case.claim
    fields = road.passing.end_to_end(head, admitted)
    if case.permit.narrowing is not None:
        fields = unconditionally(fields)
    reads = road.answers.reads(admitted.operation)
    going = without(fields, CONDITIONS)
    if reads:
        going = road.answers.plainly(going)
    own = credential.fields + claim.sudo_fields if credential is not None else injection(claim)
    if admitted.websocket:
        own = (*own, *SWITCH)
    before, behind = road.passing.upward(going, head, admitted, own, case.principal.id)
    return Upward(
        case.principal,
        credential,
        fields,
        Repeated(before, behind, case.principal.priority),
        reads,
        _partition(case.principal, case.permit, credential),
        _reached_as(head, admitted),
        Like(),
    )


def _reached_as(head: RequestHead, admitted: Admitted) -> bytes:
    reached = (b"https://" if head.tls else b"http://") + admitted.host
    if not admitted.trusted_peer:
        return reached
    said = (joined(head.fields, b"x-forwarded-" + name) or b"" for name in (b"proto", b"host", b"port"))
    return b"\x00".join((reached, *said))  # an octet that no field value holds


def _partition(principal: Principal, permit: Permit, credential: UpstreamCredential | None) -> bytes:
    """Whose answers these are; empty for callers whom only GitLab can tell apart: theirs are never stored."""
    if credential is not None:
        sudo = permit.sudo.lower().encode("utf-8", "surrogateescape")
        return b"%b/%b/%b" % (credential.partition, permit.digest, sudo)
    if principal.kind is PrincipalKind.ANONYMOUS:
        return ANONYMOUS
    return principal.token_hash


def seen_from(head: RequestHead, admitted: Admitted) -> RequestHead:
    """``head`` with the client's own address as its peer."""
    return head if head.peer == admitted.client else msgspec.structs.replace(head, peer=admitted.client)


def _seconds(value: bytes | None, otherwise: float) -> float:
    """``X-Runtime``, as Rack writes it: ``0.031337``."""
    if value is None or len(value) > 32:
        return otherwise
    try:
        return float(value)
    except ValueError:
        return otherwise


def ascii_of(value: bytes | None) -> str:
    return value[:128].decode("ascii", "replace") if value is not None else ""
