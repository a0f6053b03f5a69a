"""An answer on its way down to the client: whole, or streamed as it comes."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from .core.head_form import HeadForm, Values
from .core.messages import ResponseHead


class Ending(enum.StrEnum):
    """How a tunnel ended. Each value but the first becomes the ``aborted`` of its exchange."""

    BOTH = ""
    """Each side ended its direction, or one side ended both."""
    CLIENT = "client"
    """Cut by the client."""
    UPSTREAM = "upstream"
    """Cut by GitLab."""
    GATEWAY = "gateway"
    """Cut by the gateway: it was idle for too long, the client's credential has ended, or the gateway drains."""


class Tunnel(Protocol):
    """One side's raw octets, both ways, after a 101."""

    @property
    def half_closes(self) -> bool:
        """Whether one direction may end before the other. Over TLS none can."""
        ...

    async def read(self) -> bytes: ...
    async def write(self, chunk: bytes) -> None: ...
    def write_eof(self) -> None:
        """Half-close this side. Where that is impossible, nothing more comes from it than has come already."""
        ...

    def close(self) -> None: ...


class ClientSide(Tunnel, Protocol):
    """The client's side of a tunnel."""

    @property
    def over(self) -> asyncio.Future[Ending]:
        """Done when the tunnel is over, whatever its octets say: the client's connection is lost, or the gateway drains."""
        ...


class Reply(msgspec.Struct, eq=False):  # a struct is made in a third of the time
    """One final response on its way down.

    ``whole`` holds the body when it is complete in memory (small answers, cache hits); otherwise ``chunks`` yields it and
    raises Rejection when the upstream dies in mid-body. ``release()`` is synchronous and idempotent: it gives the upstream
    connection back, or closes it if the body was not read to its end. ``_head`` may be None where ``form`` and ``values``
    say the same: the head is then made when it is first asked for.
    """

    _head: ResponseHead | None
    whole: bytes | None = None
    chunks: AsyncIterator[bytes] | None = None
    _release: Callable[[], None] | None = None
    connect_s: float = 0.0
    first_byte_s: float = 0.0
    tunnel: Tunnel | None = None
    form: HeadForm | None = None
    """The form of its head as it came, where that is known."""
    values: Values = ()
    """The values in that form that are this answer's own."""

    __repr__ = object.__repr__

    @property
    def head(self) -> ResponseHead:
        head = self._head
        if head is None:
            assert self.form is not None, "one of the two is given"
            head = self._head = self.form.head(self.values)
        return head

    @head.setter
    def head(self, head: ResponseHead) -> None:
        self._head, self.form = head, None

    @property
    def status(self) -> int:
        """The status of the head, which need not be made for it."""
        return 200 if self.form is not None else self.head.status

    async def read_whole(self, max_bytes: int) -> bytes | None:
        """The whole body; None for one of more than ``max_bytes``, whose rest stays unread. Raises Rejection when the
        upstream dies in mid-body."""
        if self.whole is not None or self.chunks is None:
            body = self.whole or b""
            return body if len(body) <= max_bytes else None
        gathered = bytearray()
        async for chunk in self.chunks:
            gathered += chunk
            if len(gathered) > max_bytes:
                return None
        return bytes(gathered)

    def on_release(self, then: Callable[[], None]) -> None:
        """Also call ``then`` when this is released."""
        before = self._release

        def both() -> None:
            if before is not None:
                before()
            then()

        self._release = both

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()
