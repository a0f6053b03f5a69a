"""What Rails would find in a request body, found while it streams by.

A scanner reads the body as it passes, in bounded memory, and knows at the end which of the watched top-level parameters
were in it. Where two parsers could disagree, or the form is beyond this one, the verdict is *undecidable* and says why:
never a guess. The grammars live in ``body_json``, ``body_form`` and ``body_multipart``; who may send what, in
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
"""Those by which an operation reaches another project or group than its path's."""

PASSWORDS = frozenset({"password", "refresh_token"})
"""By which OAuth's clients log in: containerd and BuildKit try so at the registry's token service, before Basic."""

WATCHED = CREDENTIAL_PARAMETERS | FEED_PARAMETERS | PLACE_PARAMETERS | PASSWORDS | {"sudo", "token", "_method"}
"""The parameters that change who asks, what is asked, or of which project."""

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
    """Decoded; None when it is no string or number, or too long."""
    start: int
    """Where what must be cut begins in the whole body: a member, a pair, a part."""
    end: int
    plain: bool
    """Spelt so that every parser finds this very name and value here."""

    def __repr__(self) -> str:
        return f"Finding({self.name})"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The whole body's."""

    findings: tuple[Finding, ...] = ()
    undecidable: Undecidable | None = None


class BodyScanner(Protocol):
    """Reads one body."""

    def feed(self, chunk: bytes) -> None:
        """The next octets, split anywhere. Costs nothing more once the body is undecidable."""
        ...

    def so_far(self) -> Verdict:
        """What is sure before the last octet, of bodies that are acted upon before it: of parts, at the last delimiter."""
        ...

    def finish(self) -> Verdict:
        """The verdict, after the last octet."""
        ...

    def cut(self, body: bytes, finding: Finding) -> bytes:
        """``body``, whole, less ``finding``; every other octet stays."""
        ...

    @property
    def blind(self) -> int:
        """How many of its readings, one in most cases, read no further."""
        ...

    def may_name(self, octets: bytes) -> bool:
        """Whether what ``octets`` name, however another reader takes them, may be a credential, a method or ``sudo``."""
        ...


MAX_FOUND_BYTES = 1 << 20
"""Of one body's findings; a body may be as long as it likes."""

_FINDING_BYTES = 256  # so 4,096 of them, and Rack takes no more parameters

MAX_UNREAD_BYTES = 20480
"""At most so much has been fed, and not been read, when a scanner turns blind: a head, a name, a value."""

MAX_NAMING_BYTES = 1024
"""So many octets name what ``may_name`` asks for, whatever stands about a name."""


class Doubt(Exception):  # noqa: N818 — ends a scan, is never an error of the program
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
        """Raises :class:`Doubt` with the one that is too many: that one is kept, too."""
        self._found.append(finding)
        self._left -= _FINDING_BYTES + len(finding.value or "")
        if self._left < 0:
            raise Doubt(Undecidable.TOO_MANY)

    def all(self) -> tuple[Finding, ...]:
        """In their order."""
        return tuple(self._found)


class Hopeless:
    """For bodies whose form alone makes them undecidable."""

    blind = True

    def __init__(self, reason: Undecidable) -> None:
        self._reason = reason

    def feed(self, chunk: bytes) -> None:
        """Nothing to learn."""

    def so_far(self) -> Verdict:
        return Verdict((), self._reason)

    def finish(self) -> Verdict:
        return Verdict((), self._reason)

    def cut(self, body: bytes, finding: Finding) -> bytes:
        raise AssertionError("nothing was found here")

    def may_name(self, octets: bytes) -> bool:
        """Parts may be found by another boundary, and without any Rack reads a form, where letters may be encoded; what is
        of no type at all is read by nobody."""
        return self._reason is Undecidable.BOUNDARY and (
            named_plainly(octets) or _ENCODED_LETTER.search(octets) is not None
        )


_ENCODED_LETTER = re.compile(rb"%[4-7]")


# As a name: what is uploaded may well speak of it. Rack 2 passes over brackets before one, and takes one from the next
# line of a part's head; forms may have blanks behind `&`. Rack 3 passes over those behind `name=`, be it a folded line, and
# Workhorse over those at the end of one. What stands behind 256 of either may be in another chunk than what is before them.
_SUDO = re.compile(
    rb"(?:\A|[\"=&])[\[\]]*+sudo(?![0-9A-Za-z_-])|& ++[\[\]]*+sudo[\[\]=&]"
    rb"|=[\s\0]++sudo(?:[ \t\x0b\f\0]{256}|[ \t\x0b\f\0]*+[;\r\n])"
    rb"|:\s*+[\[\]]*+sudo(?:[\[\]]{256}|[\[\]]*+(?:[ \t]{256}|[ \t]*+[\r\n]))|sudo(?<=[\s\0\[\]]{256}sudo)[\s\0\[\]=&]"
)


# Rack 3.2 takes the escapes of this charset out of a part's name and content: `su\x1b(Bdo` is `sudo`. Blanks as above.
_RECODED = re.compile(rb"(?:(?:charset[\s\0]*+|[\s\0])=[\s\0]*+|[\s\0]{2})\"?iso-?2022-jp", re.IGNORECASE)


def is_recoded(octets: bytes) -> bool:
    """A part may be named otherwise than its octets say, as ``octets`` of its head do."""
    return b"2022" in octets and _RECODED.search(octets) is not None


def named_plainly(octets: bytes) -> bool:
    """A credential's name, the method's or ``sudo`` stands in ``octets``, whichever letters stand behind a backslash."""
    octets = octets.replace(b"\\", b"")
    if b"_token" in octets or b"_method" in octets or is_recoded(octets):
        return True
    return b"sudo" in octets and _SUDO.search(octets) is not None  # no expression is as fast as the first look


def names_method(octets: bytes) -> bool:
    """``_method`` stands in ``octets``, whichever letters stand behind a backslash."""
    return b"_method" in octets.replace(b"\\", b"") or is_recoded(octets)


_MEDIA_TYPE = re.compile(r"[;,]")
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s\";,]*)", re.IGNORECASE)
# GitLab heeds none. Who does finds the same names and places in these; Apache's HttpClient says the last of every form.
_ASCII_ALIKE = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1"})


def media_type(content_type: bytes) -> str:
    """As Rack reads it: up to the first ``;`` or ``,``, lower-cased."""
    return _MEDIA_TYPE.split(content_type.decode("latin-1"), maxsplit=1)[0].strip().lower()


def keeps_ascii(content_type: bytes) -> bool:
    """No ``charset`` in it makes anything else of ASCII's letters."""
    return all(name.lower() in _ASCII_ALIKE for name in _CHARSET.findall(content_type.decode("latin-1")))
