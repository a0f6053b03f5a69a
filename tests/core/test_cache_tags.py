from __future__ import annotations

import pytest

from gateway import routes
from gateway.core.cache_tags import (
    ALL,
    ANONYMOUS,
    NUMBER_UNKNOWN,
    PATH_UNKNOWN,
    answer_tags,
    extra_write_tags,
    part_tags,
    partition_tag,
    project_tags,
    resource_of,
    write_tags,
)
from gateway.core.project_names import ProjectNames
from gateway.core.target import parse_target


def known(*pairs: tuple[bytes, bytes]) -> ProjectNames:
    names = ProjectNames()
    for number, path in pairs:
        names.learn(number, path)
    return names


@pytest.mark.parametrize(
    ("read", "write"),
    [
        (b"/api/v4/projects/42", b"/api/v4/projects/42"),
        (b"/api/v4/projects/42/issues?page=2", b"/api/v4/projects/42/issues/7/notes"),
        (b"/api/v4/projects/42/merge_requests/7", b"/api/v4/projects/42/merge_requests/8/merge"),
        (b"/api/v4/projects/g%2FP", b"/gitlab/api/v4/projects/G%2fp/merge_requests"),
        (b"/api/v4/projects/g%2D1%2fp", b"/api/v4/projects/g-1%2Fp"),
        (b"/api/v4/projects", b"/api/v4/projects/42"),
        (b"/api/v4/projects?membership=true", b"/api/v4/projects"),
        (b"/api/v4/issues", b"/api/v4/projects/42/issues"),
        (b"/api/v4/groups/5/issues", b"/api/v4/projects/42/issues/1"),
        (b"/api/v4/users/5/projects", b"/api/v4/projects/42"),
        (b"/api/v4/topics/5/avatar", b"/api/v4/topics/5"),
        (b"/api/v4/projects.json", b"/api/v4/projects"),
        (b"/api/v4/projects/42.json", b"/api/v4/projects/42"),
        (b"/api/v4/groups/5/projects", b"/api/v4/groups/5"),
        (b"/api/v4/projects/42/issues", b"/api/v4/%70rojects/42"),
        (b"/api/v%34/projects/42/issues", b"/api/v4/projects/42"),
        (b"/api/v4/groups/5/merge%5Frequests", b"/api/v4/projects/42/merge_requests/7"),
        (b"/api/v4/groups/5/issues_statistics", b"/api/v4/projects/42/issues/7"),
        (b"/api/v4/user_counts", b"/api/v4/projects/42/merge_requests/7"),
        (b"/api/v4/todos", b"/api/v4/projects/42/issues/7/notes"),
        (b"/api/v4/groups/5/merge_requests", b"/api/v4/projects/42/labels/bug"),
    ],
)
def test_a_write_takes_what_shows_its_thing(read: bytes, write: bytes) -> None:
    names = known()
    assert set(answer_tags(b"p", read, names)) & set(write_tags(write, names))


@pytest.mark.parametrize(
    ("read", "write"),
    [
        (b"/api/v4/projects/42", b"/api/v4/projects/43"),
        (b"/api/v4/projects/42/issues", b"/api/v4/groups/42/issues"),
        (b"/api/v4/version", b"/api/v4/projects/42"),
        (b"/", b"/api/v4/projects/42"),
    ],
)
def test_a_write_leaves_the_rest(read: bytes, write: bytes) -> None:
    assert not set(answer_tags(b"p", read, known())) & set(write_tags(write, known()))


READER = known((b"99", b"o/q"))
CATALOGUE = routes.catalogue()


@pytest.mark.parametrize(
    ("method", "write", "taken"),
    [
        ("POST", "/G/p.git/git-receive-pack", [b"/api/v4/projects/g%2Fp/repository/tree", b"/api/v4/projects"]),
        ("POST", "/g/p.wiki.git/git-receive-pack", [b"/api/v4/projects/g%2Fp/wikis", b"/api/v4/projects/42/wikis"]),
        ("POST", "/api/v4/groups/5/projects/42", [b"/api/v4/projects/42", b"/api/v4/groups/5"]),
        ("POST", "/api/v4/groups/5/projects/g%2Fp.json", [b"/api/v4/projects/g%2Fp"]),
        ("POST", "/api/v4/projects/42/fork/43", [b"/api/v4/projects/42/forks", b"/api/v4/projects/43/forks"]),
        ("DELETE", "/api/v4/groups/5/share/6", [b"/api/v4/groups/6"]),
        ("POST", "/api/graphql", [b"/api/v4/projects/42", b"/api/v4/issues"]),
        ("PUT", "/api/v4/suggestions/1/apply", [b"/api/v4/projects/42/merge_requests/7"]),
    ],
)
def test_a_write_reaches_what_its_path_does_not_begin_with(method: str, write: str, taken: list[bytes]) -> None:
    target = parse_target(write.encode())
    tags = set(extra_write_tags(CATALOGUE.match(method, target), target.segments, b"p", READER))
    assert all(tags & set(answer_tags(b"p", one, READER)) for one in taken)
    assert not tags & set(answer_tags(b"other", b"/api/v4/projects/99", READER)), "of others, only what it names"


