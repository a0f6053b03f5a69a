"""Route templates compiled to a tree of path segments.

``:name`` is one segment, ``*name`` one or more, ``(x)`` an optional group; a segment may mix text and names
(``:file_name.tgz``, ``*repository_path.git``). At each segment text beats mixed, mixed beats ``:name``, and ``:name`` beats
``*name``, with backtracking. The cost of a look-up depends on the path's length, never on the number of templates.
"""

from __future__ import annotations

import itertools
import re
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_SEGMENTS = 64
"""Paths with more segments match nothing; GitLab itself answers 414 above 50 slashes
(``Gitlab::Middleware::PathDepthCheck``)."""

Span = tuple[int, int]
"""The segments ``[start, end)`` that one ``*name`` matched."""

_NAME = re.compile(r"[:*][A-Za-z_][A-Za-z0-9_]*")
# What may stand in an optional group: slashes, words and names. `Packages()` and `Packages(Id='…')` are plain text.
_OPTIONAL = re.compile(r"\((/|\*[a-z_]+|(?:[:*]?[A-Za-z0-9_-]+/)+)\)")


def expand(template: str) -> list[str]:
    """Every template that results from taking or leaving out each optional group; the longest first."""
    parts = _OPTIONAL.split(template)
    choices = [(part, "") if index % 2 else (part,) for index, part in enumerate(parts)]
    found = dict.fromkeys("".join(choice) for choice in itertools.product(*choices))
    return [path for path in found if not re.search(r"//|\w\*", path)]


def split(template: str) -> tuple[str, ...]:
    """The template's segments; a trailing slash is ignored, as in GitLab."""
    return tuple(template.strip("/").split("/")) if template.strip("/") else ()


def template_shape(template: str) -> str:
    """The template with its names taken out: two templates of the same shape match the same paths."""
    return _NAME.sub(lambda name: name[0][0], template.rstrip("/"))


def _mixed(segment: str) -> str:
    """A regular expression for a segment that mixes texts and names. For a text between two names its first occurrence is
    the best choice, so no other is tried: in a segment of many `',Version='` that would be a search from each of them.
    """
    first, *between, last = map(re.escape, _NAME.split(segment))
    return first + "".join(f"(?>.+?{text})" for text in between) + ".+" + last


class _Node(Generic[T]):
    __slots__ = ("leaves", "mixed", "one", "serial", "text", "wild")

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.text: dict[str, _Node[T]] = {}
        self.mixed: dict[str, tuple[re.Pattern[str], _Node[T]]] = {}
        self.one: _Node[T] | None = None
        self.wild: dict[str, _Node[T]] = {}
        """The text with which the last of the matched segments must end, ``""`` or ``.git`` → the child."""
        self.leaves: dict[str, T] = {}

    def leaf(self, method: str) -> T | None:
        leaves = self.leaves
        found = leaves.get(method)
        if found is None and leaves:
            if method == "HEAD":
                found = leaves.get("GET")
            if found is None:
                found = leaves.get("ANY")
        return found


class RouteTree(Generic[T]):
    """Templates and their values. Filled once, then only read."""

    def __init__(self) -> None:
        self._serials = itertools.count()
        self._root: _Node[T] = _Node(next(self._serials))

    def add(self, method: str, segments: tuple[str, ...], value: T) -> None:
        """Add a template. ``method`` may be ``ANY``. The first value added for a method and shape stays."""
        node = self._root
        for segment in segments:
            node = self._child(node, segment)
        node.leaves.setdefault(method, value)

    def _child(self, node: _Node[T], segment: str) -> _Node[T]:
        names = _NAME.findall(segment)
        if not names:
            child = node.text.get(segment)
            if child is None:
                child = node.text[segment] = _Node(next(self._serials))
            return child
        if segment == names[0] and segment[0] == ":":
            node.one = node.one or _Node(next(self._serials))
            return node.one
        if segment.startswith("*") and len(names) == 1:
            return node.wild.setdefault(segment[len(names[0]) :], _Node(next(self._serials)))
        pattern = _mixed(segment)
        if pattern not in node.mixed:
            node.mixed[pattern] = (re.compile(pattern, re.DOTALL), _Node(next(self._serials)))
        return node.mixed[pattern][1]

    def find(self, method: str, segments: tuple[str, ...]) -> tuple[T, tuple[Span, ...]] | None:
        """The value that ``segments`` match for ``method``, and what each ``*name`` matched, from left to right.

        HEAD falls back to GET's template. An extension of the last segment, such as ``.json``, is Grape's format if the
        text before it is known at that place and the whole segment is not; otherwise it belongs to the name.
        """
        if len(segments) > MAX_SEGMENTS:
            return None
        spans: list[Span] = []
        # Dead ends are entered only once: otherwise several `*name` would make a hostile path take exponential time.
        dead: set[tuple[int, int]] = set()
        found = self._walk(self._root, 0, segments, method, spans, dead)
        return None if found is None else (found, tuple(reversed(spans)))

    def _walk(
        self,
        node: _Node[T],
        at: int,
        segments: tuple[str, ...],
        method: str,
        spans: list[Span],
        dead: set[tuple[int, int]],
    ) -> T | None:
        count = len(segments)
        if at == count:
            return node.leaf(method)
        here = (node.serial, at)
        if here in dead:
            return None
        segment = segments[at]
        child = node.text.get(segment)
        if child is not None and (found := self._walk(child, at + 1, segments, method, spans, dead)) is not None:
            return found
        if at + 1 == count and "." in segment:
            child = node.text.get(segment[: segment.rindex(".")])
            if child is not None and (found := child.leaf(method)) is not None:
                return found
        for pattern, child in node.mixed.values():
            if (
                pattern.fullmatch(segment)
                and (found := self._walk(child, at + 1, segments, method, spans, dead)) is not None
            ):
                return found
        if node.one is not None and (found := self._walk(node.one, at + 1, segments, method, spans, dead)) is not None:
            return found
        for ending, child in node.wild.items():
            for end in range(at + 1, count + 1):
                if (
                    segments[end - 1].endswith(ending)
                    and (found := self._walk(child, end, segments, method, spans, dead)) is not None
                ):
                    spans.append((at, end))
                    return found
        dead.add(here)
        return None
