"""The first stages, all pure: a request head becomes a request that can be understood in one way only, or a refusal.

Order matters: framing before anything is believed, the target before the route, the route before the credential (the
surface decides which carriers are read). Nothing here asks another system anything.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .catalogue import Access, Catalogue, Operation, Surface
from .client_address import TrustedPeers
from .credentials import Claim, CredentialKind, read_claim, without_carriers
from .errors import Code, Rejection
from .framing import has_control, host_name, judge_fields, judge_framing, judge_host
from .messages import Field, Fields, RequestHead, first
from .prefer import preferred_wait_s
from .secret import Secret
from .target import Target, parse_target
from .upgrade import websocket_key

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The methods that GitLab serves (Workhorse refuses others). TRACE would return the injected credential to the caller."""
_ALLOW = ((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),)
TUNNELS = frozenset({"CONNECT", "TRACE"})
"""The methods that even a plain shared cache refuses."""

_NO_CLAIM_SECRET = Secret("")
_ORIGIN = Operation(name="origin", access=Access.READ, surface=Surface.WEB)


class ValidationSettings(msgspec.Struct, frozen=True):
    """What is let in (configuration: ``listen``, ``upstream.url``'s path)."""

    target_bytes: int = 16 * 1024
    field_bytes: int = 16 * 1024
    header_bytes: int = 64 * 1024
    max_fields: int = 200
    prefix: bytes = b""
    """GitLab's relative-URL root."""
    hosts: frozenset[bytes] = frozenset()
    """The gateway's own names (lower case, no port); if empty, any valid Host is accepted."""


class AdmittedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that can be understood in one way only."""

    target: Target
    operation: Operation
    claim: Claim
    host: bytes
    """The host as received, including the port; empty for HTTP/1.0 without one."""
    client: str
    """The client's own address."""
    trusted_peer: bool
    """Whether the peer is a trusted proxy."""
    websocket: bytes = b""
    """The key of a WebSocket handshake; empty for any other request."""
    repeated: Fields = ()
    """The request's fields without any credential: the very same object each time that a client repeats them, so results
    that depend on nothing else can be remembered under it. Empty if the fields are not remembered."""
    user_agent: bytes = b""
    wait_s: float = 0.0
    """How long the client would rather wait than be refused (``core.prefer``)."""


_REPEATED_BOUND = 4096
_REPEATED_BYTES = 2048


class _FieldTraits(msgspec.Struct, frozen=True, gc=False):
    """What the fields say, apart from the credential."""

    user_agent: bytes
    wait_s: float
    upgrades: bool


class _SoundFields(msgspec.Struct, frozen=True, gc=False):
    """Fields that have been judged before, and the host they name."""

    fields: Fields
    host: bytes
    traits: _FieldTraits


