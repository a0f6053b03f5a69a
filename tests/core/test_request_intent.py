"""What a body alone tells of a request."""

from __future__ import annotations

import pytest

from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.messages import Field, RequestHead
from gateway.core.request_intent import is_decided_by_body, is_plain_json, parse_json, possible_operations

BATCH = Operation("POST /*repository_path.git/info/lfs/objects/batch", Access.WRITE, Surface.LFS)


def test_graphqls_endpoints_and_lfs_batches_and_no_other() -> None:
    assert is_decided_by_body(Operation("POST /api/graphql", Access.WRITE, Surface.GRAPHQL))
    assert is_decided_by_body(Operation("POST /api/glql", Access.WRITE, Surface.GRAPHQL))
    assert is_decided_by_body(BATCH)
    assert not is_decided_by_body(Operation("POST /api/v4/glql", Access.READ, Surface.REST))
    assert not is_decided_by_body(Operation("POST /*repository_path.git/info/lfs/locks", Access.WRITE, Surface.LFS))


@pytest.mark.parametrize("undecided", [Operation("POST /api/graphql", Access.WRITE, Surface.GRAPHQL), BATCH])
def test_only_its_body_tells_what_it_may_turn_out_to_be(undecided: Operation) -> None:
    assert [one.access for one in possible_operations(undecided)] == [Access.READ, Access.WRITE]
    decided, other = possible_operations(undecided)[0], Operation("POST /api/v4/projects", Access.WRITE, Surface.REST)
    assert (possible_operations(decided), possible_operations(other)) == ((decided,), (other,))


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        (((b"Content-Type", b"application/json"),), True),
        (((b"content-type", b"Application/JSON; charset=utf-8"), (b"Content-Encoding", b" Identity")), True),
        (((b"Content-Type", b"application/json; charset=utf-16"),), False),
        (((b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip")), False),
        (((b"Content-Type", b"text/plain"),), False),
        ((), False),
    ],
)
def test_json_that_readers_do_not_differ_on(fields: tuple[Field, ...], plain: bool) -> None:
    assert is_plain_json(RequestHead("POST", b"/", fields), frozenset({"application/json"})) is plain


def test_a_member_twice_too_many_nests_and_what_is_no_json_are_not_read() -> None:
    assert parse_json(b'{"a": [1, {"b": "' + b"{" * 30_000 + b'"}]}') == {"a": [1, {"b": "{" * 30_000}]}
    for body in (
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b"{",
        b"",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 9_999,
        b"[" * 20_001,
    ):
        with pytest.raises(ValueError):
            parse_json(body)
    with pytest.raises(ValueError, match="too many"):
        parse_json(b"[" + b"[]," * 20_000 + b"[]]")
