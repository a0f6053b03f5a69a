from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.cache_key import (
    INERT,
    RequestReader,
    coding_class,
    normalise,
    private_key,
    selecting,
    selects,
    shared_key,
    vary_names,
)
from gateway.core.messages import Fields

READER = RequestReader(refused=frozenset({b"range"}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"gzip, deflate, br", b"br,deflate;q=0.5,  GZIP"),
        (b"*", b"br, deflate, gzip, zstd"),
        (b"x-gzip", b"gzip"),
        (b"gzip;q=0", b"identity"),
        (b"gzip;q=abc", b"gzip"),
        (b"gzip;level=9,,", b"gzip"),
    ],
)
def test_spellings_of_accept_encoding_that_mean_the_same(one: bytes, other: bytes) -> None:
    assert coding_class(one) == coding_class(other)


def test_codings_differ() -> None:
    assert coding_class(b"gzip") != coding_class(b"br")
    assert coding_class(b"gzip, *;q=0") == b"gzip"
    assert coding_class(b"*, gzip;q=0") == coding_class(b"gzip;q=0, *;q=0.1") == b"br,deflate,zstd"
    assert coding_class(b"gzip, compress") == coding_class(b"compress, gzip") != coding_class(b"gzip, compress;q=0")
    assert coding_class(b"compress") != coding_class(b"identity")


def test_one_pass_finds_what_the_cache_needs() -> None:
    reading = READER.read(
        (
            (b"User-Agent", b"x"),
            (b"accept", b"*/*"),
            (b"Cache-Control", b"no-cache"),
            (b"cache-control", b"max-age=0"),
            (b"If-None-Match", b'"a"'),
            (b"if-none-match", b'"b"'),
            (b"Accept-Encoding", b"gzip"),
            (b"accept-encoding", b"br"),
            (b"Range", b"bytes=0-1"),
        )
    )
    assert reading.variance == b"accept:*/*\n+br,gzip"
    assert reading.cache_control == b"no-cache, max-age=0"
    assert reading.if_none_match == b'"a", "b"'
    assert reading.refused == b"range"


@pytest.mark.parametrize("name", sorted(INERT))
def test_inert_fields_share_a_key(name: bytes) -> None:
    assert READER.read(((name.title(), b"1"),)) == READER.read(())


@given(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=70), st.text(max_size=5), st.text(max_size=5))
def test_any_field_nobody_thought_of_is_part_of_the_key(name: str, one: str, other: str) -> None:
    lowered = name.encode()
    if lowered in INERT | {b"accept-encoding", b"cache-control", b"if-none-match", b"range"}:
        return
    readings = [READER.read(((lowered, value.encode()),)).variance for value in (one, other)]
    assert (readings[0] == readings[1]) is (one == other)


def test_the_memory_of_field_names_is_bounded() -> None:
    reader = RequestReader(refused=frozenset())
    for number in range(5000):
        reader.read(((b"x-%d" % number, b""),))
    assert len(reader) <= 4096
    assert reader.read(((b"x-4999", b""),)).variance == b"x-4999:\n-"


PARTS = st.tuples(
    st.binary(min_size=1, max_size=6),
    st.text("/ab%2F?=\u00e9", max_size=6).map(lambda text: text.encode("latin-1", "replace")),
    st.text("an=\n\\\ud800", max_size=4),
    st.lists(st.tuples(st.sampled_from([b"accept", b"origin", b"x"]), st.sampled_from([b"", b"a", b"a:b"])), max_size=3),
    st.sampled_from([b"", b"http://a", b"https://a"]),
)


Parts = tuple[bytes, bytes, str, list[tuple[bytes, bytes]], bytes]


@given(PARTS, PARTS)
def test_different_requests_have_different_keys(one: Parts, other: Parts) -> None:
    keys = [
        private_key(partition, target, sudo, READER.read(tuple(fields)).variance, reached_as)
        for partition, target, sudo, fields, reached_as in (one, other)
    ]
    assert (keys[0] == keys[1]) is (one == other)


def test_an_empty_partition_has_no_key() -> None:
    with pytest.raises(AssertionError):
        private_key(b"", b"/", "", b"-")


def test_a_shared_answer_belongs_to_one_host() -> None:
    assert shared_key(b"/", b"http://a") != shared_key(b"/", b"http://b")


def test_nothing_of_a_target_is_normalised() -> None:
    assert len({shared_key(t) for t in (b"/a%2Fb", b"/a%2fb", b"/a/b", b"/a/b?", b"/a/b%3F")}) == 5


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ((), ()),
        (((b"Vary", b"B, a"), (b"vary", b"a,,")), (b"a", b"b")),
        (((b"Vary", b"*"),), None),
        (((b"Vary", b""), (b"Vary", b"Foo, *")), None),
    ],
)
def test_vary(fields: Fields, names: tuple[bytes, ...] | None) -> None:
    assert vary_names(fields) == names


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        (b"foo", b"1, 2", b" 1,2 ", True),
        (b"foo", b"1", b"2", False),
        (b"foo", b"A", b"a", False),
        (b"foo", None, b"", False),
        (b"accept-language", b"en, de", b"De ,  eN", True),
        (b"accept-language", b"en, de", b"en, de;q=0.5", False),
        (b"accept-encoding", b"gzip, br", b"br, gzip", True),
    ],
)
def test_normalising(name: bytes, one: bytes | None, other: bytes | None, same: bool) -> None:
    assert (normalise(name, one) == normalise(name, other)) is same


def test_lines_of_a_selecting_field_are_one_value() -> None:
    stored = selecting((b"foo",), ((b"Foo", b"1, 2"),))
    assert selects(stored, b"", ((b"foo", b"1"), (b"foo", b"2")))
    assert not selects(stored, b"", ())


@pytest.mark.parametrize(
    ("asked", "language", "reused"),
    [
        (b"fr;q=0.5, de;q=1.0", b"de", True),
        (b"fr, de", b"de", False),
        (b"fr, de;q=0.5", b"de", False),
        (b"de;q=0", b"de", False),
        (b"fr;q=0.5, de", b"", False),
        (None, b"de", False),
    ],
)
def test_the_language_a_client_wants_most_is_what_it_would_get(asked: bytes | None, language: bytes, reused: bool) -> None:
    stored = selecting((b"accept-language",), ((b"Accept-Language", b"en, de"),))
    fields: Fields = () if asked is None else ((b"Accept-Language", asked),)
    assert selects(stored, language, fields) is reused


def test_a_language_is_no_answer_to_another_field() -> None:
    stored = selecting((b"x-language",), ((b"X-Language", b"en"),))
    assert not selects(stored, b"de", ((b"X-Language", b"de"),))
