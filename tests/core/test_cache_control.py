from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.cache_control import (
    MAX_DELTA_S,
    ResponseDirectives,
    delta_seconds,
    parse_cache_control,
    parse_directives,
    parse_request_cache_control,
    parse_targeted,
    request_directives,
    response_directives,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"max-age=60, no-store", {b"max-age": b"60", b"no-store": None}),
        (b"MaX-aGe=60", {b"max-age": b"60"}),
        (b'max-age="60"', {b"max-age": b"60"}),
        (b'extension="max-age=3600", max-age=1', {b"extension": b"max-age=3600", b"max-age": b"1"}),
        (b'a="q\\"x"', {b"a": b'q"x'}),
        (b"max-age=1, max-age=2", {b"max-age": b"1"}),
        (b",, max-age=1 ,", {b"max-age": b"1"}),
        (b"max-age= 60", {b"max-age": b"\x00"}),
        (b"no-store;x, max-age=1", {b"no-store": b"\x00", b"max-age": b"1"}),
        (b"(, a", {b"a": None}),
        (b"", {}),
    ],
)
def test_directives(value: bytes, expected: dict[bytes, bytes | None]) -> None:
    assert parse_directives(value) == expected


@given(st.lists(st.sampled_from([b"no-store", b"max-age=5", b"private", b'x="a, b"', b"y=z"]), max_size=6))
def test_members_of_a_well_formed_list_are_all_found(members: list[bytes]) -> None:
    found = parse_directives(b", ".join(members))
    assert set(found) == {member.partition(b"=")[0] for member in members}


@given(st.binary(max_size=60))
def test_no_octets_break_the_reader(value: bytes) -> None:
    parse_directives(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"003600", 3600.0),
        (b"99999999999", MAX_DELTA_S),
        (b"00000000000000000001", 1.0),
        (b"9999999999", MAX_DELTA_S),
        (b"-1", 0.0),
        (b"1.5", 0.0),
        (b"'3600'", 0.0),
        (None, 0.0),
    ],
)
def test_doubtful_seconds_are_none(value: bytes | None, seconds: float) -> None:
    assert delta_seconds(value) == seconds


def test_s_maxage_is_a_shared_caches_max_age_and_means_must_revalidate() -> None:
    said = parse_cache_control(b"max-age=1, s-maxage=60")
    assert (said.max_age_s, said.shared_max_age, said.must_revalidate) == (60.0, True, True)
    said = parse_cache_control(b"max-age=1, stale-if-error=9, stale-while-revalidate=8, proxy-revalidate")
    assert (said.max_age_s, said.stale_if_error_s, said.stale_while_revalidate_s) == (1.0, 9.0, 8.0)
    assert said.must_revalidate


def test_qualified_forms_name_fields_and_bind_nothing_else() -> None:
    said = parse_cache_control(b'no-cache="A, b", private="c"')
    assert (said.no_cache, said.no_cache_fields) == (False, {b"a", b"b"})
    assert (said.private, said.private_fields) == (False, {b"c"})
    said = parse_cache_control(b"no-cache, private")
    assert said.no_cache
    assert said.private
    assert parse_cache_control(b"no-cache= , private").no_cache  # broken counts as unqualified


def test_a_targeted_field_replaces_cache_control() -> None:
    fields = ((b"Cache-Control", b"no-store"), (b"CDN-Cache-Control", b"max-age=60"))
    assert response_directives(fields, "gateway") == ResponseDirectives(max_age_s=60.0, targeted=True)
    assert response_directives(fields).no_store


@pytest.mark.parametrize("value", [b"", b"max-age=60,", b"MAX-AGE=60", b"max-age=(1"])
def test_an_empty_or_broken_targeted_field_counts_as_absent(value: bytes) -> None:
    fields = ((b"CDN-Cache-Control", value), (b"Cache-Control", b"no-store"))
    assert response_directives(fields, "gateway").no_store


def test_members_of_the_wrong_type_are_ignored_one_by_one() -> None:
    said = parse_targeted(b'max-age="60", s-maxage=-1, no-store=?0, private="a", no-cache, must-revalidate=1.5')
    assert said == ResponseDirectives(private_fields=frozenset({b"a"}), no_cache=True, targeted=True)


def test_surrogate_control_is_read_in_any_case_and_only_if_meant_for_us() -> None:
    fields = ((b"Surrogate-Control", b"MaX-aGe=60;gateway, no-store;other"), (b"Cache-Control", b"no-store"))
    assert response_directives(fields, "gateway") == ResponseDirectives(max_age_s=60.0, targeted=True)
    assert response_directives(((b"Surrogate-Control", b"60+600"),), "gateway") == ResponseDirectives()


def test_cdn_cache_control_comes_before_surrogate_control() -> None:
    fields = ((b"Surrogate-Control", b"no-store"), (b"CDN-Cache-Control", b"max-age=1"))
    assert not response_directives(fields, "gateway").no_store


def test_lines_of_one_field_are_one_list() -> None:
    assert response_directives(((b"cache-control", b"max-age=1"), (b"Cache-Control", b"no-store"))).no_store


def test_requests() -> None:
    asked = parse_request_cache_control(
        b"no-cache, no-store, only-if-cached, max-age=1, min-fresh=2, max-stale=3, stale-if-error=4"
    )
    assert asked.no_cache
    assert asked.no_store
    assert asked.only_if_cached
    assert (asked.max_age_s, asked.min_fresh_s, asked.max_stale_s, asked.stale_if_error_s) == (1, 2, 3, 4)
    assert parse_request_cache_control(b"max-stale").max_stale_s == MAX_DELTA_S
    assert request_directives(((b"Pragma", b"no-cache"),)) == parse_request_cache_control(b"")
    assert request_directives(((b"Cache-Control", b"no-cache"),)).no_cache


@pytest.mark.parametrize("piece", [b",", b", ", b" ", b"\t,", b"a= ", b'="'])
def test_a_long_list_of_nothing_takes_no_longer_than_its_length(piece: bytes) -> None:
    """Its square would be minutes."""
    assert parse_directives(piece * (1 << 18) + b",no-store")[b"no-store"] is None
