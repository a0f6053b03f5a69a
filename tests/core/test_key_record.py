"""When a key lives, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.key_record import (
    KEEP_DEAD_S,
    KEEP_EXCHANGED_S,
    KeyOrigin,
    KeyRecord,
    Replacement,
    format_instant,
    is_representable,
)

T = 1_800_000_000.0


def record(**changes: Any) -> KeyRecord:
    return KeyRecord(**{"id": "key_1", "identity": "backstage", "digest": bytes(32), "created_at": T, **changes})


@pytest.mark.parametrize(
    ("changes", "live", "usable"),
    [
        ({}, True, True),
        ({"not_before": T + 1}, True, False),
        ({"not_before": T}, True, True),
        ({"expires_at": T}, False, False),
        ({"expires_at": T + 0.5}, True, True),
        ({"revoked_at": T + 100}, False, False),
    ],
    ids=str,
)
def test_live_and_usable(changes: dict[str, float], live: bool, usable: bool) -> None:
    assert (record(**changes).is_live(T), record(**changes).is_usable(T)) == (live, usable)
    assert record(**changes).is_unbounded is not bool(changes)
    assert bool(record(**changes).why_unusable(T)) is not usable


@pytest.mark.parametrize(
    ("changes", "kept_s"),
    [
        ({"expires_at": T}, KEEP_DEAD_S),
        ({"revoked_at": T, "expires_at": T + 9}, KEEP_DEAD_S),
        ({"expires_at": T, "origin": KeyOrigin.IMPORTED}, KEEP_DEAD_S),
        ({"expires_at": T, "origin": KeyOrigin.EXCHANGED}, KEEP_EXCHANGED_S),
    ],
    ids=str,
)
def test_a_dead_key_is_kept_for_a_while(changes: dict[str, Any], kept_s: float) -> None:
    assert not record(**changes).is_forgettable(T + kept_s - 1)
    assert record(**changes).is_forgettable(T + kept_s)


def test_a_live_key_is_never_forgotten() -> None:
    assert not record().is_forgettable(T * 2)


@pytest.mark.parametrize(
    ("expires_at", "until", "ends_at"),
    [(None, T + 60, T + 60), (T + 30, T + 60, T + 30), (T + 90, T + 60, T + 60)],
)
def test_a_replaced_key_never_lives_longer_than_it_would_have(
    expires_at: float | None, until: float, ends_at: float
) -> None:
    ended = record(expires_at=expires_at).replaced("key_2", until, T)
    assert (ended.expires_at, ended.revoked_at, ended.replaced_by) == (ends_at, None, "key_2")


@pytest.mark.parametrize("until", [T, T - 5])
def test_a_key_replaced_without_overlap_is_revoked(until: float) -> None:
    """Revoked, not expired: another host's slow clock must not keep it alive."""
    ended = record().replaced("key_2", until, T)
    assert (ended.revoked_at, ended.is_live(T - 60)) == (T, False)


def test_only_a_live_key_of_the_same_identity_is_replaced_and_once() -> None:
    newer, replacing = record(id="key_2"), Replacement("key_1", T + 60)
    assert replacing.refusal_reason(record(), newer) is None
    for older in (
        None,
        record(identity="another"),
        record(revoked_at=T),
        record(origin=KeyOrigin.EXCHANGED),
        record(replaced_by="key_9"),
    ):
        assert replacing.refusal_reason(older, newer)


def test_a_record_shows_neither_digest_nor_bounds() -> None:
    assert repr(record(note="n")) == "KeyRecord(key_1, backstage)"


@pytest.mark.parametrize(
    ("at", "representable", "text"),
    [
        (T, True, "2027-01-15T08:00:00Z"),
        (-62_135_596_800.0, True, "0001-01-01T00:00:00Z"),
        (-62_135_596_801.0, False, "0001-01-01T00:00:00Z"),
        (253_402_300_799.0, True, "9999-12-31T23:59:59Z"),
        (253_402_300_800.0, False, "9999-12-31T23:59:59Z"),
        (1e300, False, "9999-12-31T23:59:59Z"),
        (float("-inf"), False, "0001-01-01T00:00:00Z"),
    ],
)
def test_an_instant_is_formatted_and_beyond_the_format_the_nearest_is(at: float, representable: bool, text: str) -> None:
    assert (is_representable(at), format_instant(at)) == (representable, text)


def test_milliseconds_are_shown_where_wanted() -> None:
    assert format_instant(T + 0.5, "milliseconds") == "2027-01-15T08:00:00.500Z"