@pytest.mark.parametrize(
    ("write", "partition"),
    [(b"/api/graphql", b""), (b"/api/graphql", ANONYMOUS), (b"/g/p.git/info/lfs/objects/batch", b"p")],
)
def test_what_reaches_nothing_takes_nothing(write: bytes, partition: bytes) -> None:
    """A mutation of nobody's, or of anybody without a credential; what each clone asks for."""
    target = parse_target(write)
    assert extra_write_tags(CATALOGUE.match("POST", target), target.segments, partition, READER) == ()


def test_every_answer_hangs_on_its_partition_and_on_everything() -> None:
    for target in (b"/api/v4/projects/42", b"/api/v4/issues", b"/", b"/api/v4/groups/1"):
        assert {partition_tag(b"p"), ALL} <= set(answer_tags(b"p", target, known()))


BY_NUMBER, BY_PATH = b"/api/v4/projects/42/issues", b"/api/v4/projects/G%2Fp/issues"


@pytest.mark.parametrize("reader_knows", [False, True])
@pytest.mark.parametrize("writer_knows", [False, True])
@pytest.mark.parametrize(("read", "write"), [(BY_NUMBER, BY_PATH), (BY_PATH, BY_NUMBER)])
def test_a_write_by_one_name_takes_answers_by_the_other(
    read: bytes, write: bytes, reader_knows: bool, writer_knows: bool
) -> None:
    """Whatever each of two gateways has learnt."""
    pair = ((b"42", b"g/P"),)
    reader, writer = known(*pair * reader_knows), known(*pair * writer_knows)
    assert set(answer_tags(b"p", read, reader)) & set(write_tags(write, writer))


def test_what_is_known_by_both_names_is_not_taken_with_the_unknown() -> None:
    names = known((b"42", b"g/p"))
    assert not set(answer_tags(b"p", BY_PATH, names)) & set(write_tags(b"/api/v4/projects/43", names))
    assert NUMBER_UNKNOWN in answer_tags(b"p", b"/api/v4/projects/other%2Fone", names)
    assert PATH_UNKNOWN in answer_tags(b"p", b"/api/v4/projects/43", names)


def test_a_renamed_project_is_still_one() -> None:
    names = known((b"42", b"old/p"), (b"42", b"new/p"))
    assert set(answer_tags(b"p", b"/api/v4/projects/old%2Fp", names)) & set(
        write_tags(b"/api/v4/projects/new%2Fp", names)
    ) >= {b"project:42", b"project:old/p", b"project:new/p"}


@pytest.mark.parametrize(
    ("target", "part"),
    [
        (b"/api/v4/projects/42", b"rest:42"),
        (b"/api/v4/projects/g%2Fp/issues/1", b"rest:42"),
        (b"/api/v4/projects/42/merge_requests", b"rest:42"),
        (b"/api/v4/projects/42/merge_requests/7/notes?x", b"mr:42!7"),
        (b"/api/v4/projects/42/merge_requests/7.json", b"mr:42!7"),
        (b"/api/v4/projects/g%2Fp/repository/tree", b"repo:42"),
        (b"/api/v4/projects/42/repository/commits/x", b"rest:42"),
    ],
)
def test_the_parts_of_a_project(target: bytes, part: bytes) -> None:
    assert part in answer_tags(b"p", target, known((b"42", b"g/p")))


def test_a_part_by_each_of_its_names() -> None:
    assert part_tags(b"mr", (b"42", b"g/p"), b"!7") == (b"mr:42!7", b"mr:g/p!7")


def test_both_names_given_need_no_guess() -> None:
    assert project_tags((b"42", b"g/p"), known()) == (b"project:42", b"project:g/p")
    assert project_tags((b"42",), known()) == (b"project:42", NUMBER_UNKNOWN)


def test_places() -> None:
    assert resource_of(b"/gitlab/api/v4/groups/A%2fB/projects").segments == (b"groups", b"a/b", b"projects")
    assert resource_of(b"/api/v4/projects/").owner == b""
    for below in (b"repository", b"merge_requests"):  # nothing follows
        assert resource_of(b"/api/v4/projects/5/" + below).area == b"rest"
    assert write_tags(b"/", known()) == ()
    assert write_tags(b"/api/v4/groups/5", known()) == (b"group:5", b"kind:groups")
