"""``docs/configuration.md`` and the model say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import Config, load, redacted
from gateway.config.decode import every_key, fields_of, union_members, unwrap
from gateway.config.schema import descriptions
from gateway.config.section import Section

from .world import ENV, read_file

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
ROWS = {
    found[1]: (found[2].strip(), found[3].strip())
    for found in re.finditer(r"^\| `([a-z0-9_\[\].]+)` \| [^|]+ \|([^|]+)\|([^|]+)\|$", PAGE, re.MULTILINE)
}


def section_of(key: str) -> tuple[type[Section], str]:
    """The struct that holds a dotted key, and the key's last part."""
    section: type[Section] = Config
    *outer, last = key.replace("[]", "").split(".")
    for part in outer:
        inner: Any = fields_of(section)[part][1]
        for option in union_members(inner):
            bare = unwrap(option)[0]
            bare = unwrap(getattr(bare, "__args__", (bare,))[0])[0]
            if isinstance(bare, type) and issubclass(bare, Section):
                section = bare
    return section, last


def test_every_key_has_its_row_and_no_row_is_left_over() -> None:
    assert set(ROWS) == set(every_key())


@pytest.mark.parametrize("key", every_key())
def test_the_page_says_what_editors_say(key: str) -> None:
    section, last = section_of(key)
    field, _ = fields_of(section)[last]
    assert ROWS[key][1] == descriptions()[section.__name__][field.name]
    assert (ROWS[key][0] == "required") is field.required


def test_the_page_gives_the_defaults_that_hold() -> None:
    loaded = load("version: 1\nupstream: {url: https://gitlab.internal}\n", ENV, read_file)
    assert loaded.config is not None
    shown = redacted(loaded.config)
    for key, (default, _) in ROWS.items():
        value: Any = shown
        for part in key.split("."):
            value = value.get(part, msgspec.UNSET) if isinstance(value, dict) else msgspec.UNSET
        if default.startswith("`") and value is not msgspec.UNSET:
            assert default.strip("`") in {str(value), json.dumps(value)}, key
