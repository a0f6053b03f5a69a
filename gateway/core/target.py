"""The request target: carried as the raw octets received, parsed *beside* them, never re-encoded.

Percent-decoding happens here and nowhere else in the package, and its results serve policy and labels only.
"""

from __future__ import annotations

import msgspec


class Target(msgspec.Struct, frozen=True, gc=False):
    """A request target judged unambiguous."""

    raw: bytes
    """Origin form, byte for byte as received (of an absolute-form target: what follows the authority)."""
    path: bytes
    """``raw`` up to the first ``?``."""
    query: bytes | None
    """What follows the first ``?``; ``b""`` for a bare trailing ``?``, None without one."""
    segments: tuple[str, ...]
    """Path split on literal ``/`` first, each segment then decoded once (UTF-8, surrogateescape); the configured
    relative-URL prefix is cut off; no trailing empty segment."""
    trailing_slash: bool = False
    authority: bytes | None = None
    """The authority of an absolute-form target, for the edge's Host rules; None for origin form."""
