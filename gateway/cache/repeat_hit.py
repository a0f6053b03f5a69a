"""Looks a stored answer up once more for the very same request, and checks only what may have changed since."""

from __future__ import annotations

from collections.abc import Callable

from ..core.cache_entry import Entry, may_answer_304, not_modified
from ..core.cache_key import selects
from ..core.messages import Fields, ResponseHead
from ..core.project_names import ProjectNames
from .hook_watch import HookWatch

FinderFor = Callable[[bytes, tuple[bytes, ...]], Callable[[], Entry | None]]
"""(key, tags) → a function, to be called again and again, that returns the first entry that a store's ``get`` has for them;
None: there is none, or memory alone can't tell."""

_EARLY_S = 1e-4
"""How much earlier than a full second a change is expected: a double resolves today's instants to some 0.2 µs, so the
change may come early by that much."""


class RepeatHit:
    """One request's way to its stored answer, as ``PrivateCache`` found it.

    Args:
        look: Looks into the store, by the key, and by the tags that follow from the names known now.
        names: The project names known now.
        spelt: The project of the target as spelt there; empty where it has none.
        hooks: The hooks that must still come; None: none need to.
        reuse_s: How old the answer may be.
        fields: The request's fields.
        condition: Its ``If-None-Match``.
        member: The member of ``Cache-Status``, with a placeholder for the seconds left.
    """

    __slots__ = (
        "_computed",
        "_condition",
        "_fields",
        "_hooks",
        "_look",
        "_names",
        "_others",
        "_reuse_s",
        "_spelt",
        "_version",
    )

    def __init__(
        self,
        look: Callable[[], Entry | None],
        *,
        names: ProjectNames,
        spelt: bytes,
        hooks: HookWatch | None,
        reuse_s: float,
        fields: Fields,
        condition: bytes | None,
        member: bytes,
    ) -> None:
        self._look = look
        self._names = names
        self._spelt = spelt
        self._others = names.others(spelt)
        self._version = names.version
        self._hooks = hooks
        self._reuse_s = reuse_s
        self._fields = fields
        self._condition = condition
        self._computed = b"Age: %d\r\nCache-Status: " + member + b"\r\n"

    def current_entry(self, at: float) -> Entry | None:
        """The answer, where it may be served unchanged at ``at`` (Unix seconds); None: only a ``fetch`` can tell."""
        names = self._names
        if names.version != self._version:
            if names.others(self._spelt) != self._others:  # a write under any of its names must purge it
                return None
            self._version = names.version
        if self._hooks is not None and not self._hooks.known_alive:
            return None
        entry = self._look()
        # ``reuse_s`` is more than 0, so a clock that went back makes nothing too old.
        if entry is None or at - entry.received_at >= self._reuse_s:
            return None
        return entry

    def computed_lines(self, entry: Entry, at: float) -> bytes:
        """The lines that are computed anew for each answer, for ``entry``, which is still the answer at ``at``."""
        age_s = at - entry.received_at
        age_s = max(age_s, 0.0)
        return self._computed % (age_s, self._reuse_s - age_s)

    def computed_until(self, entry: Entry, at: float) -> float:
        """The instant until which ``computed_lines`` stays the same from ``at`` on; ``at`` or earlier if unknown."""
        age_s = max(0.0, at - entry.received_at)
        older, less_left = int(age_s) + 1, self._reuse_s - int(self._reuse_s - age_s)
        return entry.received_at + min(older, less_left) - _EARLY_S

    def shown(self, entry: Entry) -> ResponseHead | None:
        """The head to send for ``entry``, without what is computed; None: it answers another request (``Vary``)."""
        if entry.selecting and not selects(entry.selecting, entry.language, self._fields):
            return None
        if self._condition is not None and may_answer_304(entry, self._condition, None):
            return ResponseHead(304, not_modified(entry.fields), b"Not Modified")
        return ResponseHead(entry.status, entry.fields, entry.reason)
