from __future__ import annotations

import json

import pytest

from gateway.core.cache_tags import ALL, NUMBER_UNKNOWN, answer_tags
from gateway.core.hook_events import read_event
from gateway.core.project_names import ProjectNames

PROJECT = {"id": 42, "path_with_namespace": "G/p"}
MR = {"object_kind": "merge_request", "project": PROJECT, "object_attributes": {"iid": 7, "source_project_id": 43}}
ISSUE = {"object_kind": "issue", "project": PROJECT, "object_attributes": {"iid": 5}}
PUSH = {"object_kind": "push", "project_id": 42, "project": PROJECT, "ref": "refs/heads/main"}
NOTE = {"object_kind": "note", "project": PROJECT, "object_attributes": {}, "merge_request": {"iid": 7}}
PIPELINE = {"object_kind": "pipeline", "project": PROJECT, "object_attributes": {"iid": 1, "source": "push"}}
OF_MR = {**PIPELINE, "merge_request": {"iid": 7}}
RENAME = {
    "event_name": "project_rename",
    "project_id": 42,
    "path_with_namespace": "g/new",
    "old_path_with_namespace": "G/p",
}
MEMBER = {"event_name": "user_add_to_team", "project_id": 42, "project_path_with_namespace": "g/p", "user_id": 9}
USER = {"event_name": "user_rename", "user_id": 9}

DETAIL, MRS, MR7, MR8 = "", "/merge_requests", "/merge_requests/7/notes", "/merge_requests/8"
FILES, COMMITS, ISSUES = "/repository/tree", "/repository/commits/x", "/issues/5"
EVERY = {DETAIL, MRS, MR7, MR8, FILES, COMMITS, ISSUES}


@pytest.mark.parametrize("name", ["42", "g%2FP"])
@pytest.mark.parametrize("knows", [False, True])
@pytest.mark.parametrize(
    ("event", "taken"),
    [
        pytest.param(PUSH, EVERY, id="push"),
        pytest.param(MR, EVERY - {MR8, FILES}, id="merge-request"),
        pytest.param(ISSUE, EVERY - {MR7, MR8, FILES}, id="issue"),
        pytest.param(NOTE, EVERY - {MR8, FILES}, id="note"),
        pytest.param(PIPELINE, EVERY, id="pipeline"),
        pytest.param({**PIPELINE, "object_kind": "build"}, EVERY, id="job"),
        pytest.param({**PIPELINE, "object_kind": "deployment"}, EVERY, id="deployment"),
        pytest.param(OF_MR, EVERY - {MR8, FILES}, id="pipeline-of-mr"),
        pytest.param(RENAME, EVERY, id="rename"),
        pytest.param(MEMBER, EVERY, id="member"),
        pytest.param({"object_kind": "unheard_of", "project": PROJECT}, EVERY, id="unknown"),
    ],
)
def test_what_an_event_takes_of_its_project(event: object, taken: set[str], name: str, knows: bool) -> None:
    """By whichever name it was asked for, whether this gateway knew the other or not."""
    reader = ProjectNames()
    if knows:
        reader.learn(b"42", b"g/p")
    tags = set(read_event(json.dumps(event).encode(), ProjectNames()).tags)
    found = {below for below in EVERY if tags & set(answer_tags(b"p", f"/api/v4/projects/{name}{below}".encode(), reader))}
    other = answer_tags(b"p", b"/api/v4/projects/44/issues", reader)
    assert not tags & set(other) or not knows
    assert found == taken


OF_FORK = {
    "object_kind": "pipeline",
    "project": {"id": 43, "path_with_namespace": "ada/p"},
    "object_attributes": {"iid": 1, "source": "merge_request_event"},
    "merge_request": {"iid": 7, "source_project_id": 43, "target_project_id": 42},
}


