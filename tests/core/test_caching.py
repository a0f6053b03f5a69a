from __future__ import annotations

import pytest

from gateway.core.cache_control import parse_request_cache_control, response_directives
from gateway.core.cache_entry import Entry, make_entry
from gateway.core.cache_key import selecting, vary_names
from gateway.core.cache_status import CacheReason, Stored
from gateway.core.caching import (
    Use,
    answer_from_entry,
    conditions,
    describes,
    find_validated,
    invalidated_targets,
    is_continuation,
    is_failure,
    joined_head,
    judge,
    keep_s,
    may_serve_stale,
    may_update,
    must_drop_stored,
    remainder_conditions,
    select,
    storable,
    validators,
)
from gateway.core.http_date import format_date
from gateway.core.messages import Fields, ResponseHead, first

NOW = 1_800_000_000.0
FRESH = (b"Cache-Control", b"max-age=60")


def may_store(
    *fields: tuple[bytes, bytes], method: str = "GET", status: int = 200, no_store: bool = False, authorized: bool = False
) -> Stored:
    head = ResponseHead(status, fields)
    said = response_directives(fields)
    return storable(method, b"/a", head, said, no_store=no_store, authorized=authorized)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param(may_store(FRESH), Stored.STORED, id="max-age"),
        pytest.param(may_store((b"ETag", b'"a"')), Stored.STORED, id="validator"),
        pytest.param(may_store((b"Last-Modified", b"x")), Stored.STORED, id="last-modified"),
        pytest.param(may_store(), Stored.UNVALIDATABLE, id="nothing"),
        pytest.param(may_store(FRESH, no_store=True), Stored.REQUEST, id="request-no-store"),
        pytest.param(may_store((b"Cache-Control", b"no-store, max-age=1")), Stored.NO_STORE, id="no-store"),
        pytest.param(may_store((b"Cache-Control", b"private, max-age=1")), Stored.PRIVATE, id="private"),
        pytest.param(
            may_store((b"Cache-Control", b"no-store, must-understand, max-age=1")), Stored.STORED, id="understood"
        ),
        pytest.param(
            may_store((b"Cache-Control", b"must-understand, max-age=1"), status=599),
            Stored.MUST_UNDERSTAND,
            id="not-understood",
        ),
        pytest.param(may_store(FRESH, authorized=True), Stored.AUTHORIZATION, id="authorization"),
        pytest.param(
            may_store((b"Cache-Control", b"max-age=1, public"), authorized=True), Stored.STORED, id="authorized-public"
        ),
        pytest.param(
            may_store((b"Cache-Control", b"s-maxage=1"), authorized=True), Stored.STORED, id="authorized-s-maxage"
        ),
        pytest.param(may_store(FRESH, (b"Vary", b"*")), Stored.VARY_ANY, id="vary-any"),
        pytest.param(may_store(FRESH, status=599), Stored.STORED, id="explicit-unknown-status"),
        pytest.param(may_store((b"ETag", b'"a"'), status=403), Stored.STATUS, id="no-guess"),
        pytest.param(may_store((b"Cache-Control", b"public"), status=403), Stored.UNVALIDATABLE, id="public-guess"),
        pytest.param(may_store(FRESH, status=304), Stored.STATUS, id="304"),
        pytest.param(may_store(FRESH, status=206), Stored.STATUS, id="multipart-ranges"),
        pytest.param(may_store(FRESH, (b"Content-Range", b"items 0-1/9"), status=206), Stored.STATUS, id="other-units"),
        pytest.param(may_store(FRESH, (b"Content-Range", b"bytes 0-9/9"), status=206), Stored.STATUS, id="no-such-piece"),
        pytest.param(may_store(FRESH, status=412), Stored.STATUS, id="a-condition"),
        pytest.param(may_store(FRESH, (b"Content-Range", b"bytes */10"), status=416), Stored.STATUS, id="no-such-range"),
        pytest.param(may_store(FRESH, (b"Content-Range", b"bytes 0-1/9"), status=206), Stored.STORED, id="range"),
        pytest.param(may_store(FRESH, method="PUT"), Stored.METHOD, id="put"),
        pytest.param(may_store(FRESH, method="POST"), Stored.METHOD, id="post"),
        pytest.param(may_store(FRESH, (b"Content-Location", b"/a"), method="POST"), Stored.STORED, id="post-of-itself"),
        pytest.param(may_store(FRESH, (b"Content-Location", b"/b"), method="POST"), Stored.METHOD, id="post-of-another"),
        pytest.param(may_store((b"Content-Location", b"/a"), method="POST"), Stored.METHOD, id="post-unlimited"),
        pytest.param(may_store(FRESH, (b"Content-Location", b"//[/a"), method="POST"), Stored.METHOD, id="post-nonsense"),
    ],
)
def test_storing(result: Stored, expected: Stored) -> None:
    assert result is expected


