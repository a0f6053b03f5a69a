from __future__ import annotations

import json

import pytest

from gateway.core.project_names import MAX_BODY_BYTES, ProjectNames, normalise_name, parse_project_names, projects_written


def test_one_project_by_each_of_its_names() -> None:
    names = ProjectNames()
    assert names.others(b"42") == names.others(b"g/p") == ()
    assert names.number_of(b"g/p") is None
    names.learn(b"42", b"G/p")
    names.learn(b"42", b"g/p")
    assert names.others(b"42") == (b"g/p",)
    assert names.others(b"g/p") == (b"42",)
    assert names.number_of(b"g/p") == names.number_of(b"42") == b"42"


def test_old_names_stay_for_a_while() -> None:
    names = ProjectNames()
    for path in (b"a", b"b", b"c", b"d", b"e", b"a"):
        names.learn(b"42", b"g/" + path)
    assert names.others(b"42") == (b"g/e", b"g/d", b"g/c", b"g/b")
    assert b"42" in names.others(b"g/b")


def test_the_memory_is_bounded() -> None:
    names = ProjectNames(most=3)
    for number in range(50):
        names.learn(b"%d" % number, b"g/%d" % number)
        assert len(names) <= 3
    for number in range(50):
        names.learn(b"1", b"h/%d" % number)
    assert len(names._number) <= 6


@pytest.mark.parametrize(
    ("segment", "name"), [(b"g%2FP", b"g/p"), (b"g%2fp.json", b"g/p"), (b"42", b"42"), (b"g%252Fp", b"g%2fp")]
)
def test_spellings(segment: bytes, name: bytes) -> None:
    assert normalise_name(segment) == name


PROJECT = {"id": 42, "path_with_namespace": "g/P"}
ISSUE = {"id": 9, "iid": 1, "project_id": 42, "web_url": "https://git.example/g/P/-/issues/1"}


@pytest.mark.parametrize(
    ("below", "body", "found"),
    [
        ((b"projects", b"42"), PROJECT, [(b"42", b"g/P")]),
        ((b"projects",), [PROJECT, {"id": 43, "path_with_namespace": "h"}], [(b"42", b"g/P"), (b"43", b"h")]),
        ((b"groups", b"5", b"projects"), [PROJECT], [(b"42", b"g/P")]),
        ((b"projects", b"7", b"repository", b"files", b"x.json", b"raw"), PROJECT, []),
        ((b"snippets", b"7", b"raw"), PROJECT, []),
        ((b"projects", b"7", b"avatar"), PROJECT, []),
        ((), PROJECT, []),
        ((b"projects", b"g/p", b"issues"), [ISSUE], [(b"42", b"g/p")]),
        ((b"projects", b"42", b"issues", b"1"), ISSUE, [(b"42", b"g/P")]),
        ((b"projects", b"43", b"issues", b"1"), ISSUE, []),
        ((b"projects", b"42", b"issues"), [{"project_id": 42}], []),
        ((b"projects", b"42", b"issues"), [{**ISSUE, "web_url": "https://h/no-separator"}], []),
        ((b"projects", b"g/p", b"issues", b"1", b"related_merge_requests"), [ISSUE], []),
        ((b"projects", b"g/p", b"forks"), [ISSUE], []),
        ((b"issues",), [ISSUE], []),
        ((b"projects", b"42"), {"id": "42", "path_with_namespace": "g"}, []),
        ((b"projects", b"42"), "text", []),
        ((b"projects", b"42"), [1], []),
        ((b"projects", b"42"), {"id": 1.5}, []),
    ],
)
def test_names_in_answers(below: tuple[bytes, ...], body: object, found: list[tuple[bytes, bytes]]) -> None:
    assert list(parse_project_names(below, json.dumps(body).encode())) == found


@pytest.mark.parametrize("place", [b"fork/p", b"43", b"42"])
def test_of_what_a_write_made_only_its_own_address_is_believed(place: bytes) -> None:
    """A merge request that is made in a fork is answered as its target's."""
    below = (b"projects", place, b"issues")
    assert list(parse_project_names(below, json.dumps(ISSUE).encode(), written=True)) == [(b"42", b"g/P")]
    assert list(parse_project_names(below, json.dumps({"project_id": 42}).encode(), written=True)) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"project_id": 42, "source_project_id": 43, "target_project_id": 42}, (b"42", b"43")),
        ({"source_issue": {"project_id": 1}, "target_issue": {"project_id": 2}, "link_type": "blocks"}, (b"1", b"2")),
        (
            {"id": 1, "blocking_merge_request": {"project_id": 5}, "blocked_merge_request": {}, "project_id": 4},
            (b"4", b"5"),
        ),
        ({"id": 1}, ()),
        ({"project_id": "42"}, ()),
        ({"project_id": -1}, ()),
        ({"project_id": {}}, ()),
        ([{"project_id": 42}], ()),
    ],
)
def test_whose_what_a_write_changed_is(body: object, found: tuple[bytes, ...]) -> None:
    assert projects_written(json.dumps(body).encode()) == found


def test_a_long_answer_to_a_write_is_not_read() -> None:
    assert projects_written(b'{"project_id":42}' + b" " * MAX_BODY_BYTES) == ()


def test_a_relative_url_root_is_no_part_of_a_path() -> None:
    body = json.dumps({**ISSUE, "web_url": "https://host/gitlab/g/P/-/issues/1"}).encode()
    below = (b"projects", b"42", b"issues", b"1")
    assert list(parse_project_names(below, body, "/gitlab")) == [(b"42", b"g/P")]
    assert list(parse_project_names(below, body, "/other")) == []


def test_long_or_broken_answers_are_not_read() -> None:
    assert (
        list(parse_project_names((b"projects", b"42"), b'{"id":42,"path_with_namespace":"g"}' + b" " * MAX_BODY_BYTES))
        == []
    )
    assert list(parse_project_names((b"projects", b"42"), b'{"id":')) == []
    assert list(parse_project_names((b"projects", b"42"), b'{"id":42,"path_with_namespace":"\xff"}')) == []
