"""The base of every mapping of the file."""

from __future__ import annotations

import msgspec
import pytest

from gateway.config.limit_model import Settle
from gateway.config.section import Section


def test_what_a_section_does_not_know_it_refuses() -> None:
    assert issubclass(Settle, Section)
    assert msgspec.convert({"second": 2.0}, Settle).second == 2.0
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        msgspec.convert({"other": 2.0}, Settle)


def test_a_section_stays_as_it_was_read() -> None:
    with pytest.raises(AttributeError):
        Settle().second = 3.0  # type: ignore[misc]
