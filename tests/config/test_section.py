"""The base of every mapping of the file."""

from __future__ import annotations

import msgspec
import pytest

from gateway.config.section import Section


class Known(Section, frozen=True):
    key: int = 1


def test_what_a_section_does_not_know_it_refuses() -> None:
    assert msgspec.convert({"key": 2}, Known).key == 2
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        msgspec.convert({"other": 2}, Known)


def test_a_section_stays_as_it_was_read() -> None:
    with pytest.raises(AttributeError):
        Known().key = 3  # type: ignore[misc]