class GitLabRequestValidator:
    """The head stages of a gateway in front of GitLab."""

    def __init__(self, settings: ValidationSettings, catalogue: Catalogue, peers: TrustedPeers) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._peers = peers
        # A client repeats its fields, and judging them and finding their host is a fifth of a cached answer's cost. Keyed
        # by the fields without those of the credential, so that no secret is kept.
        self._known: dict[Fields, _SoundFields] = {}
        self._remembers = settings.header_bytes >= 4 * _REPEATED_BYTES and settings.field_bytes >= 2 * _REPEATED_BYTES
        self._judged: tuple[RequestHead, _SoundFields, list[Field]] | None = None
        """The head that ``target`` judged last, if its fields are remembered: ``admit`` follows without a pause."""

    def target(self, head: RequestHead) -> Target:
        """Stage one: the target. A stage of its own, so that refusals after it know which surface they answer for."""
        if head.memo:
            return self._admitted(head.memo).target
        settings = self._settings
        if head.method not in METHODS:
            raise Rejection(
                Code.METHOD_NOT_ALLOWED,
                405,
                "405 Method Not Allowed",
                headers=_ALLOW,
                close=head.method in TUNNELS,
                proxy_error="http_request_denied",
            )
        self._judged = None
        if not self._remembers or head.has_body or head.http_10:
            _judge_message(head, settings)
        else:
            self._judge_repeated(head)
        return parse_target(head.target, max_bytes=settings.target_bytes, prefix=settings.prefix)

    def _judge_repeated(self, head: RequestHead) -> None:
        """The same as ``_judge_message``, but of fields that were sound before, only what may differ is looked at."""
        fields, carriers = without_carriers(head.fields)
        secrets = b"".join([value for _, value in carriers])
        if len(secrets) > _REPEATED_BYTES or len(head.fields) + len(head.correlation) > self._settings.max_fields:
            _judge_message(head, self._settings)
            return
        sound = self._known.get(fields)
        if sound is None or has_control(secrets):
            _judge_message(head, self._settings)
            self._remember(fields)
            sound = self._known.get(fields)
        if sound is not None:
            self._judged = (head, sound, carriers)

    def _remember(self, fields: Fields) -> None:
        if sum([len(name) + len(value) for name, value in fields]) > _REPEATED_BYTES:
            return
        try:
            host = judge_host(fields)
        except Rejection:
            return  # ``admit`` will refuse it in its turn
        if len(self._known) >= _REPEATED_BOUND:
            self._known.clear()
        self._known[fields] = _SoundFields(fields, host, _traits_of(fields))

    def operation(self, head: RequestHead, target: Target) -> Operation:
        """Stage two: which operation the request is."""
        if head.memo:
            return self._admitted(head.memo).operation
        return self._catalogue.match(head.method, target)

    @staticmethod
    def _admitted(memo: list[object]) -> AdmittedRequest:
        """The result for the same head from before: these stages ask nobody, so it still holds."""
        admitted = memo[0]
        assert isinstance(admitted, AdmittedRequest)
        return admitted

    def admit(self, head: RequestHead, target: Target, operation: Operation) -> AdmittedRequest:
        """Stage three: which host the request is for, where it comes from, and which credential it claims."""
        if head.memo:
            return self._admitted(head.memo)
        admitted = self._admit(head, target, operation)
        if head.memo is not None:
            head.memo.append(admitted)
        return admitted

    def _admit(self, head: RequestHead, target: Target, operation: Operation) -> AdmittedRequest:
        repeated: Fields = ()
        carriers: Iterable[Field] = head.fields
        if self._judged is not None and self._judged[0] is head and target.authority is None:
            _, sound, carriers = self._judged
            repeated, host, traits = sound.fields, sound.host, sound.traits
            _judge_own_host(host, self._settings)
        else:
            host, traits = _judge_request_host(head, target, self._settings), _traits_of(head.fields)
        if operation.blocked:
            # Before any credential is read: a blocked route gives nobody an oracle, and costs nothing.
            raise Rejection(Code.BLOCKED_ROUTE, 404, "404 Not Found")
        return AdmittedRequest(
            target,
            operation,
            read_claim(carriers, head.method, target, operation),
            host,
            self._peers.client(head.peer, head.fields),
            self._peers.trusts(head.peer),
            websocket_key(head, operation) if traits.upgrades else b"",
            repeated,
            traits.user_agent,
            traits.wait_s,
        )


class SharedRequestValidator:
    """The head stages of a plain shared cache: no routes, no credentials, every method (RFC 9110 §9.1)."""

    def __init__(self, settings: ValidationSettings, peers: TrustedPeers) -> None:
        self._settings = settings
        self._peers = peers

    def target(self, head: RequestHead) -> Target:
        if head.method in TUNNELS:
            raise Rejection(Code.METHOD_NOT_ALLOWED, 405, "405 Method Not Allowed", headers=_ALLOW, close=True)
        _judge_message(head, self._settings)
        return parse_target(head.target, max_bytes=self._settings.target_bytes)

    def operation(self, head: RequestHead, target: Target) -> Operation:
        del head, target
        return _ORIGIN

    def admit(self, head: RequestHead, target: Target, operation: Operation) -> AdmittedRequest:
        return AdmittedRequest(
            target,
            operation,
            Claim(CredentialKind.NONE, _NO_CLAIM_SECRET, target=target.raw),
            _judge_request_host(head, target, self._settings),
            self._peers.client(head.peer, head.fields),
            self._peers.trusts(head.peer),
            user_agent=first(head.fields, b"user-agent") or b"",
        )


def _traits_of(fields: Fields) -> _FieldTraits:
    # Whether `websocket_key` may have something to judge.
    upgrades = first(fields, b"upgrade") is not None or first(fields, b"content-type") is not None
    return _FieldTraits(first(fields, b"user-agent") or b"", preferred_wait_s(fields), upgrades)


def _judge_message(head: RequestHead, settings: ValidationSettings) -> None:
    judge_framing(head.fields, http_10=head.http_10)
    judge_fields(
        (*head.fields, *head.correlation),
        max_count=settings.max_fields,
        max_field_bytes=settings.field_bytes,
        max_bytes=settings.header_bytes,
    )
    expect = first(head.fields, b"expect")
    if expect is not None and expect.strip().lower() != b"100-continue":
        raise Rejection(Code.EXPECTATION_FAILED, 417, "417 Expectation Failed", close=True)


def _judge_request_host(head: RequestHead, target: Target, settings: ValidationSettings) -> bytes:
    host = judge_host(head.fields, target.authority, http_10=head.http_10)
    _judge_own_host(host, settings)
    return host


def _judge_own_host(host: bytes, settings: ValidationSettings) -> None:
    if settings.hosts and host_name(host) not in settings.hosts:
        raise Rejection(Code.MISDIRECTED, 421, "421 Misdirected Request", close=True, proxy_error="http_request_error")
