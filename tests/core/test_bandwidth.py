"""Octets that share a pipe: never more than it lets through, and never less than that while somebody wants more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.bandwidth import Pipe, Pipes, burst_of
from gateway.core.limits import Limit, Scope

RATE = 1000.0
LIMIT = Limit("octets", Scope.CALLER, RATE, 100.0)


def test_what_the_burst_holds_goes_at_once_and_the_rest_when_it_is_paid_off() -> None:
    pipe = Pipe(RATE, 100.0, 0.0)
    assert pipe.charge(100, 0.0) == 0.0
    assert pipe.charge(500, 0.0) == pytest.approx(0.5)
    assert pipe.charge(500, 0.25) == pytest.approx(0.75)
    assert pipe.charge(0, 5.0) == 0.0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    pipe = Pipe(RATE, 100.0, 10.0)
    assert pipe.charge(200, 10.0) == pytest.approx(0.1)
    assert pipe.charge(0, 9.0) == pytest.approx(0.1)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1, max_size=60))
@settings(max_examples=100)
def test_no_more_than_burst_and_rate_let_through_in_any_time(pieces: list[tuple[int, float]]) -> None:
    pipe, now = Pipe(RATE, 100.0, 0.0), 0.0
    went: list[tuple[float, int]] = []
    for octets, pause in pieces:
        now += pause
        went.append((now + pipe.charge(octets, now), octets))
    for first in range(len(went)):
        flown = 0
        for at, octets in went[first:]:
            flown += octets
            # The piece that goes first may have been charged earlier: it was paid for before this time began.
            assert flown - went[first][1] <= 100.0 + RATE * (at - went[first][0]) + 1e-3


def test_downloads_that_take_turns_share_a_pipe_equally() -> None:
    """Virtual time: each asks for its next piece when the last one went. One in a pipe of its own isn't slowed."""
    shared, alone = Pipe(RATE, 100.0, 0.0), Pipe(1e9, 1e9, 0.0)
    at = {"one": 0.0, "two": 0.0, "free": 0.0}
    sent = dict.fromkeys(at, 0)
    while min(at.values()) < 60.0:
        name = min(at, key=lambda one: at[one])
        pipe = alone if name == "free" else shared
        at[name] += pipe.charge(50, at[name]) + (1e-3 if name == "free" else 0.0)
        sent[name] += 50
    assert sent["one"] / sent["two"] == pytest.approx(1.0, abs=0.01)
    assert sent["one"] + sent["two"] == pytest.approx(60 * RATE, rel=0.01)
    assert sent["free"] == pytest.approx(60 / 1e-3 * 50, rel=0.01)


def test_pipes_are_bounded_and_idle_ones_go_first() -> None:
    pipes = Pipes(most=3)
    busy = pipes.pipe("busy", LIMIT, 0.0)
    busy.charge(1000, 0.0)
    for name in ("a", "b", "c"):
        pipes.pipe(name, LIMIT, 0.1)
    assert len(pipes) == 2
    assert pipes.pipe("busy", LIMIT, 0.1) is busy
    for name in ("d", "e", "f", "g"):
        pipes.pipe(name, LIMIT, 0.1).charge(10_000, 0.1)
    assert len(pipes) == 3
    assert pipes.pipe("busy", LIMIT, 0.1) is not busy, "the one made first went"


def test_the_burst_is_a_quarter_of_a_second_and_at_least_a_piece() -> None:
    assert burst_of(1 << 20) == (1 << 20) / 4
    assert burst_of(16 * 1024) == 64 * 1024
