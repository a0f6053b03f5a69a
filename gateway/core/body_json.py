"""JSON bodies: the member names of the top-level object, nothing else.

Strings are skipped and nesting is counted at the speed of the regex engine; Python runs once per top-level member and per
container inside a container. Anything outside strings that is not strict JSON (comments, ``NaN``, a byte order mark,
UTF-16) is undecidable: some parser might accept it and read on differently.
"""

from __future__ import annotations

import json
import re

from .body import MAX_VALUE_BYTES, WATCHED, BodyVerdict, Finding, Findings, Undecidable, UndecidableBody

# `_method` counts only in forms (rack: MethodOverride reads request.POST).
_NAMES = WATCHED - {"_method"}
_LONGEST_NAME = 6 * max(len(name) for name in _NAMES)  # every letter as \\uXXXX
_MAX_DEPTH = 100  # GitLab refuses beyond 32
_MAX_MEMBERS = 50_000  # as GitLab
_MAX_STEPS = 200_000  # GitLab refuses beyond 100,000 elements
_MAX_SCALAR = 64
_PIECE_BYTES = 65536

# In scanned text, escaped quotes and backslashes are masked (`_masked`): every quote that is left begins or ends a string.
_ATOMS = rb"[\s0-9+\-.eEtrufalsn:,]++"
# Everything below the top level that needs no closer look: atoms, whole strings, containers of these.
_DEEP = re.compile(
    rb"(?>(?:" + _ATOMS + rb'|"[^"]*+"|[{\[](?>(?:' + _ATOMS + rb'|"[^"]*+")*)[}\]])*)',
)
_TOP_ATOMS = re.compile(rb"[\s0-9+\-.eEtrufalsn:]*+")
# Whole members of the top-level object that are strings or scalars and whose names can't be watched ones.
_DULL_MEMBERS = re.compile(
    rb'(?>(?:\s*+"(?![^"]*(?:token|password|sudo|project|group|namespace|forked|\\))[^"]*+"\s*+:\s*+'
    rb'(?:"[^"]*+"|[0-9+\-.eEtrufalsn]++)\s*+,)*)'
)
_SPACE = re.compile(rb"[ \t\r\n]*+")
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
_NOT_ATOMS = bytes(set(range(256)) - set(b" \t\r\n\x0b\x0c0123456789+-.eEtrufalsn:,{}[]"))
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_UNBALANCED = re.compile(rb"([}\]]*)([{\[]*)")


