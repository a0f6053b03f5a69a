"""An origin with behaviour: it answers by a script or a function, and counts what was taken and given back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from gateway.cache import CacheOutcome, CacheRequest
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.messages import Fields, ResponseHead, first
from gateway.reply import Reply

PROJECT = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
ISSUES = Operation("GET /api/v4/projects/:id/issues", Access.READ, Surface.REST)
NEW_ISSUE = Operation("POST /api/v4/projects/:id/issues", Access.WRITE, Surface.REST)
WEB = Operation("other", Access.WRITE, Surface.WEB, known=False)

NOW = 1_800_000_000.0


class Clock:
    """Unix seconds that stand still until told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Origin:
    """``forward`` of one gateway. ``answers``: what to say next; a callable is asked each time."""

    def __init__(self, *answers: Reply | Exception | Callable[[Fields], Awaitable[Reply]]) -> None:
        self.answers = list(answers)
        self.asked: list[Fields] = []
        self.held = 0
        """Replies not yet released."""

    async def __call__(self, given: Fields) -> Reply:
        self.asked.append(given)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, Reply):
            self.answers.insert(0, answer)
            answer = await answer(given)
        self.held += 1

        def release() -> None:
            self.held -= 1

        return Reply(answer.head, answer.whole, answer.chunks, release)

    def condition(self, at: int = -1) -> bytes | None:
        """The ``If-None-Match`` of one request."""
        return first(self.asked[at], b"if-none-match")


def whole(status: int, *fields: tuple[bytes, bytes], body: bytes = b"") -> Reply:
    return Reply(ResponseHead(status, fields, b""), body)


def streamed(status: int, *fields: tuple[bytes, bytes], chunks: list[bytes | Exception]) -> Reply:
    async def run() -> AsyncIterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    return Reply(ResponseHead(status, fields, b""), None, run())


def json(etag: bytes, *fields: tuple[bytes, bytes], body: bytes = b"[]") -> Reply:
    """GitLab's way to answer a GET."""
    return whole(
        200,
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"max-age=0, private, must-revalidate"),
        (b"ETag", etag),
        (b"Vary", b"Origin"),
        *fields,
        body=body,
    )


def get(target: bytes = b"/api/v4/projects/42", *fields: tuple[bytes, bytes], partition: bytes = b"p") -> CacheRequest:
    return CacheRequest("GET", target, fields, PROJECT, partition)


async def drain(answered: tuple[Reply, CacheOutcome]) -> tuple[ResponseHead, bytes, CacheOutcome]:
    """What the client gets; the reply is released."""
    reply, outcome = answered
    try:
        body = reply.whole
        if body is None:
            assert reply.chunks is not None
            body = b"".join([chunk async for chunk in reply.chunks])
    finally:
        reply.release()
    return reply.head, body, outcome