@pytest.mark.parametrize("name", ["42", "g%2FP"])
@pytest.mark.parametrize("reader_knows", [False, True])
@pytest.mark.parametrize("ear_knows", [False, True])
@pytest.mark.parametrize(
    ("event", "below"),
    [
        pytest.param(OF_FORK, MR7, id="pipeline"),
        pytest.param(OF_FORK, MRS, id="pipeline-list"),
        pytest.param(
            {
                "object_kind": "merge_request",
                "project": {"id": 44, "path_with_namespace": "g/upstream"},
                "object_attributes": {"iid": 3, "source_project_id": 42, "source": {"path_with_namespace": "G/p"}},
            },
            ISSUES,
            id="merge-request-of-a-fork",
        ),
    ],
)
def test_what_an_event_takes_of_the_other_end_of_a_fork(
    event: object, below: str, ear_knows: bool, reader_knows: bool, name: str
) -> None:
    ear, reader = ProjectNames(), ProjectNames()
    for names, knows in ((ear, ear_knows), (reader, reader_knows)):
        if knows:
            names.learn(b"42", b"g/p")
    tags = set(read_event(json.dumps(event).encode(), ear).tags)
    assert tags & set(answer_tags(b"p", f"/api/v4/projects/{name}{below}".encode(), reader))
    if ear_knows:
        assert not tags & set(answer_tags(b"p", b"/api/v4/projects/42/merge_requests/8", ear)), "another merge request"


RELEASE = {"object_kind": "release", "project": {"id": 42, "path_with_namespace": "g/p"}}
MILESTONE = {
    "object_kind": "milestone",
    "project": {"id": 42, "path_with_namespace": "g/p"},
    "object_attributes": {"iid": 1},
}


@pytest.mark.parametrize(
    ("event", "target", "taken"),
    [
        (MR, "/merge_requests", True),
        (MR, "/groups/5/merge_requests", True),
        (MR, "/users", False),
        (MR, "/projects/43/merge_requests", True),
        (ISSUE, "/issues", True),
        (ISSUE, "/projects", False),
        (ISSUE, "/user_counts", True),
        (MR, "/user_counts", True),
        (RELEASE, "/projects/42/repository/tags", True),
        (RELEASE, "/groups/5/releases", True),
        (MILESTONE, "/projects/42/merge_requests/7", True),
        (MILESTONE, "/groups/5/milestones", True),
        (PUSH, "/projects", True),
        (USER, "/users/9", True),
        (USER, "/users", True),
        (USER, "/projects/42", False),
        (MEMBER, "/users/9/memberships", True),
        ({"event_name": "user_add_to_group", "group_id": 5, "user_id": 9}, "/projects/42", True),
        ({"event_name": "group_rename", "group_id": 5, "full_path": "a"}, "/groups/a", True),
        ({}, "/version", True),
        ([], "/version", True),
        ({"project": {"id": "42"}}, "/version", True),
    ],
)
def test_what_an_event_takes_beside_it(event: object, target: str, taken: bool) -> None:
    tags = read_event(json.dumps(event).encode(), ProjectNames()).tags
    assert bool(set(tags) & set(answer_tags(b"p", f"/api/v4{target}".encode(), ProjectNames()))) is taken


def test_what_cannot_be_read_takes_everything() -> None:
    for body in (b"", b"no json", b'{"object_kind":"\xff"}'):
        assert read_event(body, ProjectNames()).tags == (ALL,)


def test_one_name_alone_is_completed_or_taken_with_all_that_is_unknown() -> None:
    names = ProjectNames()
    job = json.dumps({"object_kind": "issue", "project_id": 42}).encode()
    assert NUMBER_UNKNOWN in read_event(job, names).tags
    names.learn(b"42", b"g/p")
    assert {b"rest:42", b"rest:g/p"} <= set(read_event(job, names).tags)


def test_names_are_learnt() -> None:
    names = ProjectNames()
    assert read_event(json.dumps(RENAME).encode(), names).name == "project_rename"
    assert names.others(b"42") == (b"g/new",)
    read_event(json.dumps(MEMBER).encode(), names)
    assert names.others(b"42")[0] == b"g/p", "as events of members spell it"
