from __future__ import annotations

import pytest

from gateway.core.cache_tags import answer_tags, partition_tag, write_tags
from gateway.core.catalogue import Access, Operation, Surface

WRITE = Operation("POST /x", Access.WRITE, Surface.REST)


@pytest.mark.parametrize(
    ("read", "write"),
    [
        (b"/api/v4/projects/42", b"/api/v4/projects/42"),
        (b"/api/v4/projects/42/issues?page=2", b"/api/v4/projects/42/issues/7/notes"),
        (b"/api/v4/projects/g%2FP", b"/gitlab/api/v4/projects/G%2fp/merge_requests"),
        (b"/api/v4/projects", b"/api/v4/projects/42"),
        (b"/api/v4/projects?membership=true", b"/api/v4/projects"),
        (b"/api/v4/issues", b"/api/v4/projects/42/issues"),
        (b"/api/v4/projects.json", b"/api/v4/projects"),
        (b"/api/v4/groups/5/projects", b"/api/v4/groups/5"),
    ],
)
def test_a_write_takes_what_shows_its_thing(read: bytes, write: bytes) -> None:
    assert set(answer_tags(b"p", read)) & set(write_tags(WRITE, write))


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
    assert not set(answer_tags(b"p", read)) & set(write_tags(WRITE, write))


def test_every_answer_hangs_on_its_partition() -> None:
    for target in (b"/api/v4/projects/42", b"/api/v4/issues", b"/"):
        assert partition_tag(b"p") in answer_tags(b"p", target)
