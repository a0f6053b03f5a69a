"""An answer on its way down: whole, or as it comes."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from .core.head_form import HeadForm, Values
from .core.messages import ResponseHead


class Ending(enum.StrEnum):
    """How a tunnel came to its end. All but the first are the ``aborted`` of its exchange."""

    BOTH = ""
    """Each side said that it was done, or one for both."""
    CLIENT = "client"
    """Cut by the client."""
    UPSTREAM = "upstream"
    """Cut by GitLab."""
    GATEWAY = "gateway"
    """Idle for too long, the client's credential has ended, or the gateway drains."""


class Tunnel(Protocol):
    """One side's raw octets, both ways, after a 101."""

    @property
    def half_closes(self) -> bool:
        """Whether one direction may end before the other. TLS knows no such thing."""
        ...

    async def read(self) -> bytes: ...
    async def write(self, chunk: bytes) -> None: ...
    def write_eof(self) -> None:
        """A half-close. Where the side knows none, there is nothing more to come from it than has come."""
        ...

    def close(self) -> None: ...


class ClientSide(Tunnel, Protocol):
    """The client's of the two."""

    @property
    def over(self) -> asyncio.Future[Ending]:
        """Done when the tunnel is, whatever its octets say: the client's connection was lost, or the gateway drains."""
        ...


class Reply(msgspec.Struct, eq=False):  # a struct is made in a third of the time
    """One final response on its way down.

    ``whole`` holds the body when it is complete in memory (small answers, cache hits); otherwise ``chunks`` yields it and
    raises Rejection when the upstream dies in mid-body. ``release()`` is synchronous and idempotent: it gives the upstream
    connection back, or closes it if the body was not read to its end. ``head`` may be None where ``form`` and ``values``
    say it: it is made when somebody asks for it.
    """

    _head: ResponseHead | None
    whole: bytes | None = None
    chunks: AsyncIterator[bytes] | None = None
    _release: Callable[[], None] | None = None
    connect_s: float = 0.0
    first_byte_s: float = 0.0
    tunnel: Tunnel | None = None
    form: HeadForm | None = None
    """Of its head as it came, where that is known."""
    values: Values = ()
    """What is its own in that form."""

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
        """The head's, which need not be made for it."""
        return 200 if self.form is not None else self.head.status

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
