from __future__ import annotations

import gzip
import json

import pytest

from gateway.cache.tagging import Tagging, hides_secret
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.messages import ResponseHead
from gateway.core.project_names import ProjectNames
from gateway.reply import Reply

PAGE = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST, may_hold_secret=True)
OK = ResponseHead(200, (), b"OK")
GZIPPED = ResponseHead(200, ((b"Content-Encoding", b"gzip"),), b"OK")
BODY = json.dumps({"id": 42, "path_with_namespace": "g/new"}).encode()


NEW_MR = Operation("POST /api/v4/projects/:id/merge_requests", Access.WRITE, Surface.REST)


def test_a_renaming_write_takes_both_names() -> None:
    names = ProjectNames()
    names.learn(b"42", b"g/old")
    tagging = Tagging(names)
    assert {b"project:42", b"project:g/old"} <= set(tagging.tags_of_write(b"/api/v4/projects/42", PAGE, b"p"))
    assert {b"project:42", b"project:g/new"} <= set(tagging.tags_of_written(b"/api/v4/projects/42", Reply(OK, BODY)))


@pytest.mark.parametrize("reply", [Reply(OK), Reply(ResponseHead(404, (), b""), BODY)])
def test_a_write_that_says_nothing_teaches_nothing(reply: Reply) -> None:
    names = ProjectNames()
    assert Tagging(names).tags_of_written(b"/api/v4/projects/42", reply) == ()
    assert not len(names)


@pytest.mark.parametrize("head", [OK, GZIPPED])
def test_a_merge_request_made_in_a_fork_is_its_targets_too(head: ResponseHead) -> None:
    names = ProjectNames()
    url = "https://h/g/p/-/merge_requests/7"
    body = json.dumps({"project_id": 42, "source_project_id": 43, "target_project_id": 42, "web_url": url}).encode()
    reply = Reply(head, gzip.compress(body) if head is GZIPPED else body)
    tags = Tagging(names).tags_of_written(b"/api/v4/projects/fork%2Fp/merge_requests", reply)
    assert {b"project:42", b"project:43", b"project:fork/p", b"project:g/p"} <= set(tags)
    assert names.number_of(b"fork/p") is None, "the answer does not tell the fork's own"
    assert names.number_of(b"g/p") == b"42"


def test_a_target_below_a_root_is_read_without_it() -> None:
    tags = Tagging(ProjectNames(), "/gitlab").tags_of_write(b"/gitlab/api/v4/projects/42/merge_requests", NEW_MR, b"p")
    assert {b"project:42", b"kind:merge_requests", b"kind:user_counts"} <= set(tags)


def test_names_are_learnt_from_compressed_answers_too() -> None:
    names = ProjectNames()
    Tagging(names).learn(b"/api/v4/projects/42", GZIPPED, gzip.compress(BODY))
    assert names.others(b"42") == (b"g/new",)


def test_what_is_known_long_or_unreadable_is_not_read() -> None:
    names = ProjectNames()
    tagging = Tagging(names)
    tagging.learn(b"/api/v4/projects/42", GZIPPED, b"no gzip")
    tagging.learn(b"/api/v4/projects/42", OK, BODY + b" " * (1 << 20))
    assert not len(names)
    names.learn(b"42", b"g/p")
    tagging.learn(b"/api/v4/projects/42/issues", OK, b'[{"project_id":42,"web_url":"https://h/x/y/-/issues/1"}]')
    assert names.others(b"42") == (b"g/p",)


@pytest.mark.parametrize(
    ("body", "hides"),
    [
        (b'{"id":1,"runners_token":"GR1348941"}', True),
        (b'[{"id":1},{"runners_token":null}]', True),
        (b'{"runners\\u005Ftoken":"x"}', True),
        (b'{"\\u0072unners_token":"x"}', True),
        (b'{"description":"\\u003cb\\u003e \\u0026"}', False),
        (b'{"id":1}', False),
    ],
)
def test_an_answer_with_a_runners_token_is_not_stored(body: bytes, hides: bool) -> None:
    assert hides_secret(OK, body) is hides
    assert hides_secret(GZIPPED, gzip.compress(body)) is hides


def test_what_cannot_be_read_may_hide_one() -> None:
    assert hides_secret(ResponseHead(200, ((b"Content-Encoding", b"br"),), b""), b"x")
