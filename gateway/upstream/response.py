"""Reads responses, strictly: heads, framing (RFC 9112 §6.3) and the three kinds of body. No I/O.

We have a reader of our own because the ready-made one can't be told that a request was HEAD, lets status 099, ``HTTP/2.0``
and control octets in the reason phrase pass, bounds neither head nor chunk extensions, and is slower once its fields are
looked at. What ours refuses, it refuses for good: after a :class:`Malformed` nothing on that connection can be trusted.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec

from ..core.framing import VALUE_OCTETS
from ..core.messages import Field, Fields, lower

MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 32 * 1024  # GitLab's Link and Content-Security-Policy are long, but no honest line comes near
MAX_FIELDS = 256
MAX_TRAILER_BYTES = 16 * 1024
MAX_CHUNK_LINE_BYTES = 4 * 1024
# A stream may carry as many octets of chunk extensions as of body, plus this many: no honest stream reaches that, and the
# work per octet delivered stays bounded.
_EXTENSION_ALLOWANCE_BYTES = 16 * 1024

CHUNKED = -1
UNTIL_CLOSE = -2

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CODING = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# The registered codings (RFC 9112 §7): a body in one of these would reach its client still coded, with no field to say so.
_CODINGS = frozenset({b"compress", b"deflate", b"gzip", b"identity", b"x-compress", b"x-gzip"})
_ONLY_CHUNK = re.compile(rb"[1-9A-Fa-f][0-9A-Fa-f]{0,14}")
_ONLY_CHUNK_END = b"\r\n0\r\n\r\n"
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?")

_PLAIN, _CONTENT_LENGTH, _TRANSFER_ENCODING, _CONNECTION, _UPGRADE = range(5)
_KINDS = {
    b"content-length": _CONTENT_LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
}

# GitLab sends the same dozen lines with every answer: a line read once is looked up whole. Emptied when full. Fields that
# differ from answer to answer are left out, and so are cookies: no secret outlives its answer.
_LINES: dict[bytes, Field] = {}
_FRAMING: dict[bytes, tuple[Field, int]] = {}
_LINES_BOUND = 1024
_VARYING_FIELDS = frozenset({b"etag", b"link", b"set-cookie", b"x-gitlab-meta", b"x-request-id", b"x-runtime"})
_VARYING_SPELLINGS: set[bytes] = set()
"""The names in ``_VARYING_FIELDS``, in the spellings that came."""
_STARTS: dict[bytes, tuple[bool, int, bytes]] = {}
_STARTS_BOUND = 128
_LINE_BOUND_BYTES = 96
_SPELLINGS_BOUND = 32


class Malformed(Exception):  # noqa: N818 — a finding about the peer
    """Not HTTP as RFC 9112 defines it; the message is for the operator's log and quotes nothing."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """One response head, final or interim."""

    status: int
    reason: bytes
    fields: Fields
    length: int
    """The number of octets in the body, or CHUNKED, or UNTIL_CLOSE."""
    persistent: bool
    """Whether the connection may carry another request once this answer is read."""
    upgrade: bool


