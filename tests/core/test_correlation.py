"""What marks a single request is told from what repeats, and never taken for more than it is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.cache_key import INERT
from gateway.core.correlation import CORRELATION_FIELDS, record_ids, split_correlation, without_correlation
from gateway.core.credentials import CREDENTIAL_FIELDS
from gateway.core.exchange import Exchange
from gateway.core.messages import Fields, RequestHead

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01".encode()


def block(*lines: bytes) -> bytes:
    return b"".join([b"\r\n" + line for line in (*lines, b"", b"")])


def test_two_requests_that_differ_in_their_ids_have_one_rest() -> None:
    one = block(b"Host: a", b"X-Request-Id: 1", b"Accept: */*", b"traceparent: " + PARENT)
    other = block(b"Host: a", b"X-Request-Id:   22", b"Accept: */*", b"traceparent:x y")
    rest, correlation = split_correlation(one)
    assert correlation == ((b"X-Request-Id", b"1"), (b"traceparent", PARENT))
    assert split_correlation(other) == (rest, ((b"X-Request-Id", b"22"), (b"traceparent", b"x y")))


def test_a_value_may_be_missing_or_stand_among_blanks() -> None:
    """Elastic's agents send ``tracestate`` without one; SkyWalking's, ``sw8-x: 0- ``."""
    rest, _ = split_correlation(block(b"Host: a", b"tracestate: a=b", b"sw8-x: 1"))
    for lines, value in ((b"tracestate: \t", b"sw8-x: 0- "), b"0-"), ((b"tracestate:", b"sw8-x:\t 0 -\t "), b"0 -"):
        assert split_correlation(block(b"Host: a", *lines)) == (rest, ((b"tracestate", b""), (b"sw8-x", value)))


@pytest.mark.parametrize("value", [b" " * 60_000, b"a " * 30_000, b"a" * 60_000])
def test_whatever_stands_there_is_told_in_no_time(value: bytes) -> None:
    began = time.process_time()
    split_correlation(block(b"X-Request-Id: " + value + b"\x00"))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "other",
    [
        block(b"Host: a", b"Accept: */*"),
        block(b"Host: a", b"X-Request-Id: 1"),
        block(b"X-Request-Id: 1", b"Host: a", b"Accept: */*"),
        block(b"Host: a", b"x-request-id: 1", b"Accept: */*"),
        block(b"Host: a", b"X-Correlation-Id: 1", b"Accept: */*"),
        block(b"Host: a", b"X-Request-Id: 1", b"Accept: */*", b"B3: 0"),
        block(b"Host: a", b"X-Request-Id: 1", b" folded", b"Accept: */*"),
    ],
)
def test_other_fields_or_other_places_are_another_rest(other: bytes) -> None:
    rest, _ = split_correlation(block(b"Host: a", b"X-Request-Id: 1", b"Accept: */*"))
    assert split_correlation(other)[0] != rest


@pytest.mark.parametrize(
    "lines",
    [
        (b"Host: a",),
        (b"X-Request-Id: 1", b"x-request-id: 2"),
        (b"X-Request-Id: a\tb",),
        (b"X-Request-Id: a  b",),
        (b"X-Request-Id: caf\xc3\xa9",),
        (b"X-Request-Id: a\x00b",),
        (b"X-Request-Id : 1",),
        (b"XX-Request-Id: 1",),
        (b"X-Request-Ids: 1",),
        (b"X_Request_Id: 1",),
        (b"Accept: X-Request-Id: 1",),
        (b"X-Request-Id: 1\nX: y",),
    ],
)
def test_what_is_not_plain_stays_where_it_is(lines: tuple[bytes, ...]) -> None:
    whole = block(*lines)
    assert split_correlation(whole) == ((whole,), ())


@given(st.permutations(sorted(CORRELATION_FIELDS)), st.data())
def test_every_name_in_any_spelling(names: list[bytes], data: st.DataObject) -> None:
    spelt = [name.upper() if data.draw(st.booleans()) else name.title() for name in names[:5]]
    _, correlation = split_correlation(block(b"Host: a", *[b"%b: %d" % (name, at) for at, name in enumerate(spelt)]))
    assert correlation == tuple((name, b"%d" % at) for at, name in enumerate(spelt))


def test_none_is_a_credential_and_none_chooses_an_answer() -> None:
    assert CORRELATION_FIELDS.isdisjoint(CREDENTIAL_FIELDS)
    assert CORRELATION_FIELDS <= INERT


FIELDS: Fields = ((b"Host", b"a"), (b"X-Request-Id", b"1"), (b"Connection", b"keep-alive"))


def test_the_rest_of_a_requests_fields() -> None:
    assert without_correlation(FIELDS, FIELDS[1:2]) == (FIELDS[0], FIELDS[2])


@pytest.mark.parametrize(
    ("fields", "correlation"),
    [
        (FIELDS, ((b"X-Request-Id", b"2"),)),
        ((*FIELDS, (b"b3", b"0")), FIELDS[1:2]),
        ((*FIELDS[:2], (b"Connection", b"close,\tX-REQUEST-ID")), FIELDS[1:2]),
        ((*FIELDS, (b"connection", b"traceparent")), FIELDS[1:2]),
    ],
    ids=["another value", "one more", "nominated", "another nominated"],
)
def test_what_the_parser_has_otherwise_is_not_set_aside(fields: Fields, correlation: Fields) -> None:
    assert without_correlation(fields, correlation) is None


def head(*fields: tuple[bytes, bytes], aside: bool) -> RequestHead:
    host = (b"Host", b"a")
    return RequestHead("GET", b"/", (host,), correlation=fields) if aside else RequestHead("GET", b"/", (host, *fields))


@pytest.mark.parametrize("aside", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_an_id_is_a_trusted_peers_to_give(trusted: bool, aside: bool) -> None:
    x = Exchange("minted-1", 0.0, "GET", "192.0.2.1")
    shared = record_ids(x, head((b"X-Request-Id", b"the-proxys"), (b"Traceparent", PARENT), aside=aside), trusted=trusted)
    assert x.request_id == ("the-proxys" if trusted else "minted-1")
    assert x.trace_id == TRACE, "whoever says so: it names no one"
    assert shared is (trusted and not aside)


@pytest.mark.parametrize("aside", [True, False])
def test_what_is_malformed_marks_nothing(aside: bool) -> None:
    x = Exchange("minted-1", 0.0, "GET", "192.0.2.1", trace_id="of the one before")
    record_ids(x, head((b"X-Request-Id", b"a b"), (b"traceparent", PARENT[:-1]), aside=aside), trusted=True)
    assert (x.request_id, x.trace_id) == ("minted-1", "")
