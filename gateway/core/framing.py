"""Where a request's body ends, which host the request is for, and whether its fields may be forwarded: judged before
anything relies on them.

Pure functions of the version and the fields as received. A server's parser refuses much of this already; but whether a
request can be smuggled must not depend on a parser's leniency (RFC 9112 §6.3, §11.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from .errors import Code, Rejection, bad_request
from .messages import Field, lower


class Framing(msgspec.Struct, frozen=True, gc=False):
    """How the body is delimited."""

    has_body: bool
    content_length: int | None = None
    """Octets of the body; None with a body means chunked."""


NO_BODY = Framing(False)
_CHUNKED = Framing(True)

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Changes each octet that no field value may hold (CTL other than HTAB, RFC 9110 §5.5), and no other; octets from 0x80 up
# are obs-text and pass as they are. `translate` with it is five times as fast as a regex search, or as deleting by it.
VALUE_OCTETS = bytes(octet ^ 1 if octet in ({*range(0x20), 0x7F} - {0x09}) else octet for octet in range(256))
# uri-host [":" port] (RFC 9110 §7.2) for names that resolve; atomic, so that a long one costs linear time.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_-]++(?>(?:\.[A-Za-z0-9_-]++)*)\.?)(?::([0-9]{0,5}))?")
_HOST_BYTES = 261
_MAX_DIGITS = 18  # of a Content-Length: below 2^63 whichever digits they are

# If one of these came in two lines, either might be believed; how the body is read depends on the last two.
_SINGLETONS = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-range"})
# Their underscore spellings: a CGI-style server behind the gateway would fold `_` into `-` (RFC 9110 §17.10).
_FRAMING_TWINS = frozenset({b"content_length", b"transfer_encoding"})


class _Names(dict[bytes, bool]):
    """Name as spelt → whether a second line of it is a fault. Only valid names are remembered, up to a bound."""

    def __missing__(self, name: bytes) -> bool:
        if not is_token(name):
            raise _faulty("field name")
        key = name.lower()
        if key in _FRAMING_TWINS:
            raise _faulty("framing field with an underscore")
        single = key in _SINGLETONS
        if len(name) <= 64:
            if len(self) >= 4096:
                self.clear()
            self[name] = single
        return single


_names = _Names()


def judge_framing(fields: Iterable[Field], *, http_10: bool = False) -> Framing:
    """Find how the body is delimited.

    Raises:
        Rejection: 400 (BAD_REQUEST), 413 (BODY_TOO_LARGE) or 501 (NOT_IMPLEMENTED), always closing: what follows on the
            connection is unknown.
    """
    length: bytes | None = None
    coding: bytes | None = None
    for name, value in fields:
        size = len(name)
        if size == 14 and lower(name) == b"content-length":
            if length is not None and length != value:
                raise _faulty("two lengths")
            length = value
        elif size == 17 and lower(name) == b"transfer-encoding":
            if coding is not None:
                raise _faulty("two codings")
            coding = value
    if coding is None:
        if length is None:
            return NO_BODY
        if not length.isdigit() or not length.isascii():
            raise _faulty("length")
        stripped = length.lstrip(b"0")
        if len(stripped) > _MAX_DIGITS:
            raise Rejection(Code.BODY_TOO_LARGE, 413, "413 Request Entity Too Large", close=True)
        octets = int(stripped or b"0")
        return Framing(octets > 0, octets)
    # RFC 9112 §6.1: a coding beside a length is an attack or a fault; in HTTP/1.0 such framing is faulty by definition.
    if length is not None or http_10:
        raise _faulty("coding beside a length, or in HTTP/1.0")
    if coding.strip(b" \t").lower() == b"chunked":
        return _CHUNKED
    if _TOKEN.fullmatch(coding):
        raise Rejection(Code.NOT_IMPLEMENTED, 501, "501 Not Implemented", close=True, proxy_error="http_request_error")
    raise _faulty("coding")


def judge_host(fields: Iterable[Field], authority: bytes | None = None, *, http_10: bool = False) -> bytes:
    """The host a request is for, as received: the target's authority wins over Host (RFC 9112 §3.2.2).

    Returns ``b""`` for an HTTP/1.0 request without one. Which hosts the gateway answers for is decided elsewhere.

    Raises:
        Rejection: 400 if Host is missing, repeated, or not a ``uri-host [":" port]``.
    """
    found: bytes | None = None
    for name, value in fields:
        if len(name) == 4 and lower(name) == b"host":
            if found is not None:
                raise _faulty("two hosts")
            found = value
    if found is None:
        if not http_10:
            raise _faulty("no host")
        return _host(authority) if authority is not None else b""
    found = _host(found)
    return _host(authority) if authority is not None else found


def host_name(host: bytes) -> bytes:
    """``host`` without its port and root dot, in lower case: what allow-lists compare."""
    match = _HOST.fullmatch(host)
    return match[1].rstrip(b".").lower() if match else b""


def judge_fields(
    fields: tuple[Field, ...], *, max_count: int = 200, max_field_bytes: int = 16384, max_bytes: int = 65536
) -> None:
    """Refuse fields that must not pass: too many, too large, misnamed, with control octets, or repeated where it matters.

    Raises:
        Rejection: HEADERS_TOO_LARGE (431) or BAD_REQUEST (400), closing.
    """
    if len(fields) > max_count:
        raise _too_large()
    names = [name for name, _ in fields]
    values = b"\t".join([value for _, value in fields])
    total = len(values) + sum(map(len, names))
    # Most heads as a whole are smaller than a single field may be.
    if total > max_field_bytes and (total > max_bytes or any(len(n) + len(v) > max_field_bytes for n, v in fields)):
        raise _too_large()
    singletons = [name for name in names if _names[name]]
    if len(singletons) > 1 and len({name.lower() for name in singletons}) < len(singletons):
        raise _faulty("a field twice")
    if has_control(values):
        raise _faulty("control octet in a field")


def has_control(value: bytes) -> bool:
    """Whether ``value`` holds an octet that no field may hold (RFC 9110 §5.5)."""
    return value.translate(VALUE_OCTETS) != value


def is_token(name: bytes) -> bool:
    """Whether ``name`` is a token (RFC 9110 §5.6.2)."""
    return _TOKEN.fullmatch(name) is not None


def _host(value: bytes) -> bytes:
    match = _HOST.fullmatch(value) if len(value) <= _HOST_BYTES else None
    if match is None or (match[2] and int(match[2]) > 65535):
        raise _faulty("host")
    return value


def _faulty(why: str) -> Rejection:
    rejection = bad_request(close=True)
    rejection.detail = why
    return rejection


def _too_large() -> Rejection:
    return Rejection(
        Code.HEADERS_TOO_LARGE,
        431,
        "431 Request Header Fields Too Large",
        close=True,
        proxy_error="http_request_error",
    )