def entry(
    *fields: tuple[bytes, bytes],
    status: int = 200,
    body: bytes = b"0123456789",
    at: float = NOW,
    asked: Fields = (),
) -> Entry:
    return make_entry(
        ResponseHead(status, fields, b"OK"),
        body,
        response_directives(fields),
        requested_at=at,
        received_at=at,
        selecting=selecting(vary_names(fields) or (), asked),
        asked_range=first(asked, b"range") or b"",
    )


@pytest.mark.parametrize(
    ("cache_control", "asked", "later_s", "use", "reason"),
    [
        (b"max-age=60", b"", 59, Use.REUSE, CacheReason.FRESH),
        (b"max-age=60", b"", 60, Use.VALIDATE, CacheReason.STALE),
        (b"max-age=60", b"no-cache", 1, Use.VALIDATE, CacheReason.REQUEST),
        (b"max-age=60", b"no-cache", 60, Use.VALIDATE, CacheReason.STALE),
        (b"max-age=60, no-cache", b"", 1, Use.VALIDATE, CacheReason.NO_CACHE),
        (b"max-age=60", b"max-age=5", 6, Use.VALIDATE, CacheReason.REQUEST),
        (b"max-age=60", b"max-age=5", 60, Use.VALIDATE, CacheReason.STALE),
        (b"max-age=60", b"max-age=5", 5, Use.REUSE, CacheReason.FRESH),
        (b"max-age=60", b"min-fresh=50", 20, Use.VALIDATE, CacheReason.REQUEST),
        (b"max-age=60", b"max-stale=5", 64, Use.REUSE_STALE, CacheReason.MAX_STALE),
        (b"max-age=60", b"max-stale", 9999, Use.REUSE_STALE, CacheReason.MAX_STALE),
        (b"max-age=60", b"max-age=5, max-stale=5", 64, Use.REUSE_STALE, CacheReason.MAX_STALE),
        (b"max-age=60, must-revalidate", b"max-stale", 64, Use.VALIDATE, CacheReason.STALE),
        (b"max-age=60, stale-while-revalidate=9", b"", 68, Use.REUSE_STALE, CacheReason.STALE_WHILE_REVALIDATE),
        (b"max-age=60, stale-while-revalidate=9", b"", 69, Use.VALIDATE, CacheReason.STALE),
    ],
)
def test_reuse(cache_control: bytes, asked: bytes, later_s: float, use: Use, reason: CacheReason) -> None:
    stored = entry((b"Cache-Control", cache_control))
    verdict = judge((stored,), (), parse_request_cache_control(asked), NOW + later_s)
    assert (verdict.use, verdict.reason) == (use, reason)
    assert verdict.entry is stored
    assert verdict.background is (reason is CacheReason.STALE_WHILE_REVALIDATE)


SILENT = parse_request_cache_control(b"")


def test_nothing_stored_and_nothing_selected() -> None:
    assert judge((), (), SILENT, NOW).reason is CacheReason.URI_MISS
    stored = entry(FRESH, (b"Vary", b"Foo"), asked=((b"Foo", b"1"),))
    assert judge((stored,), ((b"Foo", b"2"),), SILENT, NOW).reason is CacheReason.VARY_MISS
    assert judge((stored,), ((b"Foo", b"1"),), SILENT, NOW).use is Use.REUSE


def test_the_newest_of_the_selected_is_taken_and_whole_ones_first() -> None:
    old, new = entry(FRESH), entry(FRESH, at=NOW + 5)
    piece = entry(FRESH, (b"Content-Range", b"bytes 0-9/20"), status=206, at=NOW + 9)
    assert select((old, new, piece), ()) == (new, old, piece)


