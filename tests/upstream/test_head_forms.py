"""The memory of forms: what it reads is what the reader of heads would have read, whatever comes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core import head_form
from gateway.core.head_form import HeadForm, Values
from gateway.ports import Answered
from gateway.upstream.gathering import fields_to_learn, with_length
from gateway.upstream.head_forms import _COUNTS_BOUND, _MOST_MISSES, _PER_COUNT, _VARYING_BOUND, CHUNKED_LINE, HeadForms
from gateway.upstream.response import CHUNKED, Malformed, parse_head

HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: keep-alive\r\n"
    b'Etag: W/"1"\r\nLink: <http://gitlab/?page=2>; rel="next"\r\nVary: Origin\r\nX-Next-Page: \r\nX-Request-Id: 01HF\r\n'
    b"X-Runtime: 0.05"
)


CHUNKED_HEAD = HEAD.replace(b"Content-Length: 2", CHUNKED_LINE)


def learnt(forms: HeadForms, head: bytes) -> None:
    """As the connection does."""
    read = parse_head(head, bodiless=False)
    fields = fields_to_learn(read)
    if fields is not None:
        forms.learn(head, fields, read.reason)


def known(forms: HeadForms, head: bytes) -> HeadForm | None:
    found = forms.read(head)
    return found[0] if found is not None else None


BODY = b"\r\n\r\nbody"


def agrees(forms: HeadForms, head: bytes, like: Answered | None = None) -> bool:
    """Whether it was read in a form; and then what the reader of heads says, it said. ``like``: what was read so before is
    read as a start, too, and nothing else is."""
    like = like or Answered()
    ahead, expected = None, None
    if b"\r\n\r\n" not in head + b"\r\n":
        expected = like.form if like.form is not None and like.form._opening is not None else None
        ahead = forms.match_start(head + b"\r\n\r\n" + BODY, like)
    found = forms.read(head, like)
    if ahead is not None:
        assert ahead[2] == BODY
        holds(*ahead[:2], head)
    if found is None:
        return False
    assert ahead is not None or found[0] is not expected
    assert like.form is found[0]
    holds(*found, head)
    return True


def holds(form: HeadForm, values: Values, head: bytes) -> None:
    """What was read is what the reader of heads says."""
    read = parse_head(head, bodiless=False)
    chunked = read.length == CHUNKED
    made = form.head(form.with_content_length(values, 0) if chunked else values)
    fields = with_length(read.fields, b"0") if chunked else read.fields
    assert (made.status, made.reason, made.fields) == (read.status, read.reason, fields)
    length = b"" if chunked else b"%d" % read.length
    assert (length, read.persistent, read.upgrade) == (values[form.length], True, False)


@pytest.fixture(autouse=True, scope="module")
def _expected_at_once() -> Iterator[None]:
    """A form that came once is expected the next time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_form, "_OFTEN", 1)
        yield


def test_the_next_page_is_read_in_the_form_of_the_last() -> None:
    forms = HeadForms()
    assert not agrees(forms, HEAD)
    learnt(forms, HEAD)
    assert agrees(forms, HEAD)
    other = HEAD.replace(b'W/"1"', b'W/"2"').replace(b"Page: ", b"Page: 3").replace(b"Length: 2", b"Length: 12345")
    assert agrees(forms, other)
    assert not agrees(forms, HEAD.replace(b"Vary: Origin", b"Vary: Accept"))


_PIECES = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b":",
        b",",
        b"\0",
        b"\x7f",
        b"\xff",
        b"0",
        b"1",
        b"Content-Length: 2",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"close",
        b"%b",
    ]
) | st.binary(max_size=3)
_CHANGES = st.lists(st.tuples(st.integers(0, len(HEAD)), st.integers(0, 12), _PIECES), max_size=3)


@pytest.mark.parametrize("first", [HEAD, CHUNKED_HEAD], ids=["length", "chunks"])
@given(changes=_CHANGES)
@example(changes=[(HEAD.index(b"nginx"), 0, b"\n")])
@example(changes=[(HEAD.index(b"W/"), 0, b" ")])
@example(changes=[(HEAD.index(b"0.05"), 4, b"")])
@example(changes=[(HEAD.index(b"2\r\nConn"), 1, b"2 ")])
@example(changes=[(HEAD.index(b"Origin"), 0, b" ")])
@example(changes=[(HEAD.index(b"200 OK"), 0, b" ")])
@example(changes=[(HEAD.index(b" OK"), 3, b" Fine")])
def test_it_agrees_with_the_reader_of_heads(first: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    forms, like = HeadForms(), Answered()
    learnt(forms, first)
    assert agrees(forms, first, like)
    head = first
    for at, gone, piece in changes:
        head = head[:at] + piece + head[at + gone :]
    agrees(forms, head, like)
    try:
        learnt(forms, head)
    except Malformed:
        return
    agrees(forms, head, like)
    assert agrees(forms, HEAD, like)
    assert agrees(forms, CHUNKED_HEAD, like)


def test_heads_that_say_the_same_in_other_words_have_a_form_each() -> None:
    forms = HeadForms()
    heads = [HEAD, HEAD.replace(b"Vary: ", b"Vary:  "), HEAD.replace(b" OK", b" Fine")]
    for head in heads:
        learnt(forms, head)
    assert [agrees(forms, head) for head in heads] == [True, True, True]


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"\r\nSet-Cookie: _gitlab_session=1",
        HEAD + b"\r\nLocation: http://gitlab/",
        HEAD + b"\r\nX-Long: " + b"x" * 20_000,
        HEAD.replace(b"Etag: ", b"Etag:"),
        CHUNKED_HEAD.replace(b"Transfer", b"transfer"),
        CHUNKED_HEAD.replace(b"chunked", b"Chunked"),
    ],
)
def test_what_has_no_form(head: bytes) -> None:
    forms = HeadForms()
    learnt(forms, head)
    assert known(forms, head) is None


