"""What the pipeline asks of the world: small Protocols and the values that cross them.

Each docstring says what a miss, an outage and concurrency mean. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec

from .core.access import Permit, Principal
from .core.catalogue import Operation
from .core.credentials import Claim
from .core.limits import Decision, Take
from .core.messages import Field, Fields, RequestHead, ResponseHead


class RequestBody(Protocol):
    """The client's body, pulled."""

    async def read(self) -> bytes:
        """The next octets, never decompressed or re-chunked to size; ``b""`` once, at the end.

        Raises Rejection: REQUEST_TIMEOUT when the client stalls longer than ``body_idle``, BAD_REQUEST on broken framing.
        A client that vanished cancels the handler instead.
        """
        ...


class Reply:
    """One final response on its way down.

    ``whole`` holds the body when it is complete in memory (small answers, cache hits); otherwise ``chunks`` yields it and
    raises Rejection when the upstream dies in mid-body. ``release()`` is synchronous and idempotent: it gives the upstream
    connection back, or closes it if the body was not read to its end.
    """

    __slots__ = ("_release", "chunks", "connect_s", "first_byte_s", "head", "tunnel", "whole")

    def __init__(
        self,
        head: ResponseHead,
        whole: bytes | None = None,
        chunks: AsyncIterator[bytes] | None = None,
        release: Callable[[], None] | None = None,
        connect_s: float = 0.0,
        first_byte_s: float = 0.0,
        tunnel: Tunnel | None = None,
    ) -> None:
        self.head = head
        self.whole = whole
        self.chunks = chunks
        self.connect_s = connect_s
        self.first_byte_s = first_byte_s
        self.tunnel = tunnel
        self._release = release

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


class Tunnel(Protocol):
    """Raw octets both ways after a 101."""

    async def read(self) -> bytes: ...
    async def write(self, chunk: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...


class Downstream(Protocol):
    """One request and the way back to its client. Exactly one of ``respond`` or ``start`` … ``finish`` is used, once."""

    head: RequestHead
    body: RequestBody | None

    async def respond(self, head: ResponseHead, whole: bytes) -> None:
        """The whole answer at once. For HEAD, 204 and 304 ``whole`` is empty and Content-Length stays as given."""
        ...

    async def start(self, head: ResponseHead) -> None:
        """Begin a streamed answer; framing is by the head's Content-Length, else chunked (HTTP/1.0: until close)."""
        ...

    async def write(self, chunk: bytes) -> None:
        """Some of the body, with back-pressure."""
        ...

    async def finish(self) -> None:
        """The body is complete."""
        ...

    def abort(self) -> None:
        """Cut the connection so that the client can't take what it has for a whole answer."""
        ...


class UpstreamRequest(msgspec.Struct, frozen=True, gc=False):
    """What goes up: final fields, hop-by-hop and credentials already dealt with. Framing fields are the adapter's."""

    method: str
    target: bytes
    fields: Fields
    content_length: int | None = None
    """Of the body; None with a body means chunked."""
    first_byte_timeout_s: float | None = None
    """None: the configured one; long polls ask for more."""
    upgrade: bool = False


class Upstream(Protocol):
    """GitLab. Streams both ways with bounded memory, follows nothing, decodes nothing."""

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        """One request up, its final head back.

        Retries only a body-less GET, HEAD or OPTIONS, once, when a reused connection closed before any octet of an answer.
        An answer may come before the body is all sent; the rest of the body is then not read, the connection not reused.
        Raises Rejection with an ``UPSTREAM_*`` code; cancellation closes the connection.
        """
        ...

    async def close(self) -> None: ...


class BucketStore(Protocol):
    """Token buckets. Every bucket of a call is taken, or none is; the store's clock is the only clock."""

    async def take(self, takes: Sequence[Take]) -> Decision:
        """Atomically. Never raises for an outage: the failure policy's decision comes back with ``degraded``."""
        ...

    async def close(self) -> None: ...


class CacheStore(Protocol):
    """Stored answers by key. A miss, an outage and an unreadable value are all None: the cache is only ever a shortcut."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def put(self, key: bytes, value: bytes, ttl_s: float, tags: Sequence[str] = ()) -> bool:
        """Whole or not at all; False when it was not stored."""
        ...

    async def delete(self, key: bytes) -> None: ...

    async def purge(self, tags: Sequence[str]) -> None: ...

    async def close(self) -> None: ...


class KeyRecord(msgspec.Struct, frozen=True, gc=False):
    """One issued gateway key; the key itself is nowhere."""

    id: str
    """Public id, shown in lists and audit."""
    identity: str
    digest: bytes
    """HMAC-SHA-256(pepper, key)."""
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


class KeyStore(Protocol):
    """Issued keys. An outage raises ``StoreUnavailable``; concurrency is the store's own business."""

    async def find(self, digest: bytes) -> KeyRecord | None: ...
    async def put(self, record: KeyRecord) -> None: ...
    async def list(self, identity: str | None = None) -> list[KeyRecord]: ...
    async def revoke(self, key_id: str, at: float) -> bool: ...
    async def close(self) -> None: ...


class StoreUnavailable(Exception):  # noqa: N818 — a state of the world the caller acts on
    """The store did not answer in time."""


class Authenticator(Protocol):
    """Claim → Principal. Positive and negative answers are memoised with bounds; one lookup per claim is in flight."""

    async def authenticate(self, claim: Claim, operation: Operation, head: RequestHead) -> Principal:
        """Raises Rejection UNAUTHENTICATED, TOO_MANY_FAILED_LOGINS or IDENTITY_UNAVAILABLE."""
        ...

    async def close(self) -> None: ...


class UpstreamCredential(msgspec.Struct, frozen=True, gc=False):
    """What GitLab sees instead of the caller's credential."""

    id: str
    fields: tuple[Field, ...]
    partition: bytes
    """Keyed hash of the token actually used."""

    def __repr__(self) -> str:
        return f"UpstreamCredential({self.id})"


class TokenSource(Protocol):
    """The broker: permit → upstream credential."""

    async def credential(self, permit: Permit, principal: Principal) -> UpstreamCredential:
        """Raises Rejection BROKER_CREDENTIAL_REFUSED (502/503) when there is none to give: closed, never open."""
        ...

    async def close(self) -> None: ...