@pytest.mark.parametrize(
    ("wanted", "use"),
    [
        (b"bytes=6-8", Use.REUSE),
        (b"bytes=-5", Use.REUSE),  # the very request that brought it
        (b"bytes=6-", Use.MISS),
        (b"bytes=0-1", Use.MISS),
        (b"bytes=0-1,3-4", Use.MISS),
        (None, Use.MISS),
    ],
)
def test_a_partial_answer_serves_what_it_holds(wanted: bytes | None, use: Use) -> None:
    stored = entry(FRESH, (b"Content-Range", b"bytes 4-9/10"), status=206, body=b"45678", asked=((b"Range", b"bytes=-5"),))
    fields: Fields = () if wanted is None else ((b"Range", wanted),)
    verdict = judge((stored,), fields, SILENT, NOW)
    assert verdict.use is use
    if use is Use.REUSE:
        head, content = answer_from_entry(stored, "GET", fields, NOW)
        assert head.status == 206
        assert content in {b"678", b"45678"}
    else:
        assert verdict.reason is CacheReason.PARTIAL


def test_a_partial_answer_of_unknown_length_serves_only_its_own_request() -> None:
    stored = entry(FRESH, (b"Content-Range", b"bytes 4-9/*"), status=206, body=b"456789", asked=((b"Range", b"bytes=4-"),))
    assert judge((stored,), ((b"Range", b"bytes=5-6"),), SILENT, NOW).use is Use.MISS
    assert judge((stored,), ((b"Range", b"bytes=4-"),), SILENT, NOW).use is Use.REUSE


@pytest.mark.parametrize(("condition", "use"), [(b'"a"', Use.REUSE), (b'"b"', Use.MISS), (b'W/"a"', Use.MISS)])
def test_a_partial_answer_serves_only_who_holds_the_rest_of_it(condition: bytes, use: Use) -> None:
    """RFC 9110 §13.1.5: of another version all of it is wanted, and all of it is not here."""
    stored = entry(FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), status=206, body=b"56789")
    assert judge((stored,), ((b"Range", b"bytes=5-9"), (b"If-Range", condition)), SILENT, NOW).use is use


def test_a_partial_answer_is_none_to_head() -> None:
    stored = entry(FRESH, (b"Content-Range", b"bytes 5-9/10"), status=206, body=b"56789")
    assert judge((stored,), ((b"Range", b"bytes=5-9"),), SILENT, NOW, "HEAD").use is Use.MISS


@pytest.mark.parametrize(
    ("cache_control", "asked", "later_s", "default_s", "allowed"),
    [
        (b"max-age=60", b"", 100, 0, False),
        (b"max-age=60", b"", 100, 50, True),
        (b"max-age=60, stale-if-error=50", b"", 100, 0, True),
        (b"max-age=60, stale-if-error=0", b"", 100, 50, False),
        (b"max-age=60", b"stale-if-error=50", 100, 0, True),
        (b"max-age=60, must-revalidate, stale-if-error=50", b"", 100, 50, False),
        (b"no-cache", b"", 1, 50, False),
        (b"max-age=60", b"no-cache", 100, 50, False),
    ],
)
def test_serving_stale(cache_control: bytes, asked: bytes, later_s: float, default_s: float, allowed: bool) -> None:
    stored = entry((b"Cache-Control", cache_control))
    assert may_serve_stale(stored, parse_request_cache_control(asked), NOW + later_s, default_s) is allowed


def test_failures() -> None:
    assert {status for status in range(200, 600) if is_failure(status)} == {500, 502, 503, 504}


def test_how_long_a_store_holds_an_answer() -> None:
    assert keep_s(entry(FRESH), 100) == 160
    assert keep_s(entry((b"Cache-Control", b"max-age=60, must-revalidate")), 100) == 60
    assert keep_s(entry((b"Cache-Control", b"max-age=60, must-revalidate"), (b"ETag", b'"a"')), 100) == 160
    assert keep_s(entry((b"Cache-Control", b"max-age=60, stale-if-error=500")), 100) == 560


