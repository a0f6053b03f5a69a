"""Heads seen before: never understood otherwise than the parser would, wherever the reads are cut."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.correlation import CORRELATION_FIELDS
from gateway.core.errors import Code
from gateway.core.messages import RequestHead, ResponseHead
from gateway.core.refusal import render
from gateway.edge.connection import Connection
from gateway.edge.downstream import AiohttpDownstream
from gateway.edge.head_cache import LONGEST, MOST_HEADS, HeadCache
from gateway.edge.server import TrafficServer
from gateway.edge.settings import EdgeSettings
from tests.edge.wire import SOON_S, echo, request, traffic

FIELDS = ((b"Host", b"git.example.com"), (b"PRIVATE-TOKEN", b"ggw-1"))


def octets(target: str = "/api/v4/projects/1", method: str = "GET", *lines: str) -> bytes:
    return request(target, "PRIVATE-TOKEN: ggw-1", *lines, method=method)


def head(target: bytes = b"/api/v4/projects/1", method: str = "GET", peer: str = "192.0.2.1") -> RequestHead:
    return RequestHead(method, target, FIELDS, peer=peer, memo=[])


def test_the_same_octets_are_the_same_head() -> None:
    head_cache = HeadCache(target_bytes=1000)
    assert head_cache.head(octets(), "192.0.2.1", tls=False) is None
    first = head()
    head_cache.keep(octets(), first)
    assert head_cache.head(octets(), "192.0.2.1", tls=False) is first, "memo and all"


def test_another_target_with_known_fields_is_another_head() -> None:
    head_cache = HeadCache(target_bytes=1000)
    head_cache.keep(octets(), head())
    found = head_cache.head(octets("/a%2fb?x=%252F&y=[]", "HEAD"), "192.0.2.1", tls=False)
    assert found == RequestHead("HEAD", b"/a%2fb?x=%252F&y=[]", FIELDS, peer="192.0.2.1", memo=[])
    assert head_cache.head(octets("/a%2fb?x=%252F&y=[]", "HEAD"), "192.0.2.1", tls=False) is found


def test_who_asks_is_part_of_it() -> None:
    """A memo holds what was made of the peer's address and of the connection's security."""
    head_cache = HeadCache(target_bytes=1000)
    first = head()
    head_cache.keep(octets(), first)
    for peer, tls in (("192.0.2.2", False), ("192.0.2.1", True)):
        found = head_cache.head(octets(), peer, tls=tls)
        assert found is not None
        assert found is not first
        assert (found.peer, found.tls, found.memo) == (peer, tls, [])
        assert head_cache.head(octets(), peer, tls=tls) is found
    assert head_cache.head(octets(), "192.0.2.1", tls=False) is first, "a client may come by several proxies in turn"


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"\n"])
def test_what_comes_before_a_request_line_makes_no_field_of_it(before: bytes) -> None:
    head_cache = HeadCache(target_bytes=1000)
    head_cache.keep(before + octets(), head())
    line, _, fields = octets().partition(b"\r\n")
    for malformed in (b"GET /x HTTP/1.1\r\n" + octets(), b"GET /x HTTP/1.1\r\n" + line + fields):
        assert head_cache.head(malformed, "192.0.2.1", tls=False) is None
    head_cache.keep(octets(), head())
    assert head_cache.head(octets("/y"), "192.0.2.1", tls=False) is not None


@pytest.mark.parametrize(
    "line",
    [
        b"POST /a HTTP/1.1",
        b"DELETE /a HTTP/1.1",
        b"get /a HTTP/1.1",
        b"GET  /a HTTP/1.1",
        b"GET /a  HTTP/1.1",
        b"GET\t/a HTTP/1.1",
        b"GET /a HTTP/1.0",
        b"GET /a HTTP/1.1 ",
        b"GET /a",
        b"GET a HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET http://git.example.com/a HTTP/1.1",
        b"GET /a#b HTTP/1.1",
        b"GET /a\x00 HTTP/1.1",
        b"GET /\xc3\xa4 HTTP/1.1",
        b'GET /"<>\\^`{|} HTTP/1.1',
        b" GET /a HTTP/1.1",
        b"\r\nGET /a HTTP/1.1",
        b"GET /a HTTP/1.1\r",
        b"GET /a HTTP/1.1\nX: y",
        b"GET /" + b"a" * 1000 + b" HTTP/1.1",
        b"",
    ],
)
def test_a_line_that_is_not_plain_is_the_parsers(line: bytes) -> None:
    head_cache = HeadCache(target_bytes=1000)
    head_cache.keep(octets(), head())
    _, _, block = octets().partition(b"\r\n")
    assert head_cache.head(line + b"\r\n" + block, "192.0.2.1", tls=False) is None


def test_what_is_known_stays_when_the_parser_says_it_again() -> None:
    """As it does of what came behind half a head; what was made of the same words must not be made anew for it."""
    head_cache = HeadCache(target_bytes=1000)
    first = head()
    assert head_cache.keep(octets(), first) is first
    assert head_cache.keep(octets(), head()) is first
    other = RequestHead("GET", b"/other", FIELDS[:1] + FIELDS[1:], peer="192.0.2.1", memo=[])
    assert head_cache.keep(octets("/other"), other).fields is FIELDS
    stranger = head_cache.keep(octets(), head(peer="192.0.2.2"))
    assert (stranger.peer, stranger.memo) == ("192.0.2.2", [])
    assert stranger.fields is FIELDS


def marked(number: int, target: str = "/api/v4/projects/1", *lines: str) -> bytes:
    return octets(target, "GET", f"X-Request-Id: {number:032x}", *lines)


def marked_head(number: int, *fields: tuple[bytes, bytes], peer: str = "192.0.2.1") -> RequestHead:
    """As the parser has it."""
    own = (b"X-Request-Id", b"%032x" % number)
    return RequestHead("GET", b"/api/v4/projects/1", (*FIELDS, own, *fields), peer=peer, memo=[])


def test_a_request_that_differs_in_its_id_alone_shares_the_memo() -> None:
    head_cache = HeadCache(target_bytes=1000)
    assert head_cache.head(marked(1), "192.0.2.1", tls=False) is None
    first = head_cache.keep(marked(1), marked_head(1))
    assert first.fields == FIELDS
    assert first.correlation == ((b"X-Request-Id", b"%032x" % 1),)
    second = head_cache.head(marked(2), "192.0.2.1", tls=False)
    assert second is not None
    assert second.memo is first.memo
    assert second.fields is first.fields
    assert second.correlation == ((b"X-Request-Id", b"%032x" % 2),)
    elsewhere = head_cache.head(marked(3, "/other"), "192.0.2.1", tls=False)
    assert elsewhere is not None
    assert elsewhere.fields is first.fields
    assert elsewhere.memo is not first.memo
    stranger = head_cache.head(marked(4), "192.0.2.2", tls=False)
    assert stranger is not None
    assert stranger.memo is not first.memo
    for number, peer, memo in ((5, "192.0.2.1", first.memo), (6, "192.0.2.2", stranger.memo)):
        again = head_cache.head(marked(number), peer, tls=False)
        assert again is not None
        assert again.memo is memo
    assert head_cache.keep(marked(5), marked_head(5)).memo == []
    assert head_cache.head(octets(), "192.0.2.1", tls=False) is None, "without an id it is another request"


@pytest.mark.parametrize("line", ["Accept: a", "X-Request-Id: 1"])
@pytest.mark.parametrize("method", ["DELETE", "OPTIONS"])
def test_a_method_that_is_the_parsers_leaves_the_fields_as_they_are(method: str, line: str) -> None:
    """What is learnt of a client is known by its fields, by the very object."""
    head_cache = HeadCache(target_bytes=1000)
    name, _, value = line.encode().partition(b": ")
    first = head_cache.keep(octets("/a", "GET", line), RequestHead("GET", b"/a", (*FIELDS, (name, value)), memo=[]))
    other = RequestHead(method, b"/b", (*FIELDS, (name, value)), memo=[])
    assert head_cache.keep(octets("/b", method, line), other) is other
    second = head_cache.head(octets("/c", "GET", line), "", tls=False)
    assert second is not None
    assert second.fields is first.fields


def test_ids_fill_no_memory() -> None:
    head_cache = HeadCache(target_bytes=1000)
    for number in range(100):
        head_cache.keep(marked(number), marked_head(number))
    assert len(head_cache) == 2


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("x-request-id: 7", (b"x-request-id", b"7")),
        ("Connection: X-Request-Id", (b"Connection", b"X-Request-Id")),
        ("X-Unique-Id: caf\u00e9", (b"X-Unique-Id", b"caf\xc3\xa9")),
    ],
)
def test_what_cannot_be_set_aside_is_remembered_whole(line: str, field: tuple[bytes, bytes]) -> None:
    head_cache = HeadCache(target_bytes=1000)
    first = marked_head(1, field)
    assert head_cache.keep(marked(1, "/api/v4/projects/1", line), first) is first
    assert head_cache.head(marked(1, "/api/v4/projects/1", line), "192.0.2.1", tls=False) is first
    assert head_cache.head(marked(2, "/api/v4/projects/1", line), "192.0.2.1", tls=False) is None


def test_nothing_is_set_aside_where_any_field_may_choose_the_answer() -> None:
    head_cache = HeadCache(target_bytes=1000, marked_bytes=0)
    first = marked_head(1)
    assert head_cache.keep(marked(1), first) is first
    assert head_cache.head(marked(2), "192.0.2.1", tls=False) is None


def test_no_long_head_is_known_by_the_rest_of_it() -> None:
    head_cache = HeadCache(target_bytes=100_000)
    head_cache.keep(marked(1), marked_head(1))
    assert head_cache.head(marked(2, "/" + "a" * LONGEST), "192.0.2.1", tls=False) is None


def test_memory_is_bounded_and_what_is_asked_for_stays() -> None:
    head_cache = HeadCache(target_bytes=1000)
    polled = head()
    head_cache.keep(octets(), polled)
    for number in range(3 * MOST_HEADS):
        head_cache.head(octets(f"/{number}"), "192.0.2.1", tls=False)
        if number % 100 == 0:
            assert head_cache.head(octets(), "192.0.2.1", tls=False) is polled
    assert len(head_cache) <= MOST_HEADS + 1
    long = octets("/", "GET", "X: " + "a" * LONGEST)
    head_cache.keep(long, head())
    assert head_cache.head(long, "192.0.2.1", tls=False) is None


def test_long_heads_are_bounded_by_their_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs a credential to send them."""
    monkeypatch.setattr("gateway.edge.head_cache.MOST_OCTETS", 100 * LONGEST)
    head_cache = HeadCache(target_bytes=1000)
    polled = head()
    head_cache.keep(octets(), polled)
    for number in range(1000):
        long = octets("/", "GET", f"X: {number:03000}")
        head_cache.keep(long, RequestHead("GET", b"/", (*FIELDS, (b"X", b"%03000d" % number)), peer="192.0.2.1", memo=[]))
        assert head_cache.head(octets(), "192.0.2.1", tls=False) is polled
    assert len(head_cache) < 600


