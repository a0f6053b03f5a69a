"""Workload tokens (JWTs, RFC 7519): read strictly, judged by a configured identity. ``identity`` verifies signatures.

``peek`` believes nothing; its result says whose token this claims to be and which key would have signed it. A token that
contains a member twice, at any depth, is malformed: two parsers would believe different ones.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from typing import Any

import msgspec

from .globs import Glob
from .key_record import LONGEST_NOTE
from .redaction import redact

MAX_LENGTH = 16_384
"""The most characters of a token; GitLab's own have some two thousand."""
_MAX_HEADER = 4096
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_LONGEST_KEY_ID = 512
# Not directly after a letter, digit, `_` or `-`: GitLab's own job tokens are `glcbt-` and a JWT.
_HELD = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", re.ASCII)


class UnverifiedToken(msgspec.Struct, frozen=True, gc=False):
    """What a token says about itself, unverified."""

    issuers: tuple[str, ...]
    """Every ``iss`` in it; a sound token has one."""
    algorithm: str = ""
    key_id: str | None = None
    claims: dict[str, Any] = {}
    sound: bool = False
    """It can be read in one way only, and requires no extension (``crit``) that isn't understood here."""

    def __repr__(self) -> str:
        return f"UnverifiedToken({self.algorithm})"


def looks_like_jwt(text: str) -> bool:
    """Whether ``text`` looks like a JWT. ``eyJ`` is ``{"`` in base64: every JWT starts with it, and no GitLab token with a
    prefix does."""
    return text.startswith("eyJ")


def find_jwts(text: str) -> list[str]:
    """What looks like a JWT within ``text``: in quotes, after a scheme, perhaps with something after it."""
    return _HELD.findall(text) if "eyJ" in text else []


def peek(text: str) -> UnverifiedToken | None:
    """Read a token without verifying it; None if it is no JWT at all. Never raises."""
    parts = text.split(".", 3)
    if len(text) > MAX_LENGTH or len(parts) != 3:
        return None
    header, payload = _read(parts[0]), _read(parts[1])
    if payload is None or not isinstance(payload.value, dict):
        return None
    issuers = tuple(payload.issuers)
    if header is None or not isinstance(header.value, dict) or len(parts[0]) > _MAX_HEADER:
        return UnverifiedToken(issuers)
    algorithm, key_id = header.value.get("alg"), header.value.get("kid")
    if (
        header.twice
        or payload.twice
        or not isinstance(algorithm, str)
        or not (key_id is None or (isinstance(key_id, str) and 0 < len(key_id) <= _LONGEST_KEY_ID))
        or "crit" in header.value  # RFC 7515 §4.1.11: an extension not understood refuses the token
        or _SEGMENT.fullmatch(parts[2]) is None
    ):
        return UnverifiedToken(issuers)
    return UnverifiedToken(issuers, algorithm, key_id, payload.value, sound=True)


class _Read:
    """One JSON segment: its value, every ``iss`` in it, and whether a member occurs twice."""

    def __init__(self) -> None:
        self.value: Any = None
        self.issuers: list[str] = []
        self.twice = False

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        self.twice = self.twice or len(found) != len(pairs)
        self.issuers += [value for name, value in pairs if name == "iss" and isinstance(value, str)]
        return found


def _read(segment: str) -> _Read | None:
    if _SEGMENT.fullmatch(segment) is None:
        return None
    read = _Read()
    try:
        octets = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        read.value = json.loads(octets.decode("utf-8"), object_pairs_hook=read.object, parse_constant=_no_constant)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return read


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Judging


