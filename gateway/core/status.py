"""Status lines, built once."""

from __future__ import annotations

from http import HTTPStatus

_LINES: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus
}


def status_line(status: int) -> bytes:
    """``HTTP/1.1 200 OK`` and its CRLF; an unknown status gets an empty reason (RFC 9112 §4 allows it)."""
    line = _LINES.get(status)
    return line if line is not None else b"HTTP/1.1 %d \r\n" % status
