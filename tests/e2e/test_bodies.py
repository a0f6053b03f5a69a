"""Bodies: octet for octet in both directions, of any size, and read only when they are wanted."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from gateway.demo.seed import TOKENS
from tests.e2e.conftest import OWN_TOKEN, Passage
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer, ask, curl, stranger
from tests.fakes.gitlab import Answer, Then, When, response

MIB = 1 << 20


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=utf-8", "text/json"]
)
def test_r41_json_passes_octet_for_octet(passage: Passage, kind: str) -> None:
    body = ' {"name" : "\\u00fc\u00fc", "n":1e3,\r\n"a":[ ] }\n'.encode()
    _, received = passage("/api/v4/projects", f"content-type: {kind}", method="POST", body=body, token=OWN_TOKEN)
    assert received.body == body
    assert received.values("Content-Type") == [kind.encode()]
    assert received.values("Content-Length") == [str(len(body)).encode()]


def test_r42_forms_pass_octet_for_octet(passage: Passage) -> None:
    body = "name=a+b%20c&description=%2B&&x[]=1&x[]=2&y[z]=&permissions%5ba%5d=null&empty"
    passage.recorder.script(response(201, b"{}"))
    url = f"{passage.gateway.url}/api/v4/projects"
    assert curl("--data", body, "--header", f"PRIVATE-TOKEN: {OWN_TOKEN}", url).status == 201
    (received,) = passage.recorder.requests
    assert received.body == body.encode()
    assert received.values("Content-Type") == [b"application/x-www-form-urlencoded"]


@pytest.mark.parametrize("who", ["own", "brokered"])
def test_r43_multipart_passes_octet_for_octet(
    gateway: GatewayProcess, passage: Passage, bot_key: str, tmp_path: Path, who: str
) -> None:
    content = bytes(range(256)) * 4096 + b"\r\n--not-a-boundary\r\n"
    file = tmp_path / "a b.bin"
    file.write_bytes(content)
    token = TOKENS.ada if who == "own" else bot_key
    url = f"{gateway.url}/api/v4/projects/platform%2Fapi/uploads"
    uploaded = curl("--form", f"file=@{file}", "--header", f"PRIVATE-TOKEN: {token}", url)
    assert uploaded.status == 201, uploaded.body
    body = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n' + content + b"\r\n--b--\r\nepilogue"
    kind = "Content-Type: multipart/form-data; boundary=b"
    _, received = passage("/api/v4/projects/1/uploads", kind, method="POST", body=body, token=OWN_TOKEN)
    assert received.body == body
    assert received.values("Content-Type") == [b"multipart/form-data; boundary=b"]


def test_r43_a_large_upload_streams_with_bounded_memory(gateway: GatewayProcess, bot_key: str) -> None:
    """96 MiB here; that a gigabyte costs no more is what the memory's flatness says."""
    size, chunk = 96 * MIB, bytes(range(256)) * 1024
    digest = hashlib.sha256()
    before = _resident(gateway)
    with Peer(gateway.port) as peer:
        peer.send(
            "PUT /api/v4/projects/1/packages/generic/big/1.0/upload.bin HTTP/1.1\r\nHost: x\r\n"
            f"PRIVATE-TOKEN: {bot_key}\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        for _ in range(size // len(chunk)):
            digest.update(chunk)
            peer.send(chunk)
        reply = peer.read_reply("PUT")
    assert reply.status == 201, reply.body
    assert _resident(gateway) - before < 32 * MIB
    assert digest.hexdigest() in reply.body.decode()


def test_x7_a_large_download_streams_with_bounded_memory(gateway: GatewayProcess) -> None:
    target = f"/api/v4/projects/1/packages/generic/stream/1.0.0/{64 * MIB}.bin"
    before = _resident(gateway)
    reply = ask(gateway.port, target, token=TOKENS.ada)
    assert (reply.status, len(reply.body)) == (200, 64 * MIB)
    assert reply.body == bytes(range(256)) * (64 * MIB // 256)
    assert _resident(gateway) - before < 32 * MIB


def test_x7_a_client_that_leaves_releases_the_upstream(passage: Passage, upstreams: LoopThread) -> None:
    recorder = passage.recorder
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n" + b"x" * 65536
    recorder.script(Answer(endless, then=Then.STALL))
    with Peer(passage.gateway.port) as peer:
        peer.send(b"GET /api/v4/projects/1/jobs/1/artifacts HTTP/1.1\r\nHost: x\r\n\r\n")
        _, fields = peer.read_head()
        assert ("Content-Length", "10737418240") in fields
        peer.read_exactly(1000)
        connection = recorder.requests[-1].connection
    upstreams.run(recorder.until(lambda gitlab: not gitlab.is_open(connection)))
    request_id = dict(fields)["X-Gateway-Request-Id"]
    audited = passage.gateway.audited(request_id)
    assert (audited["status"], audited["aborted"]) == (499, "client")


def test_a_body_that_breaks_under_an_answer_is_not_counted_against_gitlab(passage: Passage) -> None:
    """GitLab may begin its answer before the pack is all there."""
    passage.recorder.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nunpa", then=Then.STALL, when=When.HEAD))
    with Peer(passage.gateway.port) as peer:
        peer.send(
            b"POST /group/project.git/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Basic b2F1dGgyOmdscGF0LW93bg==\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n"
            + bytes(0x10000)
            + b"\r\n5\r\nmore!\r\n"
        )
        status, fields = peer.read_head()
        assert (status, peer.read_exactly(4)) == (200, b"unpa")
        peer.send(b"no length\r\n")
        assert peer.read_to_end() == b""
    audited = passage.gateway.audited(dict(fields)["X-Gateway-Request-Id"])
    assert (audited["status"], audited["code"], audited["aborted"]) == (200, "bad_request", "client")


def _resident(gateway: GatewayProcess) -> int:
    """The gateway's resident memory, in octets."""
    output = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(gateway.process.pid)], capture_output=True, text=True, check=True, timeout=10
    )
    return int(output.stdout) * 1024


