"""Copying an answer into the store while it streams to its client: finish or void.

An entry exists only after the last octet came, and only if the length is the promised one. A client that leaves, an
upstream that dies and an answer that turns out too large void it; the client's own stream is not disturbed by any of that.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from ..core.cache_status import Stored
from ..core.messages import first
from ..ports import Reply

Commit = Callable[[bytes], Awaitable[None]]
Void = Callable[[Stored], None]


def promised_length(reply: Reply) -> int | None:
    """Its ``Content-Length``, where it has a readable one."""
    value = first(reply.head.fields, b"content-length")
    return int(value) if value is not None and value.isdigit() and len(value) <= 18 else None


async def filled(reply: Reply, limit_bytes: int, commit: Commit, void: Void) -> Reply:
    """``reply``, with its body on the way into the store.

    Args:
        reply: From upstream; ownership passes to the reply returned.
        limit_bytes: Larger bodies stream past.
        commit: Called once with the whole body.
        void: Called once instead when there is none; synchronous and harmless when called again.
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
    chunks = _copy(reply.chunks, length, limit_bytes, commit, void)

    def release() -> None:
        # The iterator may never have been started: its own `finally` is no place to count on.
        void(Stored.INCOMPLETE)
        reply.release()

    return Reply(reply.head, None, chunks, release, reply.connect_s, reply.first_byte_s)


async def _copy(
    chunks: AsyncIterator[bytes], length: int | None, limit_bytes: int, commit: Commit, void: Void
) -> AsyncGenerator[bytes, None]:
    kept: list[bytes] | None = []
    size = 0
    async for chunk in chunks:
        if kept is not None:
            size += len(chunk)
            if size > limit_bytes:
                kept = None
                void(Stored.TOO_LARGE)
            else:
                kept.append(chunk)
        yield chunk
    if kept is not None:
        if length is not None and size != length:
            void(Stored.INCOMPLETE)
        else:
            await commit(b"".join(kept))


async def read_whole(reply: Reply, limit_bytes: int) -> bytes | None:
    """The whole body for the gateway's own use, or None when it is larger than ``limit_bytes`` or not all there."""
    length = promised_length(reply)
    if reply.whole is not None:
        return reply.whole if len(reply.whole) <= limit_bytes and length in {None, len(reply.whole)} else None
    if reply.chunks is None or (length is not None and length > limit_bytes):
        return None
    kept: list[bytes] = []
    size = 0
    async for chunk in reply.chunks:
        size += len(chunk)
        if size > limit_bytes:
            return None
        kept.append(chunk)
    return b"".join(kept) if length in {None, size} else None