def parse_head(head: bytes, *, bodiless: bool, foreign_codings: bool = False) -> Head:
    """Parse a head. Raises Malformed.

    Args:
        head: The octets as they came, without the empty line that ends them.
        bodiless: Whether the request was HEAD.
        foreign_codings: Whether an answer whose only transfer coding is an unregistered one is taken as delimited by close
            (RFC 9112 §6.3, rule 4), instead of being refused.
    """
    if len(head) > MAX_HEAD_BYTES:
        raise Malformed("head too large")
    lines = head.split(b"\r\n")
    if len(lines) > MAX_FIELDS + 1:
        raise Malformed("too many fields")
    http_11, status, reason = _STARTS.get(lines[0]) or _read_start(lines[0])
    length: int | None = None
    chunked = foreign = closing = upgrade = False
    del lines[0]
    fields: list[Any] = list(map(_LINES.get, lines))
    # Only lines that are new, and those that frame: a handful per answer.
    for _ in range(fields.count(None)):
        at = fields.index(None)
        line = lines[at]
        name, _, value = line.partition(b": ")
        if name in _VARYING_SPELLINGS and len(line) <= _LINE_BOUND_BYTES and value.translate(VALUE_OCTETS) == value:
            fields[at] = (name, value.strip())
            continue
        field, kind = _FRAMING.get(line) or _read_line(line)
        fields[at] = field
        if kind:
            value = field[1]
            if kind == _CONTENT_LENGTH:
                if length is not None or not _LENGTH.fullmatch(value):
                    raise Malformed("Content-Length")
                length = int(value)
            elif kind == _TRANSFER_ENCODING:
                if chunked or foreign or not http_11:
                    raise Malformed("Transfer-Encoding")
                chunked = value.lower() == b"chunked"
                foreign = not chunked
                if foreign and not (foreign_codings and _is_foreign(value.lower())):
                    raise Malformed("Transfer-Encoding")
            elif kind == _UPGRADE:
                upgrade = True
            elif b"close" in value.lower() and b"close" in _options(value):
                closing = True
    if (chunked or foreign) and length is not None:
        raise Malformed("Content-Length and Transfer-Encoding")
    persistent = http_11 and not closing and not foreign
    if bodiless or status < 200 or status in (204, 304):
        # A 204 that announces a body may be followed by one: no further answer is read from this connection.
        if status == 204 and (chunked or length):
            persistent = False
        framing = 0
    elif chunked:
        framing = CHUNKED
    elif length is not None:
        framing = length
    elif persistent:
        # The RFC would read on until the connection closes, unannounced as that is; but then an answer that has lost its
        # Content-Length line would look whole.
        raise Malformed("no length and no announced close")
    else:
        framing = UNTIL_CLOSE
    return Head(status, reason, tuple(fields), framing, persistent, upgrade)


def _is_foreign(coding: bytes) -> bool:
    """Whether this is a single coding that is not registered. One that resembles ``chunked`` is an attack on framing."""
    return _CODING.fullmatch(coding) is not None and coding not in _CODINGS and b"chunk" not in coding


def _options(value: bytes) -> list[bytes]:
    return [option.strip(b" \t") for option in value.lower().split(b",")]


def _read_start(line: bytes) -> tuple[bool, int, bytes]:
    start = _STATUS_LINE.fullmatch(line)
    if start is None:
        raise Malformed("status line")
    minor, code, reason = start.groups()
    read = (minor == b"1", int(code), reason or b"")
    if len(line) <= _LINE_BOUND_BYTES:
        if len(_STARTS) >= _STARTS_BOUND:
            _STARTS.clear()
        _STARTS[line] = read
    return read


def _read_line(line: bytes) -> tuple[Field, int]:
    if len(line) > MAX_LINE_BYTES:
        raise Malformed("field too large")
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Malformed("field line")
    name, value = match.groups()
    lowered = lower(name)
    field = (name, value.rstrip(b" \t"))
    kind = _KINDS.get(lowered, _PLAIN)
    if lowered in _VARYING_FIELDS:
        if len(_VARYING_SPELLINGS) < _SPELLINGS_BOUND:
            _VARYING_SPELLINGS.add(name)
    elif len(line) <= _LINE_BOUND_BYTES:
        known: dict[bytes, Any] = _FRAMING if kind else _LINES
        if len(known) >= _LINES_BOUND:
            known.clear()
        known[line] = (field, kind) if kind else field
    return field, kind


class HeadBuffer:
    """Collects the octets of a head that comes in pieces."""

    __slots__ = ("_octets", "_searched")

    def __init__(self) -> None:
        self._octets = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Add octets. Returns (head, what follows it) once the head is complete. Raises Malformed early for octets that
        can't become a head."""
        octets = self._octets
        octets += data
        end = octets.find(b"\r\n\r\n", max(0, self._searched - 3))
        if end >= 0:
            return bytes(octets[:end]), bytes(octets[end + 4 :])
        if not (octets.startswith(b"HTTP/1.") if len(octets) >= 7 else b"HTTP/1.".startswith(octets)):
            raise Malformed("status line")
        # Only the new octets are looked at, and the one before them: a peer that drips costs no more than its octets.
        fresh = octets[max(0, self._searched - 1) :]
        if fresh.count(b"\n") != fresh.count(b"\r\n") + (fresh[:1] == b"\n"):
            raise Malformed("bare line feed")
        if len(octets) > MAX_HEAD_BYTES:
            raise Malformed("head too large")
        self._searched = len(octets)
        return None

    def __bool__(self) -> bool:
        return bool(self._octets)