def test_a_field_that_a_proxy_adds_is_learnt_to_differ() -> None:
    forms = HeadForms()
    for number in range(3):
        learnt(forms, HEAD + b"\r\nX-Trace: %d\r\nX-Hop: %d" % (number, number))
    assert agrees(forms, HEAD + b"\r\nX-Trace: 77\r\nX-Hop: abc")
    assert len(forms._forms[len(HEAD.split(b"\r\n")) + 2]) == 1


def test_a_field_that_differs_and_is_spelt_otherwise_is_never_learnt() -> None:
    forms = HeadForms()
    learnt(forms, HEAD + b"\r\nX-Trace: 1")
    learnt(forms, HEAD + b"\r\nX-Trace:2")
    assert known(forms, HEAD + b"\r\nX-Trace:2") is None
    assert agrees(forms, HEAD + b"\r\nX-Trace: 1"), "what was known before stays"


@pytest.mark.parametrize("line", [b"Vary: Origin", b"Content-Type: application/json", b"Connection: keep-alive"])
def test_what_decides_never_differs_in_one_form(line: bytes) -> None:
    forms = HeadForms()
    other = HEAD.replace(line, line[: line.index(b":")] + b": X-Other")
    for head in (HEAD, other):
        learnt(forms, head)
    first, second = known(forms, HEAD), known(forms, other)
    assert None not in (first, second)
    assert first is not second


def test_many_that_differ_in_much_are_bounded() -> None:
    forms = HeadForms()
    chance = random.Random(7)
    for _ in range(3000):
        named = [b"X-%d: 1" % chance.randrange(10_000) for _ in range(chance.randrange(100))]
        learnt(forms, b"\r\n".join([HEAD, *named]))
        learnt(
            forms, HEAD + b"".join(b"\r\nX-%d: %d" % (one, chance.randrange(10_000)) for one in range(chance.randrange(40)))
        )
    assert len(forms._forms) <= _COUNTS_BOUND
    assert max(map(len, forms._forms.values())) <= _PER_COUNT
    assert len(forms._varying) <= _VARYING_BOUND


def test_where_nothing_comes_twice_little_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = HeadForms()
    made = 0

    class Counted(HeadForm):
        def __init__(self, *given: object) -> None:
            nonlocal made
            made += 1
            super().__init__(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("gateway.upstream.head_forms.HeadForm", Counted)
    for number in range(50 * _MOST_MISSES):
        learnt(forms, HEAD + b"\r\nX-A%d: 1" % number)
    assert made <= _MOST_MISSES + 50
    made = 0
    while known(forms, HEAD) is None:
        learnt(forms, HEAD)
    assert known(forms, HEAD) is not None, "and what comes again is found in the end"


def test_what_is_expected_is_known_by_its_start() -> None:
    forms, like = HeadForms(), Answered()
    whole = HEAD + b"\r\n\r\n"
    learnt(forms, HEAD)
    assert forms.match_start(whole, like) is None, "nothing is expected yet"
    assert agrees(forms, HEAD, like)
    assert [end for end in range(len(whole)) if forms.match_start(whole[:end], like) is not None] == []
    assert forms.match_start(whole, None) is None
    assert forms.match_start(b"HTTP/1.1 100 Continue\r\n\r\n" + whole, like) is None
    found = forms.match_start(whole + BODY, like)
    assert found is not None
    assert found[2] == BODY
    link = b"<http://gitlab/" + b"x" * 20_000 + b">"
    assert forms.match_start(whole.replace(b"<http://gitlab/?page=2>", link), like) is None, "longer than what has a form"


def test_a_pattern_is_made_for_what_comes_often_and_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_form, "_OFTEN", 3)
    for head, expected in ((HEAD, [False, False, True]), (HEAD + b"\r\nX-Policy: " + b"x" * 1024, [False] * 3)):
        forms, like = HeadForms(), Answered()
        learnt(forms, head)
        made = []
        for _ in range(3):
            assert agrees(forms, head, like)
            made.append(forms.match_start(head + b"\r\n\r\n", like) is not None)
        assert made == expected
