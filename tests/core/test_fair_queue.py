"""Who waits, in which order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.access import Priority
from gateway.core.fair_queue import SHARES, FairQueue

CRITICAL, INTERACTIVE, BACKGROUND = Priority.CRITICAL, Priority.INTERACTIVE, Priority.BACKGROUND


def queue(bound: int = 1000, per_caller: int = 1000) -> FairQueue[str]:
    return FairQueue(bound=bound, per_caller=per_caller)


def drained(queue: FairQueue[str]) -> list[str]:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item)
    return found


def test_callers_take_turns_and_keep_their_own_order() -> None:
    waiting = queue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert waiting.push(item[0], INTERACTIVE, item) is None
    assert len(waiting) == 6
    assert drained(waiting) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(waiting) == 0


def test_classes_have_their_shares_of_the_turns() -> None:
    waiting = queue()
    for priority in Priority:
        for number in range(100):
            waiting.push(priority.value, priority, f"{priority.value}{number}")
    turns = [waiting.pop() or "" for _ in range(sum(SHARES.values()) * 2)]
    counted = {priority: sum(turn.startswith(priority.value) for turn in turns) for priority in Priority}
    assert counted == {priority: share * 2 for priority, share in SHARES.items()}


def test_only_some_classes_may_be_served() -> None:
    waiting = queue()
    waiting.push("a", BACKGROUND, "a1")
    waiting.push("b", INTERACTIVE, "b1")
    assert waiting.pop((CRITICAL,)) is None
    assert waiting.pop((CRITICAL, INTERACTIVE)) == "b1"
    assert waiting.pop() == "a1"


def test_a_turn_that_came_to_nothing_does_not_count() -> None:
    waiting = queue()
    for item in ("a1", "b1"):
        waiting.push(item[0], BACKGROUND, item)
    waiting.push("c", CRITICAL, "c1")
    first = waiting.pop()
    assert first == "c1"
    again = waiting.pop()
    assert again == "a1"
    waiting.push("c", CRITICAL, "c2")
    waiting.push_front("a", BACKGROUND, again)
    assert drained(waiting) == ["c2", "a1", "b1"]


def test_a_thousand_vain_turns_give_no_advantage() -> None:
    waiting = queue()
    waiting.push("a", INTERACTIVE, "a1")
    waiting.push("b", INTERACTIVE, "b1")
    for _ in range(1000):
        assert waiting.pop() == "a1"
        waiting.push_front("a", INTERACTIVE, "a1")
    waiting.push("c", CRITICAL, "c1")
    waiting.push("d", BACKGROUND, "d1")
    assert drained(waiting) == ["c1", "a1", "b1", "d1"]


def test_back_to_the_head_of_ones_own_line() -> None:
    waiting = queue()
    waiting.push("a", INTERACTIVE, "a1")
    waiting.push("a", INTERACTIVE, "a2")
    waiting.push_front("a", INTERACTIVE, waiting.pop() or "")
    assert drained(waiting) == ["a1", "a2"]


def test_a_caller_s_line_is_bounded() -> None:
    waiting = queue(per_caller=2)
    assert [waiting.push("a", INTERACTIVE, item) for item in ("1", "2", "3")] == [None, None, "3"]
    assert waiting.push("b", INTERACTIVE, "4") is None


def test_a_full_queue_sheds_the_lowest_class_first() -> None:
    waiting = queue(bound=4)
    for caller, priority, item in (
        ("a", BACKGROUND, "a1"),
        ("a", BACKGROUND, "a2"),
        ("b", BACKGROUND, "b1"),
        ("c", INTERACTIVE, "c1"),
    ):
        waiting.push(caller, priority, item)
    assert waiting.push("d", BACKGROUND, "d1") == "d1"
    assert waiting.push("d", CRITICAL, "d2") == "a2"  # of the longest line
    assert waiting.push("d", CRITICAL, "d3") in {"a1", "b1"}
    assert waiting.push("d", INTERACTIVE, "d4") in {"a1", "b1"}
    assert waiting.push("d", INTERACTIVE, "d5") == "d5"
    assert waiting.push("d", CRITICAL, "d6") in {"c1", "d4"}
    assert waiting.push("e", CRITICAL, "e1") in {"c1", "d4"}
    assert waiting.push("f", CRITICAL, "f1") == "f1"
    assert len(waiting) == 4


def test_who_leaves_is_not_served() -> None:
    waiting = queue()
    for item in ("a1", "a2", "b1"):
        waiting.push(item[0], INTERACTIVE, item)
    assert waiting.discard("a", INTERACTIVE, "a1")
    assert waiting.discard("b", INTERACTIVE, "b1")
    assert not waiting.discard("b", INTERACTIVE, "b1")
    assert not waiting.discard("a", INTERACTIVE, "b1")
    assert drained(waiting) == ["a2"]


arrivals = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(Priority), st.integers(1, 5)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(Priority), st.integers(0, 20), arrivals, st.lists(arrivals, min_size=1, max_size=1))
def test_nobody_starves_however_many_come_later(
    priority: Priority, ahead: int, before: list[tuple[int, Priority, int]], rush: list[list[tuple[int, Priority, int]]]
) -> None:
    """After a number of turns that only those who came before decide, while after each turn others rush in."""
    waiting: FairQueue[tuple[str, int]] = FairQueue(bound=100_000, per_caller=100_000)
    for caller, their, count in before:
        for _ in range(count):
            waiting.push(f"other-{caller}", their, ("other", 0))
    for _ in range(ahead):
        waiting.push("me", priority, ("mine", 0))
    waiting.push("me", priority, ("mine", 1))
    callers = 8
    cycle = sum(SHARES.values())
    within = (ahead + 1) * callers * (cycle // SHARES[priority] + 1) + cycle
    for _ in range(within):
        if waiting.pop() == ("mine", 1):
            return
        for caller, their, count in rush[0]:
            for _ in range(count):
                waiting.push(f"other-{caller}", their, ("other", 0))
    pytest.fail("starved")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(Priority), st.booleans()), max_size=80))
def test_nothing_is_lost_or_served_twice(history: list[tuple[str, Priority, bool]]) -> None:
    waiting: FairQueue[int] = FairQueue(bound=20, per_caller=10)
    inside: set[int] = set()
    for number, (caller, priority, serve) in enumerate(history):
        inside.add(number)
        shed = waiting.push(caller, priority, number)
        if shed is not None:
            inside.remove(shed)
        if serve and (item := waiting.pop()) is not None:
            inside.remove(item)
        assert len(waiting) == len(inside) <= 20
    while (item := waiting.pop()) is not None:
        inside.remove(item)
    assert not inside
