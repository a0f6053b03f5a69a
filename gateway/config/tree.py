"""Parses YAML text into a plain tree that knows its lines. What the values mean is the decoder's business.

YAML is composed, never constructed: no tag can create an object, and a scalar keeps the text that the operator wrote, so
that ``12:30`` stays what it is and ``off`` can still name a mode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping as AbstractMapping

import msgspec
import yaml

from .problems import Path, Problem, Severity, show_path

# libyaml reads the same language ten times as fast, which is noticeable with large rule sets.
_LOADER: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_CORE_TAG = "tag:yaml.org,2002:"
_SURROGATES = re.compile(r"\\\\|\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_SCALAR_TAGS = frozenset({"str", "int", "float", "bool", "null", "timestamp", "value"})


class Scalar(msgspec.Struct, frozen=True):
    """One value, as written."""

    text: str
    tag: str
    """What YAML 1.1 takes it for: ``str``, ``int``, ``float``, ``bool``, ``null``, ``timestamp``."""
    line: int


class Sequence(msgspec.Struct, frozen=True):
    """A list."""

    items: tuple[Node, ...]
    line: int


class Mapping(msgspec.Struct, frozen=True):
    """A mapping; each key has its own line."""

    entries: dict[str, Node]
    key_lines: dict[str, int]
    line: int


Node = Scalar | Sequence | Mapping

COMMAND_LINE = "command line"
_MAX_DEPTH = 64

_MISPLACED = "this line goes with none above it: check its indentation, and brackets"
_PLAIN = {
    "mapping values are not allowed in this context": "a `key:` stands where none can be: check the indentation, and that "
    "a space follows each colon",
    "did not find expected key": _MISPLACED,
    "did not find expected '-' indicator": _MISPLACED,
    "but found another document": "it holds a second document; `---` may stand only at the beginning",
}
"""What libyaml says, and what people are told instead."""
_BEGUN = {
    "while scanning a simple key": "it holds a key without a colon",
    "while scanning a quoted scalar": "a quotation mark has no second one",
    "while scanning an alias": "a value that begins with `*` must be in quotes",
}
"""What libyaml was reading, where the beginning of that tells more than the place at which it gave up."""
_IN_BRACKETS = frozenset({"did not find expected ',' or '}'", "did not find expected ',' or ']'"})

_EMPTY = Mapping({}, {}, 0)


class Tree(msgspec.Struct, frozen=True):
    """A file, read as far as possible."""

    root: Mapping
    file: str
    problems: list[Problem]
    overridden: frozenset[Path] = frozenset()

    def problem(self, path: Path, message: str, severity: Severity = Severity.ERROR) -> Problem:
        """Make a problem of ``path``, at the line of its deepest part that is there."""
        if path in self.overridden:
            return Problem(show_path(path), message, COMMAND_LINE, 0, severity)
        return Problem(show_path(path), message, self.file, self.line(path), severity)

    def line(self, path: Path) -> int:
        """The line of the deepest part of ``path`` that is there."""
        node: Node = self.root
        found = 0
        for part in path:
            if isinstance(node, Mapping) and part in node.entries:
                found = node.key_lines[str(part)]
                node = node.entries[str(part)]
            elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
                node = node.items[part]
                found = node.line
            else:
                break
        return found


def parse_tree(text: str, file: str, overrides: AbstractMapping[Path, str]) -> Tree:
    """Parse ``text`` and put ``overrides`` (from the command line) into the tree. Problems are collected, not raised."""
    problems: list[Problem] = []
    try:
        text = _as_yaml(text)
        deep = _too_deep(text)
        if deep:
            return Tree(_EMPTY, file, [Problem("", f"is nested more than {_MAX_DEPTH} deep", file, deep)])
        composed = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line, about = _explain(error, text)
        return Tree(_EMPTY, file, [Problem("", f"is not YAML: {about}", file, line)])
    except yaml.YAMLError:
        odd = yaml.reader.Reader.NON_PRINTABLE.search(text)
        line = text.count("\n", 0, odd.start()) + 1 if odd else 0
        return Tree(_EMPTY, file, [Problem("", "is not YAML: it holds a character that YAML does not allow", file, line)])
    root: Node = _EMPTY
    if composed is not None:
        root = _Reader(file, problems).read(composed, ())
    if not isinstance(root, Mapping):
        if not problems:
            problems.append(Problem("", "is not a mapping: start with `version: 1`", file, root.line))
        root = _EMPTY
    for path, value in overrides.items():
        root = _override(root, path, value)
    return Tree(root, file, problems, frozenset(overrides))


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """The line of a mistake, and what it is: in words for people where libyaml's tell little, as often with indentation."""
    begun, mark = error.context_mark, error.problem_mark
    if begun and error.context in _BEGUN:
        return begun.line + 1, _BEGUN[error.context]
    about = error.problem or error.context or "unreadable"
    if mark and about == "found character that cannot start any token" and text[mark.index : mark.index + 1] == "\t":
        about = "it is indented with a tab: use spaces"
    if mark and about in _IN_BRACKETS and text[mark.index - 1 : mark.index + 1] == "${":
        about = 'within braces or brackets a reference must be in quotes: "${env:NAME}"'
    return mark.line + 1 if mark else 0, _PLAIN.get(about, about)


