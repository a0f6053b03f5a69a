"""The data files inside the package."""

from __future__ import annotations

import json

import pytest

from gateway.core.catalogue import FORMAT_VERSION
from gateway.core.target import parse_target
from gateway.routes import DEFAULT, catalogue, read


def test_the_default_file_is_there() -> None:
    assert read() == read(DEFAULT)
    assert json.loads(read())["version"] == FORMAT_VERSION


def test_another_file_is_not() -> None:
    with pytest.raises(FileNotFoundError):
        read("gitlab-0.json")


def test_catalogues_share_their_rows_and_no_look_up() -> None:
    one, other = catalogue(), catalogue()
    assert one.operations() == other.operations()
    target = parse_target(b"/api/v4/projects/7")
    assert one.match("GET", target) is other.match("GET", target), "the same row, found by each"
    assert one._memo
    assert one._memo is not other._memo, "paths begin with a prefix of their gateway's own"
