"""What Rails would find in a request body, found while the body streams by.

A scanner reads the body as it passes, in bounded memory, and knows at the end which of the watched top-level parameters
were in it. Where two parsers could disagree, or the form is too much for this one, the verdict is *undecidable* and says
why; it is never a guess. The grammars live in ``body_json``, ``body_form`` and ``body_multipart``; who may send what, in
``body_credentials``.
"""

from __future__ import annotations

import enum
import re
from typing import Protocol

import msgspec

from .credentials import CREDENTIAL_PARAMETERS, FEED_PARAMETERS
from .rule_match import PARAMETERS

PLACE_PARAMETERS = frozenset(name.decode("ascii") for name in PARAMETERS)
"""Parameters through which an operation reaches a project or group other than the one in its path."""

PASSWORDS = frozenset({"password", "refresh_token"})
"""Parameters with which OAuth clients log in: containerd and BuildKit try that at the registry's token service first, then
Basic."""

WATCHED = CREDENTIAL_PARAMETERS | FEED_PARAMETERS | PLACE_PARAMETERS | PASSWORDS | {"sudo", "token", "_method"}
"""The parameters that change who asks, what is asked, or which project it is about."""

MAX_VALUE_BYTES = 16384
"""No credential is longer; a longer value is reported without its text."""


class Undecidable(enum.StrEnum):
    """Why a body could not be read beyond doubt."""

    ENCODED = "encoded"
    CHARSET = "charset"
    MALFORMED = "malformed"
    INCOMPLETE = "incomplete"
    TOO_DEEP = "too_deep"
    TOO_MANY = "too_many"
    BOUNDARY = "boundary"
    CONTENT_TYPE = "content_type"


class Finding(msgspec.Struct, frozen=True, gc=False):
    """A watched parameter."""

    name: str
    value: str | None
    """Decoded; None when it is neither a string nor a number, or is too long."""
    start: int
    """Where the piece to be cut (a member, a pair or a part) begins in the whole body."""
    end: int
    plain: bool
    """Whether it is spelt so that every parser finds exactly this name and value here."""

    def __repr__(self) -> str:
        return f"Finding({self.name})"


class BodyVerdict(msgspec.Struct, frozen=True, gc=False):
    """The verdict on a whole body."""

    findings: tuple[Finding, ...] = ()
    undecidable: Undecidable | None = None


class BodyScanner(Protocol):
    """Reads one body."""

    def feed(self, chunk: bytes) -> None:
        """Read the next octets, split anywhere. Costs nothing more once the body is undecidable."""
        ...

    def so_far(self) -> BodyVerdict:
        """What is sure before the last octet, for bodies that are acted upon sooner: multipart, at the last delimiter."""
        ...

    def finish(self) -> BodyVerdict:
        """The verdict, after the last octet."""
        ...

    def cut(self, body: bytes, finding: Finding) -> bytes:
        """The whole ``body`` without ``finding``; every other octet stays."""
        ...

    @property
    def blind(self) -> int:
        """How many of its readings have stopped early; most scanners have only one."""
        ...

    def may_name(self, octets: bytes) -> bool:
        """Whether ``octets``, however another reader takes them, may name a credential, a method or ``sudo``."""
        ...


MAX_FOUND_BYTES = 1 << 20
"""The memory for one body's findings; the body itself may be of any length."""

_FINDING_BYTES = 256  # so at most 4,096 findings, and Rack takes no more parameters

MAX_UNREAD_BYTES = 20480
"""The most that has been fed but not read when a scanner turns blind: a head, a name, a value."""

MAX_NAMING_BYTES = 1024
"""Any name that ``may_name`` looks for fits into this many octets, including whatever surrounds it."""


class UndecidableBody(Exception):  # noqa: N818 — ends a scan, is never an error of the program
    """Raised inside a scanner when it can't be sure."""

    def __init__(self, reason: Undecidable) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Findings:
    """What one scanner has found, as much as fits."""

    __slots__ = ("_found", "_left")

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._left = MAX_FOUND_BYTES

    def add(self, finding: Finding) -> None:
        """Keep ``finding``. Raises :class:`UndecidableBody` at the first that is too many, which is still kept."""
        self._found.append(finding)
        self._left -= _FINDING_BYTES + len(finding.value or "")
        if self._left < 0:
            raise UndecidableBody(Undecidable.TOO_MANY)

    def all(self) -> tuple[Finding, ...]:
        """Every finding, in the order found."""
        return tuple(self._found)


