"""Decodes a tree into structs, guided by the structs' annotations. Collects every problem; raises none."""

from __future__ import annotations

import difflib
import enum
import functools
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from ..core.secret import Secret
from .problems import Path, Problem
from .references import ReferenceResolver, check_secret, is_reference
from .section import Section
from .tree import Mapping, Node, Scalar, Sequence, Tree
from .units import ValueType
from .vocabulary import Keywords

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Unreadable(enum.Enum):
    """The value of a node that can't be read; its problem has been reported."""

    UNREADABLE = enum.auto()


UNREADABLE = Unreadable.UNREADABLE


@functools.cache
def fields_of(section: type[Section]) -> dict[str, tuple[msgspec.structs.FieldInfo, Any]]:
    """Key in the file → its field, and the field's full annotation."""
    hints = get_type_hints(section, include_extras=True)
    return {field.encode_name: (field, hints[field.name]) for field in msgspec.structs.fields(section)}


def unwrap(annotation: Any) -> tuple[Any, ValueType | Keywords | None]:
    """The bare type of an annotation, and the value type or keywords attached to it."""
    if get_origin(annotation) is Annotated:
        bare, *markers = get_args(annotation)
        for marker in markers:
            if isinstance(marker, ValueType | Keywords):
                return bare, marker
    return annotation, None


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without None; of any other annotation, the annotation itself."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return tuple(member for member in get_args(annotation) if member is not types.NoneType)
    return (annotation,)


class Decoder:
    """Decodes one tree; its ``problems`` are what could not be read."""

    def __init__(self, tree: Tree, resolver: ReferenceResolver) -> None:
        self._tree = tree
        self._resolver = resolver
        self.problems: list[Problem] = []

    def section(self, section: type[Section], node: Node, path: Path) -> Any:
        """Decode a struct. Fields that can't be read keep their defaults; required ones get stand-ins."""
        if not isinstance(node, Mapping):
            return self._report(path, f"is {_kind(node)} where a mapping belongs")
        known = fields_of(section)
        values: dict[str, Any] = {}
        for key, below in node.entries.items():
            if key not in known:
                self._unknown(section, path, key)
                continue
            field, annotation = known[key]
            value = self.value(annotation, below, (*path, key))
            if value is not UNREADABLE:
                values[field.name] = value
        for key, (field, annotation) in known.items():
            if field.required and field.name not in values:
                if key not in node.entries:
                    self.problems.append(self._tree.problem((*path, key), "is missing"))
                values[field.name] = _stand_in(annotation)
        return section(**values)

    def value(self, annotation: Any, node: Node, path: Path) -> Any:
        """Decode one value of any annotated type."""
        if isinstance(node, Scalar) and node.tag == "null":
            return self._report(path, "has no value: give one, or remove the key")
        options = union_members(annotation)
        if len(options) > 1:
            options = tuple(option for option in options if _fits(option, node)) or options
        bare, marker = unwrap(options[0])
        if get_origin(bare) is tuple:
            return self._list(bare, marker if isinstance(marker, Keywords) else None, node, path)
        if get_origin(bare) is dict:
            return self._mapping(get_args(bare)[1], node, path)
        if isinstance(bare, type) and issubclass(bare, Section):
            return self.section(bare, node, path)
        if not isinstance(node, Scalar):
            return self._report(path, f"is {_kind(node)} where a single value belongs")
        if isinstance(marker, ValueType):
            return self._of_type(marker, node, path)
        if isinstance(bare, type) and issubclass(bare, enum.StrEnum):
            return self._enum(bare, node, path)
        return self._plain(bare, node, path)

    def _list(self, bare: Any, keywords: Keywords | None, node: Node, path: Path) -> Any:
        item = get_args(bare)[0]
        if isinstance(node, Scalar) and keywords is not None:
            if node.text in keywords.words:
                return keywords.words[node.text]
            words = " or ".join(f"`{word}`" for word in keywords.words)
            return self._report(path, f"is neither {words} nor a list")
        if isinstance(node, Mapping):
            return self._report(path, "is a mapping where a list belongs: put a dash before it")
        if isinstance(node, Scalar):
            return self._report(path, "is a single value where a list belongs: put it in brackets")
        found = [self.value(item, below, (*path, index)) for index, below in enumerate(node.items)]
        return tuple(value for value in found if value is not UNREADABLE)

    def _mapping(self, item: Any, node: Node, path: Path) -> Any:
        """Decode a mapping whose keys the operator chooses."""
        if not isinstance(node, Mapping):
            return self._report(path, f"is {_kind(node)} where a mapping belongs")
        found = {key: self.value(item, below, (*path, key)) for key, below in node.entries.items()}
        return {key: value for key, value in found.items() if value is not UNREADABLE}

    def _of_type(self, kind: ValueType, node: Scalar, path: Path) -> Any:
        if node.tag == "bool":
            return self._report(path, f"reads as a yes or no in YAML: put `{node.text}` in quotes")
        try:
            return kind.parse(self._resolver.resolve(node.text))
        except ValueError as error:
            return self._report(path, str(error))

    def _enum(self, kinds: type[enum.StrEnum], node: Scalar, path: Path) -> Any:
        # YAML 1.1 reads `mode: off` as a boolean; the text is still the word that the operator wrote.
        try:
            return kinds(node.text)
        except ValueError:
            words = [kind.value for kind in kinds]
            near = _spelling_hint(node.text, words)
            wanted = f"`{words[0]}`" if len(words) == 1 else "one of " + ", ".join(words)
            return self._report(path, f"is not {wanted}{near}")

    def _plain(self, bare: Any, node: Scalar, path: Path) -> Any:
        if bare is bool:
            value = _BOOLEANS.get(node.text.lower()) if node.tag == "bool" else None
            return self._report(path, "is neither true nor false") if value is None else value
        if bare is int:
            if node.tag != "int" or not (node.text.isascii() and node.text.isdecimal()) or len(node.text) > 12:
                return self._report(path, "is not a whole number")
            return int(node.text)
        if bare is float:
            try:
                return float(node.text)
            except ValueError:
                return self._report(path, "is not a number")
        try:
            if bare is Secret:
                return self._secret(node.text)
            if node.tag == "bool":
                raise ValueError(f"reads as a yes or no in YAML: put `{node.text}` in quotes")
            text = self._resolver.resolve(node.text)
            if not text:
                raise ValueError("is empty")
        except ValueError as error:
            return self._report(path, str(error))
        return text

    def _secret(self, text: str) -> Secret:
        if not is_reference(text):
            self._resolver.resolve(text)  # raises, with its own message, if there is a reference with something around it
            raise ValueError(
                "is a secret written in the file: put it elsewhere and write ${env:NAME} or ${file:/path} instead"
            )
        value = self._resolver.resolve(text)
        check_secret(value)
        return Secret(value)

    def _unknown(self, section: type[Section], path: Path, key: str) -> None:
        message = "is not a key of the configuration" + (
            _spelling_hint(key, list(fields_of(section))) or _misplaced_hint(key)
        )
        self.problems.append(self._tree.problem((*path, key), message))

    def _report(self, path: Path, message: str) -> Unreadable:
        self.problems.append(self._tree.problem(path, message))
        return UNREADABLE


