"""Structured Fields (RFC 9651): reading the dictionaries of targeted cache control, and writing the few values we send.

A parse error is a ``ValueError`` and means that the whole field must be ignored (RFC 9651 §4.2).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NewType

Token = NewType("Token", str)
Bare = int | float | str | bytes | bool | Token
Parameters = dict[str, Bare]
Member = tuple[Bare | tuple[tuple[Bare, Parameters], ...], Parameters]

_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_NUMBER = re.compile(r"-?(?:(?P<decimal>\d{1,12}\.\d{1,3})|(?P<integer>\d{1,15}))(?![\d.])")
_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_STRING = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_OWS = re.compile(r"[ \t]*")
_SP = re.compile(r" *")


class _Reader:
    """A position in a field value."""

    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise ValueError(f"no {what} at {self.at}")
        self.at = found.end()
        return found

    def accept(self, character: str) -> bool:
        if self.text[self.at : self.at + 1] != character:
            return False
        self.at += 1
        return True

    def ended(self) -> bool:
        return self.at >= len(self.text)


def parse_dictionary(value: bytes) -> dict[str, Member]:
    """Parse a Dictionary (§3.2); of repeated keys the last one counts, and keeps its own place."""
    reader = _Reader(value.decode("ascii", "strict").strip(" "))
    members: dict[str, Member] = {}
    while not reader.ended():
        key = reader.take(_KEY, "key").group()
        members.pop(key, None)
        members[key] = _member(reader) if reader.accept("=") else (True, _parameters(reader))
        reader.skip(_OWS)
        if reader.ended():
            break
        if not reader.accept(","):
            raise ValueError(f"no comma at {reader.at}")
        reader.skip(_OWS)
        if reader.ended():
            raise ValueError("trailing comma")
    return members


def _member(reader: _Reader) -> Member:
    if not reader.accept("("):
        bare = _bare(reader)
        return bare, _parameters(reader)
    items: list[tuple[Bare, Parameters]] = []
    while True:
        reader.skip(_SP)
        if reader.accept(")"):
            return tuple(items), _parameters(reader)
        bare = _bare(reader)
        items.append((bare, _parameters(reader)))
        if reader.text[reader.at : reader.at + 1] not in {" ", ")"}:
            raise ValueError(f"inner list broken at {reader.at}")


def _parameters(reader: _Reader) -> Parameters:
    found: Parameters = {}
    while reader.accept(";"):
        reader.skip(_SP)
        key = reader.take(_KEY, "parameter").group()
        found[key] = _bare(reader) if reader.accept("=") else True
    return found


def _bare(reader: _Reader) -> Bare:
    start = reader.text[reader.at : reader.at + 1]
    if start == "-" or start.isdigit():
        number = reader.take(_NUMBER, "number")
        return float(number.group()) if number["decimal"] else int(number.group())
    if start == '"':
        return re.sub(r"\\(.)", r"\1", reader.take(_STRING, "string").group(1))
    if start == ":":
        try:
            return base64.b64decode(reader.take(_BYTES, "byte sequence").group(1), validate=True)
        except binascii.Error as error:
            raise ValueError("byte sequence") from error
    if start == "?":
        reader.at += 1
        if reader.accept("1"):
            return True
        if reader.accept("0"):
            return False
        raise ValueError("boolean")
    return Token(reader.take(_TOKEN, "token").group())


def serialise_string(text: str) -> str:
    """``text`` as a String (§4.1.6). Characters that it can't hold are dropped: our strings are for people who debug."""
    kept = "".join(character for character in text if " " <= character <= "~")
    return '"' + kept.replace("\\", "\\\\").replace('"', '\\"') + '"'


def serialise_name(text: str) -> str:
    """``text`` as a Token if it is one, else as a String: how a cache or proxy writes its own name."""
    return text if _TOKEN.fullmatch(text) else serialise_string(text)
