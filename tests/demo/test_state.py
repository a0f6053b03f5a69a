"""Visibility, roles, and clocks that count writes."""

from __future__ import annotations

import pytest

from gateway.demo.seed import seed
from gateway.demo.state import Branch, Level, State

STATE = seed(1)


def test_instants_count_writes() -> None:
    state = State()
    assert [state.now(), state.now()] == ["2026-01-01T00:00:01.000Z", "2026-01-01T00:00:02.000Z"]
    for _ in range(3600):
        last = state.now()
    assert last == "2026-01-01T01:00:02.000Z"


def test_numbers_count_by_kind() -> None:
    state = State()
    assert [state.number("a"), state.number("a"), state.number("b")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("user", "path", "level"),
    [
        (1, "platform/api", Level.OWNER),
        (2, "platform/tools/deploy/runner-images", Level.MAINTAINER),
        (3, "platform/api", Level.DEVELOPER),
        (4, "platform/api", Level.NONE),
        (2, "platformer/api", Level.NONE),
    ],
)
def test_roles_are_inherited_from_groups_above(user: int, path: str, level: Level) -> None:
    assert STATE.level(STATE.users[user], path, {}) is level


def test_nobody_has_no_role() -> None:
    assert STATE.level(None, "open/handbook", {}) is Level.NONE


def test_references_are_ids_or_paths_in_any_case() -> None:
    assert STATE.find_user("ADA") is STATE.find_user("2") is STATE.users[2]
    assert STATE.find_user("0") is STATE.find_user("nobody") is None
    assert STATE.find_group("OPEN/many") is STATE.find_group("5")
    assert STATE.find_project("0") is STATE.find_project("open/none") is None


def test_a_commit_is_the_same_for_the_same_change() -> None:
    ids = {State().commit(Branch({"a": b"1"}, []), "t", "ada").id for _ in range(2)}
    assert len(ids) == 1
    assert State().commit(Branch({"a": b"2"}, []), "t", "ada").id not in ids
