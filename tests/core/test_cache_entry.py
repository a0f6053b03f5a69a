from __future__ import annotations

import pytest

from gateway.core.byte_ranges import ContentRange
from gateway.core.cache_control import response_directives
from gateway.core.cache_entry import (
    Entry,
    end_to_end,
    freshen,
    make_entry,
    may_answer_304,
    not_modified,
    replace_fields,
    updated_fields,
)
from gateway.core.http_date import format_date
from gateway.core.messages import Fields, ResponseHead, first, values

NOW = 1_800_000_000.0


def entry(*fields: tuple[bytes, bytes], status: int = 200, body: bytes = b"0123456789", at: float = NOW) -> Entry:
    head = ResponseHead(status, fields, b"OK")
    return make_entry(head, body, response_directives(fields), requested_at=at, received_at=at)


def test_hop_by_hop_fields_and_what_connection_names_are_not_stored() -> None:
    kept = entry((b"Connection", b"X-A, keep-alive"), (b"X-A", b"1"), (b"Keep-Alive", b"5"), (b"X-B", b"2"))
    assert kept.fields == ((b"X-B", b"2"), (b"Content-Length", b"10"))
    assert end_to_end(((b"TE", b"x"), (b"A", b"1"))) == ((b"A", b"1"),)


def test_fields_that_may_not_be_reused_unvalidated_are_not_stored() -> None:
    kept = entry((b"Cache-Control", b'no-cache="a", private="b"'), (b"A", b"1"), (b"B", b"2"), (b"Age", b"5"))
    assert [name for name, _ in kept.fields] == [b"Cache-Control", b"Content-Length"]


def test_a_204_gets_no_content_length() -> None:
    assert entry(status=204, body=b"").fields == ()


def test_what_a_later_request_needs_is_computed_once() -> None:
    kept = entry(
        (b"ETag", b' "a" '),
        (b"Last-Modified", format_date(NOW - 50)),
        (b"Date", format_date(NOW - 5)),
        (b"Cache-Control", b"max-age=60, must-revalidate, no-cache, stale-if-error=3"),
    )
    assert (kept.etag, kept.modified_at, kept.date_at) == (b'"a"', NOW - 50, NOW - 5)
    assert (kept.lifetime_s, kept.stale_if_error_s, kept.stale_while_revalidate_s) == (60, 3, -1)
    assert kept.must_revalidate
    assert kept.no_cache
    assert kept.age_s(NOW + 10) == 15
    assert kept.age_s(NOW - 100) == 5, "a clock that stepped back makes nothing younger"
    assert entry((b"ETag", b"unquoted")).etag == b""


def test_the_size_counts_body_and_fields() -> None:
    small, large = entry(body=b""), entry((b"X", b"y" * 1000), body=b"z" * 5000)
    assert large.size_bytes - small.size_bytes > 6000


def test_a_partial_answer_knows_where_it_begins() -> None:
    kept = entry((b"Content-Range", b"bytes 4-8/10"), status=206, body=b"45678")
    assert kept.partial
    assert (kept.first_octet, kept.total) == (4, 10)
    assert kept.holds(ContentRange(6, 8, 10)) == b"678"
    assert kept.holds(ContentRange(3, 8, 10)) is None
    assert kept.holds(ContentRange(8, 9, 10)) is None
    assert entry().holds(ContentRange(0, 1, 10)) == b"01"


def test_a_304_replaces_all_lines_of_a_name_and_leaves_what_describes_the_octets() -> None:
    stored: Fields = ((b"Link", b"1"), (b"Link", b"2"), (b"X-Total", b"5"), (b"Content-Length", b"10"), (b"ETag", b'"a"'))
    update: Fields = ((b"link", b"3"), (b"Content-Length", b"0"), (b"ETag", b'"b"'), (b"Connection", b"close"))
    assert updated_fields(stored, update) == (
        (b"X-Total", b"5"),
        (b"Content-Length", b"10"),
        (b"ETag", b'"a"'),
        (b"link", b"3"),
    )
    assert updated_fields((), update, frozenset({b"link"})) == ()


def test_freshening_starts_the_clock_again() -> None:
    old = entry((b"Date", format_date(NOW)), (b"Cache-Control", b"max-age=5"), (b"X", b"1"))
    head = ResponseHead(304, ((b"X", b"2"),))
    fresh = freshen(old, head, requested_at=NOW + 100, received_at=NOW + 100)
    assert fresh.body == old.body
    assert fresh.age_s(NOW + 100) == 0
    assert first(fresh.fields, b"x") == b"2"
    assert fresh.lifetime_s == 5


