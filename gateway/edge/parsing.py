"""aiohttp's parser: requires the C one, and turns its errors into refusals that never quote what the client sent."""

from __future__ import annotations

import time
from collections.abc import Callable

import aiohttp.http_parser
from aiohttp.http_exceptions import BadStatusLine, LineTooLong

from ..core.errors import Code, Rejection, bad_request
from ..core.http_date import date_line
from ..core.messages import ResponseHead
from ..core.status import status_line

RenderEarly = Callable[[Rejection, str], tuple[ResponseHead, bytes]]
"""Renders the refusal of a request that could not be parsed: (rejection, peer) → head, body. Also counts and audits it."""


def require_c_parser() -> None:
    """Refuse to run on aiohttp's pure-Python parser: it is another parser, and a weaker one."""
    if aiohttp.http_parser.HttpRequestParser is aiohttp.http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp's C parser is missing; the gateway does not run on the pure-Python one")


def rejection_of(error: BaseException, *, longest_line: int) -> Rejection:
    """The refusal for a parser's error. ``longest_line``: its limit for the request line, which equals no other of its
    limits."""
    if isinstance(error, LineTooLong):
        if error.args[1] == longest_line:
            return Rejection(
                Code.TARGET_TOO_LONG, 414, "414 Request-URI Too Large", close=True, proxy_error="http_request_error"
            )
        return _headers_too_large()
    if isinstance(error, BadStatusLine) and error.message.startswith("Bad status line:\n  Invalid HTTP version"):
        return version_not_supported()
    if error.args and error.args[0] == "Too many headers received":
        return _headers_too_large()
    return bad_request(close=True)


def version_not_supported() -> Rejection:
    """The refusal of a request in an HTTP version that is not served."""
    return Rejection(
        Code.VERSION_NOT_SUPPORTED,
        505,
        "505 HTTP Version Not Supported",
        close=True,
        proxy_error="http_request_error",
    )


def render_closing_response(head: ResponseHead, body: bytes) -> bytes:
    """A whole answer as octets, after which the connection ends."""
    parts = [status_line(head.status)]
    for name, value in head.fields:
        parts += (name, b": ", value, b"\r\n")
    parts += (date_line(time.time()), b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body), body)
    return b"".join(parts)


def _headers_too_large() -> Rejection:
    return Rejection(
        Code.HEADERS_TOO_LARGE, 431, "431 Request Header Fields Too Large", close=True, proxy_error="http_request_error"
    )