class JsonScanner:
    """One JSON document."""

    def __init__(self) -> None:
        self._findings = Findings()
        self._doubt: Undecidable | None = None
        self._base = 0  # where the current chunk begins in the body
        self._depth = 0
        self._floor = 1  # the depth from which nothing matters: 2 inside a top-level object
        self._closed = False
        self._members = 0
        self._steps = 0
        # Inside a string:
        self._in_string = False
        self._escaped = False  # the last octet of the previous chunk was an unpaired backslash
        self._text: bytearray | None = None  # the content so far, if it matters
        # The member at hand:
        self._at_name = False  # the next string is a name
        self._values = 0
        self._name: str | None = None  # its name, if that is a watched one
        self._start = 0
        self._value: str | None = None
        self._scalar: bytearray | None = None
        self._value_end = 0

    def feed(self, chunk: bytes) -> None:
        for start in range(0, len(chunk), _PIECE_BYTES):
            piece = chunk[start : start + _PIECE_BYTES]
            if self._doubt is None:
                try:
                    self._scan(piece)
                except UndecidableBody as doubt:
                    self._doubt = doubt.reason
            self._base += len(piece)

    def so_far(self) -> BodyVerdict:
        return BodyVerdict()

    def finish(self) -> BodyVerdict:
        doubt = self._doubt
        if doubt is None and (self._in_string or self._depth > 0 or (self._base > 0 and not self._closed)):
            doubt = Undecidable.INCOMPLETE
        return BodyVerdict(self._findings.all(), doubt)

    @property
    def blind(self) -> bool:
        return self._doubt is not None

    def may_name(self, octets: bytes) -> bool:
        # Ruby's JSON reads a backslash followed by any letter as that letter.
        plain = octets.replace(b"\\", b"")
        return b"_token" in plain or b'"sudo"' in plain or _ESCAPED_LETTER.search(octets) is not None

    def cut(self, body: bytes, finding: Finding) -> bytes:
        """The ``body`` without the member and one comma next to it."""
        before = body[: finding.start]
        after = body[finding.end :]
        trimmed = after.lstrip(b" \t\r\n")
        if trimmed.startswith(b","):
            return before + trimmed[1:]
        head = before.rstrip(b" \t\r\n")
        return (head[:-1] if head.endswith(b",") else before) + after

    # Scanning

    def _scan(self, chunk: bytes) -> None:
        masked = self._masked(chunk)
        at, end = 0, len(chunk)
        deep = True  # checked once per chunk, because that costs a pass over the rest of it
        while at < end:
            if self._in_string:
                at = self._string(chunk, masked, at)
            elif self._depth >= self._floor:
                if deep and self._stays_deep(masked, at):
                    return
                deep = False
                at = self._deep(masked, at)
            elif self._depth == 1:
                at = self._member(masked, at)
            else:
                at = self._outside(masked, at)

    def _masked(self, chunk: bytes) -> bytes:
        """``chunk`` with its escaped quotes and backslashes overwritten, octet for octet."""
        if self._escaped:
            chunk = b"_" + chunk[1:]
            self._escaped = False
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            self._escaped = chunk.endswith(b"\\")
        return chunk

    def _stays_deep(self, masked: bytes, at: int) -> bool:
        """Whether the rest of the chunk never returns to the members of the top level; if so, its nesting has been counted.

        Every other piece between quotes is structure. Empty containers are removed until only closers, then openers remain.
        """
        pieces = masked[at:].split(b'"')
        structure = b"".join(pieces[::2])
        if len(structure.translate(None, _NOT_ATOMS)) != len(structure):
            raise UndecidableBody(Undecidable.MALFORMED)
        brackets = structure.translate(None, _NOT_BRACKETS)
        for _ in range(_MAX_DEPTH):
            size = len(brackets)
            brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
            if len(brackets) == size:
                break
        else:
            raise UndecidableBody(Undecidable.TOO_DEEP)
        match = _UNBALANCED.fullmatch(brackets)
        if match is None:
            raise UndecidableBody(Undecidable.MALFORMED)
        if self._depth - len(match[1]) < self._floor:
            return False
        self._depth += len(match[2]) - len(match[1])
        self._check_depth()
        self._in_string = len(pieces) % 2 == 0
        return True

    def _outside(self, chunk: bytes, at: int) -> int:
        """Before the document, after it, or in a document that is a single scalar."""
        match = _SPACE.match(chunk, at)
        assert match is not None  # matches the empty string
        at = match.end()
        if at == len(chunk):
            return at
        octet = chunk[at]
        if self._closed:
            raise UndecidableBody(Undecidable.MALFORMED)
        if octet == 0x7B:  # {
            self._at_name = True
            self._depth = 1
            self._floor = 2
        elif octet == 0x5B:  # [
            self._depth = 1
        elif octet == 0x22:
            self._in_string = True  # a lone string, with which npm tags a version: no parameters
        else:
            # Another lone scalar holds no parameters either, but its end would have to be judged, and nobody sends one.
            raise UndecidableBody(Undecidable.MALFORMED)
        return at + 1

    def _deep(self, chunk: bytes, at: int) -> int:
        """Below the members of the top level (or anywhere in a top-level array)."""
        match = _DEEP.match(chunk, at)
        assert match is not None  # matches the empty string
        at = match.end()
        if at == len(chunk):
            return at
        self._step()
        octet = chunk[at]
        if octet == 0x22:  # a string that does not end in this chunk
            self._in_string = True
        elif octet in b"{[":
            self._depth += 1
            self._check_depth()
        else:  # a closer: `_stays_deep` has let no other octet come this far
            self._depth -= 1
            self._closed = self._depth == 0
            self._value_end = self._base + at + 1
        return at + 1

    def _member(self, chunk: bytes, at: int) -> int:
        """Between the braces of the top-level object."""
        if self._at_name:
            dull = _DULL_MEMBERS.match(chunk, at)
            assert dull is not None  # matches the empty string
            at = dull.end()
        match = _TOP_ATOMS.match(chunk, at)
        assert match is not None  # matches the empty string
        if self._scalar is not None and match.end() > at:
            self._scalar += chunk[at : match.end()]
            if len(self._scalar) > _MAX_SCALAR:
                raise UndecidableBody(Undecidable.MALFORMED)
        at = match.end()
        if at == len(chunk):
            return at
        octet = chunk[at]
        if octet == 0x22:
            self._in_string = True
            if self._at_name:
                self._values = 0
                self._start = self._base + at
                self._text = bytearray()
            else:
                self._one_value()
                if self._name is not None:
                    self._text = bytearray()
        elif octet == 0x2C:  # ,
            self._end_member(self._base + at)
            self._at_name = True
            self._members += 1
            if self._members > _MAX_MEMBERS:
                raise UndecidableBody(Undecidable.TOO_MANY)
        elif octet in b"{[":
            self._one_value()
            self._depth = 2
            self._scalar = None
        elif octet == 0x7D:  # }
            self._end_member(self._base + at)
            self._depth = 0
            self._closed = True
        else:
            raise UndecidableBody(Undecidable.MALFORMED)
        return at + 1

    def _string(self, chunk: bytes, masked: bytes, at: int) -> int:
        """Inside a string, up to its closing quote or the chunk's end."""
        end = masked.find(b'"', at)
        stop = end if end >= 0 else len(chunk)
        if self._text is not None:
            self._text += chunk[at:stop]
            if len(self._text) > (_LONGEST_NAME if self._at_name else MAX_VALUE_BYTES):
                self._text = None
        if end < 0:
            return stop
        self._in_string = False
        self._end_string(self._base + end + 1)
        return end + 1

    def _end_string(self, end: int) -> None:
        text, self._text = self._text, None
        if self._depth == 0:
            self._closed = True
            return
        if self._depth >= self._floor:
            return
        if self._at_name:
            self._at_name = False
            name = _unescape(bytes(text)) if text is not None else None
            self._name = name if name in _NAMES else None
            self._scalar = bytearray() if self._name is not None else None
            self._value = None
        elif self._name is not None:
            self._value_end = end
            self._value = _unescape(bytes(text)) if text is not None else None
            self._scalar = None

    def _one_value(self) -> None:
        """A string or container begins. In place of a name, or as a second value, some lenient parser might read on."""
        self._values += 1
        if self._at_name or self._values > 1:
            raise UndecidableBody(Undecidable.MALFORMED)

    def _end_member(self, end: int) -> None:
        """At the comma or brace after a member."""
        name, self._name = self._name, None
        self._step()
        if name is None:
            return
        scalar, self._scalar = self._scalar, None
        value = self._value
        plain = value is not None
        if scalar is not None:
            written = bytes(scalar).partition(b":")[2]
            text = written.strip()
            if text == b"null":
                value, plain = "", True  # no parameter at all; Grape makes a string of `false` where it wants a string
            elif text.isdigit():
                value, plain = text.decode("ascii"), True
            self._value_end = end - (len(written) - len(written.rstrip()))
        self._findings.add(Finding(name, value, self._start, self._value_end, plain))

    def _check_depth(self) -> None:
        if self._depth > _MAX_DEPTH:
            raise UndecidableBody(Undecidable.TOO_DEEP)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise UndecidableBody(Undecidable.TOO_MANY)


def _unescape(text: bytes) -> str | None:
    """The value of a string. Raises :class:`UndecidableBody` for a string with escapes that is not valid JSON."""
    if b"\\" not in text:
        return text.decode("utf-8", "surrogateescape")
    try:
        value = json.loads(b'"' + text + b'"')
    except ValueError:
        raise UndecidableBody(Undecidable.MALFORMED) from None
    return value if isinstance(value, str) else None
