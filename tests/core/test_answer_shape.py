"""Shapes of answers: each finding by shape is what a look at the fields themselves finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import answer_shape
from gateway.core.answer_shape import make_picker, shape_of
from gateway.core.messages import Fields, first, joined, without

NAMES = (b"Date", b"date", b"ETag", b"Etag", b"Vary", b"Cache-Control", b"X-Runtime", b"Link")
fields_of = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from((b"", b"1", b"a, b"))), max_size=8
).map(tuple)  # fmt: skip


@given(fields_of, st.sampled_from(NAMES))
def test_a_shape_finds_what_is_found_without_it(fields: Fields, name: bytes) -> None:
    shape, name = shape_of(fields), name.lower()
    assert shape.first(fields, name) == first(fields, name)
    assert shape.joined(fields, name) == joined(fields, name)
    assert shape.has_any(frozenset({name})) is (first(fields, name) is not None)


@given(fields_of, st.frozensets(st.sampled_from([name.lower() for name in NAMES])))
def test_what_is_left_without_some_names(fields: Fields, names: frozenset[bytes]) -> None:
    assert shape_of(fields).without(names)(fields) == without(fields, names)


def test_answers_of_one_shape_share_it() -> None:
    one, other = shape_of(((b"A", b"1"), (b"B", b"2"))), shape_of(((b"A", b"3"), (b"B", b"4")))
    assert one is other
    assert shape_of(((b"B", b"1"), (b"A", b"2"))) is not one
    assert shape_of(((b"a", b"1"), (b"B", b"2"))) is not one, "as it is spelt, it goes down"


def test_made_up_names_do_not_keep_real_ones_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_shape, "_SHAPES_BOUND", 4)
    for number in range(50):
        shape_of(((b"X-%d" % number, b""),))
    assert len(answer_shape._SHAPES) <= 4
    assert shape_of(((b"Server", b""),)) is shape_of(((b"Server", b"x"),))


def test_names_without_end_are_not_kept() -> None:
    long = ((b"X" * 3000, b""),)
    assert shape_of(long) is not shape_of(long)


@pytest.mark.parametrize("places", [(), (1,), (0, 2)])
def test_picking(places: tuple[int, ...]) -> None:
    fields = ((b"A", b"1"), (b"B", b"2"), (b"C", b"3"))
    assert make_picker(places)(fields) == tuple(fields[place] for place in places)
