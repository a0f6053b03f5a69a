"""The changes that an operator may make to a bucket."""

from __future__ import annotations

import msgspec
import pytest

from gateway.app.limit_changes import LONGEST_S, LimitChange, StoredChange, changed_limit, decode_change, limit_to_change
from gateway.core.limits import Limit, Scope

LIMITS = [Limit("caller", Scope.CALLER, 2.0, 4.0), Limit("team", Scope.TEAM, 1e9, 1e8)]


def test_a_factor_moves_rate_and_burst_within_what_a_bucket_holds() -> None:
    raised = changed_limit(LIMITS[0], LimitChange("caller", "bot", factor=2.0))
    assert raised is not None
    assert (raised.rate, raised.burst) == (4.0, 8.0)
    lowered = changed_limit(LIMITS[0], LimitChange("caller", "bot", factor=0.001))
    assert lowered is not None
    assert (lowered.rate, lowered.burst) == (0.002, 1.0)
    assert changed_limit(LIMITS[1], LimitChange("team", "t", factor=1000.0)) == LIMITS[1]
    assert changed_limit(LIMITS[0], LimitChange("caller", "bot", pause=True)) is None


def test_the_limit_is_found_and_the_time_bounded() -> None:
    assert limit_to_change(LimitChange("team", "t", pause=True, seconds=LONGEST_S), LIMITS) is LIMITS[1]
    with pytest.raises(ValueError, match="seconds"):
        limit_to_change(LimitChange("team", "t", pause=True, seconds=LONGEST_S + 1), LIMITS)
    with pytest.raises(ValueError, match="factor"):
        limit_to_change(LimitChange("team", "t", factor=float("nan")), LIMITS)


def test_what_has_no_bucket_to_change_is_not_called_unknown() -> None:
    with pytest.raises(ValueError, match="not one of those configured with a rate or `concurrent`"):
        limit_to_change(LimitChange("downloads", "all", pause=True), LIMITS)


def test_a_stored_change_is_read_back() -> None:
    stored = StoredChange(LimitChange("caller", "bot", factor=3.0), 9.0)
    assert decode_change(msgspec.json.encode(stored), LIMITS) == (LIMITS[0], stored)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"wish":{"limit":"gone","subject":"bot","pause":true},"until":1}',
        b'{"wish":{"limit":"caller","subject":"bot","factor":0},"until":1}',
    ],
)
def test_what_says_nothing_about_these_limits(octets: bytes) -> None:
    with pytest.raises(ValueError):
        decode_change(octets, LIMITS)
