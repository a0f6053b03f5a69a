"""Renders a request head as octets: the fields given, plus the framing, and nothing that could split it in two."""

from __future__ import annotations

import re

from ..core.errors import Code, Rejection
from ..core.framing import VALUE_OCTETS
from ..core.messages import Fields, lower
from ..ports import RepeatedFields, UpstreamRequest

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# As VALUE_OCTETS, for a target.
_TARGET_OCTETS = bytes(octet if octet > 32 and octet != 127 else octet ^ 1 for octet in range(256))
# Framing is decided here alone, and the edge answers expectations: GitLab never has to send a 100.
_OURS = frozenset({b"content-length", b"transfer-encoding", b"expect"})
_ANTICIPATES_BODY = frozenset({"POST", "PUT", "PATCH"})

_VERSION = b" HTTP/1.1\r\n"
_METHODS: dict[str, bytes] = {}
_PREFIXES: dict[bytes, bytes] = {}
_BOUND = 1024


def render_head(request: UpstreamRequest, *, has_body: bool) -> bytes:
    """The head's octets, framing included: ``Content-Length``, or chunked when a body's length is not known.

    Raises Rejection BAD_REQUEST for what would not be one well-formed request. The edge has refused all of that already;
    this is the last check before the wire.
    """
    target = request.target
    if not target or target.translate(_TARGET_OCTETS) != target:
        raise _unsendable("target")
    method = request.method
    start = _METHODS.get(method) or _learn_method(method)
    repeated = request.repeated
    if repeated is None:
        before, behind = _VERSION, b""
    else:
        before, behind = repeated.rendered or _rendered(repeated)
    framing = b"\r\n"
    if has_body or method != "GET" or request.content_length is not None:
        framing = _framing(request, has_body=has_body) + framing
    return b"".join((start, target, before, _lines(request.own), behind, framing))


def render_get(target: bytes, own: Fields, repeated: RepeatedFields) -> bytes:
    """As ``render_head``, for a GET without a body whose fields are ``own`` between those of ``repeated``."""
    if not target or target.translate(_TARGET_OCTETS) != target:
        raise _unsendable("target")
    before, behind = repeated.rendered or _rendered(repeated)
    return b"".join((b"GET ", target, before, _lines(own), behind, b"\r\n"))


def _rendered(repeated: RepeatedFields) -> tuple[bytes, bytes]:
    """The octets between the target and a request's own fields, and those behind its own fields."""
    rendered = repeated.rendered = (_VERSION + _lines(repeated.before), _lines(repeated.behind))
    return rendered


def _lines(fields: Fields) -> bytes:
    """The fields as lines, without those that frame."""
    if len(fields) == 1:
        only, content = fields[0]
        spelt = _PREFIXES.get(only)
        if spelt and content.translate(VALUE_OCTETS) == content:
            return spelt + content + b"\r\n"
    lines: list[bytes] = []
    for name, value in fields:
        prefix = _PREFIXES.get(name)
        if prefix is None:
            prefix = _learn_name(name)
        if prefix:
            if value.translate(VALUE_OCTETS) != value:
                raise _unsendable("field value")
            lines += (prefix, value, b"\r\n")
    return b"".join(lines)


def _framing(request: UpstreamRequest, *, has_body: bool) -> bytes:
    length = request.content_length
    if has_body:
        return b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
    if length:
        raise _unsendable("length without a body")
    if length == 0 or request.method in _ANTICIPATES_BODY:  # RFC 9110 §8.6
        return b"Content-Length: 0\r\n"
    return b""


def _learn_method(method: str) -> bytes:
    try:
        octets = method.encode("ascii")
    except UnicodeEncodeError:
        raise _unsendable("method") from None
    if not _TOKEN.fullmatch(octets):
        raise _unsendable("method")
    rendered = octets + b" "
    if len(_METHODS) >= _BOUND:
        _METHODS.clear()
    _METHODS[method] = rendered
    return rendered


def _learn_name(name: bytes) -> bytes:
    if not _TOKEN.fullmatch(name):
        raise _unsendable("field name")
    prefix = b"" if lower(name) in _OURS else name + b": "
    if len(name) <= 64:
        if len(_PREFIXES) >= _BOUND:
            _PREFIXES.clear()
        _PREFIXES[name] = prefix
    return prefix


def _unsendable(what: str) -> Rejection:
    return Rejection(
        Code.BAD_REQUEST, 400, "400 Bad Request", proxy_error="http_request_error", detail=f"unsendable {what}"
    )
