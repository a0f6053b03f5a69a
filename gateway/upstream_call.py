"""One permitted request on its way up to GitLab, and what its answer teaches on the way down."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from .cache import CacheProfile, CacheRequest, PriorLookup
from .core.access import Permit, Principal, PrincipalKind, Priority
from .core.answer_shape import shape_of_head
from .core.cache_tags import ANONYMOUS
from .core.caching import CONDITIONS
from .core.catalogue import Operation, Surface
from .core.cost import Usage
from .core.credentials import Claim, CredentialKind, credential_fields
from .core.errors import Code, Rejection, Source
from .core.exchange import Exchange, ObserverMemo
from .core.fair_queue import SHARES
from .core.limits import Takes
from .core.messages import Fields, RequestHead, joined, without
from .core.pacing import PACE_FIELDS
from .core.request_validation import AdmittedRequest
from .core.rule_match import Place, PlaceLookup
from .core.upgrade import SWITCH, check_switch
from .narrow_stage import without_conditions
from .ports import RepeatedFields, RequestBody, UpstreamCredential, UpstreamRequest
from .reply import Reply
from .stages import Stages

# GitLab answers these late by design: runners poll for work (doc/ci/runners/long_polling.md), Gitaly counts objects before
# its first octet. GitLab's own NGINX waits an hour.
_PATIENT = frozenset({Surface.RUNNER, Surface.GIT, Surface.LFS})
_PATIENT_S = 300.0
_WORKED = frozenset({Code.UPSTREAM_TIMEOUT, Code.UPSTREAM_RESET})
# Workhorse holds the first, the agent server passes the second on (`kubectl get --watch`): neither keeps a Puma thread.
_LONG_POLLS = frozenset({"POST /api/v4/jobs/request", "ANY /-/kubernetes-agent/k8s-proxy/*path"})
_SESSION = CredentialKind.SESSION
_NOTHING: Mapping[PlaceLookup, Place] = MappingProxyType({})


class SharedMemo(msgspec.Struct, gc=False):
    """What later requests of one kind need not find out again, as the last of them left it."""

    takes: Takes | None = None
    """What each of them takes, where nothing is to be settled for it afterwards."""
    templates: dict[str, RequestTemplate] = {}
    """By the id of the credential that goes up; a pool has several. Once a credential is replaced, its own is made anew."""
    sibling_templates: dict[str, RequestTemplate] = {}
    """As ``templates``, of another kind that differs in its path alone."""


class AuthorisedRequest(msgspec.Struct, gc=False):
    """One request that may go up: who asks for what, and by which permit."""

    admitted: AdmittedRequest
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
    resolved: Mapping[PlaceLookup, Place] = _NOTHING
    """What GitLab calls the places that the request names."""
    repeatable: bool = True
    """Whether another request with the same head would come to the same."""
    shared_memo: SharedMemo = msgspec.field(default_factory=SharedMemo)
    """Shared by all requests of one kind."""


class RequestTemplate(msgspec.Struct, gc=False):
    """What goes up with each request of one kind, and what the cache has to know about it."""

    principal: Principal
    credential: UpstreamCredential | None
    fields: Fields
    """The request's own end-to-end fields."""
    repeated: RepeatedFields
    may_need_body: bool
    """Whether the answer may have to be read."""
    partition: bytes
    reached_as: bytes
    """Scheme and host as they are sent to GitLab and stand in the answer's links: an answer made for one pair must not be
    served for another."""
    profile: CacheProfile
    answer_templates: dict[object, Any] = {}
    """How answers of one form are rendered: an ``AnswerTemplate``, which is of a layer above. By form; by form and
    ``CacheProfile.reuse_s`` for answers of a known form that may be reused for another time. None: one such answer
    has come."""
    observer_memos: dict[object, ObserverMemo] = {}
    """Those of the requests whose answers came to the same, by what that is."""


