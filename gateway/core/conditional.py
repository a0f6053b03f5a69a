"""Validators and preconditions (RFC 9110 §8.8, §13): compared here, never in the stores."""

from __future__ import annotations

import re

_ETAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_IS_ETAG = re.compile(_ETAG)
# All that separates two members is one match: if it were tried anew from each comma, it would take quadratic time.
_MEMBER = re.compile(rb"[ \t,]++|(%s)[ \t]*(?=,|$)|[^,]+" % _ETAG)


def is_etag(value: bytes) -> bool:
    """Whether ``value`` is a well-formed entity tag (§8.8.3); anything else validates nothing."""
    return _IS_ETAG.fullmatch(value) is not None


def is_strong(etag: bytes) -> bool:
    """Whether ``etag`` is strong: good enough to join octets of two answers (§8.8.3.2)."""
    return etag[:1] == b'"'


def weak_equal(one: bytes, other: bytes) -> bool:
    """Whether two entity tags are the same, regardless of weakness (§8.8.3.2)."""
    return one.removeprefix(b"W/") == other.removeprefix(b"W/")


def strong_equal(one: bytes, other: bytes) -> bool:
    """Whether two entity tags are the same, and both strong."""
    return one == other and is_strong(one)


def none_match(condition: bytes, etag: bytes) -> bool:
    """Whether ``If-None-Match`` lets the answer with ``etag`` be sent in full; if not, a 304 is due.

    Malformed members never match.

    Args:
        condition: The field's value, lines joined.
        etag: The stored answer's entity tag; ``b""`` if it has none.
    """
    if condition.strip(b" \t") == b"*":
        return False
    if not etag:
        return True
    if condition == etag:  # what nearly every poller sends
        return False
    return not any(match.group(1) is not None and weak_equal(match.group(1), etag) for match in _MEMBER.finditer(condition))
