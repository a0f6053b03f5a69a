"""Response fields: what comes down, and where its addresses lead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import response_headers as module
from gateway.core.answer_shape import shape_of
from gateway.core.errors import Code, Rejection
from gateway.core.messages import ResponseHead
from gateway.core.response_headers import ResponseHeaderRules

OWN = (b"Via", b"1.1 gateway")
RULES = ResponseHeaderRules(external_urls=("https://git.example.com",), public_url="https://gw.example.org/")
SAME = ResponseHeaderRules(external_urls=("https://git.example.com",), public_url="https://git.example.com")


def _one(rules: ResponseHeaderRules, name: bytes, value: bytes) -> bytes:
    return rules.forwardable(((name, value),)).fields[0][1]


def test_order_duplicates_and_empty_values_stay() -> None:
    fields = (
        (b"Set-Cookie", b"a"),
        (b"X-Next-Page", b""),
        (b"set-cookie", b"b"),
        (b"Content-Length", b"5"),
        (b"X", b"caf\xe9"),
    )
    assert RULES.forwardable(fields).fields == [*fields, OWN]


def test_hop_by_hop_and_nominated_fields_go() -> None:
    fields = (
        (b"Connection", b"X-Hop, Content-Type, content-length"),
        (b"X-Hop", b"1"),
        (b"Content-Type", b"a/b"),
        (b"Content-Length", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Server", b"nginx"),
        (b"connection", b"Close"),
    )
    assert RULES.forwardable(fields).fields == [(b"Content-Type", b"a/b"), (b"Content-Length", b"1"), OWN]


def test_workhorse_instructions_are_dropped_and_reported() -> None:
    answer = RULES.forwardable(((b"Gitlab-Workhorse-Send-Data", b"x"), (b"X-Sendfile", b"/etc"), (b"A", b"b")))
    assert answer.fields == [(b"A", b"b"), OWN]
    assert answer.leaked == (b"gitlab-workhorse-send-data", b"x-sendfile")


def test_an_upgrade_never_passes() -> None:
    assert RULES.forwardable(((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))).fields == [OWN]


@pytest.mark.parametrize("field", [(b"X", b"a\0b"), (b"X", b"a\r\nb"), (b"X", b"\x7f"), (b"X Y", b"a"), (b"", b"a")])
def test_what_no_message_may_hold_is_502(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(Rejection) as refused:
        RULES.forwardable((field,))
    assert (refused.value.status, refused.value.code) == (502, Code.UPSTREAM_PROTOCOL)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"https://git.example.com/api/v4/projects/42", b"https://gw.example.org/api/v4/projects/42"),
        (b"https://git.example.com", b"https://gw.example.org"),
        (b"https://git.example.com?x", b"https://gw.example.org?x"),
        (b"https://git.example.com.evil.test/x", b"https://git.example.com.evil.test/x"),
        (b"https://git.example.com@evil.test/x", b"https://git.example.com@evil.test/x"),
        (b"https://git.example.com:8443/x", b"https://git.example.com:8443/x"),
        (b"https://storage.test/b?X-Amz-Signature=abc&u=https://git.example.com/", None),
        (b"/users/sign_in", b"/users/sign_in"),
        (b"", b""),
    ],
)
def test_location(value: bytes, expected: bytes | None) -> None:
    assert _one(RULES, b"Location", value) == (value if expected is None else expected)
    assert _one(SAME, b"Location", value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            b'<https://git.example.com/api/v4/p?page=2&private_token=s&a%5B%5D=1>; rel="next", <http://git.example.com:443/x>',
            b'<https://gw.example.org/api/v4/p?page=2&a%5B%5D=1>; rel="next", <https://gw.example.org/x>',
        ),
        (b'<http://git.example.com/x?job_token=s>; rel="first"', b'<https://gw.example.org/x>; rel="first"'),
        (b"<https://other.test/x>; rel=next", b"<https://other.test/x>; rel=next"),
        (b"</relative?access_token=s&b>; rel=next", b"</relative?b>; rel=next"),
    ],
)
def test_link_leads_back_without_credentials(value: bytes, expected: bytes) -> None:
    assert _one(RULES, b"Link", value) == expected


def test_link_loses_credentials_even_where_nothing_is_rewritten() -> None:
    value = b"<https://git.example.com/x?private%5Ftoken=s&page=2>; rel=next"
    assert _one(SAME, b"Link", value) == b"<https://git.example.com/x?page=2>; rel=next"
    assert _one(SAME, b"Link", b"<https://a/x?page=2>") == b"<https://a/x?page=2>"


def test_the_realm_leads_back() -> None:
    value = b'Bearer realm="https://git.example.com/jwt/auth",service="container_registry"'
    assert _one(RULES, b"Www-Authenticate", value) == value.replace(b"git.example.com", b"gw.example.org")
    assert _one(RULES, b"Www-Authenticate", b'Basic realm="GitLab"') == b'Basic realm="GitLab"'
    assert _one(SAME, b"Www-Authenticate", value) == value


def test_a_challenge_without_a_realm_stays_where_nothing_is_rewritten() -> None:
    rules = ResponseHeaderRules(public_url="https://gw.example.org")
    assert _one(rules, b"Www-Authenticate", b'Basic realm=""') == b'Basic realm=""'


@pytest.mark.parametrize(
    ("address", "rewritten"),
    [
        (b"https://git.example.com/x", b"https://gw.example.org/x"),
        (b"https://gw.example.org/x", b"https://gw.example.org/x"),
        (b"https://gw.example.org", b"https://gw.example.org"),
        (b"https://gw.example.org.evil.test/x", None),
        (b"https://gw.example.org@evil.test/x", None),
        (b"https://gw.example.org:8443/x", None),
        (b"https://git.example.com.evil.test/x", None),
        (b"https://storage.test/x", None),
        (b"/x", None),
    ],
)
def test_an_address_leads_to_gitlab_or_elsewhere(address: bytes, rewritten: bytes | None) -> None:
    """Whoever it leads to may be sent the caller's own credential."""
    assert RULES.rewritten_url(address) == rewritten


