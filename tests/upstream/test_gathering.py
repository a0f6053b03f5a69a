"""Small answers in however many pieces: the reply is what one piece would have made, and streams go on as streams."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.messages import Fields, ResponseHead
from gateway.reply import Reply
from gateway.upstream.connection import Connection
from gateway.upstream.errors import Failure, UpstreamFailure
from gateway.upstream.gathering import Gathering
from gateway.upstream.head_forms import HeadForms
from gateway.upstream.response import CHUNKED, ChunkedReader, Malformed
from gateway.upstream.whole_body import SMALL_BODY_BYTES
from tests.edge.wire import SOON_S

from .test_head_forms import learnt

JSON = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nEtag: W/"1"\r\n%b\r\nX-Runtime: 0.05\r\n\r\n'
OF_LENGTH = JSON % b"Content-Length: 5"
IN_CHUNKS = JSON % b"Transfer-Encoding: chunked"
TEXT_IN_CHUNKS = IN_CHUNKS.replace(b"application/json", b"text/event-stream")
BODIES = {
    "length": (OF_LENGTH, b"[1,2]"),
    "one chunk": (IN_CHUNKS, b"5\r\n[1,2]\r\n0\r\n\r\n"),
    "chunks": (IN_CHUNKS, b"2;a=b\r\n[1\r\n3\r\n,2]\r\n0\r\nX-Trailer: 1\r\n\r\n"),
    "spelt otherwise": (IN_CHUNKS.replace(b"Transfer-Encoding", b"transfer-encoding"), b"5\r\n[1,2]\r\n0\r\n\r\n"),
    "no JSON": (TEXT_IN_CHUNKS, b"5\r\n[1,2]\r\n0\r\n\r\n"),
    "not found": (IN_CHUNKS.replace(b"200 OK", b"404 Not Found"), b"5\r\n[1,2]\r\n0\r\n\r\n"),
}


class Wire(asyncio.Transport):
    """The socket's end of a connection, scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.reads = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return object() if name == "sslcontext" else default

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def write(self, data: object) -> None:
        del data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Owner:
    """Keeps account."""

    def __init__(self) -> None:
        self.returns = self.frees = 0

    def returned(self, connection: Connection) -> None:
        self.returns += 1

    def release_place(self) -> None:
        self.frees += 1

    def opened(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...
    def broke_off(self, connection: Connection) -> None: ...
    def switched(self) -> None: ...
    def tunnel_ended(self) -> None: ...


class Request:
    """A request on a connection of its own."""

    def __init__(self, forms: HeadForms, *, collects: bool) -> None:
        loop = asyncio.get_running_loop()
        self.owner, self.wire = Owner(), Wire()
        self.connection = Connection(self.owner, loop, 60.0, forms=forms)
        self.connection.connection_made(self.wire)
        self.waiter: asyncio.Future[Reply] = loop.create_future()
        self.connection.begin(b"GET / HTTP/1.1\r\n\r\n", self.waiter, 60.0, collects=collects)

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    async def answer(self) -> tuple[int, Fields, bytes]:
        async with asyncio.timeout(SOON_S):
            reply = await self.waiter
            body = reply.whole
            if body is None:
                assert reply.chunks is not None
                body = b"".join([chunk async for chunk in reply.chunks])
            reply.release()
        assert (self.owner.returns, self.owner.frees, self.wire.closed) == (1, 0, False), "its place, once"
        return reply.head.status, reply.head.fields, body


def forms_of(known: str) -> HeadForms:
    """What came before: nothing; answers that stated their length; chunked ones."""
    forms = HeadForms()
    head = {"": b"", "length": OF_LENGTH, "chunks": IN_CHUNKS}[known]
    if head:
        learnt(forms, head.removesuffix(b"\r\n\r\n"))
    return forms


@pytest.mark.parametrize("known", ["", "length", "chunks"])
@pytest.mark.parametrize("collects", [False, True])
@pytest.mark.parametrize("name", BODIES)
async def test_wherever_it_is_cut(name: str, collects: bool, known: str) -> None:
    head, body = BODIES[name]
    octets = head + body
    at_once = Request(forms_of(known), collects=collects)
    at_once.feed(octets)
    assert at_once.waiter.done()
    expected = await at_once.answer()
    assert expected[0] == (404 if name == "not found" else 200)
    assert expected[2] == b"[1,2]"
    assert (b"Content-Length", b"5") in expected[1], "whole, so its length is known"
    assert [field for field in expected[1] if field[0].lower() == b"transfer-encoding"] == []
    for cut in range(1, len(octets)):
        one = Request(forms_of(known), collects=collects)
        one.feed(octets[:cut])
        collected = name == "length" or (collects and name != "no JSON")
        assert one.waiter.done() == (cut >= len(head) and not collected), cut
        one.feed(octets[cut:])
        status, fields, answer = await one.answer()
        assert (status, answer) == (expected[0], expected[2]), cut
        if collected or cut < len(head):
            assert fields == expected[1], cut
        else:
            assert [name.lower() for name, _ in fields].count(b"transfer-encoding") == 1, "a stream's length is not known"


@pytest.mark.parametrize("known", ["", "length", "chunks"])
@pytest.mark.parametrize("name", ["length", "one chunk", "chunks"])
async def test_the_form_is_known_however_it_came(name: str, known: str) -> None:
    head, body = BODIES[name]
    for pieces in ([head + body], [head, body], [head + body[:3], body[3:]], [bytes([octet]) for octet in head + body]):
        one = Request(forms_of(known), collects=True)
        one.feed(*pieces)
        reply = await one.waiter
        assert (reply.form is not None) == bool(known), pieces
        if reply.form is not None:
            assert reply.values[reply.form.length] == b"5"


@pytest.mark.parametrize("known", ["", "chunks"])
async def test_more_than_is_small_goes_on_as_a_stream(known: str) -> None:
    one = Request(forms_of(known), collects=True)
    size = SMALL_BODY_BYTES // 4
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    one.feed(IN_CHUNKS, *[chunk] * 4)
    assert not one.waiter.done()
    one.feed(chunk)
    reply = await one.waiter
    assert reply.whole is None
    assert reply.head.fields == (
        (b"Content-Type", b"application/json"),
        (b"Etag", b'W/"1"'),
        (b"Transfer-Encoding", b"chunked"),
        (b"X-Runtime", b"0.05"),
    )
    one.feed(chunk, b"0\r\n\r\n")
    assert await one.answer() == (200, reply.head.fields, b"x" * size * 6)


@pytest.mark.parametrize("known", ["", "chunks"])
async def test_the_first_octet_is_the_heads_however_the_rest_comes(known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is GitLab's latency to the adaptive limit: how fast a body comes says nothing about GitLab."""
    for body in (b"5\r\n[1,2]\r\n0\r\n\r\n", b"20000\r\n" + b"x" * (SMALL_BODY_BYTES + 1)):
        one = Request(forms_of(known), collects=True)
        now = one.connection._started_at
        monkeypatch.setattr("gateway.upstream.connection.time.monotonic", lambda at=now: at + 1)
        one.feed(IN_CHUNKS)
        monkeypatch.setattr("gateway.upstream.connection.time.monotonic", lambda at=now: at + 9)
        one.feed(body)
        assert (await one.waiter).first_byte_s == pytest.approx(1)


@pytest.mark.parametrize("kind", [b"application/json", b"application/json-seq", b"Application/JSON; charset=utf-8"])
@pytest.mark.parametrize("octets", [10, SMALL_BODY_BYTES, SMALL_BODY_BYTES + 1])
async def test_no_more_is_waited_for_than_is_small_json(kind: bytes, octets: int) -> None:
    one = Request(forms_of(""), collects=True)
    one.feed(IN_CHUNKS.replace(b"application/json", kind) + b"20000\r\n" + b"x" * octets)
    assert one.waiter.done() == (octets > SMALL_BODY_BYTES or kind.endswith(b"seq"))


async def test_what_else_comes_in_chunks_takes_no_place_among_the_forms() -> None:
    forms = forms_of("chunks")
    for number in range(100):
        one = Request(forms, collects=False)
        others = b"".join(b"\r\nX-%d-%d: 1" % (number, field) for field in range(4))
        one.feed(TEXT_IN_CHUNKS.replace(b"\r\n\r\n", others + b"\r\n\r\n") + b"1\r\nx\r\n0\r\n\r\n")
        assert (await one.waiter).whole == b"x"
    assert sum(map(len, forms._forms.values())) == 1


async def test_a_large_stream_that_is_not_taken_is_not_read() -> None:
    one = Request(forms_of(""), collects=True)
    size = 200_000
    one.feed(IN_CHUNKS, b"%x\r\n%b" % (size * 2, b"x" * size))
    assert one.waiter.done()
    assert not one.wire.reads


@pytest.mark.parametrize("known", ["", "length", "chunks"])
@pytest.mark.parametrize("name", ["length", "one chunk"])
async def test_what_follows_it_is_nobodys_answer(name: str, known: str) -> None:
    """RFC 9112 §9.2: the connection carries no other request."""
    head, body = BODIES[name]
    for pieces in ([head + body + b"H"], [head, body + b"H"]):
        one = Request(forms_of(known), collects=True)
        one.feed(*pieces)
        assert (await one.waiter).whole == b"[1,2]"
        assert (one.owner.returns, one.owner.frees, one.wire.closed) == (0, 1, True)


@pytest.mark.parametrize("known", ["", "length", "chunks"])
@pytest.mark.parametrize(
    ("octets", "failure"),
    [
        (OF_LENGTH + b"[1,", Failure.INCOMPLETE),
        (IN_CHUNKS + b"5\r\n[1,", Failure.INCOMPLETE),
        (IN_CHUNKS + b"5\r\n[1,2]\r\n", Failure.INCOMPLETE),
        (IN_CHUNKS + b"5\r\n[1,2]xx", Failure.PROTOCOL),
        (IN_CHUNKS + b"-5\r\n", Failure.PROTOCOL),
    ],
)
async def test_one_that_breaks_off_is_none(octets: bytes, failure: Failure, known: str) -> None:
    one = Request(forms_of(known), collects=True)
    head, end, body = octets.partition(b"\r\n\r\n")
    one.feed(head + end, body)
    if failure is Failure.INCOMPLETE:
        one.wire.closed = True
        one.connection.eof_received()
        one.connection.connection_lost(None)
    with pytest.raises(UpstreamFailure) as failed:
        await one.waiter
    assert failed.value.failure is failure
    assert (one.owner.returns, one.owner.frees) == (0, 1)


@pytest.mark.parametrize("octets", [b"0\r\n\r\n0\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n0\r\n\r\n", b"00\r\n\r\n\r\n0\r\n\r\n"])
def test_two_ends_are_one_too_many(octets: bytes) -> None:
    """The end of chunks is looked for at the end of what came, and may stand before it."""
    reader = ChunkedReader()
    body = reader.feed(octets)
    assert (reader.done, reader.surplus) == (True, True)
    assert body == (b"x" if octets.startswith(b"1") else b"")


@pytest.mark.parametrize(
    "octets",
    [
        b" 5\r\n[1,2]\r\n0\r\n\r\n",
        b"+5\r\n[1,2]\r\n0\r\n\r\n",
        b"0x5\r\n[1,2]\r\n0\r\n\r\n",
        b"6\r\n[1,2]\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
    ],
)
def test_a_length_that_is_none(octets: bytes) -> None:
    with pytest.raises(Malformed):
        ChunkedReader().feed(octets)


def test_its_length_in_digits_of_either_case() -> None:
    for size in (b"1A", b"1a", b"01a"):
        head = ResponseHead(200, ((b"Transfer-Encoding", b"chunked"),))
        gathering = Gathering(Reply(head), CHUNKED)
        reply = gathering.feed(size + b"\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n")
        assert reply is not None
        assert reply.head.fields[-1] == (b"Content-Length", b"26")
