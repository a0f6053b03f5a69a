from __future__ import annotations

import msgspec
import pytest

from gateway.core import private_caching as module
from gateway.core.answer_shape import shape_of
from gateway.core.cache_control import parse_request_cache_control, response_directives
from gateway.core.cache_entry import Entry, make_entry
from gateway.core.cache_status import CacheReason, Stored
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.errors import Code
from gateway.core.messages import Fields, ResponseHead
from gateway.core.private_caching import (
    PrivatePolicy,
    bypass_reason,
    is_failure,
    may_have_written,
    may_serve_stale,
    must_drop_entry,
    per_answer_fields,
    revalidation_reason,
    storable,
    validator_matches,
)

NOW = 1_800_000_000.0
READ = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
JSON = (b"Content-Type", b"application/json")
ETAG = (b"ETag", b'W/"0123"')


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"surface": Surface.GRAPHQL}, CacheReason.SURFACE),
        ({"known": False}, CacheReason.UNKNOWN_OPERATION),
        ({"secret_answer": True}, CacheReason.SECRET_ANSWER),
        ({"side_effect": True}, CacheReason.SIDE_EFFECT),
        ({"binary": True}, CacheReason.BINARY),
    ],
)
def test_operations(changes: dict[str, object], reason: CacheReason | None) -> None:
    operation = msgspec.structs.replace(READ, **changes)
    assert bypass_reason(operation, b"", partition=b"p", has_body=False, session=False) is reason


def test_requests() -> None:
    assert bypass_reason(READ, b"range", partition=b"p", has_body=False, session=False) is CacheReason.RANGE
    assert bypass_reason(READ, b"if-match", partition=b"p", has_body=False, session=False) is CacheReason.CONDITIONAL
    assert bypass_reason(READ, b"cookie", partition=b"p", has_body=False, session=False) is CacheReason.SESSION
    assert bypass_reason(READ, b"", partition=b"", has_body=False, session=False) is CacheReason.NO_PARTITION
    assert bypass_reason(READ, b"", partition=b"p", has_body=True, session=False) is CacheReason.BODY
    assert bypass_reason(READ, b"", partition=b"p", has_body=False, session=True) is CacheReason.SESSION


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        pytest.param((JSON, ETAG), Stored.STORED, id="json"),
        pytest.param(((b"content-type", b"application/scim+json; charset=utf-8"), ETAG), Stored.STORED, id="plus-json"),
        pytest.param((JSON, ETAG, (b"Content-Encoding", b"gzip")), Stored.STORED, id="gzip"),
        pytest.param((JSON, ETAG, (b"Last-Modified", b"Sat, 01 Jan 2050 00:00:00 GMT")), Stored.STORED, id="dated"),
        pytest.param((JSON, ETAG, (b"Content-Encoding", b"rot13")), Stored.CONTENT_ENCODING, id="unknown-coding"),
        pytest.param(
            (JSON, ETAG, (b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"br")), Stored.CONTENT_ENCODING, id="two"
        ),
        pytest.param((ETAG,), Stored.CONTENT_TYPE, id="no-type"),
        pytest.param(((b"Content-Type", b"text/plain"), ETAG), Stored.CONTENT_TYPE, id="text"),
        pytest.param((JSON, ETAG, (b"Set-Cookie", b"a=b")), Stored.SET_COOKIE, id="set-cookie"),
        pytest.param((JSON, ETAG, (b"Cache-Control", b"no-store")), Stored.NO_STORE, id="no-store"),
        pytest.param((JSON, ETAG, (b"Last-Modified", b"0")), Stored.DELEGATED, id="suppressed-validator"),
        pytest.param((JSON, ETAG, (b"Gitlab-Workhorse-Send-Data", b"x")), Stored.DELEGATED, id="workhorse"),
        pytest.param((JSON, ETAG, (b"Vary", b"*")), Stored.VARY_ANY, id="vary-any"),
        pytest.param((JSON, ETAG, (b"Vary", b"Origin, TraceParent")), Stored.VARY_ANY, id="vary-mark"),
        pytest.param((JSON,), Stored.UNVALIDATABLE, id="no-validator"),
        pytest.param((JSON, (b"ETag", b"unquoted")), Stored.UNVALIDATABLE, id="malformed-validator"),
    ],
)
def test_answers(fields: Fields, stored: Stored) -> None:
    assert storable(ResponseHead(200, fields), 0.0).stored is stored


