"""The entry that a template makes is what a closer look at the same answer would have stored."""

from __future__ import annotations

import pytest

from gateway.cache.contract import CacheProfile
from gateway.cache.entry_template import FormTemplate, storage_fields
from gateway.cache.private_fetcher import _DROPPED, PrivateFetcher
from gateway.core.answer_shape import shape_of
from gateway.core.cache_entry import Entry, make_entry
from gateway.core.head_form import HeadForm, HeadPlaceholders
from gateway.core.messages import Field, Fields, ResponseHead
from gateway.core.private_caching import storable
from gateway.upstream.head_forms import _VARYING_FIELDS

from .origin import NOW
from .private_room import ETAG, KEPT, Room

JSON: Fields = ((b"Content-Type", b"application/json"), (b"Vary", b"User-Agent, Origin"))
ASKED: Fields = ((b"User-Agent", b"glab"),)
# What a private cache looks at; of lifetimes it does not ask GitLab.
LOOKED_AT = (
    "status",
    "reason",
    "fields",
    "body",
    "received_at",
    "etag",
    "last_modified",
    "selecting",
    "language",
    "size_bytes",
)


def head(*fields: Field, status: int = 200) -> ResponseHead:
    all_fields = (*JSON, *fields)
    return ResponseHead(status, all_fields, b"OK", shape_of(all_fields))


def fetcher() -> PrivateFetcher:
    return Room(KEPT).cache._fetcher


def looked_at(entry: Entry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in LOOKED_AT}


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ((b"Etag", ETAG),),
        ((b"ETag", b" " + ETAG + b" "),),
        ((b"Etag", b"not-quoted"),),
        ((b"Content-Length", b"2"), (b"Etag", ETAG)),
        ((b"Date", b"Sat, 21 Nov 2026 01:42:06 GMT"), (b"X-Request-Id", b"1"), (b"X-Runtime", b"0.5"), (b"X-Total", b"7")),
        ((b"Link", b"<https://git.example.com/>; rel=next"), (b"Link", b"<https://git.example.com/2>; rel=last")),
        ((b"Cache-Control", b"max-age=0, private, must-revalidate"), (b"RateLimit-Limit", b"5")),
    ],
)
def test_as_a_closer_look_would_have_it(fields: Fields) -> None:
    cache, first = fetcher(), head(*fields)
    template = cache.make_template(first, CacheProfile(reuse_s=30.0, fields=ASKED))
    assert template is not None
    entry = template.entry(first, b"[]", NOW)
    verdict = storable(first, 30.0)
    closer = make_entry(
        first,
        b"[]",
        verdict.said,
        requested_at=NOW,
        received_at=NOW,
        dropped=_DROPPED,
        selecting=cache._selecting(verdict, ASKED),
    )
    assert entry is not None
    assert looked_at(entry) == looked_at(closer)
    assert entry.selecting, "and it varies"


def test_one_template_for_answers_that_differ_in_what_does_not_decide() -> None:
    cache, profile = fetcher(), CacheProfile(reuse_s=30.0)
    one, other = head((b"Etag", ETAG), (b"X-Total", b"1")), head((b"Etag", b'"2"'), (b"X-Total", b"2"))
    cache.make_template(one, profile)
    assert one.shape is not None
    assert one.shape is other.shape
    template = profile.templates[one.shape, storage_fields(one.shape)(other.fields), 30.0]
    entry = template.entry(other, b"[]", NOW)
    assert entry is not None
    assert (entry.etag, dict(entry.fields)[b"X-Total"]) == (b'"2"', b"2")


def test_another_length_than_it_says_is_no_answer() -> None:
    template = fetcher().make_template(head((b"Content-Length", b"3")), CacheProfile(reuse_s=30.0))
    assert template is not None
    assert template.entry(head((b"Content-Length", b"3")), b"[]", NOW) is None
    assert template.entry(head((b"Content-Length", b"2")), b"[]", NOW) is not None
    assert template.entry(head((b"Content-Length", b"02")), b"[]", NOW) is None


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        (((b"Cache-Control", b"no-store"),), "no-store"),
        (((b"Set-Cookie", b"a=b"),), "set-cookie"),
        (((b"Content-Disposition", b"attachment"),), "delegated"),
        (((b"Content-Encoding", b"brotli"),), "content-encoding"),
    ],
)
def test_of_what_is_not_stored_there_is_only_the_outcome(fields: Fields, stored: str) -> None:
    template = fetcher().make_template(head(*fields), CacheProfile(reuse_s=30.0))
    assert template is not None
    assert template.keep is None
    assert (template.miss_outcome.status, template.miss_outcome.stored) == ("miss", stored)
    assert template.miss_outcome.line == b"Cache-Status: gateway; fwd=uri-miss; fwd-status=200\r\n"


def test_the_outcomes_of_what_is_stored() -> None:
    template = fetcher().make_template(head(), CacheProfile(reuse_s=30.0))
    assert template is not None
    assert template.miss_outcome.line == b"Cache-Status: gateway; fwd=uri-miss; fwd-status=200; stored; ttl=30\r\n"
    assert (template.overtaken.stored, template.overtaken.line) == (
        "invalidated",
        b"Cache-Status: gateway; fwd=uri-miss; fwd-status=200\r\n",
    )


@pytest.mark.parametrize(
    "answer",
    [
        head((b"Last-Modified", b"Sat, 21 Nov 2026 01:42:06 GMT")),
        head((b"Connection", b"X-Total")),
        head((b"Cache-Control", b'private="X-Total"')),
        head(status=404),
    ],
)
def test_what_takes_a_closer_look_has_none(answer: ResponseHead) -> None:
    assert fetcher().make_template(answer, CacheProfile(reuse_s=30.0)) is None


def test_their_number_is_bounded() -> None:
    cache, profile = fetcher(), CacheProfile(reuse_s=30.0)
    for number in range(100):
        cache.make_template(head((b"X-%d" % number, b"")), profile)
    assert 0 < len(profile.templates) <= 16


def test_what_is_not_replayed_is_not_held() -> None:
    """The cache's bound counts what an entry will have: nothing else of its answer may live as long."""
    fields: Fields = (*JSON, (b"Content-Length", b"2"), (b"Etag", ETAG), (b"X-Runtime", b"0.5" * 4000), (b"X-Total", b"7"))
    form = HeadForm([b"HTTP/1.1 200 OK", *(b"%b: %b" % field for field in fields)], fields, b"OK", _VARYING_FIELDS)
    placeholders = HeadPlaceholders(form)
    profile = CacheProfile(reuse_s=30.0)
    template = fetcher().make_template(placeholders.head, profile)
    assert template is not None
    late = FormTemplate(template, profile.reuse_s, placeholders, placeholders.head).late(
        [dict(fields)[name.title()] for name in form.names], b"[]", NOW
    )
    assert late is not None
    held = [getattr(late, name) for name in late.__struct_fields__]  # type: ignore[attr-defined]
    octets = [*held, *(value for one in held if isinstance(one, tuple) for value in one)]
    assert sum(len(one) for one in octets if isinstance(one, bytes)) < 200
    entry = late.materialise()
    assert (entry.etag, entry.fields, entry.body) == (ETAG, (*JSON, *fields[2:4], fields[5]), b"[]")
    assert late.size_bytes == entry.size_bytes
