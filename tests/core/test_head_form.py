"""Forms of answers' heads: what is read in one is what stands there, and placeholders come out where values go."""

from __future__ import annotations

import pytest

from gateway.core.answer_shape import shape_of
from gateway.core.head_form import HeadForm, HeadPlaceholders
from gateway.core.messages import Fields

OWN = frozenset({b"etag", b"link", b"x-total"})
FIELDS: Fields = (
    (b"Content-Type", b"application/json"),
    (b"Etag", b'"1"'),
    (b"Link", b"<http://gitlab/?page=2>; rel=next"),
    (b"Vary", b"Origin"),
    (b"Content-Length", b"2"),
    (b"X-Total", b"7"),
)
VALUES = (b'"1"', b"<http://gitlab/?page=2>; rel=next", b"2", b"7")


def lines_of(fields: Fields, status: bytes = b"HTTP/1.1 200 OK") -> list[bytes]:
    return [status, *(b"%b: %b" % field for field in fields)]


def form(fields: Fields = FIELDS) -> HeadForm:
    return HeadForm(lines_of(fields), fields, b"OK", OWN)


def changed(place: int, line: bytes) -> list[bytes]:
    lines = lines_of(FIELDS)
    lines[place] = line
    return lines


def test_it_reads_its_own_head() -> None:
    one = form()
    assert one.read(lines_of(FIELDS)) == VALUES
    assert one.names == (b"etag", b"link", b"content-length", b"x-total")
    assert (one.length, one.place[b"x-total"], one.place[b"etag"]) == (2, 3, 0)


def test_it_makes_the_head_of_values() -> None:
    one = form()
    head = one.head((b'W/"2"', b"", b"10", b"8"))
    assert (head.status, head.reason) == (200, b"OK")
    assert head.fields == (
        FIELDS[0],
        (b"Etag", b'W/"2"'),
        (b"Link", b""),
        FIELDS[3],
        (b"Content-Length", b"10"),
        (b"X-Total", b"8"),
    )
    assert head.shape is shape_of(FIELDS)


@pytest.mark.parametrize(
    ("place", "line", "value"),
    [
        (2, b'Etag: W/"abc def"', b'W/"abc def"'),
        (3, b"Link: ", b""),
        (6, b"X-Total: \xe4\tb", b"\xe4\tb"),
        (5, b"Content-Length: 0", b"0"),
    ],
)
def test_another_value_is_its_own(place: int, line: bytes, value: bytes) -> None:
    values = form().read(changed(place, line))
    assert values is not None
    assert value in values


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (0, b"HTTP/1.1 201 OK"),
        (0, b"HTTP/1.0 200 OK"),
        (1, b"Content-Type: text/html"),
        (1, b"content-type: application/json"),
        (2, b'ETag: "1"'),
        (2, b'Etag : "1"'),
        (2, b'Etag:"1"'),
        (2, b'Etag:  "1"'),
        (2, b'Etag: "1" '),
        (2, b'Etag: "1"\t'),
        (2, b"Etag: a\x00b"),
        (2, b"Etag: a\nX: b"),
        (2, b"Etag: a\rX: b"),
        (2, b"Etag: a\x7f"),
        (5, b"Content-Length: 02"),
        (5, b"Content-Length: +2"),
        (5, b"Content-Length: 2, 2"),
        (5, b"Content-Length: "),
        (5, b"Content-Length: 1234567890123456789"),
        (5, b"X-Total: 2"),
    ],
)
def test_anything_else_is_not_of_it(place: int, line: bytes) -> None:
    assert form().read(changed(place, line)) is None


def test_a_head_without_one_length_has_no_form() -> None:
    with pytest.raises(ValueError, match="one length"):
        form(FIELDS[:4])
    with pytest.raises(ValueError, match="one length"):
        form((*FIELDS, (b"Content-Length", b"2")))


def test_a_line_that_is_spelt_otherwise_has_no_form() -> None:
    with pytest.raises(ValueError, match="spelt"):
        HeadForm(changed(2, b'Etag:"1"'), FIELDS, b"OK", OWN)


def test_a_name_that_means_something_to_a_pattern() -> None:
    fields = ((b"X+Total", b"1"), (b"Content-Length", b"2"))
    one = HeadForm(lines_of(fields), fields, b"OK", frozenset({b"x+total"}))
    assert one.read(lines_of(fields)) == (b"1", b"2")
    assert one.read([b"HTTP/1.1 200 OK", b"XX+Total: 1", b"Content-Length: 2"]) is None


def test_nothing_of_a_value_that_differs_is_kept() -> None:
    one = form()
    kept = repr([getattr(one, name) for name in HeadForm.__slots__])
    assert "page=2" not in kept
    assert "application/json" in kept


def test_conflicting_names() -> None:
    other = ((b"Content-Type", b"text/plain"), (b"Etag", b'"2"'), *FIELDS[2:])
    assert form().conflicting_names(form(other)) == [b"content-type"]
    assert form().conflicting_names(form()) == []


def test_placeholders_come_out_where_the_values_go() -> None:
    placeholders = HeadPlaceholders(form())
    fields = placeholders.head.fields
    made = (fields[5], (b"Via", b"100% gateway"), fields[1], (b"A%b", b"c"))
    assert placeholders.filler_for(made)(placeholders.picker_for(made)(VALUES)) == (
        (b"X-Total", b"7"),
        (b"Via", b"100% gateway"),
        (b"Etag", b'"1"'),
        (b"A%b", b"c"),
    )
    template, pick = placeholders.template(made)
    assert template % tuple(pick(VALUES)) == b'X-Total: 7\r\nVia: 100% gateway\r\nEtag: "1"\r\nA%b: c\r\n'


@pytest.mark.parametrize("count", [0, 1])
def test_few_placeholders(count: int) -> None:
    placeholders = HeadPlaceholders(form())
    made = (*placeholders.head.fields[1 : 1 + count], (b"A", b"b"))
    template, pick = placeholders.template(made)
    assert template % tuple(pick(VALUES)) == b'Etag: "1"\r\n' * count + b"A: b\r\n"


def test_a_placeholder_that_was_changed_is_reported() -> None:
    placeholders = HeadPlaceholders(form())
    name, value = placeholders.head.fields[1]
    for change in (placeholders.filler_for, placeholders.template):
        with pytest.raises(ValueError, match="not in"):
            change(((name, b"x" + value),))
