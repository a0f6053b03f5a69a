"""Who asks most."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.top_talkers import Talker, TopTalkers


def test_most_frequent_first() -> None:
    talkers = TopTalkers()
    for name, refused in (("a", False), ("b", True), ("b", False), ("c", False)):
        talkers.note(name, refused, 100.0)
    assert talkers.top(2, 101.0) == [Talker("b", 2, 1), Talker("a", 1, 0)]


def test_the_window_before_still_counts_and_the_one_before_that_does_not() -> None:
    talkers = TopTalkers(window_s=30.0)
    talkers.note("old", False, 100.0)
    talkers.note("new", False, 131.0)
    talkers.note("new", False, 132.0)
    assert talkers.top(5, 132.0) == [Talker("new", 2, 0), Talker("old", 1, 0)]
    assert talkers.top(5, 162.0) == [Talker("new", 2, 0)]
    assert talkers.top(5, 1000.0) == []


def test_both_windows_are_added() -> None:
    talkers = TopTalkers(window_s=30.0)
    talkers.note("a", True, 100.0)
    talkers.note("a", False, 131.0)
    assert talkers.top(5, 132.0) == [Talker("a", 2, 1)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=400), st.integers(1, 8))
def test_whoever_asks_often_enough_is_listed(names: list[int], size: int) -> None:
    talkers = TopTalkers(size=size)
    for name in names:
        talkers.note(str(name), False, 100.0)
    listed = {talker.name: talker.asked for talker in talkers.top(size, 100.0)}
    assert len(listed) <= size
    for name in set(names):
        if names.count(name) > len(names) / size:
            assert listed[str(name)] >= names.count(name)
