"""Bodies and headers to the octet; pages by their headers."""

from __future__ import annotations

import json

import pytest

from gateway.demo import answer
from gateway.demo.answer import Refusal
from gateway.demo.request import Request


def asked(**params: object) -> Request:
    return Request("GET", "/api/v4/projects/a%2Fb/x?ignored", (), "", {}, dict(params), {"id": "a/b"})


@pytest.mark.parametrize(
    ("refusal", "status", "body"),
    [
        (answer.unauthorized(), 401, '{"message":"401 Unauthorized"}'),
        (answer.forbidden(), 403, '{"message":"403 Forbidden"}'),
        (answer.forbidden("Must be admin to use sudo"), 403, '{"message":"403 Forbidden - Must be admin to use sudo"}'),
        (answer.not_found(), 404, '{"message":"404 Not found"}'),
        (answer.not_found("Project"), 404, '{"message":"404 Project Not Found"}'),
        (answer.no_route(), 404, '{"error":"404 Not Found"}'),
        (answer.missing("title"), 400, '{"error":"title is missing"}'),
        (
            answer.invalid_request(),
            400,
            '{"error":"invalid_request","error_description":"Both Authorization header and payload includes '
            'access token."}',
        ),
        (
            answer.insufficient_scope("api", "read_api"),
            403,
            '{"error":"insufficient_scope","error_description":"The request requires higher privileges than provided by '
            'the access token.","scope":"api read_api"}',
        ),
    ],
)
def test_refusals(refusal: Refusal, status: int, body: str) -> None:
    assert (refusal.answer.status, refusal.answer.body.decode()) == (status, body)
    assert refusal.answer.headers == {"Content-Type": "application/json"}


def test_an_invalid_token_is_said_in_the_header_too() -> None:
    header = answer.invalid_token("Why").answer.headers["WWW-Authenticate"]
    assert header == 'Bearer realm="Protected by OAuth 2.0", error="invalid_token", error_description="Why"'


@pytest.mark.parametrize(
    ("field", "tag", "result"),
    [
        ('W/"a"', 'W/"a"', True),
        ('"a"', 'W/"a"', True),
        ('"b", W/"a"', '"a"', True),
        ("*", '"a"', True),
        ('"b"', '"a"', False),
    ],
)
def test_validators_compare_weakly(field: str, tag: str, result: bool) -> None:
    assert answer.matches(field, tag) is result


def test_the_first_page_of_three() -> None:
    page = answer.offset_page(asked(per_page="2", private_token="seen"), list(range(5)), "https://g")
    query = "id=a%2Fb&per_page=2&private_token=seen"
    url = "https://g/api/v4/projects/a%2Fb/x?" + query + "&page="
    assert page.headers["Link"] == f'<{url}2>; rel="next", <{url}1>; rel="first", <{url}3>; rel="last"'
    assert json.loads(page.body) == [0, 1]
    names = ("X-Next-Page", "X-Page", "X-Per-Page", "X-Prev-Page", "X-Total", "X-Total-Pages")
    assert [page.headers[name] for name in names] == ["2", "1", "2", "", "5", "3"]


def test_the_last_page_has_no_next() -> None:
    page = answer.offset_page(asked(per_page="2", page="3"), list(range(5)), "https://g")
    assert json.loads(page.body) == [4]
    assert (page.headers["X-Next-Page"], page.headers["X-Prev-Page"]) == ("", "2")
    assert 'rel="next"' not in page.headers["Link"]


def test_an_empty_list_is_one_page() -> None:
    assert answer.offset_page(asked(), [], "").headers["X-Total-Pages"] == "1"


def test_at_most_a_hundred_to_a_page() -> None:
    assert len(json.loads(answer.offset_page(asked(per_page="1000"), list(range(300)), "").body)) == 100


def test_beyond_ten_thousand_the_totals_are_left_out() -> None:
    page = answer.offset_page(asked(), list(range(10_001)), "")
    assert "X-Total" not in page.headers
    assert "X-Total-Pages" not in page.headers
    assert 'rel="last"' not in page.headers["Link"]


def test_the_offset_is_limited_where_keyset_is_offered() -> None:
    with pytest.raises(Refusal) as refused:
        answer.offset_page(asked(per_page="100", page="502"), [], "", max_offset_of="Project")
    assert refused.value.answer.status == 405
    assert b"maximum allowed offset of 50000 for requests that return objects of type Project" in refused.value.answer.body


def test_links_keep_brackets_and_skip_lists() -> None:
    assert answer.next_link(asked(a={"b": "1"}, c=["2"]), "", {"cursor": "eA=="}) == (
        '</api/v4/projects/a%2Fb/x?id=a%2Fb&a%5Bb%5D=1&cursor=eA%3D%3D>; rel="next"'
    )
