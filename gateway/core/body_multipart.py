"""Multipart bodies: the names of the parts.

Parsers famously disagree about boundaries, folded headers and quoted names. Only what all read alike is decided: delimiters
on lines of their own, one plain ``Content-Disposition`` per part, one ``name`` in it. Anything else is undecidable.
Contents are skipped by searching for the next delimiter.
"""

from __future__ import annotations

import re

from .body import (
    MAX_VALUE_BYTES,
    WATCHED,
    BodyVerdict,
    Finding,
    Findings,
    Undecidable,
    UndecidableBody,
    is_recoded,
    names_credential,
)
from .query import form_decode, top_level_name
from .target import percent_decode

_MAX_HEAD_BYTES = 16384
_MAX_PARTS = 4096  # Rack's own limit
_PIECE_BYTES = 16384  # at the end of each part, the rest of a piece is copied
# Rack takes the last `boundary=` of the field, whatever precedes it. Workhorse, which rewrites uploads, takes a parameter:
# by preference one in pieces (`boundary*0=`), and even with Unicode blanks around it. So all parameters must be plain, and
# only one may contain that word. Blanks are matched possessively here and below: shared between two places, they would take
# quadratic time.
_TYPE_PARAMETER = re.compile(
    rb";[ \t]*+([!#$&+.0-9A-Z^_`a-z|~-]++)=(?:\"([ !#-\[\]-~]*+)\"|([!#-+.-:<-\[\]-~-]*+))",
)
_CONTENT_TYPE = re.compile(rb"[^;,\s]++((?:[ \t]*+" + _TYPE_PARAMETER.pattern + rb")*)[ \t]*+;?[ \t]*+")
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_./:=? -]{0,69}[0-9A-Za-z'()+_./:=?-]")
_DISPOSITION = re.compile(
    rb"content-disposition:[ \t]*+form-data"
    rb"((?:[ \t]*+;[ \t]*+[A-Za-z*-]++=(?:\"(?>(?:[^\"\\]|\\.)*)\"|[^\s\";,\\]++))*)[ \t]*+(?:;[ \t]*+)?",
    re.IGNORECASE | re.DOTALL,
)
_NAME = re.compile(rb";\s*+name[ \t]*+(?:(\*)[ \t]*+)?=", re.IGNORECASE)
_PARAMETER = re.compile(rb";[ \t]*+([A-Za-z*-]++)=(\"(?>(?:[^\"\\]|\\.)*)\"|[^\s\";,\\]++)", re.DOTALL)
# Outside quotes Rack ends a name at the first character that no token may hold: `sudo(x` is `sudo` to it. A bracket may be
# there: what precedes it is the name to every reader. Where a name is empty, Rack takes one from another field of the head.
_NAME_VALUE = re.compile(rb"\"([^\"\\]+)\"|([^\s\"()<>,;:\\/\[\]?=]++(?:[\[\]][^\s\"();,\\]*+)?)")
_FILENAME = re.compile(rb"filename\*?=", re.IGNORECASE)
# Rack 2 calls a part whose name follows a colon by its file name. Java's Jersey writes such parts, with a date before it.
_DATED_FILE = re.compile(
    rb"[^;]++(?:;[ \t]*+[A-Za-z-]++=(?:\"[^\"\\]*+\"|[0-9A-Za-z._-]++)[ \t]*+)*",
)
# The other fields that a part's head may hold. Rack 2 looks for the name up to the next colon, on whichever line that is.
# Where it finds none, and where a disposition is longer than Rack 3 reads, `Content-ID` is the name.
_FIELD = re.compile(rb"(?!content-id:)[A-Za-z0-9-]++:", re.IGNORECASE)
# Workhorse decodes it where it rewrites uploads; Rack does not.
_CODED = re.compile(rb"content-transfer-encoding:[ \t]*+quoted-printable", re.IGNORECASE)
_MAX_DISPOSITION_BYTES = 1536
_MAX_PARAMETERS = 16


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary; None if there is none, or if readers could take different ones."""
    written = _CONTENT_TYPE.fullmatch(content_type)
    if written is None:
        return None
    found = b""
    for name, quoted, plain in _TYPE_PARAMETER.findall(written[1]):
        value: bytes = quoted or plain
        if name.lower() == b"boundary":
            if found or b"boundary=" in value.lower():
                return None
            found = value
        elif b"boundary" in name.lower() or b"boundary" in value.lower():
            return None
    return found if _BOUNDARY.fullmatch(found) else None


class MultipartScanner:
    """One multipart body."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._findings = Findings()
        self._doubt: Undecidable | None = None
        self._buffer = b""
        self._at = 0  # where the buffer begins in the body
        self._step = self._preamble
        self._done = False
        self._parts = 0
        # The part at hand:
        self._part_at = 0
        self._name: str | None = None
        self._plain = False
        self._value = bytearray()

    def feed(self, chunk: bytes) -> None:
        for start in range(0, len(chunk), _PIECE_BYTES):
            if self._doubt is not None:
                return
            self._buffer += chunk[start : start + _PIECE_BYTES]
            try:
                while self._step():
                    pass
            except UndecidableBody as doubt:
                self._doubt = doubt.reason
                self._buffer = b""

    def so_far(self) -> BodyVerdict:
        return BodyVerdict(self._findings.all(), self._doubt)

    def finish(self) -> BodyVerdict:
        doubt = self._doubt
        if doubt is None and not self._done and (self._at or self._buffer):
            doubt = Undecidable.INCOMPLETE
        return BodyVerdict(self._findings.all(), doubt)

    @property
    def blind(self) -> bool:
        return self._doubt is not None

    def may_name(self, octets: bytes) -> bool:
        return names_credential(octets)

    def cut(self, body: bytes, finding: Finding) -> bytes:
        """The ``body`` without the part and the delimiter before it."""
        left = body[: finding.start] + body[finding.end :]
        end = self._delimiter + b"--"
        # Rack accepts a body without parts only as that line, with nothing before and after it.
        return end + b"\r\n" if left.removeprefix(b"\r\n").startswith(end) else left

    # States: each consumes what it can, and returns whether the next may go on at once

    def _preamble(self) -> bool:
        buffer = self._buffer
        if len(buffer) < len(self._delimiter) + 4:
            return False
        if buffer.startswith(b"\r\n"):
            self._drop(2)
            buffer = self._buffer
        if not buffer.startswith(self._delimiter):
            raise UndecidableBody(Undecidable.BOUNDARY)
        return self._delimited(0)

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > _MAX_HEAD_BYTES:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise UndecidableBody(Undecidable.TOO_MANY)
            if b"\n" in self._buffer.replace(b"\r\n", b""):  # Workhorse may see the end of the head here, and of the body
                raise UndecidableBody(Undecidable.MALFORMED)
            return False
        self._read_head(self._buffer[:end])
        self._drop(end + 4)
        self._step = self._content
        return True

    def _content(self) -> bool:
        buffer = self._buffer
        found = buffer.find(self._delimiter)
        if found < 0:
            # What stays might begin a delimiter, or be the line end before one.
            self._take(len(buffer) - len(self._delimiter) - 1)
            return False
        if len(buffer) < found + len(self._delimiter) + 2:
            return False
        if buffer[max(0, found - 2) : found] != b"\r\n":
            raise UndecidableBody(Undecidable.BOUNDARY)
        self._take(found - 2)
        self._end_part(self._at + 2)
        self._drop(2)
        return self._delimited(0)

    def _epilogue(self) -> bool:
        if self._delimiter in self._buffer:
            raise UndecidableBody(Undecidable.BOUNDARY)
        self._drop(max(0, len(self._buffer) - len(self._delimiter)))
        return False

    # Steps that the states share

    def _delimited(self, found: int) -> bool:
        """At a delimiter: another part, or the end?"""
        after = found + len(self._delimiter)
        follow = self._buffer[after : after + 2]
        self._part_at = self._at + found
        self._drop(after + 2)
        if follow == b"--":
            self._done = True
            self._step = self._epilogue
            return True
        if follow != b"\r\n":
            raise UndecidableBody(Undecidable.BOUNDARY)
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise UndecidableBody(Undecidable.TOO_MANY)
        self._step = self._head
        return True

    def _read_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        # A bare line end, a fold, or the field's name anywhere else: some parser sees another head.
        if b"\n" in head.replace(b"\r\n", b"") or b"\r" in head.replace(b"\r\n", b"") or b"\0" in head:
            raise UndecidableBody(Undecidable.MALFORMED)
        if any(line[:1] in {b" ", b"\t"} for line in lines) or head.lower().count(b"content-disposition") != 1:
            raise UndecidableBody(Undecidable.MALFORMED)
        line = next((line for line in lines if line.lower().startswith(b"content-disposition")), b"")
        match = _DISPOSITION.fullmatch(line)
        if match is None or len(line) > _MAX_DISPOSITION_BYTES or not all(_FIELD.match(other) for other in lines):
            raise UndecidableBody(Undecidable.MALFORMED)
        parameters = list(_PARAMETER.finditer(match[1]))
        # To Rack 3 `NAME` is another parameter. Like Rack 2, it calls a part without a name by its type.
        names = [parameter for parameter in parameters if parameter[1] == b"name"]
        # A `name=` after a `;` inside another parameter's quotes is the name to Rack 2.
        if _NAME.findall(match[1]) != [b""] or len(names) != 1 or len(parameters) > _MAX_PARAMETERS:
            raise UndecidableBody(Undecidable.MALFORMED)
        if is_recoded(head) and not any(parameter[1] in {b"filename", b"filename*"} for parameter in parameters):
            raise UndecidableBody(Undecidable.CHARSET)
        value = _NAME_VALUE.fullmatch(names[0][2])
        if value is None or (b":" in match[1][: names[0].start()] and not _is_called_as_its_file(lines, line, parameters)):
            raise UndecidableBody(Undecidable.MALFORMED)
        raw: bytes = value[1] if value[1] is not None else value[2]
        name = top_level_name(percent_decode(raw)).decode("utf-8", "surrogateescape")
        self._name = name if name in WATCHED else None
        self._plain = raw == name.encode("utf-8", "surrogateescape") and _FILENAME.search(match[1]) is None
        if self._name is not None and any(_CODED.match(other) for other in lines):
            self._plain = False
        self._value = bytearray()

    def _take(self, count: int) -> None:
        """Move ``count`` octets of content out of the buffer."""
        if count <= 0:
            return
        if self._name is not None and len(self._value) <= MAX_VALUE_BYTES:
            self._value += self._buffer[:count]
        self._drop(count)

    def _end_part(self, end: int) -> None:
        if self._name is None:
            return
        short = len(self._value) <= MAX_VALUE_BYTES
        value = self._value.decode("utf-8", "surrogateescape") if short and self._plain else None
        self._findings.add(Finding(self._name, value, self._part_at, end, self._plain and short))

    def _drop(self, count: int) -> None:
        self._buffer = self._buffer[count:]
        self._at += count


def _is_called_as_its_file(lines: list[bytes], line: bytes, parameters: list[re.Match[bytes]]) -> bool:
    """Whether Rack 2, which does not find the name of such a part, is sure to take its file's, and that is not watched."""
    if _DATED_FILE.fullmatch(line) is None:
        return False
    # Rack 2 looks for `Content-ID:` anywhere, and takes the last `filename` of any field.
    if any(b"content-id:" in each.lower() or (each is not line and b"filename" in each.lower()) for each in lines):
        return False
    files = [parameter[2].strip(b'"') for parameter in parameters if parameter[1] == b"filename"]
    if len(files) != 1 or not files[0]:
        return False
    read = {top_level_name(files[0]), top_level_name(form_decode(files[0]))}
    return all(name.decode("utf-8", "surrogateescape") not in WATCHED for name in read)