def _too_deep(text: str) -> int:
    # The composer recurses for each level and, being written in C, ends the process where Python raises RecursionError.
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                return event.start_mark.line + 1 if event.start_mark else 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return 0


def _as_yaml(text: str) -> str:
    # JSON is YAML, with two exceptions: tabs between tokens, and characters beyond the BMP as two escapes. In valid JSON
    # no string contains a raw tab, so all tabs are layout.
    if text.lstrip()[:1] != "{" or ("\t" not in text and "\\u" not in text):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _SURROGATES.sub(_join_surrogates, text.replace("\t", " "))


def _join_surrogates(found: re.Match[str]) -> str:
    if found[1] is None:  # an escaped backslash: what follows it is not an escape
        return found[0]
    return (chr(int(found[1], 16)) + chr(int(found[2], 16))).encode("utf-16", "surrogatepass").decode("utf-16")


def _override(node: Node, path: Path, value: str) -> Mapping:
    base = node if isinstance(node, Mapping) else _EMPTY
    key = str(path[0])
    tag = "int" if value.isdecimal() else "str"
    below = Scalar(value, tag, 0) if len(path) == 1 else _override(base.entries.get(key, _EMPTY), path[1:], value)
    return Mapping(base.entries | {key: below}, {key: 0} | base.key_lines, base.line)


class _Reader:
    """Converts PyYAML's nodes into those of this module. Aliased nodes are read once and shared."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._seen: dict[int, Node] = {}
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: Path) -> Node:
        known = self._seen.get(id(node))
        if known is not None:
            return known
        line = node.start_mark.line + 1
        if id(node) in self._open:
            self._report(path, "contains itself", line)
            return Scalar("", "null", line)
        self._open.add(id(node))
        read: Node
        if isinstance(node, yaml.MappingNode):
            read = self._mapping(node, path, line)
        elif isinstance(node, yaml.SequenceNode):
            read = Sequence(tuple(self.read(item, (*path, index)) for index, item in enumerate(node.value)), line)
        else:
            read = Scalar(node.value, self._tag(node, path, line), line)
        self._open.discard(id(node))
        self._seen[id(node)] = read
        return read

    def _tag(self, node: yaml.Node, path: Path, line: int) -> str:
        tag = node.tag.removeprefix(_CORE_TAG)
        if tag in _SCALAR_TAGS:
            return tag
        self._report(path, "has a YAML tag: write a plain value", line)
        return "str"

    def _mapping(self, node: yaml.MappingNode, path: Path, line: int) -> Mapping:
        entries: dict[str, Node] = {}
        key_lines: dict[str, int] = {}
        merged: list[Mapping] = []
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if key_node.tag == _CORE_TAG + "merge":
                merged += self._merge(value_node, path, key_line)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(path, "has a key that is a list or a mapping", key_line)
                continue
            key = key_node.value
            if key in entries:
                self._report((*path, key), f"is given twice; the first is on line {key_lines[key]}", key_line)
                continue
            entries[key] = self.read(value_node, (*path, key))
            key_lines[key] = key_line
        for mapping in merged:
            for key, value in mapping.entries.items():
                if key not in entries:
                    entries[key] = value
                    key_lines[key] = mapping.key_lines[key]
        return Mapping(entries, key_lines, line)

    def _merge(self, node: yaml.Node, path: Path, line: int) -> list[Mapping]:
        read = self.read(node, (*path, "<<"))
        parts = read.items if isinstance(read, Sequence) else (read,)
        mappings = [part for part in parts if isinstance(part, Mapping)]
        if len(mappings) != len(parts):
            self._report((*path, "<<"), "merges something that is not a mapping", line)
        return mappings

    def _report(self, path: Path, message: str, line: int) -> None:
        self._problems.append(Problem(show_path(path), message, self._file, line))
