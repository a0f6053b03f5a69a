from __future__ import annotations

import pytest

from gateway.cache.fill import promised_length, read_ahead, tee
from gateway.core.cache_status import Stored
from gateway.core.errors import Code, Rejection
from gateway.reply import Reply

from .origin import streamed, whole

LENGTH_4 = (b"Content-Length", b"4")


class Kept:
    """What became of a body: exactly one thing."""

    def __init__(self) -> None:
        self.calls: list[bytes | Stored] = []

    async def commit(self, body: bytes) -> None:
        self.calls.append(body)

    def void(self, why: Stored) -> None:
        self.calls.append(why)


async def run(reply: Reply, limit: int = 10) -> tuple[bytes, list[bytes | Stored]]:
    kept = Kept()
    copied = await tee(reply, limit, kept.commit, kept.void)
    body = copied.whole if copied.chunks is None else b"".join([chunk async for chunk in copied.chunks])
    copied.release()
    copied.release()
    return body or b"", kept.calls


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        pytest.param(whole(200, LENGTH_4, body=b"body"), b"body", id="whole"),
        pytest.param(whole(200, body=b"body"), b"body", id="whole-unsaid-length"),
        pytest.param(whole(200, (b"Content-Length", b"nonsense"), body=b"body"), b"body", id="unreadable-length"),
        pytest.param(streamed(200, LENGTH_4, chunks=[b"bo", b"dy"]), b"body", id="streamed"),
        pytest.param(streamed(200, chunks=[b"bo", b"dy"]), b"body", id="chunked"),
        pytest.param(streamed(200, chunks=[]), b"", id="empty"),
        pytest.param(whole(200, body=b"x" * 11), Stored.TOO_LARGE, id="whole-too-large"),
        pytest.param(streamed(200, (b"Content-Length", b"11"), chunks=[b"x" * 11]), Stored.TOO_LARGE, id="said-too-large"),
        pytest.param(streamed(200, chunks=[b"x" * 6, b"x" * 6, b"x"]), Stored.TOO_LARGE, id="grew-too-large"),
        pytest.param(whole(200, (b"Content-Length", b"5"), body=b"body"), Stored.INCOMPLETE, id="whole-wrong-length"),
        pytest.param(streamed(200, (b"Content-Length", b"5"), chunks=[b"body"]), Stored.INCOMPLETE, id="cut-short"),
    ],
)
async def test_a_body_is_kept_whole_or_not_at_all_and_always_delivered(reply: Reply, kept: bytes | Stored) -> None:
    expected = reply.whole
    body, calls = await run(reply)
    assert calls == [kept]
    if isinstance(kept, bytes):
        assert body == kept
    elif expected is not None:
        assert body == expected


async def test_an_upstream_that_dies_voids_the_copy() -> None:
    dead = Rejection(Code.UPSTREAM_RESET, 502, "502 Bad Gateway")
    kept = Kept()
    copied = await tee(streamed(200, chunks=[b"bo", dead]), 10, kept.commit, kept.void)
    assert copied.chunks is not None
    with pytest.raises(Rejection):
        async for _ in copied.chunks:
            pass
    copied.release()
    assert kept.calls == [Stored.INCOMPLETE]


@pytest.mark.parametrize("read", [0, 1])
async def test_a_client_that_leaves_voids_the_copy(read: int) -> None:
    """Also one that never read anything: the generator was never started then."""
    kept = Kept()
    copied = await tee(streamed(200, LENGTH_4, chunks=[b"bo", b"dy"]), 10, kept.commit, kept.void)
    assert copied.chunks is not None
    for _ in range(read):
        await anext(copied.chunks)
    copied.release()
    assert kept.calls == [Stored.INCOMPLETE]
    await copied.chunks.aclose()  # type: ignore[attr-defined]


async def test_a_small_body_is_read_ahead() -> None:
    ready = await read_ahead(streamed(200, chunks=[b"bo", b"dy"]))
    assert ready.whole == b"body"
    already = whole(200, body=b"x")
    assert await read_ahead(already) is already


async def test_a_longer_one_streams_on() -> None:
    ready = await read_ahead(streamed(200, chunks=[b"abc", b"def", b"ghi"]), 4)
    assert ready.whole is None
    assert ready.chunks is not None
    assert [chunk async for chunk in ready.chunks] == [b"abc", b"def", b"ghi"]
    said = streamed(200, (b"Content-Length", b"9"), chunks=[b"abc"])
    assert await read_ahead(said, 4) is said


def test_a_promised_length_is_digits() -> None:
    assert promised_length(whole(200, LENGTH_4)) == 4
    assert promised_length(whole(200, (b"Content-Length", b"9" * 19))) is None
    assert promised_length(whole(200)) is None
