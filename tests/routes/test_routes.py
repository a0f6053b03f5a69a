"""The data files inside the package."""

from __future__ import annotations

import json

import pytest

from gateway.core.catalogue import FORMAT_VERSION
from gateway.routes import DEFAULT, read


def test_the_default_file_is_there() -> None:
    assert read() == read(DEFAULT)
    assert json.loads(read())["version"] == FORMAT_VERSION


def test_another_file_is_not() -> None:
    with pytest.raises(FileNotFoundError):
        read("gitlab-0.json")
