"""Requests to switch protocols: which are let through and become a tunnel, which are refused, which are ignored.

Only WebSockets (RFC 6455) are let through, only on the routes where GitLab offers them, and only with a sound handshake;
other attempts at a WebSocket, and SPDY, are refused. Any other ``Upgrade`` (h2c, TLS) is an offer that a server may ignore
(RFC 9110 §7.8): it is ignored, and GitLab never sees it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from .catalogue import Operation, Surface
from .errors import Code, Rejection, Source
from .messages import Field, Fields, RequestHead, ResponseHead, first, joined, values

_WEBSOCKET = b"websocket"
_SURFACES = frozenset({Surface.WEBSOCKET, Surface.KAS})
_VERSION = b"13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3

SWITCH: Fields = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))
"""The fields that ask for a switch and that agree to one; we write them ourselves in both directions."""

_NEVER_WITH_101 = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"connection"})


def websocket_key(head: RequestHead, operation: Operation) -> bytes:
    """The ``Sec-WebSocket-Key`` of a handshake to let through; empty if the request is not one.

    Raises:
        Rejection: UPGRADE_REFUSED: 400 for a route without tunnels or a handshake that isn't sound; 426 for another version
            of the protocol. NOT_IMPLEMENTED (501) for gRPC.
    """
    fields = head.fields
    media = first(fields, b"content-type")
    if media is not None and media[:16].lower() == b"application/grpc":
        raise Rejection(
            Code.NOT_IMPLEMENTED,
            501,
            "501 Not Implemented - gRPC is not carried; agents connect by WebSocket (wss://)",
            close=True,
            proxy_error="http_request_denied",
        )
    offered = joined(fields, b"upgrade")
    if offered is None or head.http_10 or b"upgrade" not in _tokens(joined(fields, b"connection") or b""):
        return b""
    protocols = _tokens(offered)
    if _WEBSOCKET not in protocols and not any(protocol.startswith(b"spdy/") for protocol in protocols):
        return b""
    if operation.surface not in _SURFACES or operation.blocked:
        raise _refused("this route does not accept WebSockets")
    if protocols != [_WEBSOCKET]:
        raise _refused("only WebSockets are tunnelled")
    if head.method != "GET" or head.has_body:
        raise _refused("not a WebSocket handshake")
    if values(fields, b"sec-websocket-version") != [_VERSION]:
        raise _refused("WebSocket version 13 only", 426, ((b"Sec-WebSocket-Version", _VERSION), *SWITCH[:1]))
    keys = values(fields, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise _refused("not a WebSocket handshake")
    return keys[0]


def check_switch(reply: ResponseHead, key: bytes) -> ResponseHead:
    """GitLab's 101 without the fields that agree to the switch (``SWITCH`` is added on its way down).

    Raises Rejection UPSTREAM_PROTOCOL (502) if it is not the answer to ``key``.
    """
    expected = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    fields = reply.fields
    if _tokens(joined(fields, b"upgrade") or b"") != [_WEBSOCKET] or values(fields, b"sec-websocket-accept") != [expected]:
        raise Rejection(
            Code.UPSTREAM_PROTOCOL,
            502,
            "502 Bad Gateway",
            source=Source.UPSTREAM,
            proxy_error="http_upgrade_failed",
            detail="GitLab switched to another protocol",
        )
    kept = tuple(field for field in fields if field[0].lower() not in _NEVER_WITH_101)
    return ResponseHead(101, kept, b"Switching Protocols")


def _is_key(value: bytes) -> bool:
    try:
        return len(binascii.a2b_base64(value, strict_mode=True)) == 16
    except binascii.Error:
        return False


def _tokens(value: bytes) -> list[bytes]:
    return [token for token in (part.strip(b" \t").lower() for part in value.split(b",")) if token]


def _refused(why: str, status: int = 400, headers: tuple[Field, ...] = ()) -> Rejection:
    words = "426 Upgrade Required" if status == 426 else "400 Bad Request"
    return Rejection(
        Code.UPGRADE_REFUSED,
        status,
        f"{words} - {why}",
        headers=headers,
        close=True,
        proxy_error="http_upgrade_failed",
    )
