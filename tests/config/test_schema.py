from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.config import json_schema
from gateway.config.decode import every_key, fields_of
from gateway.config.model import Config, Section
from gateway.config.schema import descriptions

EXAMPLES = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_fit(file: Path) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(file.read_text("utf-8")))


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"version": 1, "upstream": {"url": "gitlab.internal"}},
        {"version": 1, "upstream": {"url": "https://g"}, "oidc": {}},
        {"version": 1, "upstream": {"url": "https://g", "timeouts": {"idle": "5 minutes"}}},
        {"version": 1, "upstream": {"url": "https://g"}, "credentials": [{"id": "a", "token": "glpat-inline"}]},
        {"version": 1, "upstream": {"url": "https://g"}, "passthrough": "some"},
        {"version": 1, "upstream": {"url": "https://g"}, "cache": {"mode": "public"}},
        {"version": 1, "upstream": {"url": "https://g"}, "listen": {"limits": {"target_bytes": -1}}},
    ],
)
def test_mistakes_do_not_fit(document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(document)


def test_every_field_has_a_description() -> None:
    sections = [Config, *(one for one in Section.__subclasses__() if one.__module__.startswith("gateway."))]
    missing = [
        f"{section.__name__}.{field.name}"
        for section in sections
        for field, _ in fields_of(section).values()
        if not descriptions()[section.__name__].get(field.name)
    ]
    assert missing == []


def test_every_key_is_in_the_schema() -> None:
    schema = json_schema()
    known = {key for section in (schema, *schema["$defs"].values()) for key in section["properties"]}
    assert known == {key.rpartition(".")[2] for key in every_key()}
