"""JSON Schema (2020-12) of the configuration, generated from the structs, with which editors complete and check."""

from __future__ import annotations

import ast
import enum
import functools
import importlib.resources
from typing import Any, get_args, get_origin

from ..core.secret import Secret
from .decode import fields_of, union_members, unwrap
from .model import Config
from .section import Section
from .units import ValueType
from .vocabulary import Keywords

_REFERENCE = {"type": "string", "pattern": r"^\$\{(env:[A-Za-z_][A-Za-z0-9_]*|file:[^{}]+)\}$"}


def json_schema() -> dict[str, Any]:
    """The schema, as plain values."""
    definitions: dict[str, Any] = {}
    root = _section(Config, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gitlab-gateway configuration",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


@functools.cache
def descriptions() -> dict[str, dict[str, str]]:
    """Struct → attribute → its docstring. Python discards docstrings of attributes, so they are read from the source."""
    package = importlib.resources.files(__package__)
    sources = [
        ast.parse(package.joinpath(name).read_text("utf-8"))
        for name in ("model.py", "admin_model.py", "limit_model.py", "credential_model.py", "oidc_model.py")
    ]
    found: dict[str, dict[str, str]] = {}
    for statement in (statement for source in sources for statement in source.body):
        if isinstance(statement, ast.ClassDef):
            attributes = found.setdefault(statement.name, {})
            for one, following in zip(statement.body, statement.body[1:], strict=False):
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    text = _docstring(following)
                    if text:
                        attributes[one.target.id] = text
    return found


def _docstring(statement: ast.stmt) -> str:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split())
    return ""


def _section(section: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    texts = descriptions()[section.__name__]
    properties: dict[str, Any] = {}
    required = []
    for key, (field, annotation) in fields_of(section).items():
        shape = _value(annotation, definitions)
        described: dict[str, Any] = {"description": texts[field.name]} if field.name in texts else {}
        described |= _default(field.default)
        properties[key] = described | (shape if "$ref" not in shape else {"allOf": [shape]})
        if field.required:
            required.append(key)
    shown: dict[str, Any] = {
        "type": "object",
        "description": " ".join((section.__doc__ or "").split()),
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        shown["required"] = required
    return shown


def _default(default: Any) -> dict[str, Any]:
    plain = isinstance(default, bool | int) or (isinstance(default, str) and default != "")
    return {"default": default.value if isinstance(default, enum.Enum) else default} if plain else {}


def _value(annotation: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    options = union_members(annotation)
    if len(options) > 1:
        return {"anyOf": [_value(option, definitions) for option in options]}
    bare, marker = unwrap(options[0])
    if get_origin(bare) is tuple:
        several: dict[str, Any] = {"type": "array", "items": _value(get_args(bare)[0], definitions)}
        if isinstance(marker, Keywords):
            return {"anyOf": [{"enum": list(marker.words)}, several]}
        return several
    if get_origin(bare) is dict:
        return {"type": "object", "additionalProperties": _value(get_args(bare)[1], definitions)}
    if isinstance(marker, ValueType):
        return _value_type(marker)
    if issubclass(bare, Section):
        if bare.__name__ not in definitions:
            definitions[bare.__name__] = {}  # defined before it is filled, because a struct may contain itself
            definitions[bare.__name__] = _section(bare, definitions)
        return {"$ref": f"#/$defs/{bare.__name__}"}
    if issubclass(bare, enum.Enum):
        return {"enum": [member.value for member in bare]}
    if bare is Secret:
        return dict(_REFERENCE)
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[bare]}


def _value_type(kind: ValueType) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "title": kind.name}
    if kind.pattern:
        text = {"anyOf": [{**text, "pattern": kind.pattern}, _REFERENCE]}
    if kind.number:
        return {"anyOf": [text, {"type": "integer", "minimum": 0}]}
    return text
