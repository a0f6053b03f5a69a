"""``POST /-/gateway/token`` on the data port: a workload's token in, a short-lived credential out (RFC 8693).

Every other request goes on to the gateway untouched. Answers are those of RFC 6749 (§5.1, §5.2), never cached; each is a
line in the audit. The connection ends with its answer: what follows on it was sent by a client that was not known yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from ..core.client_address import TrustedPeers
from ..core.errors import Code, Rejection
from ..core.exchange import Exchange, note_cut
from ..core.framing import host_name, judge_fields, judge_framing, judge_host
from ..core.messages import Fields, ResponseHead, first
from ..core.token_request import (
    ACCESS_TOKEN,
    MAX_BODY_BYTES,
    TokenGrant,
    TokenRefused,
    TokenRequest,
    not_accepted,
    read_token_request,
)
from ..ports import DRAINED, Downstream, KeyRefused, StoreUnavailable
from .hooks import ExchangeRecorder

PATH = b"/-/gateway/token"
OPERATION = "token exchange"
"""The name of the operation in audit lines and metrics."""

_FIELDS: Fields = (
    (b"Content-Type", b"application/json"),
    (b"Cache-Control", b"no-store"),
    (b"Pragma", b"no-cache"),
    (b"X-Content-Type-Options", b"nosniff"),
)
_LATER: Fields = ((b"Retry-After", b"5"),)
_UNAVAILABLE = "temporarily_unavailable"


class Exchanger(Protocol):
    """Judges workloads' tokens and issues credentials for them."""

    async def exchange(self, request: TokenRequest, peer: str) -> TokenGrant:
        """Issue a credential for the token in ``request``. Raises Rejection, KeyRefused or StoreUnavailable."""
        ...


class _Answer(msgspec.Struct, frozen=True):
    status: int
    body: dict[str, object]
    fields: Fields = ()


class TokenEndpoint:
    """Takes token exchanges out of the requests, in front of a gateway's ``handle``.

    Args:
        exchanger: Judges tokens and issues credentials.
        peers: The proxies that are trusted to name the client's address.
        hosts: The Host names that are answered, in lower case; empty: any.
        admit: Makes sure that the exchange can be recorded; raises Rejection where it can't.
        recorder: The gateway, which records the exchanges.
        handle: Handles every other request.
    """

    def __init__(
        self,
        exchanger: Exchanger,
        peers: TrustedPeers,
        hosts: frozenset[bytes] = frozenset(),
        *,
        admit: Callable[[Exchange], Awaitable[None]],
        recorder: ExchangeRecorder,
        handle: Callable[[Downstream], Awaitable[None]],
    ) -> None:
        self._exchanger = exchanger
        self._peers = peers
        self._hosts = hosts
        self._admit = admit
        self._recorder = recorder
        self._handle = handle

    async def handle(self, down: Downstream) -> None:
        """Handle a token exchange, or pass the request on to the gateway."""
        if not down.head.target.startswith(PATH) or down.head.target.partition(b"?")[0] != PATH:
            await self._handle(down)
            return
        head = down.head
        peer = self._peers.client(head.peer, head.fields)
        x = Exchange(self._recorder.mint_id(), self._recorder.monotonic(), head.method, peer)
        x.operation, x.target = OPERATION, PATH
        try:
            await self._send_answer(down, x, await self._answer(down, peer, x))
        except (ConnectionError, asyncio.CancelledError) as gone:
            if note_cut(x, drained=gone.args == (DRAINED,), started=down.started):
                await self._send_answer(
                    down, x, _refused(503, _UNAVAILABLE, "the gateway is shutting down: try again", _LATER)
                )
            raise
        except Exception:
            x.status, x.code = 500, Code.INTERNAL.value  # our own fault, which ends the connection
            raise
        finally:
            x.bytes_in, x.bytes_out = down.received_bytes, down.sent_bytes
            self._recorder.observe(x)

    async def _send_answer(self, down: Downstream, x: Exchange, answer: _Answer) -> None:
        x.status = answer.status
        fields = (*_FIELDS, *answer.fields, (b"X-Gateway-Request-Id", x.request_id.encode("ascii")))
        await down.respond(ResponseHead(answer.status, fields), msgspec.json.encode(answer.body), close=True)

    async def _answer(self, down: Downstream, peer: str, x: Exchange) -> _Answer:
        if down.head.method != "POST":
            x.code = Code.METHOD_NOT_ALLOWED.value
            return _refused(405, "invalid_request", "the method must be POST", ((b"Allow", b"POST"),))
        try:
            granted = await self._grant(down, peer, x)
        except TokenRefused as refused:
            x.code, x.detail = x.code or Code.BAD_REQUEST.value, str(refused)
            return _refused(400, refused.error, str(refused))
        except (KeyRefused, StoreUnavailable) as refused:
            x.code, x.detail = Code.IDENTITY_UNAVAILABLE.value, str(refused)
            return _refused(503, _UNAVAILABLE, "no credential can be stored at the moment", _LATER)
        except Rejection as rejection:
            x.code, x.detail = rejection.code.value, rejection.detail
            return _answer_rejection(rejection)
        x.principal, x.principal_kind = granted.principal.id, granted.principal.kind.value
        x.identity, x.team = granted.principal.identity, granted.principal.team
        x.credential_fingerprint, x.credential_id = granted.principal.fingerprint, granted.principal.credential_id
        x.credential_subject = granted.principal.credential_subject
        x.target = PATH + f"?id={granted.key_id}&expires_in={granted.lifetime_s:.0f}".encode("ascii")
        body = {
            "access_token": granted.key.reveal(),
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": int(granted.lifetime_s),
        }
        return _Answer(200, body)

    async def _grant(self, down: Downstream, peer: str, x: Exchange) -> TokenGrant:
        head = down.head
        judge_fields(head.fields)
        judge_framing(head.fields, http_10=head.http_10)
        if self._hosts and host_name(judge_host(head.fields, http_10=head.http_10)) not in self._hosts:
            raise Rejection(Code.MISDIRECTED, 421, "421 Misdirected Request", close=True)
        if head.target != PATH:
            raise TokenRefused("invalid_request", "parameters must be in the body, where no log shows them")
        body = await _read_body(down)
        request = read_token_request((first(head.fields, b"content-type") or b"").decode("latin-1"), body)
        await self._admit(x)
        return await self._exchanger.exchange(request, peer)


async def _read_body(down: Downstream) -> bytes:
    if down.body is None:
        return b""
    pieces = bytearray()
    if (down.body.content_length or 0) <= MAX_BODY_BYTES:
        while piece := await down.body.read():
            pieces += piece
            if len(pieces) > MAX_BODY_BYTES:
                break
        else:
            return bytes(pieces)
    raise TokenRefused("invalid_request", f"the body is longer than {MAX_BODY_BYTES} octets")


def _answer_rejection(rejection: Rejection) -> _Answer:
    if rejection.code is Code.UNAUTHENTICATED:
        refused = not_accepted()
        return _refused(400, refused.error, str(refused))
    if rejection.status in {429, 503}:
        return _refused(rejection.status, _UNAVAILABLE, "try again later", rejection.headers)
    return _refused(rejection.status, "invalid_request", "the request cannot be read")


def _refused(status: int, error: str, words: str, fields: Fields = ()) -> _Answer:
    return _Answer(status, {"error": error, "error_description": words}, fields)
