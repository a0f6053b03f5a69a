"""What a gateway is made of: the stages' interfaces, and the struct that holds them all. ``app`` fills it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from .answer_stage import AnswerStage
from .bandwidth_stage import BandwidthStage
from .body_stage import BodyStage
from .cache import Cache
from .core.access import Permit, Principal
from .core.catalogue import Operation
from .core.exchange import Exchange
from .core.limits import Decision, Takes
from .core.messages import Fields, RequestHead, ResponseHead
from .core.request_validation import AdmittedRequest
from .core.rule_match import PlaceLookup, Resolved
from .core.target import Target
from .limit_stage import LimitStage
from .pacing_stage import PacingStage
from .ports import Authenticator, PlaceResolver, TokenSource, Upstream


class Observer(Protocol):
    """Telemetry: sees each exchange once, finished. Never blocks, never raises."""

    def observe(self, exchange: Exchange, duration_s: float) -> None: ...


class AuditGate(Protocol):
    """The audit, as far as it decides whether a request may go up."""

    closed: bool
    """Whether nothing may go up, not even reads."""

    async def admit(self, x: Exchange) -> None:
        """Let the request go up. Raises Rejection AUDIT_UNAVAILABLE where nothing can be written down, or not in time."""
        ...


class Entry(Protocol):
    """The pure stages that read a request's head (``core.request_validation``)."""

    def target(self, head: RequestHead) -> Target: ...
    def operation(self, head: RequestHead, target: Target) -> Operation: ...
    def admit(self, head: RequestHead, target: Target, operation: Operation) -> AdmittedRequest: ...


class Access(Protocol):
    """The rules (``core.access``)."""

    def lookups(
        self, principal: Principal, operation: Operation, target: Target, method: str, *, screened: bool = ...
    ) -> tuple[PlaceLookup, ...]: ...

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
    """Which buckets a request takes from, and what its caller is told of the limits (``core.dialect``)."""

    def takes_for(self, principal: Principal, operation: Operation, target: Target, method: str, peer: str) -> Takes:
        """What one request takes; ``Takes.validity`` tells how long that holds for requests like it."""
        ...

    def own_fields(self, decision: Decision | None, principal: Principal | None) -> Fields:
        """The rate-limit fields of an answer that the gateway makes itself."""
        ...

    def lines(self, decision: Decision | None, principal: Principal) -> bytes:
        """The same as header lines."""
        ...

    def merged(
        self,
        decision: Decision | None,
        principal: Principal,
        status: int,
        fields: Fields,
        now: float,
        *,
        stored: bool = ...,
    ) -> Fields:
        """An answer's ``fields`` with exactly one set of rate-limit fields, ours or GitLab's, never parts of both."""
        ...

    def merged_parts(
        self, decision: Decision | None, principal: Principal, head: ResponseHead
    ) -> tuple[Fields, bytes] | None:
        """The same, as what stays of the answer's fields and the lines to add; None where the two sets must be weighed."""
        ...


class HeaderPolicy(Protocol):
    """Which fields go up and come down (``core.header_rules``)."""

    def end_to_end(self, head: RequestHead, admitted: AdmittedRequest) -> Fields: ...
    def forwardable_correlation(self, head: RequestHead, admitted: AdmittedRequest) -> Fields: ...
    def request_fields(
        self, fields: Fields, head: RequestHead, admitted: AdmittedRequest, credential: Fields, caller: str = ...
    ) -> tuple[Fields, Fields]: ...
    def response_head(self, reply: ResponseHead, head: RequestHead, admitted: AdmittedRequest) -> ResponseHead: ...
    def field_rewriter(self, head: RequestHead, admitted: AdmittedRequest) -> Callable[[bytes, bytes], bytes]: ...


class Stages(msgspec.Struct, frozen=True):
    """What a gateway is made of. ``app/assembly.py`` wires it; null objects stand in for what is switched off."""

    entry: Entry
    bodies: BodyStage
    authenticator: Authenticator
    access: Access
    dialect: Dialect
    limits: LimitStage
    pacing: PacingStage
    bandwidth: BandwidthStage
    tokens: TokenSource
    places: PlaceResolver
    header_rules: HeaderPolicy
    answers: AnswerStage
    cache: Cache
    upstream: Upstream
    observers: tuple[Observer, ...]
    audit: AuditGate
    anonymous: bool = False
    """Whether anonymous callers are let in: refusals then carry no challenge."""
    tunnel_idle_s: float = 3600.0
    """For how long nothing may move through a tunnel before it is closed."""