def test_freshening_believes_the_304s_own_date_age_and_directives() -> None:
    old = entry((b"Cache-Control", b"max-age=5"))
    head = ResponseHead(
        304, ((b"Date", format_date(NOW + 90)), (b"Age", b"30"), (b"Cache-Control", b"max-age=99"), (b"X-Id", b"9"))
    )
    fresh = freshen(
        old, head, requested_at=NOW + 100, received_at=NOW + 100, dropped=frozenset({b"x-id"}), selecting=((b"a", b"1"),)
    )
    assert fresh.age_s(NOW + 100) == 30
    assert fresh.lifetime_s == 99
    assert fresh.selecting == ((b"a", b"1"),)
    assert first(fresh.fields, b"age") is None
    assert first(fresh.fields, b"x-id") is None


@pytest.mark.parametrize(
    ("fields", "etag_condition", "since", "unchanged"),
    [
        pytest.param(((b"ETag", b'"a"'),), b'"a"', None, True, id="same-etag"),
        pytest.param(((b"ETag", b'"a"'),), b'"b"', NOW + 99, False, id="etag-decides-alone"),
        pytest.param((), None, None, False, id="no-condition"),
        pytest.param(((b"Last-Modified", format_date(NOW - 9)),), None, NOW - 9, True, id="not-modified-since"),
        pytest.param(((b"Last-Modified", format_date(NOW - 9)),), None, NOW - 10, False, id="modified-since"),
        pytest.param(((b"Date", format_date(NOW - 9)),), None, NOW - 9, True, id="by-date"),
        pytest.param((), None, NOW, True, id="by-arrival"),
        pytest.param((), None, NOW - 1, False, id="came-later"),
    ],
)
def test_preconditions(fields: Fields, etag_condition: bytes | None, since: float | None, unchanged: bool) -> None:
    assert may_answer_304(entry(*fields), etag_condition, since) is unchanged


def test_only_a_200_turns_into_a_304() -> None:
    assert not may_answer_304(entry((b"ETag", b'"a"'), status=404), b'"a"', None)


def test_a_304_keeps_pagination_and_drops_what_describes_content() -> None:
    stored: Fields = ((b"Content-Type", b"x"), (b"Link", b"<n>"), (b"Content-Length", b"1"), (b"ETag", b'"a"'))
    assert not_modified(stored) == ((b"Link", b"<n>"), (b"ETag", b'"a"'))


def test_replaced() -> None:
    assert values(replace_fields(((b"A", b"1"), (b"a", b"2")), (b"A", b"3")), b"a") == [b"3"]


@pytest.mark.parametrize("connection", [(), ((b"Connection", b"keep-alive"),), ((b"Connection", b"X-Hop"),)])
@pytest.mark.parametrize("said", [b"max-age=0", b'private="x-hop"', b'no-cache="X-Other"'])
def test_what_is_kept_by_the_shape_of_an_answer(connection: Fields, said: bytes) -> None:
    plain = ((b"X-Hop", b"1"), (b"X-Other", b"2"), (b"Age", b"1"), (b"Server", b"s"), (b"Cache-Control", said))
    head = ResponseHead(200, connection + plain)
    entry = make_entry(
        head, b"{}", response_directives(head.fields), requested_at=0, received_at=0, dropped=frozenset({b"server"})
    )
    unkept = {b"X-Hop"} if b"X-Hop" in dict(connection).values() or said.startswith(b"private") else set()
    unkept |= {b"X-Other"} if said.startswith(b"no-cache") else set()
    expected = tuple(field for field in plain if field[0] not in unkept | {b"Age", b"Server"})
    assert entry.fields == (*expected, (b"Content-Length", b"2"))
    assert entry.initial_age_s == 1.0


def test_the_language_counts_only_where_vary_names_it() -> None:
    head = ResponseHead(200, ((b"Content-Language", b"DE"),))
    said = response_directives(head.fields)
    chosen = ((b"accept-language", b"de"),)
    assert make_entry(head, b"", said, requested_at=0, received_at=0, selecting=chosen).language == b"de"
    assert make_entry(head, b"", said, requested_at=0, received_at=0).language == b""
