"""The fake itself: exact octets in, scripted octets out, faults, and no forgiveness."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.gitlab import (
    Answer,
    FakeGitLab,
    Then,
    When,
    early_close,
    garbage,
    reset,
    response,
    stall,
    wrong_length,
)

GET = b"GET /api/v4/projects/a%2fb?x=%5B%5d&&y HTTP/1.1\r\nhOsT: x\r\nPRIVATE-token:  t \r\n\r\n"


async def connect(gitlab: FakeGitLab) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", gitlab.port)


async def test_it_records_every_octet_and_answers_from_the_script() -> None:
    async with FakeGitLab(response(200, b"[]", ("X-Page", "")), response(204)) as gitlab:
        reader, writer = await connect(gitlab)
        writer.write(GET + GET)
        assert await reader.readuntil(b"[]") == b"HTTP/1.1 200 Status\r\nX-Page: \r\nContent-Length: 2\r\n\r\n[]"
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 204 Status\r\n\r\n"
        writer.close()
        first = gitlab.requests[0]
        assert first.octets == GET
        assert first.method == b"GET"
        assert first.target == b"/api/v4/projects/a%2fb?x=%5B%5d&&y"
        assert first.fields == [(b"hOsT", b"x"), (b"PRIVATE-token", b"t")]
        assert first.values("private-token") == [b"t"]
        assert [one.connection for one in gitlab.requests] == [0, 0]


@pytest.mark.parametrize(
    ("framing", "framed"),
    [
        pytest.param(b"Content-Length: 5\r\n\r\n", b"a\r\nbc", id="length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n", b"2;x=y\r\na\r\r\n3\r\n\nbc\r\n0\r\nT: v\r\n\r\n", id="chunks"),
    ],
)
async def test_it_reads_bodies_as_framed(framing: bytes, framed: bytes) -> None:
    async with FakeGitLab(response(201)) as gitlab:
        reader, writer = await connect(gitlab)
        writer.write(b"POST / HTTP/1.1\r\n" + framing + framed)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert gitlab.requests[0].framed_body == framed
        assert gitlab.requests[0].body == b"a\r\nbc"


async def test_a_request_beyond_the_script_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="beyond the script"):  # noqa: PT012 — leaving the fake is what raises
        async with FakeGitLab() as gitlab:
            reader, writer = await connect(gitlab)
            writer.write(GET)
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            writer.close()


async def test_an_answer_nobody_asked_for_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="1 answers were never asked for"):
        async with FakeGitLab(response(200)):
            pass


async def test_a_failing_test_keeps_its_own_error() -> None:
    with pytest.raises(KeyError):
        async with FakeGitLab(response(200)):
            raise KeyError


async def test_reset_ends_by_rst_after_the_octets_given() -> None:
    async with FakeGitLab(reset()) as gitlab:
        reader, writer = await connect(gitlab)
        writer.write(GET)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        pytest.param(early_close(b"HTTP/1.1 200"), b"HTTP/1.1 200", id="early close"),
        pytest.param(garbage(b"nonsense"), b"nonsense", id="garbage"),
        pytest.param(wrong_length(b"ab", 3), b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", id="wrong length"),
        pytest.param(Answer(b"soon", then=Then.CLOSE, when=When.HEAD), b"soon", id="before the body"),
    ],
)
async def test_other_faults_end_in_order(answer: Answer, received: bytes) -> None:
    async with FakeGitLab(answer) as gitlab:
        reader, writer = await connect(gitlab)
        writer.write(GET)
        assert await reader.read() == received
        writer.close()


async def test_stall_lasts_until_the_peer_gives_up() -> None:
    async with FakeGitLab(stall(b"HTTP/1.1 200 OK\r\n")) as gitlab:
        reader, writer = await connect(gitlab)
        writer.write(GET)
        await reader.readuntil(b"\r\n")
        assert gitlab.open_connections == 1
        writer.close()
        await gitlab.until(lambda fake: fake.open_connections == 0)


async def test_a_connection_can_die_before_any_request() -> None:
    async with FakeGitLab(Answer(then=Then.CLOSE, when=When.ACCEPT)) as gitlab:
        reader, writer = await connect(gitlab)
        assert await reader.read() == b""
        writer.close()
        assert gitlab.requests == []


async def test_pieces_wait_for_their_event() -> None:
    gate = asyncio.Event()
    async with FakeGitLab(Answer(b"one", gate, b"two", then=Then.CLOSE)) as gitlab:
        reader, writer = await connect(gitlab)
        writer.write(GET)
        assert await reader.readexactly(3) == b"one"
        gate.set()
        assert await reader.read() == b"two"
        writer.close()


async def test_it_can_ask_for_the_body() -> None:
    async with FakeGitLab(Answer(b"done", then=Then.CLOSE, continues=True)) as gitlab:
        reader, writer = await connect(gitlab)
        writer.write(b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert await reader.read() == b"done"
        writer.close()
        assert gitlab.requests[0].body == b"ok"


async def test_a_standing_answer_is_beside_the_script() -> None:
    async with FakeGitLab(response(204)) as gitlab:
        gitlab.stand(b"/self", lambda received: response(200, received.values("x")[0]))
        reader, writer = await connect(gitlab)
        for value in (b"1", b"2"):
            writer.write(b"GET /self HTTP/1.1\r\nX: " + value + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n" + value)).startswith(b"HTTP/1.1 200")
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert len(gitlab.requests) == 1
        assert [one.target for one in gitlab.asides] == [b"/self", b"/self"]


async def test_settling_forgets_what_matched_and_complains_of_what_did_not() -> None:
    async with FakeGitLab() as gitlab:
        gitlab.settle()
        gitlab.script(response(204))
        with pytest.raises(AssertionError, match="1 answers were never asked for"):
            gitlab.settle()
        gitlab.settle()
