"""Issuers' documents: fetched from where they are, bounded, and never by a detour."""

from __future__ import annotations

import pytest

from gateway.ports import NotAnswering
from gateway.upstream.documents import HttpDocuments

from .conftest import OK, Gitlab, Peer, always


async def test_a_document_is_fetched_and_the_connection_kept(gitlab: Gitlab) -> None:
    url = await gitlab.play(always(OK))
    documents = HttpDocuments()
    assert await documents.get(url + "/a/b?c=d") == b"ok"
    assert await documents.get(url) == b"ok"
    assert [head.split(b"\r\n")[0] for head in gitlab.peers[0].heads] == [b"GET /a/b?c=d HTTP/1.1", b"GET / HTTP/1.1"]
    assert f"Host: 127.0.0.1:{gitlab.port}".encode() in gitlab.peers[0].heads[0]
    assert b"Authorization" not in gitlab.peers[0].heads[0]
    await documents.close()


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"x" * 0x8000 + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "offered"),
    [
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", False, id="not there"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", True, id="busy"),
        pytest.param(
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n", False, id="detour"
        ),
        pytest.param(LONG, False, id="too long"),
        pytest.param(b"rubbish\r\n\r\n", True, id="no HTTP"),
    ],
)
async def test_nothing_but_a_bounded_200_is_an_answer(gitlab: Gitlab, answer: bytes, offered: bool) -> None:
    documents = HttpDocuments()
    with pytest.raises(NotAnswering) as failure:
        await documents.get(await gitlab.play(always(answer)))
    assert failure.value.offered is offered
    await documents.close()


async def test_a_streamed_document_is_whole(gitlab: Gitlab) -> None:
    documents = HttpDocuments()
    assert await documents.get(await gitlab.play(always(CHUNKED))) == b"x" * 0x8000
    await documents.close()


async def test_an_issuer_that_hangs_costs_a_bounded_time(gitlab: Gitlab) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.rest()

    documents = HttpDocuments(timeout_s=0.05)
    with pytest.raises(NotAnswering, match=r"in time|timeout"):
        await documents.get(await gitlab.play(script))
    await documents.close()


@pytest.mark.parametrize(
    "url", ["ftp://a/", "https://a b/", "https:///x", "https://u:p@a/", "file:///etc/passwd", "http://\xe4/"]
)
async def test_an_address_of_no_use_is_no_answer(url: str) -> None:
    with pytest.raises(NotAnswering) as failure:
        await HttpDocuments().get(url)
    assert url not in str(failure.value)


async def test_the_number_of_origins_is_bounded_and_the_one_asked_longest_ago_goes(gitlab: Gitlab) -> None:
    url = await gitlab.play(always(OK))
    documents = HttpDocuments()
    for port in range(1, 130):
        with pytest.raises(NotAnswering):
            await documents.get(f"http://127.0.0.1:{port}/")
        if port in {60, 120}:
            assert await documents.get(url) == b"ok"
    assert len(documents._origins) == 64
    assert url in documents._origins
    assert "http://127.0.0.1:1" not in documents._origins
    await documents.close()
