"""Urlencoded bodies, read as Rack reads them: names are decoded once, brackets nest.

Rack splits a form on ``&`` alone, other readers on ``;`` too: what only the latter find is reported as not plain.
"""

from __future__ import annotations

import re

from .body import MAX_VALUE_BYTES, WATCHED, BodyVerdict, Finding, Findings, Undecidable, UndecidableBody
from .query import BLANKS, form_decode, top_level_name

_MAX_NAME_BYTES = 4096
_LONGEST = max(map(len, WATCHED))
_MAX_PAIRS = 65_536  # pairs looked at one by one; Rack refuses more than 4,096
_MAX_SUSPECTS = 4_096  # pairs that are also decoded, which takes ten times as long
# Watched names hold only lower-case letters and `_`, so an escape of anything else hides none.
_MAYBE = re.compile(rb"token|password|sudo|_method|project|group|namespace|forked|%(?:5[Ff]|6[1-9A-Fa-f]|7[0-9Aa])")
_SEPARATOR = re.compile(rb"[&;]")


class FormScanner:
    """One urlencoded body."""

    def __init__(self) -> None:
        self._findings = Findings()
        self._doubt: Undecidable | None = None
        self._rest = b""  # an unfinished pair, or as much of it as matters
        self._at = 0  # where that pair begins in the body
        self._separator = b""
        self._name: str | None = None  # the watched name of a pair whose value goes on
        self._skipping = False  # the rest of the pair does not matter
        self._read = 0
        self._looked_at = 0
        self._suspects = 0

    def feed(self, chunk: bytes) -> None:
        start = self._read
        self._read += len(chunk)
        if self._doubt is not None:
            return
        try:
            self._scan(chunk, start)
        except UndecidableBody as doubt:
            self._doubt = doubt.reason

    def so_far(self) -> BodyVerdict:
        return BodyVerdict()

    def finish(self) -> BodyVerdict:
        if self._doubt is None and not self._skipping and self._rest:
            rest, self._rest = self._rest, b""
            # An old Safari ends its forms with NUL, which Rack cuts off.
            try:
                self._pair(rest.removesuffix(b"\0"), self._at, b"")
            except UndecidableBody as doubt:
                self._doubt = doubt.reason
        return BodyVerdict(self._findings.all(), self._doubt)

    @property
    def blind(self) -> bool:
        return self._doubt is not None

    def may_name(self, octets: bytes) -> bool:
        return _MAYBE.search(octets) is not None

    def cut(self, body: bytes, finding: Finding) -> bytes:
        """The ``body`` without the pair and the separator after it, or before it if the pair is the last."""
        before, after = body[: finding.start], body[finding.end :]
        if before and after:
            return before + after[1:]
        return before[:-1] or after[1:].lstrip(b" ")  # blanks belong to a name at the beginning, but not after `&`

    def _scan(self, chunk: bytes, base: int) -> None:
        if self._skipping:
            match = _SEPARATOR.search(chunk)
            if match is None:
                return
            self._skipping = False
            self._separator = match[0]
            chunk = chunk[match.end() :]
            base += match.end()
            self._at = base
        data = self._rest + chunk
        base = self._at
        # Whole pairs first: up to the last separator.
        last = max(data.rfind(b"&"), data.rfind(b";"))
        if last >= 0:
            if _MAYBE.search(data, 0, last):
                self._pairs(data[:last], base, data[last : last + 1])
            self._separator = data[last : last + 1]
            data = data[last + 1 :]
            self._at = base + last + 1
            self._name = None
        self._rest = data
        name, equals, value = data.partition(b"=")
        if equals or len(name) > _MAX_NAME_BYTES:
            watched, self._name = self._name or _watched(name), None
            if watched is None:
                self._skipping, self._rest = True, b""
            elif not equals:
                raise UndecidableBody(Undecidable.MALFORMED)
            elif len(value) > MAX_VALUE_BYTES:
                self._skipping, self._rest = True, b""
                self._findings.add(Finding(watched, None, self._at, self._at, plain=False))
            else:
                self._name = watched

    def _pairs(self, data: bytes, base: int, final: bytes) -> None:
        """Every pair of ``data``; ``final`` is the separator after it."""
        names = b"&".join([piece.partition(b"=")[0] for piece in data.replace(b";", b"&").split(b"&")])
        if _MAYBE.search(names) is None:
            return
        start = 0
        for match in _SEPARATOR.finditer(data):
            self._pair(data[start : match.start()], base + start, match[0])
            start = match.end()
        self._pair(data[start:], base + start, final)

    def _pair(self, piece: bytes, at: int, after: bytes) -> None:
        before, self._separator = self._separator, after
        self._looked_at += 1
        if self._looked_at > _MAX_PAIRS:
            raise UndecidableBody(Undecidable.TOO_MANY)
        raw_name, _, raw_value = piece.partition(b"=")
        if not _MAYBE.search(raw_name):
            return
        self._suspects += 1
        if self._suspects > _MAX_SUSPECTS:
            raise UndecidableBody(Undecidable.TOO_MANY)
        name = _watched(raw_name)
        if name is None:
            return
        decoded = form_decode(raw_value)
        plain = (
            form_decode(raw_name) == name.encode() and before != b";" and after != b";" and len(decoded) <= MAX_VALUE_BYTES
        )
        value = decoded.decode("utf-8", "surrogateescape") if len(decoded) <= MAX_VALUE_BYTES else None
        self._findings.add(Finding(name, value, at, at + len(piece), plain))


def _watched(raw_name: bytes) -> str | None:
    if len(raw_name) > _MAX_NAME_BYTES:
        return _watched_by_its_beginning(raw_name[:_MAX_NAME_BYTES])
    name = top_level_name(form_decode(raw_name)).decode("utf-8", "surrogateescape")
    return name if name in WATCHED else None


def _watched_by_its_beginning(raw_name: bytes) -> str | None:
    """The watched name that a long raw name begins with. (Text with a bare ``;`` or ``&`` in it looks like a long name.)"""
    decoded = form_decode(raw_name)
    name = top_level_name(decoded)
    if len(name) > _LONGEST:
        return None
    behind = decoded.partition(name)[2] if name else b""
    if not behind:
        raise UndecidableBody(Undecidable.MALFORMED)
    text = name.decode("utf-8", "surrogateescape")
    if text not in WATCHED:
        return None
    if not behind.strip(BLANKS):  # what follows the blanks may make it another name
        raise UndecidableBody(Undecidable.MALFORMED)
    return text
