"""Request fields: nothing hop-by-hop, spoofed or secret goes up; nothing of ours can be nominated away."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import headers
from gateway.core.credentials import CREDENTIAL_FIELDS
from gateway.core.errors import Code, Rejection
from gateway.core.headers import HOP_BY_HOP, RequestHeaderRules, forwarded_fields, is_free, request_id
from gateway.core.messages import Field

RULES = RequestHeaderRules(bypass=b"X-Let-Me-Pass")
OWN = (b"Via", b"1.1 gateway")
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _names(fields: list[Field]) -> list[bytes]:
    return [name.lower() for name, _ in fields]


def test_end_to_end_fields_pass_in_order_as_spelt() -> None:
    fields = ((b"aCCept", b"*/*"), (b"X-A", b"1"), (b"Content-Type", b"a/b"), (b"x-a", b"\xff"), (b"Range", b"bytes=0-"))
    assert RULES.forwardable(fields) == [*fields, OWN]
    assert RULES.forwardable((), http_10=True) == [(b"Via", b"1.0 gateway")]


SPOOFS = [
    *HOP_BY_HOP,
    *CREDENTIAL_FIELDS,
    *headers._SPOOFABLE,
    b"host",
    b"content-length",
    b"expect",
    b"proxy-authorization",
    b"proxy-connection",
    b"x-forwarded-uri",
    b"x-forwarded-prefix",
    b"x-accel-mapping",
    b"x-ssl-client-verify",
    b"x-gateway-user",
    b"gitlab-workhorse",
    b"gitlab-workhorse-api-request",
    b"x-let-me-pass",
    b"x-request-id",
    b"baggage",
]


@pytest.mark.parametrize("name", sorted(SPOOFS))
def test_no_client_may_send(name: bytes) -> None:
    for spelt in (name, name.upper(), name.title(), name.replace(b"-", b"_")):
        assert RULES.forwardable(((spelt, b"x"), (b"A", b"b"))) == [(b"A", b"b"), OWN]


def test_what_connection_names_goes_in_any_number_of_lines() -> None:
    fields = (
        (b"Connection", b"X-Hop , close"),
        (b"X-Hop", b"1"),
        (b"connection", b"x-other,"),
        (b"X-Other", b"2"),
        (b"X-Kept", b"3"),
        (b"Connection", b"keep-alive"),
    )
    assert RULES.forwardable(fields) == [(b"X-Kept", b"3"), OWN]


@pytest.mark.parametrize("name", [b"Content-Type", b"content-encoding"])
def test_a_body_cannot_change_its_meaning_on_the_way(name: bytes) -> None:
    # Nominated, the field would be judged here and be gone for Rails.
    with pytest.raises(Rejection) as refused:
        RULES.forwardable(((b"Connection", b"close, " + name), (b"Content-Type", b"text/plain")))
    assert refused.value.status == 400


def test_an_upgrade_never_passes() -> None:
    fields = ((b"Connection", b"Upgrade, X-Hop"), (b"Upgrade", b"websocket"), (b"X-Hop", b"1"), (b"HTTP2-Settings", b"x"))
    assert RULES.forwardable(fields) == [OWN]


def test_via_grows_and_finds_loops() -> None:
    assert RULES.forwardable(((b"Via", b"1.1 varnish, 1.0"),)) == [(b"Via", b"1.1 varnish, 1.0"), OWN]
    for value in (b"1.1 gateway", b"1.1 a, HTTP/1.1 Gateway (x)"):
        with pytest.raises(Rejection) as refused:
            RULES.forwardable(((b"via", value),))
        assert (refused.value.status, refused.value.code) == (508, Code.PROXY_LOOP)


@pytest.mark.parametrize(
    ("parents", "sound"),
    [
        ([PARENT], True),
        ([PARENT + b"-x"], False),
        ([b"01" + PARENT[2:] + b"-x"], True),
        ([b"ff" + PARENT[2:]], False),
        ([PARENT.upper()], False),
        ([b"00-" + b"0" * 32 + PARENT[35:]], False),
        ([PARENT[:36] + b"0" * 16 + b"-01"], False),
        ([PARENT, PARENT], False),
        ([], False),
    ],
)
def test_trace_context(parents: list[bytes], sound: bool) -> None:
    fields = (*((b"Traceparent", value) for value in parents), (b"tracestate", b"a=b"), (b"X", b"y"))
    assert RULES.forwardable(fields) == ([*fields, OWN] if sound else [(b"X", b"y"), OWN])


def test_baggage_passes_from_trusted_peers() -> None:
    assert RequestHeaderRules(trusted=True).forwardable(((b"baggage", b"a=b"),)) == [(b"baggage", b"a=b"), OWN]


def test_a_shared_cache_forwards_what_is_end_to_end() -> None:
    rules = RequestHeaderRules(shared=True)
    fields = ((b"Authorization", b"x"), (b"Cookie", b"y"), (b"X_Y", b"z"), (b"Sudo", b"s"), (b"traceparent", b"?"))
    ours = ((b"X-Forwarded-For", b"x"), (b"Forwarded", b"x"), (b"Proxy-Authorization", b"x"), (b"TE", b"x"))
    assert rules.forwardable(fields + ours) == [*fields, OWN]


NAME = st.sampled_from([*SPOOFS, b"accept", b"x-a", b"x-b", b"if-none-match"]).flatmap(
    lambda name: st.sampled_from([name, name.upper(), name.title()])
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAME, st.sampled_from([b"x-a", b"accept, x-b", b"keep-alive", b"1"])), max_size=10))
def test_nothing_hop_by_hop_survives(fields: list[Field]) -> None:
    kept = RULES.forwardable(tuple(fields))
    nominated = {part.strip() for name, value in fields if name.lower() == b"connection" for part in value.split(b",")}
    assert not set(_names(kept[:-1])) & (set(SPOOFS) | nominated)
    assert kept[-1] == OWN
    survivors = [field for field in fields if field[0].lower() not in {*SPOOFS, *nominated}]
    assert kept[:-1] == survivors


def test_the_memory_of_names_is_bounded() -> None:
    rules = RequestHeaderRules()
    for number in range(2100):
        rules.forwardable(((b"X-%d" % number, b""), (b"L" * 65 + b"%d" % number, b"")))
    assert len(rules._actions) <= 2048


def test_request_ids_come_from_trusted_peers_only() -> None:
    assert request_id(b"abc_-9", "minted", trusted=True) == "abc_-9"
    assert request_id(b"abc", "minted", trusted=False) == "minted"
    assert request_id(None, "minted", trusted=True) == "minted"
    for bad in (b"", b"a b", b"a" * 65, b"\xe9", b"a\n"):
        assert request_id(bad, "minted", trusted=True) == "minted"


def test_forwarded_fields_say_what_we_saw() -> None:
    received = ((b"X-Forwarded-For", b"203.0.113.66"), (b"X-Forwarded-Proto", b"https"))
    expected = (
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"gateway.test:8080"),
        (b"X-Forwarded-Port", b"8080"),
    )
    for _ in range(2):
        assert forwarded_fields("10.0.0.1", b"gateway.test:8080", tls=False, received=received) == expected
    assert forwarded_fields("10.0.0.1", b"a", tls=True)[3] == (b"X-Forwarded-Port", b"443")
    assert forwarded_fields("10.0.0.1", b"8443", tls=True)[3] == (b"X-Forwarded-Port", b"443")  # a host of digits
    assert forwarded_fields("unix:", b"", tls=False) == ((b"X-Forwarded-Proto", b"http"), (b"X-Forwarded-Port", b"80"))


def test_forwarded_fields_continue_a_trusted_proxys() -> None:
    received = (
        (b"X-Forwarded-For", b"203.0.113.1"),
        (b"x-forwarded-for", b"203.0.113.2, ::1"),
        (b"X-Forwarded-Proto", b"HTTPS"),
        (b"X-Forwarded-Host", b"git.example.com"),
        (b"X-Forwarded-Port", b"8443"),
    )
    assert forwarded_fields("10.0.0.1", b"inner", tls=False, trusted=True, received=received) == (
        (b"X-Forwarded-For", b"203.0.113.1, 203.0.113.2, ::1, 10.0.0.1"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"git.example.com"),
        (b"X-Forwarded-Port", b"8443"),
    )
    junk = (
        (b"X-Forwarded-For", b"<script>"),
        (b"X-Forwarded-Proto", b"gopher"),
        (b"X-Forwarded-Host", b"a b"),
        (b"X-Forwarded-Port", b"99x"),
        (b"Accept", b"*/*"),
    )
    assert forwarded_fields("10.0.0.1", b"inner", tls=False, trusted=True, received=junk) == (
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"inner"),
        (b"X-Forwarded-Port", b"80"),
    )


def test_the_memory_of_peers_is_bounded() -> None:
    for number in range(headers._FORWARDED_BOUND + 5):
        forwarded_fields(f"10.1.{number // 256}.{number % 256}", b"h", tls=False)
    assert len(headers._FORWARDED) <= headers._FORWARDED_BOUND


@pytest.mark.parametrize("name", [b"X-Gateway-Caller", b"X-Caller", b"x-team"])
def test_an_operator_may_use_names_that_mean_nothing(name: bytes) -> None:
    assert is_free(name)


@pytest.mark.parametrize(
    "name",
    [
        *(b"Host", b"Content-Type", b"Sudo", b"Authorization", b"Private-Token", b"X_Caller", b"X-Request-Id"),
        *(b"X-Forwarded-For", b"X-Real-IP", b"X-Gitlab-Token", b"X-Accel-Buffering", b"X-HTTP-Method-Override"),
    ],
)
def test_what_means_something_is_taken(name: bytes) -> None:
    assert not is_free(name)