def test_ports_and_roots_count() -> None:
    rules = ResponseHeaderRules(external_urls=("http://git.test:8080/gitlab", "nonsense"), public_url="https://gw.test")
    assert _one(rules, b"Link", b"<https://git.test:8080/gitlab/x>") == b"<https://gw.test/x>"
    assert _one(rules, b"Link", b"<http://git.test/gitlab/x>") == b"<http://git.test/gitlab/x>"
    assert _one(rules, b"Location", b"http://git.test:8080/gitlabs") == b"http://git.test:8080/gitlabs"


def test_a_shared_cache_rewrites_nothing() -> None:
    rules = ResponseHeaderRules(external_urls=("https://a",), public_url="https://b", shared=True)
    fields = ((b"Server", b"x"), (b"Location", b"https://a/x"), (b"Link", b"<https://a/?private_token=x>"))
    assert rules.forwardable(fields).fields == [*fields, OWN]


def test_the_memory_of_names_is_bounded() -> None:
    rules = ResponseHeaderRules()
    for number in range(2100):
        rules.forwardable(((b"X-%d" % number, b""), (b"L" * 65 + b"%d" % number, b"")))
    assert len(rules._names) <= 2048


_NAMES = (
    b"Via",
    b"Link",
    b"Location",
    b"Connection",
    b"Server",
    b"X-Hop",
    b"Content-Length",
    b"ETag",
    b"X-Sendfile",
    b"te",
)
_VALUES = (b"close", b"X-Hop", b"keep-alive", b"<https://git.example.com/x>; rel=next", b"https://git.example.com/x", b"1")


@given(st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES)), max_size=8))
def test_what_passes_by_its_shape_is_what_passes(fields: list[tuple[bytes, bytes]]) -> None:
    """None is always right: then each field is looked at."""
    answer = tuple(fields)
    passed = RULES.passed(ResponseHead(200, answer))
    assert passed is None or passed.fields == tuple(RULES.forwardable(answer).fields)
    assert passed is None or passed.shape is shape_of(passed.fields)


def test_usual_answers_pass_by_their_shape() -> None:
    for number in range(600):  # more than are remembered
        answer = ((b"Connection", b"keep-alive"), (b"Link", b"<https://git.example.com/x>"), (b"X-%d" % number, b""))
        passed = RULES.passed(ResponseHead(200, answer))
        assert passed is not None
        assert passed.fields == ((b"Link", b"<https://gw.example.org/x>"), (b"X-%d" % number, b""), OWN)
    assert 0 < len(RULES._filters) <= module._FILTERS_BOUND
    nominating = ((b"Connection", b"X-Hop"), (b"X-Hop", b"1"))
    assert RULES.passed(ResponseHead(200, nominating)) is None
    leaking = ((b"X-Sendfile", b"/etc"),)
    assert RULES.passed(ResponseHead(200, leaking)) is None
