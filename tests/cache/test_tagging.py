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


def test_a_renaming_write_takes_both_names() -> None:
    names = ProjectNames()
    names.learn(b"42", b"g/old")
    tags = Tagging(names).of_write(b"/api/v4/projects/42", Reply(OK, BODY))
    assert {b"project:42", b"project:g/old", b"project:g/new"} <= set(tags)


@pytest.mark.parametrize("reply", [None, Reply(OK), Reply(ResponseHead(404, (), b""), BODY)])
def test_a_write_that_says_nothing_teaches_nothing(reply: Reply | None) -> None:
    names = ProjectNames()
    assert b"project:42" in Tagging(names).of_write(b"/api/v4/projects/42", reply)
    assert not len(names)


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
