"""Paths and other texts with stars in them, matched in a time that callers can't make explode.

A regular expression tries each star at every place that the others leave: for ``team/*-*-*`` and a row of dashes, that is
the cube of their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_STARS = re.compile(r"\*\*|\*")
_PATH = re.compile(r"[a-z0-9_./-]*")


class Globs:
    """Several patterns in lower case: ``*`` is any run of a path's characters except ``/``, ``**`` any run."""

    __slots__ = ("_begin", "_plain", "_starry")

    def __init__(self, entries: Iterable[str]) -> None:
        entries = tuple(entries)
        # A single star takes whatever is between two texts: one expression matches many such patterns at once.
        plain = [_expression(entry) for entry in entries if len(_STARS.findall(entry)) == 1]
        self._plain = re.compile("|".join(plain)) if plain else None
        others = [entry for entry in entries if len(_STARS.findall(entry)) != 1]
        self._starry = [Glob(entry) for entry in others]
        # Most paths match none of them, and their beginning tells that for all patterns at once.
        self._begin = re.compile("|".join({re.escape(entry.partition("*")[0]) for entry in others}))

    def match(self, path: str) -> bool:
        """Whether one of the patterns matches the whole ``path``."""
        if self._plain is not None and self._plain.fullmatch(path) is not None:
            return True
        if not self._starry or self._begin.match(path) is None or _PATH.fullmatch(path) is None:
            return False
        return any(glob.match(path) for glob in self._starry)


class Glob:
    """One pattern: ``*`` is any run without ``/``, ``**`` any run."""

    __slots__ = ("_runs",)

    def __init__(self, text: str) -> None:
        self._runs = [run.split("*") for run in text.split("**")]
        """What the ``**`` separate, each split at its ``*``."""

    def match(self, text: str) -> bool:
        """Whether the pattern matches the whole ``text``."""
        return _is_all(self._runs, text)


_Run = list[str]
"""Texts with a ``*`` between neighbours."""


def _expression(entry: str) -> str:
    before, after = _STARS.split(entry)
    return re.escape(before) + ("[a-z0-9_./-]*" if "**" in entry else "[a-z0-9_.-]*") + re.escape(after)


# The first place for each text is the best: whatever can follow it at a later place can follow it here, too. ``/`` is no
# exception: within a run, each ``/`` of the path belongs to one of the texts, and so tells where these are.


def _is_all(runs: list[_Run], path: str) -> bool:
    first, last = runs[0], runs[-1]
    if not path.startswith(first[0]) or not path.endswith(last[-1]):
        return False
    if len(runs) == 1:
        if len(first) == 1:
            return path == first[0]
        at, until = _leading(first[:-1], path), len(path) - len(first[-1])
        return 0 <= at <= until and "/" not in path[at:until]
    at, until = _leading(first, path), _trailing(last, path)
    for run in runs[1:-1]:
        if not 0 <= at <= until:
            return False
        at = _within(run, path, at, until)
    return 0 <= at <= until


def _leading(run: _Run, path: str) -> int:
    """Where ``run`` ends, as early as possible, if ``path`` begins with its first text; -1 if it does not match there."""
    return _from(run, path, 0, len(path))[0]


def _trailing(run: _Run, path: str) -> int:
    """Where ``run`` begins, as late as possible, if ``path`` ends with its last text; -1 if it does not match there."""
    at = len(path) - len(run[-1])
    for text in reversed(run[:-1]):
        found = path.rfind(text, 0, at)
        if found < 0 or path.find("/", found + len(text), at) >= 0:
            return -1
        at = found
    return at


def _within(run: _Run, path: str, at: int, until: int) -> int:
    """Where ``run`` ends, as early as possible, if it begins at ``at`` or later; -1 if it has no match before ``until``."""
    while True:
        at = path.find(run[0], at, until)
        if at < 0:
            return -1
        end, later = _from(run, path, at, until)
        if end >= 0 or later < 0:
            return end
        at = later


def _from(run: _Run, path: str, at: int, until: int) -> tuple[int, int]:
    """Where ``run`` ends if its first text is at ``at``; or -1, and from where on it may begin instead (-1: nowhere)."""
    end = at + len(run[0])
    for number, text in enumerate(run[1:], 1):
        wall = path.find("/", end, until)
        found = path.find(text, end, until if wall < 0 else min(until, wall + len(text)))
        if found < 0:
            if wall < 0:
                return -1, -1
            # The part of the run before this text must reach beyond the wall, and has no ``/`` except those in its texts.
            # To try each place before would take quadratic time.
            for _ in range("".join(run[:number]).count("/")):
                wall = path.rfind("/", at, wall)
            return -1, wall + 1
        end = found + len(text)
    return end, -1
