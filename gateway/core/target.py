"""The request target: carried as the raw octets received, parsed *beside* them, never re-encoded.

Percent-decoding happens here and nowhere else in the package, and its results serve only policy and labels. A target that
GitLab, Workhorse and this gateway could read differently is refused (400); one that is merely unusual passes.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import msgspec

from .errors import Code, Rejection


class Target(msgspec.Struct, frozen=True, gc=False):
    """A request target that has been judged unambiguous."""

    raw: bytes
    """The origin form, byte for byte as received (for an absolute-form target: what follows the authority)."""
    path: bytes
    """``raw`` up to the first ``?``."""
    query: bytes | None
    """What follows the first ``?``; ``b""`` for a bare trailing ``?``, None without one."""
    segments: tuple[str, ...]
    """The path, split on literal ``/`` first, each segment then decoded once (UTF-8, surrogateescape). The configured
    relative-URL prefix is cut off, and there is no trailing empty segment."""
    authority: bytes | None = None
    """The authority of an absolute-form target, for the edge's Host rules; None for origin form."""


MAX_TARGET_BYTES = 16384

# Changes every octet except visible ASCII, and also the two visible octets that no target may contain: a fragment is never
# sent (RFC 9112 §3.2.1), and some parsers take a backslash for a slash.
_ALLOWED = bytes(octet if 0x20 < octet < 0x7F and octet not in b"#\\" else octet ^ 1 for octet in range(256))
# No percent sign, and no segment that is empty or starts with a dot: nothing in such a path can decode into anything else.
_PLAIN = re.compile(rb"(?>(?:/[^/.%][^/%]*+)*)/?")
_BAD_TRIPLET = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]*)(.*)", re.DOTALL)
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]*)?")
# How often decoding is repeated, only for the check: as often as a proxy, Workhorse and Rails together could decode.
_ROUNDS = 3

_PARSED: dict[bytes, tuple[str, ...]] = {}
_PARSED_BOUND = 8192
_PARSED_PATH_BYTES = 512


def parse_target(raw: bytes, *, max_bytes: int = MAX_TARGET_BYTES, prefix: bytes = b"") -> Target:
    """Judge the target of a request line.

    Args:
        raw: The target as received: origin form, or absolute form (RFC 9112 §3.2.2).
        max_bytes: The longest target that is accepted.
        prefix: GitLab's relative URL root, such as ``/gitlab``; empty if it is ``/``.

    Raises:
        Rejection: TARGET_TOO_LONG (414); BAD_TARGET: 400, or 404 outside the prefix. Neither quotes the target.
    """
    if len(raw) > max_bytes:
        raise Rejection(
            Code.TARGET_TOO_LONG, 414, "414 Request-URI Too Large", close=True, proxy_error="http_request_error"
        )
    if raw.translate(_ALLOWED) != raw:
        raise _refused("octet")
    authority = None
    if not raw.startswith(b"/"):
        authority, raw = _origin_form(raw)
    path, mark, rest = raw.partition(b"?")
    inner = path
    if prefix:
        if path != prefix and not path.startswith(prefix + b"/"):
            raise Rejection(Code.BAD_TARGET, 404, "404 Not Found", detail="outside the relative URL root")
        inner = path[len(prefix) :] or b"/"
    segments = _PARSED.get(inner)
    if segments is None:
        segments = _parse_path(inner)
        _remember(inner, segments)
    return Target(raw, path, rest if mark else None, segments, authority)


def _origin_form(raw: bytes) -> tuple[bytes, bytes]:
    """Authority and origin form of an absolute-form target. The scheme is ignored: it proves nothing."""
    match = _ABSOLUTE.fullmatch(raw)
    if match is None:
        raise _refused("form")
    authority, rest = match[1], match[2]
    # RFC 9110 §4.2.4: userinfo in a target is an error; `_AUTHORITY` has no "@".
    if _AUTHORITY.fullmatch(authority) is None:
        raise _refused("authority")
    if not rest.startswith(b"/"):
        rest = b"/" + rest
    return authority, rest


def _parse_path(path: bytes) -> tuple[str, ...]:
    if path == b"/":
        return ()
    if _PLAIN.fullmatch(path):
        return tuple(path.decode("ascii").removesuffix("/").split("/")[1:])
    if _BAD_TRIPLET.search(path):
        raise _refused("percent")
    return tuple([_decode_segment(segment) for segment in path.removesuffix(b"/").split(b"/")[1:]])


def _decode_segment(segment: bytes) -> str:
    """``segment`` decoded once, after decoding it further only for the check."""
    if segment.isalnum():  # as most are: there is nothing to check
        return segment.decode("ascii")
    if not segment:
        raise _refused("empty segment")
    _check_dots(segment)
    if b"%" not in segment:
        return segment.decode("ascii")
    once = decoded = percent_decode(segment)
    for _ in range(_ROUNDS):
        if b"\0" in decoded:
            raise _refused("nul")
        _check_dots(decoded)
        if b"%" not in decoded:
            break
        decoded = percent_decode(decoded)
    return once.decode("utf-8", "surrogateescape")


def _check_dots(segment: bytes) -> None:
    """Refuse a dot segment; ``;`` ends a segment for parsers that know path parameters.

    A ``..`` between *decoded* slashes or backslashes is refused as well: GitLab's own traversal check does so (and
    Workhorse, in front of it, chooses its route by a cleaned path). A single dot there is harmless and passes.
    """
    if b"." not in segment:
        return
    if segment.partition(b";")[0] in {b".", b".."}:
        raise _refused("dot segment")
    if b".." not in segment:
        return
    for part in segment.replace(b"\\", b"/").split(b"/"):
        if part.partition(b";")[0] == b"..":
            raise _refused("traversal")


def _remember(path: bytes, segments: tuple[str, ...]) -> None:
    if len(path) > _PARSED_PATH_BYTES:
        return
    if len(_PARSED) >= _PARSED_BOUND:
        # The older half goes, as dicts keep insertion order: emptying it all would make every caller miss at once.
        for stale in list(_PARSED)[: _PARSED_BOUND // 2]:
            del _PARSED[stale]
    _PARSED[path] = segments


def percent_decode(octets: bytes) -> bytes:
    """``octets`` with each valid ``%xx`` decoded once; invalid ones stay as they are."""
    if b"%" not in octets:
        return octets
    # Nearly all escapes are slashes: if no percent sign is left once those are decoded, there was nothing else to decode.
    slashed = octets.replace(b"%2F", b"/")
    return slashed if b"%" not in slashed else unquote_to_bytes(octets)


def _refused(why: str) -> Rejection:
    return Rejection(
        Code.BAD_TARGET, 400, "400 Bad Request", close=True, proxy_error="http_request_error", detail=f"target: {why}"
    )
