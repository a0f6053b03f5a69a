"""Which requests may leave HTTP."""

from __future__ import annotations

import pytest

from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.errors import Code, Rejection
from gateway.core.messages import Field, RequestHead, ResponseHead
from gateway.core.upgrade import SWITCH, check_switch, websocket_key

CABLE = Operation("GET /-/cable", Access.WRITE, Surface.WEBSOCKET)
PROJECT = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
# RFC 6455 §1.3
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
UPGRADE = (b"Upgrade", b"websocket")
CONNECTION = (b"Connection", b"keep-alive, Upgrade")
VERSION = (b"Sec-WebSocket-Version", b"13")
NONCE = (b"Sec-WebSocket-Key", KEY)
SOUND = (UPGRADE, CONNECTION, VERSION, NONCE)


def head(*fields: Field, method: str = "GET", **more: object) -> RequestHead:
    return RequestHead(method, b"/-/cable", fields, **more)  # type: ignore[arg-type]


def test_a_sound_handshake_passes_where_gitlab_tunnels() -> None:
    assert websocket_key(head(*SOUND), CABLE) == KEY
    assert websocket_key(head((b"upgrade", b"WebSocket"), *SOUND[1:]), CABLE) == KEY


@pytest.mark.parametrize(
    "request_head",
    [
        head(),
        head(UPGRADE, VERSION, NONCE),
        head(UPGRADE, (b"Connection", b"keep-alive"), VERSION, NONCE),
        head(*SOUND, http_10=True),
        head((b"Upgrade", b"h2c"), (b"Connection", b"Upgrade, HTTP2-Settings"), (b"HTTP2-Settings", b"AAMAAABk")),
        head((b"Upgrade", b"TLS/1.0, HTTP/2.0"), CONNECTION),
        head((b"Upgrade", b""), CONNECTION),
    ],
)
def test_what_is_no_handshake_is_an_ordinary_request(request_head: RequestHead) -> None:
    assert websocket_key(request_head, PROJECT) == b""
    assert websocket_key(request_head, CABLE) == b""


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head((b"Upgrade", b"SPDY/3.1"), CONNECTION), 400),
        (head((b"Upgrade", b"websocket, h2c"), *SOUND[1:]), 400),
        (head(UPGRADE, *SOUND, (b"Upgrade", b"h2c")), 400),
        (head(*SOUND, method="POST"), 400),
        (head(*SOUND, has_body=True, content_length=5), 400),
        (head(UPGRADE, CONNECTION, NONCE), 426),
        (head(UPGRADE, CONNECTION, NONCE, (b"Sec-WebSocket-Version", b"8")), 426),
        (head(UPGRADE, CONNECTION, NONCE, VERSION, VERSION), 426),
        (head(UPGRADE, CONNECTION, VERSION), 400),
        (head(UPGRADE, CONNECTION, VERSION, NONCE, NONCE), 400),
        (head(UPGRADE, CONNECTION, VERSION, (b"Sec-WebSocket-Key", b"c2hvcnQ=")), 400),
        (head(UPGRADE, CONNECTION, VERSION, (b"Sec-WebSocket-Key", b"!")), 400),
    ],
)
def test_an_unsound_handshake_is_refused(request_head: RequestHead, status: int) -> None:
    with pytest.raises(Rejection) as refusal:
        websocket_key(request_head, CABLE)
    assert (refusal.value.code, refusal.value.status, refusal.value.close) == (Code.UPGRADE_REFUSED, status, True)
    assert (status == 426) == (VERSION in refusal.value.headers)


@pytest.mark.parametrize("operation", [PROJECT, Operation("GET /x", Access.READ, Surface.KAS, blocked=True)])
def test_a_handshake_elsewhere_is_refused(operation: Operation) -> None:
    with pytest.raises(Rejection) as refusal:
        websocket_key(head(*SOUND), operation)
    assert refusal.value.code is Code.UPGRADE_REFUSED


@pytest.mark.parametrize("media", [b"application/grpc", b"Application/gRPC+proto", b"application/grpc-web"])
def test_grpc_is_refused(media: bytes) -> None:
    with pytest.raises(Rejection) as refusal:
        websocket_key(head((b"Content-Type", media), method="POST"), PROJECT)
    assert (refusal.value.code, refusal.value.status) == (Code.NOT_IMPLEMENTED, 501)


def test_a_switch_is_asked_for_in_these_words_alone() -> None:
    assert SWITCH == ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))


def test_a_101_must_answer_the_very_key() -> None:
    fields = (
        UPGRADE,
        CONNECTION,
        (b"Content-Length", b"5"),
        (b"Sec-WebSocket-Accept", ACCEPT),
        (b"Sec-WebSocket-Protocol", b"x"),
    )
    found = check_switch(ResponseHead(101, fields), KEY)
    assert found.fields == (
        (b"Sec-WebSocket-Accept", ACCEPT),
        (b"Sec-WebSocket-Protocol", b"x"),
    )


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (UPGRADE, (b"Sec-WebSocket-Accept", b"x")),
        ((b"Upgrade", b"h2c"), (b"Sec-WebSocket-Accept", ACCEPT)),
        (UPGRADE, (b"Sec-WebSocket-Accept", ACCEPT), (b"Sec-WebSocket-Accept", ACCEPT)),
    ],
)
def test_any_other_101_is_gitlabs_fault(fields: tuple[Field, ...]) -> None:
    with pytest.raises(Rejection) as refusal:
        check_switch(ResponseHead(101, fields), KEY)
    assert refusal.value.code is Code.UPSTREAM_PROTOCOL