def test_only_a_200_is_stored_and_a_lifetime_needs_no_validator() -> None:
    assert storable(ResponseHead(301, (JSON, ETAG)), 0.0).stored is Stored.STATUS
    assert storable(ResponseHead(200, (JSON,)), 30.0).stored is Stored.STORED


def entry(*fields: tuple[bytes, bytes]) -> Entry:
    return make_entry(ResponseHead(200, fields), b"{}", response_directives(fields), requested_at=NOW, received_at=NOW)


@pytest.mark.parametrize(
    ("asked", "reuse_s", "later_s", "reason"),
    [
        (None, 0.0, 0.0, CacheReason.STALE),
        (None, 30.0, 29.0, None),
        (None, 30.0, 30.0, CacheReason.STALE),
        (b"no-cache", 30.0, 1.0, CacheReason.REQUEST),
        (b"max-age=0", 30.0, 1.0, CacheReason.REQUEST),
        (b"max-age=5", 30.0, 1.0, None),
        (b"min-fresh=30", 30.0, 1.0, CacheReason.REQUEST),
    ],
)
def test_when_gitlab_is_asked_first(
    asked: bytes | None, reuse_s: float, later_s: float, reason: CacheReason | None
) -> None:
    directives = parse_request_cache_control(asked) if asked is not None else None
    assert revalidation_reason(entry(), directives, reuse_s, NOW + later_s) is reason


def test_access_ttl_bounds_every_lifetime() -> None:
    policy = PrivatePolicy(ttl_s=5.0, access_ttl_s=60.0, route_ttl_s={"GET /a": 3600.0, "GET /b": 0.0})
    assert (policy.reuse_s("GET /a"), policy.reuse_s("GET /b"), policy.reuse_s("GET /c")) == (60.0, 0.0, 5.0)


def test_standing_in_while_gitlab_fails() -> None:
    policy = PrivatePolicy(stale_if_error_s=60.0)
    assert may_serve_stale(entry(), None, policy, NOW + 59)
    assert not may_serve_stale(entry(), None, policy, NOW + 60)
    assert not may_serve_stale(entry(), parse_request_cache_control(b"no-cache"), policy, NOW)
    assert not may_serve_stale(entry(), None, PrivatePolicy(), NOW)


def test_statuses() -> None:
    assert {status for status in range(200, 600) if is_failure(status)} == {429, 500, 502, 503, 504}
    assert {status for status in range(200, 600) if must_drop_entry(status)} == {401, 403, 404, 410}


def test_a_304_gives_its_own_answer_fields() -> None:
    fields: Fields = ((b"X-Request-Id", b"1"), (b"Link", b"n"), (b"RateLimit-Remaining", b"5"))
    assert per_answer_fields(fields) == (fields[0], fields[2])


def test_a_304_about_something_else_does_not_count() -> None:
    stored = entry(ETAG)
    assert validator_matches(stored, ResponseHead(304, ()))
    assert validator_matches(stored, ResponseHead(304, ((b"ETag", b'"0123"'),)))
    assert not validator_matches(stored, ResponseHead(304, ((b"ETag", b'W/"9"'),)))


@pytest.mark.parametrize(
    ("answer", "may"),
    [
        (200, True),
        (302, True),
        (404, False),
        (500, True),
        (502, True),
        (503, False),
        (504, True),
        (Code.UPSTREAM_TIMEOUT, True),
        (Code.UPSTREAM_RESET, True),
        (Code.UPSTREAM_REFUSED, False),
        (Code.UPSTREAM_BREAKER_OPEN, False),
        (None, True),
    ],
)
def test_what_a_write_may_have_done(answer: int | Code | None, may: bool) -> None:
    assert may_have_written(answer) is may


def test_the_memory_of_verdicts_is_bounded() -> None:
    for number in range(module._VERDICTS_BOUND + 10):
        fields = ((b"Content-Type", b"application/json; x=%d" % number), (b"ETag", b'"x"'))
        assert storable(ResponseHead(200, fields), 60.0).stored is Stored.STORED
    verdicts = shape_of(fields).memo[module._StorageVerdicts]
    assert 0 < len(verdicts._known) <= module._VERDICTS_BOUND