class UpstreamCall:
    """One permitted request on its way up: what the cache calls when GitLab must be asked."""

    __slots__ = (
        "_admitted",
        "_authorised",
        "_body",
        "_claim",
        "_credential",
        "_head",
        "_monotonic",
        "_permit",
        "_principal",
        "_stages",
        "_template",
        "_waiting_since",
        "_waits",
        "_x",
        "early_conditions",
        "early_rejection",
        "early_reply",
        "prior_lookup",
        "runtime_s",
        "started_at",
    )

    def __init__(
        self,
        stages: Stages,
        monotonic: Callable[[], float],
        head: RequestHead,
        x: Exchange,
        authorised: AuthorisedRequest,
        credential: UpstreamCredential | None,
        body: RequestBody | None,
    ) -> None:
        self._stages = stages
        self._monotonic = monotonic
        self._head = head
        self._x = x
        self._authorised = authorised
        self._admitted = authorised.admitted
        self._claim = authorised.claim
        self._principal = authorised.principal
        self._permit = authorised.permit
        self._credential = credential
        self._body = body
        self._template = request_template(stages, head, authorised, credential)
        self.started_at = 0.0
        self.runtime_s = 0.0
        self._waits = authorised.admitted.operation.name in _LONG_POLLS
        self._waiting_since = 0.0
        """Since when GitLab has had the whole request without answering it, as far as is known; 0: it has not, or the
        request merely waits (``UpstreamRequest.waits``)."""
        self.early_reply: Reply | None = None
        """GitLab's answer, where it has come already."""
        self.early_rejection: Rejection | None = None
        """Why there is no answer, where that is known already."""
        self.early_conditions: Fields = ()
        """The conditions that were sent to GitLab for either."""
        self.prior_lookup: PriorLookup | None = None
        """What the cache's store held before GitLab was asked."""

    def spent(self, sent_bytes: int) -> Usage:
        """What the request used of GitLab; without an answer, the time for which one was waited counts."""
        unanswered_s = self._monotonic() - self._waiting_since if self._waiting_since else 0.0
        return Usage(
            asked=self.started_at > 0,
            not_modified=self._x.upstream_status == 304,
            runtime_s=self.runtime_s + unanswered_s,
            sent_bytes=sent_bytes,
        )

    def cache_request(self) -> CacheRequest:
        """Who may see the answer, and everything that could change it."""
        return _cache_request(
            self._head,
            self._authorised,
            self._template,
            profile=self._template.profile,
            prior_lookup=self.prior_lookup,
            gives_way=self._gives_way,
        )

    def _gives_way(self, priority: Priority) -> bool:
        """See ``CacheRequest``: one that goes first must not wait with this one for a place at GitLab."""
        if self._waiting_since or self._x.upstream_status:
            return False
        return SHARES[priority] > SHARES[self._principal.priority]

    def _request(self, conditions: Fields) -> UpstreamRequest:
        """The request that goes up to GitLab."""
        head, body, principal = self._head, self._body, self._principal
        return UpstreamRequest(
            head.method,
            self._authorised.target,
            (
                *conditions,
                *self._stages.header_rules.forwardable_correlation(head, self._admitted),
                (b"X-Request-Id", self._x.request_id.encode("ascii")),
            ),
            body.content_length if body is not None else head.content_length,
            _PATIENT_S if self._admitted.operation.surface in _PATIENT else None,
            bool(self._admitted.websocket),
            principal.id,
            principal.priority,
            self._template.repeated,
            self._waits,
            None if self._waits else self._note_sent,
        )

    def _note_sent(self) -> None:
        self._waiting_since = self._monotonic()

    async def forward(self, conditions: Fields) -> Reply:
        """Ask GitLab; see ``cache.Forward``."""
        stages, x, body = self._stages, self._x, self._body
        credential = self._credential
        reply, self.early_reply = self.early_reply, None
        early_rejection, self.early_rejection = self.early_rejection, None
        if early_rejection is not None and conditions == self.early_conditions:
            raise early_rejection
        if reply is not None:
            # Had the cache looked again since, it would store this as if asked after that look; a write may lie between.
            if conditions == self.early_conditions and (self.prior_lookup is None or not self.prior_lookup.superseded):
                return await self._accept(reply)
            reply.release()
        operation = self._admitted.operation
        request = self._request(conditions)
        if credential is not None and not stages.pacing.is_free(credential.id):
            await stages.pacing.await_turn(credential.id, self._principal, x.request_id, operation.name)
        self.started_at = self.started_at or self._monotonic()
        try:
            reply = await stages.upstream.send(request, body)
        except Rejection as rejection:
            if rejection.code not in _WORKED:
                self._waiting_since = 0.0
            raise
        return await self._accept(reply)

    async def _accept(self, reply: Reply) -> Reply:
        stages = self._stages
        try:
            self._note_answer(reply)
            head = reply.head
            if head.status == 401:
                await self._handle_401()
            if reply.tunnel is not None:
                head = check_switch(head, self._admitted.websocket)
            reply.head = stages.header_rules.response_head(head, self._head, self._admitted)
            if self._template.may_need_body:
                reply = await stages.answers.rewrite(reply, self._head, self._admitted, self._claim, self._principal)
        except BaseException:
            reply.release()
            raise
        return reply

    def _note_answer(self, reply: Reply) -> None:
        """Note what GitLab's answer says besides the answer itself."""
        stages, x, credential = self._stages, self._x, self._credential
        head = reply.head
        shape = head.shape or shape_of_head(head)
        if credential is not None and shape.has_any(PACE_FIELDS):
            stages.pacing.learn(credential.id, head, self._admitted.operation.name)
        self._waiting_since = 0.0
        x.upstream_status = head.status
        x.upstream_connect_s, x.upstream_first_byte_s = reply.connect_s, reply.first_byte_s
        # Workhorse itself answers a poll that it kept waiting, without a word of how long Rails took.
        first_byte_s = 0.0 if self._waits else reply.first_byte_s
        self.runtime_s += _seconds(shape.first(head.fields, b"x-runtime"), first_byte_s)
        x.upstream_request_id = ascii_of(shape.first(head.fields, b"x-request-id"))
        if head.status != 401 and stages.tokens.has_unchecked and b"x-gitlab-meta" in shape.place:
            stages.tokens.gitlab_answered()

    async def _handle_401(self) -> None:
        """GitLab said 401: a caller's own credential is no longer believed; if one of ours is dead, the answer is a 502."""
        stages = self._stages
        if self._credential is None:
            stages.authenticator.report_401(self._claim, self._principal, with_client_peer(self._head, self._admitted))
        elif await stages.tokens.refused(self._credential):
            await stages.cache.drop_partition(_partition(self._principal, self._permit, self._credential))
            raise Rejection(
                Code.BROKER_CREDENTIAL_REFUSED,
                502,
                "502 Bad Gateway",
                source=Source.UPSTREAM,
                proxy_error="proxy_configuration_error",
            )