class BodyReader(Protocol):
    """Takes the connection's octets, and returns those of the body."""

    done: bool
    surplus: bool
    """Whether octets came after the end of the body: they answer no request."""

    def feed(self, data: bytes) -> bytes: ...


class LengthReader:
    """A body of ``length`` octets."""

    __slots__ = ("_left", "done", "surplus")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            self.surplus = True
            data = data[: self._left]
        self._left -= len(data)
        self.done = self._left == 0
        return data


class CloseReader:
    """A body that ends with its connection; it is never ``done`` by itself."""

    __slots__ = ("done", "surplus")

    def __init__(self) -> None:
        self.done = False
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        return data


def only_chunk(data: bytes) -> bytes | None:
    """The content of a chunked body, if ``data`` holds all of it in one chunk, as small answers nearly always come; else
    None."""
    if not data.endswith(_ONLY_CHUNK_END):
        return None
    end = data.find(b"\r\n", 0, MAX_CHUNK_LINE_BYTES)
    if _ONLY_CHUNK.fullmatch(data, 0, end) and int(data[:end], 16) == len(data) - end - 9:
        return data[end + 2 : -7]
    return None


class ChunkedReader:
    """A chunked body (RFC 9112 §7.1): chunks joined, extensions and trailers checked and dropped."""

    __slots__ = (
        "_begun",
        "_body_bytes",
        "_extension_bytes",
        "_left",
        "_line",
        "_trailer_bytes",
        "_trailers",
        "done",
        "surplus",
    )

    def __init__(self) -> None:
        self._begun = False
        self._left = 0
        """The octets of the chunk still to come, including its CRLF; 0 between chunks."""
        self._line = b""
        self._trailers = False
        self._trailer_bytes = 0
        self._body_bytes = 0
        self._extension_bytes = 0
        self.done = False
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        if not self._begun and data:
            self._begun = True
            whole = only_chunk(data)
            if whole is not None:
                self.done = True
                return whole
        pieces: list[bytes] = []
        at = 0
        if self._line:
            # Bounded, because an incomplete line is at most MAX_CHUNK_LINE_BYTES long.
            data = self._line + data
            self._line = b""
        size = len(data)
        while at < size and not self.done:
            if self._left:
                at = self._take_chunk(data, at, pieces)
                continue
            end = data.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
            if end < 0:
                self._keep(data[at:])
                return b"".join(pieces)
            line = data[at:end]
            at = end + 2
            if self._trailers:
                self._end_or_trailer(line)
            else:
                self._start_chunk(line)
        if self.done and at < size:
            self.surplus = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        payload = self._left - 2
        if payload > 0:
            piece = data[at : at + payload]
            pieces.append(piece)
            self._left -= len(piece)
            self._body_bytes += len(piece)
            return at + len(piece)
        if data[at] != (0x0D if self._left == 2 else 0x0A):
            raise Malformed("end of chunk")
        self._left -= 1
        return at + 1

    def _start_chunk(self, line: bytes) -> None:
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise Malformed("chunk size")
        size, extension = match.groups()
        if extension:
            self._extension_bytes += len(extension)
            if self._extension_bytes > self._body_bytes + _EXTENSION_ALLOWANCE_BYTES:
                raise Malformed("chunk extensions")
        length = int(size, 16)
        if length:
            self._left = length + 2
        else:
            self._trailers = True

    def _end_or_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES or not _FIELD.fullmatch(line):
            raise Malformed("trailers")

    def _keep(self, line: bytes) -> None:
        if len(line) >= MAX_CHUNK_LINE_BYTES:
            raise Malformed("chunk line too long")
        if b"\n" in line:
            raise Malformed("bare line feed")
        self._line = line


def body_reader(length: int) -> BodyReader:
    """The reader for a head's framing."""
    if length == CHUNKED:
        return ChunkedReader()
    if length == UNTIL_CLOSE:
        return CloseReader()
    return LengthReader(length)