class Pattern:
    """A pattern for a whole value: text, with ``*`` for a run without ``/`` and ``**`` for any run."""

    __slots__ = ("_glob", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._glob = Glob(text)

    def matches(self, value: object) -> bool:
        """Whether ``value`` matches: a string, integer or boolean, or a list with a member that does. Nothing else does."""
        if isinstance(value, list):
            return any(self.matches(item) for item in value if not isinstance(item, list))
        if isinstance(value, bool):
            value = "true" if value else "false"  # GitLab sends the words, others send JSON's values
        elif isinstance(value, int):
            value = str(value)
        return isinstance(value, str) and self._glob.match(value)


class Requirement(msgspec.Struct, frozen=True):
    """What an identity requires of a token whose signature is valid."""

    issuer: str
    audience: str
    claims: tuple[tuple[str, Pattern], ...]
    skew_s: float = 30.0

    def unmet(self, claims: dict[str, Any], now: float) -> list[str]:
        """The claims that do not meet the requirement, by name, and of times what is wrong with them; none: the token is
        admitted. A token without an expiry is refused. ``now`` is in Unix seconds."""
        unmet = [] if claims.get("iss") == self.issuer else ["iss"]
        if not _is_for(claims.get("aud"), self.audience):
            unmet.append("aud")
        untimely = self._untimely(claims, now)
        if untimely:
            unmet.append(untimely)
        return unmet + [name for name, pattern in self.claims if not pattern.matches(claims.get(name))]

    def _untimely(self, claims: dict[str, Any], now: float) -> str:
        """Why the token has not been issued, has not become valid or has expired, give or take the skew; empty: it is
        current."""
        expires_at = _instant(claims.get("exp"))
        if expires_at is None:
            return "exp"
        if now >= expires_at + self.skew_s:
            return "exp (it has expired)"
        for name in ("nbf", "iat"):
            if name in claims:
                begins_at = _instant(claims[name])
                if begins_at is None:
                    return name
                if begins_at > now + self.skew_s:
                    return f"{name} (it is in the future: compare the clocks)"
        return ""

    def valid_until(self, claims: dict[str, Any]) -> float:
        """The instant from which an admitted token is refused."""
        return (_instant(claims.get("exp")) or 0.0) + self.skew_s


def _is_for(audience: object, wanted: str) -> bool:
    if isinstance(audience, list):
        return all(isinstance(one, str) for one in audience) and wanted in audience
    return audience == wanted


# What the audit says of the bearer

LONGEST_SUBJECT = LONGEST_NOTE
"""Characters: after an exchange, the note of the key holds the subject."""
_LONGEST_VALUE = 64


def token_id(claims: dict[str, Any]) -> str:
    """The token's ``jti`` (RFC 7519 §4.1.7), if it has a usable one."""
    value = claims.get("jti")
    return value if isinstance(value, str) and len(value) <= _LONGEST_VALUE and value.isprintable() else ""


def describe_bearer(claims: dict[str, Any], names: tuple[str, ...]) -> str:
    """``sub``, then ``name=value`` for each of ``names`` that the claims have, in printable characters and without other
    blanks: nobody's name may pass for a further claim. Where it would be too long, ``sub`` is cut: the other claims are
    what tells one bearer from another. What is cut says so: the start of a number is somebody else's number."""
    said = "".join(f" {name}={_cut(value, _LONGEST_VALUE)}" for name in names if (value := _word(claims.get(name))))
    said = _printable(_cut(said, LONGEST_SUBJECT))
    subject = claims.get("sub")
    text = _word(subject) if isinstance(subject, str) else ""
    return (_cut(text, LONGEST_SUBJECT - len(said)) + said).strip()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…" if most > 0 else ""


def _word(value: object) -> str:
    """A claim's value without spaces and tokens; empty for what is neither text, nor a whole number, nor a boolean."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _LONGEST_VALUE else ""
    if not isinstance(value, str):
        return ""
    # Here, before it is cut: the list of keys shows it, too, and half a token has no token's form.
    clean = redact(value.encode("utf-8", "replace")).decode("utf-8", "replace")
    return _printable(clean).replace(" ", "?")


def _printable(text: str) -> str:
    return "".join([letter if letter.isprintable() else "?" for letter in text])


def _instant(value: object) -> float | None:
    """A NumericDate (§2): a finite number, not a boolean. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        instant = float(value)
    except OverflowError:
        return None
    return instant if math.isfinite(instant) else None