def test_what_validates() -> None:
    modified = format_date(NOW - 9)
    both = entry((b"ETag", b'"a"'), (b"Last-Modified", modified))
    other = entry((b"ETag", b'W/"b"'))
    assert validators(both, (other, both)) == ((b"If-None-Match", b'"a", W/"b"'), (b"If-Modified-Since", modified))
    assert validators(entry()) == ()
    assert conditions(((b"If-None-Match", b"x"), (b"A", b"1"), (b"range", b"y"))) == (
        (b"If-None-Match", b"x"),
        (b"range", b"y"),
    )


@pytest.mark.parametrize(
    ("said", "authorized", "result"),
    [
        ((), False, Stored.STORED),
        ((), True, Stored.AUTHORIZATION),
        (((b"Cache-Control", b"public, max-age=60"),), True, Stored.STORED),
        (((b"Cache-Control", b"private"),), False, Stored.PRIVATE),
        (((b"CDN-Cache-Control", b"no-store"),), False, Stored.NO_STORE),
        (((b"Vary", b"*"),), False, Stored.VARY_ANY),
    ],
)
def test_whether_a_304_may_be_told_to_others(said: Fields, authorized: bool, result: Stored) -> None:
    stored = entry((b"Cache-Control", b"max-age=60"), (b"ETag", b'"x"'))
    update = ResponseHead(304, said)
    assert may_update(stored, b"/a", update, "gateway", no_store=False, authorized=authorized) is result
    assert may_update(stored, b"/a", update, "gateway", no_store=True, authorized=authorized) is Stored.REQUEST
    assert must_drop_stored(result) is (result not in {Stored.REQUEST, Stored.AUTHORIZATION})


def test_that_a_stored_answer_is_everybodys_does_not_speak_for_a_304() -> None:
    """RFC 9111 §3.5: it may bring fields of the one who asked, and says nothing itself."""
    stored = entry((b"Cache-Control", b"public, max-age=60"), (b"ETag", b'"x"'))
    own: Fields = ((b"ETag", b'"x"'), (b"Set-Cookie", b"session=one"))
    for more, authorized, result in (
        ((), True, Stored.AUTHORIZATION),
        ((), False, Stored.STORED),
        (((b"Cache-Control", b"no-store"),), True, Stored.NO_STORE),
        (((b"Cache-Control", b"public"),), True, Stored.STORED),
    ):
        update = ResponseHead(304, (*own, *more))
        assert may_update(stored, b"/a", update, "gateway", no_store=False, authorized=authorized) is result


def test_which_one_a_304_speaks_of() -> None:
    one, other = entry((b"ETag", b'"a"')), entry((b"ETag", b'"b"'))
    assert find_validated((one, other), ResponseHead(304, ((b"ETag", b'W/"b"'),))) is other
    assert find_validated((one, other), ResponseHead(304, ((b"ETag", b'"c"'),))) is None
    assert find_validated((one, other), ResponseHead(304, ())) is one
    assert find_validated((one,), ResponseHead(304, ((b"ETag", b'"c"'),))) is one
    assert find_validated((), ResponseHead(304, ())) is None


def test_pieces_are_joined_by_a_strong_validator_only() -> None:
    piece = entry((b"ETag", b'"a"'), (b"Content-Range", b"bytes 0-4/10"), status=206, body=b"01234")
    assert remainder_conditions(piece) == ((b"Range", b"bytes=5-"), (b"If-Range", b'"a"'))
    weak = entry((b"ETag", b'W/"a"'), (b"Content-Range", b"bytes 0-4/10"), status=206, body=b"01234")
    assert remainder_conditions(weak) == ()
    assert (
        remainder_conditions(entry((b"ETag", b'"a"'), (b"Content-Range", b"bytes 1-4/10"), status=206, body=b"1234")) == ()
    )
    head = ResponseHead(206, ((b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), (b"X", b"2")))
    assert is_continuation(piece, head, 5, 10)
    assert not is_continuation(piece, head, 6, 10)
    assert not is_continuation(piece, ResponseHead(206, ((b"ETag", b'"b"'),)), 5, 10)
    whole = joined_head(piece, head)
    assert whole.status == 200
    assert first(whole.fields, b"content-length") == b"10"
    assert first(whole.fields, b"content-range") is None
    assert first(whole.fields, b"x") == b"2"


