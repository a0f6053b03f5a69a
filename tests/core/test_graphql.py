"""What a GraphQL request does: only what surely queries is a read."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from graphql import GraphQLSyntaxError, Lexer, Source, TokenKind
from hypothesis import given
from hypothesis import strategies as st

from gateway import routes
from gateway.core import graphql
from gateway.core.catalogue import Access
from gateway.core.graphql import parse_body_intent, parse_query_intent
from gateway.core.messages import RequestHead
from gateway.core.request_intent import MOST_TOGETHER, UNCOUNTED, UNKNOWN, ParsingDeferred, RequestIntent
from gateway.core.target import parse_target

CATALOGUE = routes.catalogue()
JSON = (b"Content-Type", b"application/json; charset=utf-8")
QUERY, MUTATION = 'query Q { project(fullPath: "a") { id } }', "mutation M { x(input: {}) { errors } }"
READ = RequestIntent(Access.READ)


def posted(body: Any, *fields: tuple[bytes, bytes], target: bytes = b"/api/graphql", room: int = 100) -> RequestIntent:
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_body_intent(RequestHead("POST", target, fields or (JSON,)), parse_target(target), octets, room=room)


def got(query: bytes, *, parse: bool = True) -> RequestIntent:
    return parse_query_intent(parse_target(b"/api/graphql" + query), parse=parse)


@pytest.mark.parametrize(
    "body",
    [
        {"query": "{ a }"},
        {"query": QUERY, "variables": {"query": "mutation { x }"}},
        {"query": QUERY, "operationName": None},
        {"query": QUERY + MUTATION, "operationName": "Q"},
        {"query": "query A { a ...F } query B { b } fragment F on T { c }"},
        {"query": '{ a(text: "mutation { x }") }'},
        {"query": "{ a } # mutation { x }\r\nfragment F on T { b }"},
        {"query": "\ufeff{ mutation }"},
        {"query": '{ a(x: "é\\u00e9") }'},
        {"query": "{" + "a { b } " * 200 + "}"},
        b'{"query":"\\u007b a \\u007d"}',
    ],
)
def test_queries_read(body: Any) -> None:
    assert posted(body) == READ


@pytest.mark.parametrize(
    "body",
    [
        {"query": MUTATION},
        {"query": "subscription { a }"},
        {"query": QUERY + MUTATION},
        {"query": QUERY + MUTATION, "operationName": "M"},
        {"query": QUERY, "operationName": "Other"},
        {"query": QUERY, "operationName": ["Q"]},
        {"query": "query A { a } query A { b }", "operationName": "A"},
        {"query": "{ a } query A { b }", "operationName": "A"},
        {"query": "fragment F on T { a }"},
        {"query": "type T { a: Int }  query Q { a }"},
        {"query": ""},
        {"query": None},
        {"query": "{ a "},
        {"query": "{ a }" + " " * 10_000},
        {"query": "{a" * 200 + "}" * 200},
        {"query": "{" + "a " * 4999 + "}"},
        {"query": QUERY, "_json": [{"query": MUTATION}]},
        {"query": '# "\nquery M { a(t: """ "\nmutation M { x }\n# """) }'},
        {"query": '#\rquery M { a(t: """\nmutation M { x }\n#\r""") }'},
        {"query": '{ a(t: """x""""""mutation M { x } query""") }', "operationName": "M"},
        {"query": '{ a(t: """x""") }'},
        {"query": '{ a(t: "x") } # y'},
        {"query": "{ a\rb }"},
        {},
        [],
        ["x"],
        7,
        b"",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"query":"{ a }","query":"mutation { x }"}',
        b'{"query":"mutation { x }","query":"{ a }"}',
        b"[" * 100_000,
    ],
)
def test_everything_else_writes(body: Any) -> None:
    assert posted(body).access is Access.WRITE


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ((b"Content-Type", b"multipart/form-data; boundary=x"),),
        ((b"Content-Type", b"application/x-www-form-urlencoded"),),
        ((b"Content-Type", b"application/json; charset=utf-16"),),
        (JSON, (b"Content-Encoding", b"gzip")),
    ],
)
def test_other_forms_of_body_write_and_may_hold_any_number(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    assert posted({"query": QUERY}, *(fields or ((b"X", b"y"),))) == UNCOUNTED


@pytest.mark.parametrize("body", [b'[{"query":"{ a }"', b'{"_json":[{"query":"{ a }"}]}', b'{"a":1,"a":2}', b"\xff"])
def test_what_can_not_be_counted_is_the_largest_batch(body: bytes) -> None:
    assert posted(body) == UNCOUNTED == RequestIntent(Access.WRITE, MOST_TOGETHER)


@pytest.mark.parametrize("query", [b"?query=%7Ba%7D&variables[a]=1&variables[b]=2", b"?query=%7Ba%7D&x=1&x=2", b"?a=1&a=2"])
def test_a_get_without_a_batch_is_one(query: bytes) -> None:
    assert got(query).operations == 1


def test_a_body_that_is_empty_or_coded_as_it_is_can_be_counted() -> None:
    assert posted(b"") == UNKNOWN
    assert posted({"query": QUERY}, JSON, (b"Content-Encoding", b"identity")) == READ


def test_a_body_that_gitlab_reads_nothing_from_is_one() -> None:
    assert posted([{"query": QUERY}] * 3, (b"Content-Type", b"text/plain")) == UNKNOWN
    assert posted([{"query": QUERY}] * 3, (b"Content-Type", b"application/vnd.git-lfs+json")) == UNCOUNTED


@pytest.mark.parametrize("name", [b"query", b"operationName", b"%71uery", b"x;query", b"variables[a]"])
def test_parameters_beside_the_body_write(name: bytes) -> None:
    assert posted({"query": QUERY}, target=b"/api/graphql?" + name + b"=1") == UNKNOWN
    assert posted([{"query": QUERY}] * 3, target=b"/api/graphql?" + name + b"=1") == RequestIntent(Access.WRITE, 3)
    assert posted({"query": QUERY}, target=b"/api/graphql?x=1") == READ


@pytest.mark.parametrize("name", [b"_json", b"_json[]", b"_json[][query]", b"%5fjson[]", b"operations"])
def test_a_batch_in_the_query_string_is_not_counted(name: bytes) -> None:
    assert posted({"query": QUERY}, target=b"/api/graphql?" + name + b"=1") == UNCOUNTED
    assert got(b"?query=%7Ba%7D&" + name + b"=1") == UNCOUNTED


def test_a_batch_is_as_many_as_it_holds_and_writes_when_one_does() -> None:
    assert posted([{"query": QUERY}] * 3) == RequestIntent(Access.READ, 3)
    assert posted([{"query": QUERY}, {"query": MUTATION}]) == RequestIntent(Access.WRITE, 2)
    assert posted([{"query": QUERY}] * 101) == RequestIntent(Access.WRITE, 101)


def test_a_batch_is_read_up_to_as_many_tokens_as_one_document() -> None:
    """Each of a hundred documents within bounds would stop everybody else for seconds."""
    many = "{" + 'a ...b c(d: "e f g") ' * 20 + "}"
    assert posted([{"query": many}] * 27) == RequestIntent(Access.READ, 27)
    assert posted([{"query": many}] * 28) == RequestIntent(Access.WRITE, 28)
    assert posted([{"query": "{" + "a " * 4980 + "}"}] * 100) == RequestIntent(Access.WRITE, 100)
    long = '{ a(b: "' + "x" * 9985 + '") }'
    assert posted([{"query": long}] * 10) == RequestIntent(Access.READ, 10)
    assert posted([{"query": long}] * 11) == RequestIntent(Access.WRITE, 11)
    quoted = '{ a(b: "\\"") ' + "a " * 4900 + 'c(d: "") }'
    assert posted([{"query": quoted}]) == READ
    assert posted([{"query": quoted}] * 2) == RequestIntent(Access.WRITE, 2)


@given(st.text(alphabet='"\\ab1 .\n{}#é,', max_size=40))
def test_never_fewer_tokens_are_counted_than_its_parser_reads(document: str) -> None:
    octets = document.encode()
    if not graphql._reads_alike(octets):
        return
    read, lexer = 0, Lexer(Source(document))
    with contextlib.suppress(GraphQLSyntaxError):
        while lexer.advance().kind is not TokenKind.EOF:
            read += 1
    assert len(graphql._TOKEN.findall(octets)) >= read


def test_more_objects_and_lists_than_anybody_sends_are_not_counted() -> None:
    assert posted(b"[" + b"{}," * 19_999 + b"7]") == RequestIntent(Access.WRITE, 20_000)
    assert posted(b"[" + b"{}," * 20_000 + b"7]") == UNCOUNTED
    assert posted(b'{"query": "{a}", "variables": [' + b"[]," * 19_998 + b"7]}") == RequestIntent(Access.READ)
    assert posted(b'{"query": "{a}", "variables": [' + b"[]," * 19_999 + b"7]}") == UNCOUNTED
    for text in (b'"\\\\"', b'"\\""', b'"\\\\\\""'):
        assert posted(b'{"query": "{a}", "a": ' + text + b', "variables": [' + b"[]," * 19_999 + b"7]}") == UNCOUNTED, text


@pytest.mark.parametrize("text", [b"{", b"[", b'\\"{', b"\\\\[", b'\\\\\\"[', b"\\n{"])
def test_what_a_string_holds_is_no_object(text: bytes) -> None:
    """A file that is committed."""
    octets = b'{"query": "mutation {a}", "variables": {"file": "' + text * 20_001 + b'", "more": ["\\\\", "{"]}}'
    assert posted(octets) == RequestIntent(Access.WRITE, 1)


def test_what_was_not_read_lately_is_parsed_only_where_that_is_asked_for() -> None:
    new = {"query": "{ never { seen { before } } }"}
    long = {"query": QUERY, "variables": {"x": "y" * 20_000}}
    posted({"query": QUERY})
    for body, room, operations in (
        (new, 0, 1),
        ([{"query": QUERY}, new], 1, 2),
        (long, 0, 1),
        ([new, long], 0, 1),
        ([new, long], 1, 2),
    ):
        with pytest.raises(ParsingDeferred) as unread:
            posted(body, room=room)
        assert unread.value.operations == operations
    with pytest.raises(ParsingDeferred):
        got(b"?query=%7Bnever%7Bseen%7D%7D", parse=False)
    assert posted(new) == posted(new, room=0) == READ
    assert posted(long) == READ
    assert got(b"?query=%7Bnever%7Bseen%7D%7D") == got(b"?query=%7Bnever%7Bseen%7D%7D", parse=False) == READ
    assert posted([], room=0).access is Access.WRITE
    assert got(b"?x=1", parse=False) == UNKNOWN


def test_a_get() -> None:
    assert got(b"?query=%7Ba%7D") == READ
    assert got(b"?query=query+A%7Ba%7Dquery+B%7Bb%7D&operationName=A&variables=%7B%7D") == READ


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"?x=1",
        b"?query=mutation%7Ba%7D",
        b"?query=%7Ba%7D&query=mutation%7Ba%7D",
        b"?query=%7Ba%7D&_json=1",
        b"?query[]=%7Ba%7D",
        b"?x=1;query=%7Ba%7D",
        b"?query=%ff",
    ],
)
def test_a_get_that_is_no_plain_query(query: bytes) -> None:
    assert got(query).access is Access.WRITE


@given(st.text(max_size=60))
def test_no_text_before_or_behind_hides_a_mutation(text: str) -> None:
    for document in (text + MUTATION, MUTATION + text):
        found = posted({"query": document})
        # A comment or a string swallows it for GitLab as well; then the rest alone decides.
        assert found.access is Access.WRITE or "#" in text or '"' in text


def test_many_documents_leave_the_memory_bounded() -> None:
    for number in range(600):
        assert posted({"query": f"{{ a{number} }}"}) == READ
    kept = len(graphql._memo)
    assert 0 < kept <= graphql._MEMO_BOUND
    assert posted({"query": "{ a }" + " " * 10_000}).access is Access.WRITE
    assert len(graphql._memo) == kept


def test_the_catalogue_knows_neither_endpoint_as_a_read() -> None:
    for name in ("/api/graphql", "/api/glql"):
        for method in ("GET", "POST"):
            assert CATALOGUE.match(method, parse_target(name.encode())).access is Access.WRITE
