"""How long a slow body is waited for."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.body_timeout import MOST_S, BodyTimeout


def test_a_drip_is_let_go() -> None:
    timeout, waited_s = BodyTimeout(1024), 0.0
    while timeout.left_s > 9.0:
        timeout.note(9.0, 1)
        waited_s += 9.0
    assert waited_s <= MOST_S


def test_whoever_keeps_the_rate_is_waited_for() -> None:
    timeout = BodyTimeout(1024)
    for _ in range(1000):
        timeout.note(5.0, 5 * 1024)
    assert timeout.left_s == MOST_S


def test_what_was_sent_fast_is_no_licence_to_drip() -> None:
    timeout = BodyTimeout(1)
    timeout.note(0.0, 1 << 40)
    timeout.note(29.0, 0)
    assert timeout.left_s == 1.0


def test_no_rate_is_no_end() -> None:
    timeout = BodyTimeout(0)
    timeout.note(1e9, 0)
    assert timeout.left_s == math.inf


@given(st.integers(1, 1 << 20), st.lists(st.tuples(st.floats(0, 60), st.integers(0, 1 << 20)), max_size=50))
def test_waiting_is_bounded_by_what_came(rate: int, reads: list[tuple[float, int]]) -> None:
    """As long as it is waited for, the waits add up to no more than the start and what the octets earned."""
    timeout, waited_s, octets = BodyTimeout(rate), 0.0, 0
    for wait_s, came in reads:
        wait_s = min(wait_s, timeout.left_s)
        timeout.note(wait_s, came)
        waited_s, octets = waited_s + wait_s, octets + came
        assert 0.0 <= timeout.left_s <= MOST_S
    assert waited_s <= MOST_S + octets / rate + 1e-6
