"""Answers whose body must be understood before it goes down: LFS batches, tokens made from an upstream credential, and,
where that is configured, addresses in JSON.

Everything else streams past unread. What is read is read whole, up to a bound, and its ``Content-Length`` is corrected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from .cache.fill import promised_length, read_ahead
from .core.access import Principal
from .core.catalogue import Operation, Surface
from .core.credentials import Carrier, Claim
from .core.json_urls import JsonUrlRewriter, is_json
from .core.lfs_batch import MAX_BYTES, MEDIA_TYPE, is_batch, rewrite_batch, unreadable
from .core.messages import Field, Fields, RequestHead, ResponseHead, first, without
from .core.request_validation import AdmittedRequest
from .core.token_answers import is_conan_login
from .reply import Reply

_ENCODED = frozenset({b"accept-encoding"})
_IDENTITY: Field = (b"Accept-Encoding", b"identity")
_REWRITTEN_FIELDS = frozenset({b"content-length", b"content-md5", b"digest", b"content-digest", b"repr-digest"})
_OWN = frozenset({Carrier.BASIC, Carrier.BEARER, Carrier.AUTHORIZATION})
_JSON_SURFACES = frozenset({Surface.REST, Surface.PACKAGES, Surface.MLFLOW})
# All package routes may answer with files; from these clients take the addresses of what they fetch next.
_INDEXES = re.compile(r"GET .*/packages/(?:npm/\*package_name|nuget/(?:index|query|metadata/.*))")


class AddressRewriter(Protocol):
    """Turns GitLab's addresses into those that the caller of one request can reach (``core.header_rules``)."""

    def url_rewriter(self, head: RequestHead, admitted: AdmittedRequest) -> Callable[[bytes], bytes | None]: ...


class AnswerStage:
    """The stage, made for one configuration.

    Args:
        rewriter: Makes GitLab's addresses lead back to the gateway.
        addresses: The rewriter of JSON members; None: bodies are left alone.
        max_bytes: The largest JSON answer rewritten; larger ones pass as they are.
    """

    def __init__(
        self, rewriter: AddressRewriter, addresses: JsonUrlRewriter | None = None, *, max_bytes: int = 2 << 20
    ) -> None:
        self._rewriter = rewriter
        self._addresses = addresses
        self._max_bytes = max_bytes

    def may_need_body(self, operation: Operation) -> bool:
        """Whether the answer may have to be read, so that GitLab is asked for one that is not compressed."""
        return (
            is_batch(operation)
            or is_conan_login(operation)
            or (
                self._addresses is not None
                and operation.surface in _JSON_SURFACES
                and (not operation.binary or _INDEXES.fullmatch(operation.name) is not None)
            )
        )

    def without_compression(self, fields: Fields) -> Fields:
        """The request's fields, asking for an answer that can be read."""
        return (*without(fields, _ENCODED), _IDENTITY)

    async def rewrite(
        self, reply: Reply, head: RequestHead, admitted: AdmittedRequest, claim: Claim, principal: Principal
    ) -> Reply:
        """Rewrite the answer to an operation that ``may_need_body`` is true of. Raises Rejection if its body must be read
        and can't be."""
        if reply.head.status in {204, 304}:
            return reply
        media = first(reply.head.fields, b"content-type")
        coded = (first(reply.head.fields, b"content-encoding") or b"identity").lower() != b"identity"
        if head.method == "HEAD":
            return _of_another_body(reply) if self._may_turn(reply, media, coded=coded) else reply
        if is_conan_login(admitted.operation):
            return _logged_in(reply, claim, coded=coded) if principal.brokered else reply
        if is_batch(admitted.operation):
            return await self._batch(reply, head, admitted, claim, principal, media, coded)
        if self._addresses is None or not self._may_turn(reply, media, coded=coded):
            return reply
        reply = await read_ahead(reply, self._max_bytes)
        if reply.whole is None:
            return reply
        body = self._addresses.turned(reply.whole)
        return reply if body is reply.whole or body == reply.whole else _with_body(reply, body)

    def _may_turn(self, reply: Reply, media: bytes | None, *, coded: bool) -> bool:
        """Whether addresses in the answer's body are turned, if there are any."""
        # A partial answer stays as it is: with longer or shorter addresses it would be another part of another whole.
        if self._addresses is None or coded or not is_json(media) or reply.head.status == 206:
            return False
        return (promised_length(reply) or 0) <= self._max_bytes

    async def _batch(
        self,
        reply: Reply,
        head: RequestHead,
        admitted: AdmittedRequest,
        claim: Claim,
        principal: Principal,
        media: bytes | None,
        coded: bool,
    ) -> Reply:
        if (media or b"").partition(b";")[0].strip().lower() != MEDIA_TYPE.encode():
            if reply.head.status < 300 and principal.brokered:
                raise unreadable("an LFS batch of another media type")
            return reply
        if coded:
            raise unreadable("a compressed LFS batch that was asked for plain")
        reply = await read_ahead(reply, MAX_BYTES)
        if reply.whole is None:
            raise unreadable("an LFS batch that is too long")
        url_rewriter = self._rewriter.url_rewriter(head, admitted)

        def rewrite_text(address: str) -> str | None:
            rewritten = url_rewriter(address.encode("utf-8", "surrogatepass"))
            return None if rewritten is None else rewritten.decode("utf-8", "surrogatepass")

        own = first(head.fields, b"authorization") if claim.carrier in _OWN else None
        body = rewrite_batch(
            reply.whole, rewrite_text, None if own is None else own.decode("latin-1"), brokered=principal.brokered
        )
        return _with_body(reply, body)


def _logged_in(reply: Reply, claim: Claim, *, coded: bool) -> Reply:
    """The answer with the caller's own credential in place of the token made from ours: presented next, it is accepted."""
    if reply.head.status >= 300:
        return reply
    if coded:
        raise unreadable("a compressed token that was asked for plain")
    return _with_body(reply, claim.secret.reveal().encode("utf-8", "surrogateescape"))


def _of_another_body(reply: Reply) -> Reply:
    """``reply`` without what its head says of the octets of its body: those that go down are others, or may be. A strong
    validator was theirs, and is made a weak one."""
    fields: list[Field] = []
    for name, value in without(reply.head.fields, _REWRITTEN_FIELDS):
        if name.lower() == b"etag" and value[:1] == b'"':
            value = b"W/" + value  # noqa: PLW2901
        fields.append((name, value))
    head = ResponseHead(reply.head.status, tuple(fields), reply.head.reason)
    return Reply(head, reply.whole, reply.chunks, reply.release, reply.connect_s, reply.first_byte_s)


def _with_body(reply: Reply, body: bytes) -> Reply:
    """``reply`` with another body."""
    head = _of_another_body(reply).head
    head = ResponseHead(head.status, (*head.fields, (b"Content-Length", b"%d" % len(body))), head.reason)
    return Reply(head, body, None, reply.release, reply.connect_s, reply.first_byte_s)
