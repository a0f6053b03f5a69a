from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import peer_guard
from gateway.core.peer_guard import PeerGuard, subject


def exhausted(guard: PeerGuard, peer: str, now: float, failures: int = 20) -> None:
    for _ in range(failures):
        assert guard.wait_s(peer, now) == 0.0
        guard.note_failure(peer, now)


def test_after_the_allowed_failures_the_peer_waits_for_one_to_come_back() -> None:
    guard = PeerGuard(failures=20, window_s=60.0)
    exhausted(guard, "192.0.2.1", 100.0)
    assert guard.wait_s("192.0.2.1", 100.0) == pytest.approx(3.0)
    assert guard.wait_s("192.0.2.1", 102.0) == pytest.approx(1.0)
    assert guard.wait_s("192.0.2.1", 103.0) == 0.0


def test_other_peers_are_not_held_up() -> None:
    guard = PeerGuard()
    exhausted(guard, "192.0.2.1", 100.0)
    assert guard.wait_s("192.0.2.2", 100.0) == 0.0


def test_after_the_window_all_failures_are_allowed_again_and_nothing_is_kept() -> None:
    guard = PeerGuard(failures=20, window_s=60.0)
    exhausted(guard, "192.0.2.1", 100.0)
    assert guard.wait_s("192.0.2.1", 160.0) == 0.0
    assert len(guard) == 0
    exhausted(guard, "192.0.2.1", 160.0)


def test_failures_of_attempts_under_way_do_not_lengthen_the_wait() -> None:
    guard = PeerGuard(failures=20, window_s=60.0)
    exhausted(guard, "192.0.2.1", 100.0)
    for _ in range(500):
        guard.note_failure("192.0.2.1", 100.0)
    assert guard.wait_s("192.0.2.1", 100.0) == pytest.approx(3.0)


def test_a_million_peers_take_the_room_of_the_bound() -> None:
    guard = PeerGuard(peers=100)
    for number in range(10_000):
        guard.note_failure(f"peer {number}", float(number) / 1000)
    assert len(guard) == 100


def test_the_peer_that_failed_last_is_the_last_to_be_forgotten() -> None:
    guard = PeerGuard(failures=1, peers=2)
    guard.note_failure("a", 1.0)
    guard.note_failure("b", 2.0)
    guard.note_failure("a", 3.0)
    guard.note_failure("c", 4.0)
    assert guard.wait_s("b", 4.0) == 0.0
    assert guard.wait_s("a", 4.0) > 0.0


@given(
    st.integers(min_value=1, max_value=30),
    st.floats(min_value=0.1, max_value=3600),
    st.lists(st.floats(min_value=0, max_value=100), max_size=80),
)
def test_never_more_failures_than_allowed_in_any_window(failures: int, window_s: float, pauses: list[float]) -> None:
    guard = PeerGuard(failures=failures, window_s=window_s)
    now, failed_at = 0.0, []
    for pause in pauses:
        now += pause
        if guard.wait_s("p", now) == 0.0:
            guard.note_failure("p", now)
            failed_at.append(now)
    for start in failed_at:
        # A bucket of n that refills n per window lets 2n through in the worst one.
        assert sum(start <= at < start + window_s * 0.999 for at in failed_at) <= 2 * failures


@given(
    st.integers(min_value=1, max_value=50), st.floats(min_value=0.01, max_value=1e5), st.floats(min_value=0, max_value=1e9)
)
def test_whoever_waits_as_told_may_try(failures: int, window_s: float, now: float) -> None:
    guard = PeerGuard(failures=failures, window_s=window_s)
    for _ in range(failures):
        guard.note_failure("p", now)
    wait_s = guard.wait_s("p", now)
    assert guard.wait_s("p", now + wait_s + 1e-3) == 0.0


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"window_s": 0.0}, {"peers": 0}], ids=repr)
def test_a_guard_that_guards_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        PeerGuard(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "whom"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("unix:", "unix:"),
        ("not an address", "not an address"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_whom_an_address_stands_for(address: str, whom: str) -> None:
    assert subject(address) == whom
    assert subject(address) == whom


@given(st.text())
def test_any_text_is_somebody(address: str) -> None:
    assert len(subject(address)) <= 64


def test_the_memory_of_addresses_is_bounded() -> None:
    for number in range(10_000):
        subject(f"2001:db8:{number:x}::1")
    assert len(peer_guard._SUBJECTS) <= 4096