class UnreadableBody:
    """For bodies whose form alone makes them undecidable."""

    blind = True

    def __init__(self, reason: Undecidable) -> None:
        self._reason = reason

    def feed(self, chunk: bytes) -> None:
        """Nothing to learn."""

    def so_far(self) -> BodyVerdict:
        return BodyVerdict((), self._reason)

    def finish(self) -> BodyVerdict:
        return BodyVerdict((), self._reason)

    def cut(self, body: bytes, finding: Finding) -> bytes:
        raise AssertionError("nothing was found here")

    def may_name(self, octets: bytes) -> bool:
        """Another reader may find parts by another boundary, and without any boundary Rack reads a form, where letters may
        be encoded. A body of no type at all is read by nobody."""
        return self._reason is Undecidable.BOUNDARY and (
            names_credential(octets) or _ENCODED_LETTER.search(octets) is not None
        )


_ENCODED_LETTER = re.compile(rb"%[4-7]")


# Finds `sudo` only as a name, since uploaded content may well mention it. Rack 2 skips brackets before a name, and takes a
# name from the next line of a part's head; forms may have blanks after `&`. Rack 3 skips blanks after `name=`, even across
# a folded line, and Workhorse skips them at the end of a name. What follows 256 blanks or brackets may be in another chunk
# than what precedes them.
_SUDO = re.compile(
    rb"(?:\A|[\"=&])[\[\]]*+sudo(?![0-9A-Za-z_-])|& ++[\[\]]*+sudo[\[\]=&]"
    rb"|=[\s\0]++sudo(?:[ \t\x0b\f\0]{256}|[ \t\x0b\f\0]*+[;\r\n])"
    rb"|:\s*+[\[\]]*+sudo(?:[\[\]]{256}|[\[\]]*+(?:[ \t]{256}|[ \t]*+[\r\n]))|sudo(?<=[\s\0\[\]]{256}sudo)[\s\0\[\]=&]"
)


# Rack 3.2 removes this charset's escapes from a part's name and content: `su\x1b(Bdo` is `sudo`. Blanks as above.
_RECODED = re.compile(rb"(?:(?:charset[\s\0]*+|[\s\0])=[\s\0]*+|[\s\0]{2})\"?iso-?2022-jp", re.IGNORECASE)


def is_recoded(octets: bytes) -> bool:
    """Whether ``octets`` of a part's head declare ISO-2022-JP, so that its name may be another than its octets spell."""
    return b"2022" in octets and _RECODED.search(octets) is not None


def names_credential(octets: bytes) -> bool:
    """Whether ``octets`` hold a credential's name, the method's or ``sudo``, whichever letters follow a backslash."""
    octets = octets.replace(b"\\", b"")
    if b"_token" in octets or b"_method" in octets or is_recoded(octets):
        return True
    return b"sudo" in octets and _SUDO.search(octets) is not None  # no expression is as fast as the substring test


def names_method(octets: bytes) -> bool:
    """Whether ``octets`` hold ``_method``, whichever letters follow a backslash."""
    return b"_method" in octets.replace(b"\\", b"") or is_recoded(octets)


_MEDIA_TYPE = re.compile(r"[;,]")
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s\";,]*)", re.IGNORECASE)
# GitLab ignores the charset. A reader that heeds it finds the same names and places in each of these; Apache's HttpClient
# declares the last one for every form.
_ASCII_ALIKE = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1"})


def media_type(content_type: bytes) -> str:
    """The media type as Rack reads it: up to the first ``;`` or ``,``, lower-cased."""
    return _MEDIA_TYPE.split(content_type.decode("latin-1"), maxsplit=1)[0].strip().lower()


def keeps_ascii(content_type: bytes) -> bool:
    """Whether no ``charset`` in ``content_type`` gives ASCII letters another meaning."""
    return all(name.lower() in _ASCII_ALIKE for name in _CHARSET.findall(content_type.decode("latin-1")))