def test_a_head_that_differs_outdates_the_stored_answer() -> None:
    stored = entry((b"ETag", b'"a"'), (b"Last-Modified", format_date(NOW)))
    assert describes(stored, ResponseHead(200, ()))
    assert describes(stored, ResponseHead(200, ((b"ETag", b'"a"'), (b"Content-Length", b"10"))))
    assert not describes(stored, ResponseHead(410, ()))
    assert not describes(stored, ResponseHead(200, ((b"ETag", b'"b"'),)))
    assert not describes(stored, ResponseHead(200, ((b"Content-Length", b"11"),)))
    assert not describes(stored, ResponseHead(200, ((b"Last-Modified", format_date(NOW + 1)),)))


DATED: Fields = ((b"ETag", b'"a"'), (b"Date", format_date(NOW)), (b"Last-Modified", format_date(NOW - 100)))


@pytest.mark.parametrize(
    ("fields", "status", "content"),
    [
        pytest.param((), 200, b"0123456789", id="whole"),
        pytest.param(((b"If-None-Match", b'"a"'),), 304, b"", id="not-modified"),
        pytest.param(((b"If-None-Match", b'"b"'),), 200, b"0123456789", id="modified"),
        pytest.param(((b"If-Modified-Since", format_date(NOW)),), 304, b"", id="not-modified-since"),
        pytest.param(((b"If-Modified-Since", b"nonsense"),), 200, b"0123456789", id="unreadable-date"),
        pytest.param(((b"Range", b"bytes=0-1"),), 206, b"01", id="range"),
        pytest.param(((b"Range", b"bytes=-1"),), 206, b"9", id="suffix"),
        pytest.param(((b"Range", b"bytes=10-"),), 416, b"", id="unsatisfiable"),
        pytest.param(((b"Range", b"bytes=0-1,4-5"),), 200, b"0123456789", id="several-ranges"),
        pytest.param(((b"Range", b"bytes=0-1"), (b"If-Range", b'"a"')), 206, b"01", id="if-range"),
        pytest.param(((b"Range", b"bytes=0-1"), (b"If-Range", b'W/"a"')), 200, b"0123456789", id="weak-if-range"),
        pytest.param(((b"Range", b"bytes=0-1"), (b"If-Range", format_date(NOW - 100))), 206, b"01", id="if-range-date"),
        pytest.param(((b"Range", b"bytes=0-1"), (b"If-Range", format_date(NOW))), 200, b"0123456789", id="other-date"),
    ],
)
def test_answers(fields: Fields, status: int, content: bytes) -> None:
    head, body = answer_from_entry(entry(*DATED), "GET", fields, NOW)
    assert (head.status, body) == (status, content)
    if status == 206:
        assert first(head.fields, b"content-length") == b"%d" % len(content)
        assert (first(head.fields, b"content-range") or b"").endswith(b"/10")


def test_head_gets_the_fields_of_get_and_no_content() -> None:
    head, body = answer_from_entry(entry(*DATED), "HEAD", ((b"Range", b"bytes=0-1"),), NOW)
    assert (head.status, body, first(head.fields, b"content-length")) == (200, b"", b"10")


def test_a_range_of_something_else_than_a_200_is_no_range() -> None:
    assert answer_from_entry(entry(FRESH, status=404), "GET", ((b"Range", b"bytes=0-1"),), NOW)[0].status == 404


@pytest.mark.parametrize(
    ("method", "status", "fields", "gone"),
    [
        ("GET", 200, (), ()),
        ("POST", 500, (), ()),
        ("POST", 404, (), ()),
        ("M-SEARCH", 200, (), (b"/a/b",)),
        ("PUT", 303, ((b"Location", b"/c?d=e"),), (b"/a/b", b"/c?d=e")),
        ("POST", 201, ((b"Location", b"http://HOST/x"), (b"Content-Location", b"y")), (b"/a/b", b"/x", b"/a/y")),
        ("POST", 201, ((b"Location", b"http://other/x"),), (b"/a/b",)),
        ("POST", 201, ((b"Location", b"/a/b"),), (b"/a/b",)),
        ("POST", 201, ((b"Location", b"http://[/"),), (b"/a/b",)),
        ("DELETE", 204, ((b"Location", b"http://host"),), (b"/a/b", b"/")),
    ],
)
def test_invalidation(method: str, status: int, fields: Fields, gone: tuple[bytes, ...]) -> None:
    assert invalidated_targets(method, b"/a/b", ResponseHead(status, fields), b"host") == gone
