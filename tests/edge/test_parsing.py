"""What the parser would not take, as refusals. (On the wire: ``test_server.py``.)"""

from __future__ import annotations

import pytest
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong

from gateway.core.errors import Code
from gateway.core.messages import ResponseHead
from gateway.edge.parsing import rejection_of, render_closing_response, require_c_parser

CANARY = "glpat-c4n4ryc4n4ryc4n4ry"


def test_aiohttps_c_parser_is_there() -> None:
    require_c_parser()


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (LineTooLong(CANARY.encode(), 100), Code.TARGET_TOO_LONG, 414),
        (LineTooLong(CANARY.encode(), 101), Code.HEADERS_TOO_LARGE, 431),
        (BadHttpMessage("Too many headers received"), Code.HEADERS_TOO_LARGE, 431),
        (BadStatusLine(CANARY, f"Bad status line:\n  Invalid HTTP version: {CANARY}"), Code.VERSION_NOT_SUPPORTED, 505),
        (BadStatusLine(CANARY), Code.BAD_REQUEST, 400),
        (BadHttpMessage(CANARY), Code.BAD_REQUEST, 400),
        (ValueError(), Code.BAD_REQUEST, 400),
    ],
)
def test_each_error_has_its_refusal_which_quotes_nothing(error: Exception, code: Code, status: int) -> None:
    rejection = rejection_of(error, longest_line=100)
    assert (rejection.code, rejection.status, rejection.close) == (code, status, True)
    assert CANARY not in rejection.message + repr(rejection.headers)


def test_the_last_answer_says_so() -> None:
    octets = render_closing_response(ResponseHead(400, ((b"X-A", b"1"),)), b"no")
    head, _, body = octets.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[:2] == [b"HTTP/1.1 400 Bad Request", b"X-A: 1"]
    assert lines[2].startswith(b"Date: ")
    assert (lines[3:], body) == ([b"Content-Length: 2", b"Connection: close"], b"no")
