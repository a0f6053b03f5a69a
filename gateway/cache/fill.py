"""Copies an answer into the store while it streams to its client: all of it or nothing.

An entry exists only once the last octet has arrived, and only if the length is the promised one. A client that leaves, an
upstream that dies and an answer that turns out too large void the copy; the client's own stream is not disturbed by any of
that.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from ..core.answer_shape import shape_of_head
from ..core.cache_status import Stored
from ..reply import Reply

Commit = Callable[[bytes], Awaitable[None]]
Void = Callable[[Stored], None]

READ_AHEAD_BYTES = 256 << 10
"""Nearly every JSON page of GitLab is smaller than this."""


def promised_length(reply: Reply) -> int | None:
    """The reply's ``Content-Length``, where it has a readable one."""
    head = reply.head
    value = (head.shape or shape_of_head(head)).first(head.fields, b"content-length")
    return int(value) if value is not None and value.isdigit() and len(value) <= 18 else None


async def read_ahead(reply: Reply, limit_bytes: int = READ_AHEAD_BYTES) -> Reply:
    """``reply``, with its body read whole where it is small, so that nobody has to wait for a client that reads slowly.

    A longer body streams on after what was read. Raises what the stream raises, before anything has gone to the client.
    """
    if reply.chunks is None:
        return reply
    length = promised_length(reply)
    if length is not None and length > limit_bytes:
        return reply
    kept: list[bytes] = []
    size = 0
    async for chunk in reply.chunks:
        kept.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            resumed = _resumed(kept, reply.chunks)
            return Reply(reply.head, None, resumed, reply.release, reply.connect_s, reply.first_byte_s)
    return Reply(reply.head, b"".join(kept), None, reply.release, reply.connect_s, reply.first_byte_s)


async def _resumed(kept: list[bytes], rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in kept:
        yield chunk
    async for chunk in rest:
        yield chunk


async def tee(reply: Reply, limit_bytes: int, commit: Commit, void: Void) -> Reply:
    """``reply``, with its body on the way into the store. Exactly one of ``commit`` and ``void`` is called, once.

    Args:
        reply: From upstream; ownership passes to the reply returned.
        limit_bytes: Larger bodies stream past.
        commit: Given the whole body.
        void: Told why nothing is stored.
    """
    length = promised_length(reply)
    if reply.whole is not None:
        if len(reply.whole) > limit_bytes:
            void(Stored.TOO_LARGE)
        elif length is not None and length != len(reply.whole):
            void(Stored.INCOMPLETE)
        else:
            await commit(reply.whole)
        return reply
    if reply.chunks is None or (length is not None and length > limit_bytes):
        void(Stored.TOO_LARGE)
        return reply
    copy = _Copy(reply.chunks, length, limit_bytes, commit, void)

    def release() -> None:
        # The iterator may never have been started: its own `finally` can't be counted on.
        copy.void(Stored.INCOMPLETE)
        reply.release()

    return Reply(reply.head, None, copy.chunks(), release, reply.connect_s, reply.first_byte_s)


class _Copy:
    """A stream, and the state of its copy."""

    __slots__ = ("_chunks", "_commit", "_length", "_limit_bytes", "_settled", "_void")

    def __init__(
        self, chunks: AsyncIterator[bytes], length: int | None, limit_bytes: int, commit: Commit, void: Void
    ) -> None:
        self._chunks = chunks
        self._length = length
        self._limit_bytes = limit_bytes
        self._commit = commit
        self._void = void
        self._settled = False

    def void(self, why: Stored) -> None:
        if not self._settled:
            self._settled = True
            self._void(why)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        kept: list[bytes] = []
        size = 0
        async for chunk in self._chunks:
            if not self._settled:
                size += len(chunk)
                if size > self._limit_bytes:
                    kept.clear()
                    self.void(Stored.TOO_LARGE)
                else:
                    kept.append(chunk)
            yield chunk
        if self._settled:
            return
        if self._length is not None and size != self._length:
            self.void(Stored.INCOMPLETE)
        else:
            self._settled = True
            await self._commit(b"".join(kept))