def test_x8_continue_comes_only_after_the_decision(passage: Passage) -> None:
    head = (
        "PUT /api/v4/projects/1/repository/files/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        "Expect: 100-continue\r\nContent-Type: application/octet-stream\r\n"
    )
    passage.recorder.script(response(201, b"{}"))
    with Peer(passage.gateway.port) as peer:
        peer.send(f"{head}PRIVATE-TOKEN: {OWN_TOKEN}\r\n\r\n".encode())
        assert peer.read_head() == (100, [])
        peer.send(b"5\r\nhello\r\n0\r\n\r\n")
        assert peer.read_reply("PUT").status == 201
    (received,) = passage.recorder.requests
    assert received.body == b"hello"
    assert not received.values("Expect")
    with Peer(passage.gateway.port, stranger()) as peer:
        peer.send(f"{head}PRIVATE-TOKEN: glpat-bad\r\n\r\n".encode())
        reply = peer.read_reply("PUT")
        assert reply.status == 401
        assert reply.value("Connection") == "close"  # the body was never asked for, so the connection can't go on


def test_x9_a_compressed_body_is_not_decoded(passage: Passage) -> None:
    body = bytes.fromhex("1f8b08000000000000030300000000000000000a")
    _, received = passage(
        "/a/b.git/git-upload-pack",
        "Content-Encoding: gzip",
        "Content-Type: application/x-git-upload-pack-request",
        "Git-Protocol: version=2",
        "Authorization: Basic YWRhOnNlY3JldA==",
        method="POST",
        body=body,
        answer=response(200, body, ("Content-Encoding", "gzip")),
    )
    assert received.body == body
    assert received.values("Content-Encoding") == [b"gzip"]
    assert received.values("Git-Protocol") == [b"version=2"]
    reply, _ = passage(
        "/api/v4/projects/1/x", "Accept-Encoding: gzip", answer=response(200, body, ("Content-Encoding", "gzip"))
    )
    assert (reply.body, reply.value("Content-Encoding")) == (body, "gzip")


def test_r57_graphql_passes_and_its_errors_are_200(passage: Passage, gateway: GatewayProcess, reader_key: str) -> None:
    for body in (
        b'{"query":"{ currentUser { name } }"}',
        b'[{"query":"{a}"},{"query":"{b}"}]',
        b'{"query":"mutation { x }"}',
    ):
        errors = b'{"errors":[{"message":"Field \'a\' does not exist"}]}'
        reply, received = passage(
            "/api/graphql", "Content-Type: application/json", method="POST", body=body, token=OWN_TOKEN,
            answer=response(200, errors, ("Content-Type", "application/json")),
        )  # fmt: skip
        assert received.body == body
        assert (reply.status, reply.body) == (200, errors)
    mutation = json.dumps({"query": 'mutation { destroyNote(input: {id: "1"}) { errors } }'}).encode()
    refused = ask(
        gateway.port, "/api/graphql", "Content-Type: application/json", method="POST", body=mutation, token=reader_key
    )
    assert refused.status == 403