def _spelling_hint(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word.lower(), words, 1, 0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


@functools.cache
def every_key() -> tuple[str, ...]:
    """Every key of the model as a dotted path: ``listen.limits.headers``, ``rules[].for``."""
    from .model import Config

    return tuple(_keys_below(Config, ""))


def _keys_below(section: type[Section], prefix: str) -> list[str]:
    found: list[str] = []
    for key, (_, annotation) in fields_of(section).items():
        found.append(prefix + key)
        for option in union_members(annotation):
            bare, _ = unwrap(option)
            suffix = "."
            if get_origin(bare) is tuple:
                bare, _ = unwrap(get_args(bare)[0])
                suffix = "[]."
            if isinstance(bare, type) and issubclass(bare, Section):
                found += _keys_below(bare, prefix + key + suffix)
    return found


def _misplaced_hint(key: str) -> str:
    # A known key in the wrong place is more often wrongly indented than misspelt.
    places = [known for known in every_key() if known.rpartition(".")[2] == key]
    return f"; did you mean `{places[0]}`? Check the indentation" if places else ""


def _kind(node: Node) -> str:
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar():
            return "a single value"


def _fits(annotation: Any, node: Node) -> bool:
    bare, _ = unwrap(annotation)
    if get_origin(bare) is tuple:
        return isinstance(node, Sequence)
    if isinstance(bare, type) and issubclass(bare, Section):
        return isinstance(node, Mapping)
    return isinstance(node, Scalar)


def _stand_in(annotation: Any) -> Any:
    """A value of the right type, so that a configuration that is already refused can still be checked as a whole."""
    bare, marker = unwrap(union_members(annotation)[0])
    if isinstance(marker, ValueType):
        return marker.stand_in
    if get_origin(bare) in {tuple, dict}:
        return get_origin(bare)()
    if issubclass(bare, Section):
        return bare(**{field.name: _stand_in(hint) for field, hint in fields_of(bare).values() if field.required})
    if issubclass(bare, enum.StrEnum):
        return next(iter(bare))
    return Secret("") if bare is Secret else bare()
