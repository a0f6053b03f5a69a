"""An answer on its way down: its head is made when somebody asks, and release comes once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.core.head_form import HeadForm
from gateway.core.messages import ResponseHead
from gateway.reply import Reply

FIELDS = ((b"Content-Length", b"2"), (b"Vary", b"Origin"))
FORM = HeadForm([b"HTTP/1.1 200 OK", *(b"%b: %b" % field for field in FIELDS)], FIELDS, b"OK", frozenset())


def test_the_head_of_a_form_is_made_once() -> None:
    reply = Reply(None, b"x" * 12, form=FORM, values=(b"12",))
    assert (reply.status, reply.whole, reply.chunks) == (200, b"x" * 12, None)
    head = reply.head
    assert head.fields == ((b"Content-Length", b"12"), (b"Vary", b"Origin"))
    assert reply.head is head


def test_another_head_has_no_form() -> None:
    reply = Reply(None, b"[]", form=FORM, values=(b"2",))
    reply.head = ResponseHead(404, ())
    assert (reply.form, reply.status, reply.head.fields) == (None, 404, ())


@pytest.mark.parametrize(
    "pieces", [None, (), (b"ab", b"", b"cd"), (b"abcd",)], ids=["whole", "none", "pieces", "one piece"]
)
@pytest.mark.parametrize("max_bytes", [0, 3, 4])
async def test_a_body_is_read_up_to_a_bound(pieces: tuple[bytes, ...] | None, max_bytes: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces or ():
            yield piece

    head, body = ResponseHead(200, ()), b"abcd" if pieces is None else b"".join(pieces)
    reply = Reply(head, body) if pieces is None else Reply(head, None, chunks())
    assert await reply.read_whole(max_bytes) == (body if len(body) <= max_bytes else None)
    assert await Reply(head).read_whole(0) == b""


def test_release_comes_once_and_to_all() -> None:
    told: list[int] = []
    reply = Reply(ResponseHead(200, ()), None, None, lambda: told.append(1))
    reply.on_release(lambda: told.append(2))
    reply.release()
    reply.release()
    assert told == [1, 2]


def test_its_repr_shows_nothing_of_it() -> None:
    shown = repr(Reply(ResponseHead(200, ((b"Private-Token", b"secret"),)), b"secret"))
    assert "secret" not in shown