def test_no_long_head_is_remembered_by_its_fields_alone() -> None:
    head_cache = HeadCache(target_bytes=100_000)
    head_cache.keep(octets(), head())
    long = octets("/" + "a" * LONGEST)
    assert head_cache.head(long, "192.0.2.1", tls=False) is not head_cache.head(long, "192.0.2.1", tls=False)
    assert len(head_cache) == 2


# At the connection: every stream of requests, cut anywhere, is understood as the parser alone has it


class _Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 4711) if name == "peername" else default

    def write(self, data: Any) -> None:
        return

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


async def understood(server: TrafficServer, seen: list[object], parts: list[bytes]) -> list[object]:
    """What a connection makes of ``parts``, each a read of its own."""
    seen.clear()
    connection = server()
    assert isinstance(connection, Connection)
    connection.connection_made(_Wire())
    for part in parts:
        connection.data_received(part)
        for _ in range(8):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    return list(seen)


async def test_connections_share_what_was_made_of_their_fields() -> None:
    seen: list[Any] = []
    server = new_server(seen)
    (first,) = await understood(server, seen, [KNOWN])
    (second,) = await understood(server, seen, [KNOWN])
    (third,) = await understood(server, seen, [octets("/other")])
    assert first[2] is second[2] is third[2]  # type: ignore[index]


