from __future__ import annotations

import re
from typing import get_args

import pytest

from gateway.config import vocabulary
from gateway.config.units import ValueType

WORDS = {
    name: marker for name, alias in vars(vocabulary).items() for marker in get_args(alias) if isinstance(marker, ValueType)
}

GOOD = {
    "Duration": "1.5h", "Size": "16KiB", "RateWords": "600/min", "Address": "[::1]:0", "Url": "https://gitlab.internal",
    "Store": "memory:", "Cidr": "10.0.0.0/8", "Host": "git.example.com", "Id": "a-1", "OptionalId": "a-1",
    "FieldName": "X-A", "Sha256": "0" * 64, "Route": "GET /api/v4/user", "Method": "GET", "Sink": "file:/a", "Path": "/a",
    "Project": "a/b", "HookPath": "/-/hooks", "WebUrl": "https://kubernetes.default.svc/x/", "Claim": "platform/**",
    "Bandwidth": "20MiB/s",
}  # fmt: skip


def test_the_table_is_whole() -> None:
    assert set(GOOD) == set(WORDS)


@pytest.mark.parametrize("name", GOOD)
def test_what_the_parser_takes_the_schema_takes(name: str) -> None:
    word = WORDS[name]
    word.parse(GOOD[name])
    assert re.search(word.pattern, GOOD[name])


@pytest.mark.parametrize("name", GOOD)
def test_what_is_shown_can_be_read(name: str) -> None:
    word = WORDS[name]
    if name != "Sha256":  # a digest is not shown
        assert word.parse(str(word.show(word.parse(GOOD[name])))) == word.parse(GOOD[name])