def request_template(
    stages: Stages, head: RequestHead, authorised: AuthorisedRequest, credential: UpstreamCredential | None
) -> RequestTemplate:
    """What goes up with requests like ``head``, as kept or made now."""
    name = credential.id if credential is not None else ""
    template = authorised.shared_memo.templates.get(name)
    if template is None or template.credential is not credential:
        sibling = authorised.shared_memo.sibling_templates.get(name)
        if sibling is not None and sibling.credential is credential:
            template = copy.copy(sibling)
            template.profile = CacheProfile(templates=sibling.profile.templates)
        else:
            template = _make_template(stages, head, authorised, credential)
        authorised.shared_memo.templates[name] = template
        template.profile.sample = _cache_request(head, authorised, template)
    return template


def _cache_request(
    head: RequestHead,
    authorised: AuthorisedRequest,
    template: RequestTemplate,
    *,
    profile: CacheProfile | None = None,
    prior_lookup: PriorLookup | None = None,
    gives_way: Callable[[Priority], bool] | None = None,
) -> CacheRequest:
    return CacheRequest(
        head.method,
        authorised.target,
        template.fields,
        authorised.admitted.operation,
        partition=template.partition,
        has_body=head.has_body,
        sudo=authorised.permit.sudo or authorised.claim.sudo or "",
        session=authorised.claim.kind is _SESSION,
        reached_as=template.reached_as,
        profile=profile,
        prior_lookup=prior_lookup,
        priority=authorised.principal.priority,
        gives_way=gives_way,
    )


def _make_template(
    stages: Stages, head: RequestHead, authorised: AuthorisedRequest, credential: UpstreamCredential | None
) -> RequestTemplate:
    admitted, claim = authorised.admitted, authorised.claim
    fields = stages.header_rules.end_to_end(head, admitted)
    if authorised.permit.narrowing is not None:
        fields = without_conditions(fields)
    may_need_body = stages.answers.may_need_body(admitted.operation)
    going = without(fields, CONDITIONS)
    if may_need_body:
        going = stages.answers.without_compression(going)
    own = credential.fields + claim.sudo_fields if credential is not None else credential_fields(claim)
    if admitted.websocket:
        own = (*own, *SWITCH)
    before, behind = stages.header_rules.request_fields(going, head, admitted, own, authorised.principal.id)
    return RequestTemplate(
        authorised.principal,
        credential,
        fields,
        RepeatedFields(before, behind, authorised.principal.priority),
        may_need_body,
        _partition(authorised.principal, authorised.permit, credential),
        _reached_as(head, admitted),
        CacheProfile(),
    )


def _reached_as(head: RequestHead, admitted: AdmittedRequest) -> bytes:
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


def with_client_peer(head: RequestHead, admitted: AdmittedRequest) -> RequestHead:
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
