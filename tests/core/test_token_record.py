from __future__ import annotations

import pytest

from gateway.core.secret import Secret
from gateway.core.token_record import DAY_S, TokenRecord, alarm_days, is_due, record_id

NOW = 1_800_000_000.0


def test_a_record_is_called_by_its_credential_and_the_token_it_began_with() -> None:
    name = record_id("sa", Secret("glpat-one"))
    assert name.startswith("sa/")
    assert name == record_id("sa", Secret("glpat-one"))
    assert len({name, record_id("sa", Secret("glpat-two")), record_id("sb", Secret("glpat-one"))}) == 3
    assert "glpat" not in name


def test_a_record_is_called_the_same_for_good() -> None:
    """Under another name its token would be forgotten: the configured one, which is dead, would be used again."""
    assert record_id("sa", Secret("glpat-one")) == "sa/3fb29213f8c5d280"


def test_nothing_shows_the_token() -> None:
    assert "hidden" not in repr(TokenRecord("sa/1", 3, Secret("hidden")))


@pytest.mark.parametrize(
    ("left_s", "before_s", "due"),
    [
        pytest.param(None, DAY_S, False, id="never ends"),
        pytest.param(2 * DAY_S, DAY_S, False, id="there is time"),
        pytest.param(DAY_S, DAY_S, True, id="on the second"),
        pytest.param(-DAY_S, DAY_S, True, id="ended"),
    ],
)
def test_when_it_is_time(left_s: float | None, before_s: float, due: bool) -> None:
    assert is_due(None if left_s is None else NOW + left_s, NOW, before_s) is due


@pytest.mark.parametrize(
    ("left_days", "alarm"),
    [(None, None), (15, None), (14, 14), (8, 14), (7, 7), (1.5, 7), (1, 1), (0, 1), (-3, 1)],
)
def test_the_alarms_before_an_end(left_days: float | None, alarm: int | None) -> None:
    assert alarm_days(None if left_days is None else NOW + left_days * DAY_S, NOW) == alarm