def new_server(seen: list[object], settings: EdgeSettings = EdgeSettings()) -> TrafficServer:  # noqa: B008 — it is frozen
    async def handle(down: AiohttpDownstream) -> None:
        body = b""
        if down.body is not None:
            while chunk := await down.body.read():
                body += chunk
        head = down.head
        fields, correlation = head.fields, head.correlation
        if found := tuple([field for field in fields if field[0].lower() in CORRELATION_FIELDS]):
            assert not correlation, "all or none"
            fields, correlation = tuple([field for field in fields if field not in found]), found
        seen.append((head.method, head.target, fields, body, correlation))
        await down.respond(ResponseHead(200, ()), b"")

    return TrafficServer(handle, lambda rejection, _: (seen.append(rejection.code), render(rejection))[1], settings)


class _Forgetful(HeadCache):
    """Leaves everything to the parser."""

    def head(self, octets: bytes, peer: str, *, tls: bool) -> RequestHead | None:
        return None


KNOWN = octets()
PIECES = st.lists(
    st.sampled_from(
        [
            KNOWN,
            octets("/other?page=2"),
            octets("/api/v4/projects/1", "HEAD"),
            request("/upload", "PRIVATE-TOKEN: ggw-1", method="POST", body=KNOWN),
            request("/upload", "PRIVATE-TOKEN: ggw-1", method="POST", body=b"x" * 10 + b"\r\n\r\n"),
            request("/chunks", "PRIVATE-TOKEN: ggw-1", "Transfer-Encoding: chunked", method="POST")
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(KNOWN), KNOWN),
            b"GET /half HTTP/1.1\r\nHost: a\r\nX: ",
            b"\r\n",
            octets("/expecting", "GET", "Expect: 100-continue"),
            marked(1),
            marked(2),
            marked(3, "/other?page=2", "traceparent: 00-1-2-03"),
            marked(4, "/other?page=2", "traceparent: 00-5-6-07"),
            marked(5, "/other?page=2", "traceparent: x", "Traceparent: y"),
            marked(8, "/other?page=2", "traceparent:"),
            marked(6)[:-4] + b"\r\n folded\r\n\r\n",
            marked(7)[:-4] + b"\x00\r\n\r\n",
        ]
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("octets_more", [0, 1000, 3000])
async def test_a_mark_may_be_as_long_as_a_field(octets_more: int) -> None:
    """Also where the rest of its head is known: what was judged of that says nothing of this one."""
    seen: list[object] = []
    limits = EdgeSettings(field_bytes=1024)
    learnt, forgetful = new_server(seen, limits), new_server(seen, limits)
    forgetful.head_cache = _Forgetful(target_bytes=1000)
    await understood(learnt, seen, [marked(0)])
    longer = octets("/api/v4/projects/1", "GET", "X-Request-Id: " + "a" * (100 + octets_more))
    found = await understood(learnt, seen, [longer])
    assert found == await understood(forgetful, seen, [longer])
    assert (found == [Code.HEADERS_TOO_LARGE]) is (octets_more > 900)


@settings(max_examples=60, deadline=None)
@given(pieces=PIECES, cuts=st.lists(st.integers(0, 1200), max_size=4))
async def test_no_cut_changes_what_a_stream_means(pieces: list[bytes], cuts: list[int]) -> None:
    """A body that spells a known head, half a head before one, an upload behind one: all as the parser has it."""
    stream = b"".join(pieces)
    seen: list[object] = []
    forgetful = new_server(seen)
    forgetful.head_cache = _Forgetful(target_bytes=1000)
    learnt = new_server(seen)
    await understood(learnt, seen, [KNOWN])
    await understood(learnt, seen, [octets("/other?page=2")])
    await understood(learnt, seen, [marked(0)])
    await understood(learnt, seen, [marked(0, "/other?page=2", "traceparent: 00-0-0-00")])
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for parts in (pieces, [stream[begin:end] for begin, end in itertools.pairwise(at)]):
        assert await understood(learnt, seen, parts) == await understood(forgetful, seen, parts)


async def test_a_poller_is_understood_without_the_parser() -> None:
    async with traffic(echo) as port:
        client = await port.connect()
        for number in range(3):
            await client.send(octets("/a"))
            assert (await client.answer())[2] == b"/a "
            await client.send(octets(f"/b{number}"))
            assert (await client.answer())[2] == b"/b%d " % number
        assert len(port.server.head_cache) == 5, "/a and three others, and one block of fields"


# The first request of a connection, before the task that serves it has begun


class _Pending:
    """A request whose answer is still awaited."""

    def __init__(self) -> None:
        self.left = 0

    def leave(self) -> None:
        self.left += 1

    def drained(self) -> bytes:
        return b"drained"


class _Written(_Wire):
    def __init__(self) -> None:
        super().__init__()
        self.octets: list[bytes] = []

    def write(self, data: Any) -> None:
        self.octets.append(bytes(data))


async def opened(seen: list[object], answer: bytes | _Pending | None) -> tuple[TrafficServer, Connection, _Written]:
    """A new connection to a server that knows a head, and answers it so; its task has not begun."""
    server = new_server(seen)
    await understood(server, seen, [KNOWN])
    seen.clear()
    server.try_answer = lambda _head, _sink: answer
    connection, wire = server(), _Written()
    assert isinstance(connection, Connection)
    connection.connection_made(wire)
    return server, connection, wire


async def ended(connection: Connection) -> None:
    task = connection._task_handler
    connection.connection_lost(None)
    if task is not None:
        await asyncio.wait([task], timeout=SOON_S)
        assert task.done()


async def test_it_is_answered_without_its_task() -> None:
    seen: list[object] = []
    server, connection, wire = await opened(seen, b"answer")
    connection.data_received(KNOWN)
    await asyncio.sleep(0)
    assert (wire.octets, seen) == ([b"answer"], [])
    connection.data_received(KNOWN)
    server.try_answer = lambda _head, _sink: None
    connection.data_received(KNOWN)
    for _ in range(8):
        await asyncio.sleep(0)
    assert wire.octets[:2] == [b"answer"] * 2
    assert len(seen) == 1, "the third was for the road"
    await ended(connection)


async def test_what_comes_behind_it_waits_for_its_answer() -> None:
    seen: list[object] = []
    pending = _Pending()
    _, connection, wire = await opened(seen, pending)
    connection.data_received(KNOWN)
    connection.data_received(octets("/behind"))
    for _ in range(8):
        await asyncio.sleep(0)
    assert (wire.octets, seen) == ([], [])
    connection.deliver(b"answer")
    for _ in range(8):
        await asyncio.sleep(0)
    assert wire.octets[0] == b"answer"
    assert [one[1] for one in seen] == [b"/behind"]  # type: ignore[index]
    await ended(connection)
    assert pending.left == 0


async def test_it_may_be_for_the_road() -> None:
    seen: list[object] = []
    _, connection, wire = await opened(seen, None)
    connection.data_received(KNOWN)
    connection.data_received(octets("/behind"))
    for _ in range(12):
        await asyncio.sleep(0)
    assert [one[1] for one in seen] == [b"/api/v4/projects/1", b"/behind"]  # type: ignore[index]
    assert len(wire.octets) == 2
    await ended(connection)


@pytest.mark.parametrize("turns", [0, 1, 8])
async def test_who_leaves_before_it_is_answered(turns: int) -> None:
    pending = _Pending()
    _, connection, wire = await opened([], pending)
    connection.data_received(KNOWN)
    for _ in range(turns):
        await asyncio.sleep(0)
    await ended(connection)
    assert (pending.left, wire.octets) == (1, [])


@pytest.mark.parametrize("octets_first", [b"", KNOWN[:20]])
async def test_half_a_head_has_its_time_from_the_first_moment(octets_first: bytes) -> None:
    """Or whoever sends it with his very first packet, and nothing else, would stay for ever."""
    _, connection, _ = await opened([], None)
    if octets_first:
        connection.data_received(octets_first)
    for _ in range(3):
        assert connection._head_deadline is not None
        await asyncio.sleep(0)
    connection.data_received(KNOWN[len(octets_first) :])
    assert connection._head_deadline is None
    await ended(connection)


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_drain_before_anything_came(turns: int) -> None:
    _, connection, _ = await opened([], None)
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.wait_for(connection.shutdown(SOON_S), SOON_S)
    await ended(connection)
