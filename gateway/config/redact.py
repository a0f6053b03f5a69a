"""The configuration in force, as `/-/config` shows it: every value, defaults included, but no secret."""

from __future__ import annotations

import enum
from typing import Any, get_args, get_origin

import yaml

from ..core.secret import Secret
from .decode import fields_of, union_members, unwrap
from .model import Config
from .section import Section
from .units import ValueType
from .vocabulary import HIDDEN, Keywords


def redacted(config: Config) -> dict[str, Any]:
    """Plain values under the keys of the file. A secret is shown as ``(hidden)``; an absent optional value is left out."""
    return _section(config)


def rendered(config: Config) -> str:
    """The redacted configuration, as YAML."""
    return yaml.safe_dump(redacted(config), sort_keys=False, allow_unicode=True)


def _section(section: Section) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, (field, annotation) in fields_of(type(section)).items():
        value = getattr(section, field.name)
        # An optional id that is absent is an empty text.
        if value is None or value == "":
            continue
        shown[key] = _value(annotation, value)
    return shown


def _value(annotation: Any, value: Any) -> Any:
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, Section):
        return _section(value)
    if isinstance(value, enum.StrEnum):
        return value.value
    for option in union_members(annotation):
        bare, marker = unwrap(option)
        if isinstance(value, tuple) and get_origin(bare) is tuple:
            if isinstance(marker, Keywords):
                for word, stands_for in marker.words.items():
                    if value == stands_for:
                        return word
            return [_value(get_args(bare)[0], item) for item in value]
        if isinstance(value, dict) and get_origin(bare) is dict:
            return {key: _value(get_args(bare)[1], item) for key, item in value.items()}
        if isinstance(marker, ValueType) and not isinstance(value, tuple):
            return marker.show(value)
    return value
