"""What passes through, up and down."""

from __future__ import annotations

import msgspec
import pytest

from gateway.core import header_rules as module
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Claim, CredentialKind
from gateway.core.errors import Code, Rejection
from gateway.core.header_rules import HeaderRules
from gateway.core.messages import Fields, RequestHead, ResponseHead, first, values
from gateway.core.request_validation import AdmittedRequest
from gateway.core.secret import Secret
from gateway.core.target import parse_target

REST = Operation("GET /api/v4/projects", Access.READ, Surface.REST)
TARGET = parse_target(b"/api/v4/projects")


def admitted(host: bytes = b"git.example.com", *, trusted: bool = False) -> AdmittedRequest:
    return AdmittedRequest(TARGET, REST, Claim(CredentialKind.NONE, Secret("")), host, "192.0.2.7", trusted)


def head(*fields: tuple[bytes, bytes], tls: bool = False) -> RequestHead:
    return RequestHead("GET", TARGET.raw, fields, peer="192.0.2.7", tls=tls)


def sent_up(header_rules: HeaderRules, request: RequestHead, entered: AdmittedRequest, credential: Fields = ()) -> Fields:
    fields = header_rules.end_to_end(request, entered)
    before, behind = header_rules.request_fields(fields, request, entered, credential)
    return (*before, (b"X-Request-Id", b"id-1"), *behind)


def test_what_goes_up() -> None:
    request = head((b"Host", b"git.example.com"), (b"Accept", b"*/*"), (b"PRIVATE-TOKEN", b"theirs"), (b"TE", b"gzip"))
    assert sent_up(HeaderRules(upstream_host=b"gitlab.internal"), request, admitted(), ((b"PRIVATE-TOKEN", b"ours"),)) == (
        (b"Host", b"gitlab.internal"),
        (b"Accept", b"*/*"),
        (b"Via", b"1.1 gateway"),
        (b"X-Forwarded-For", b"192.0.2.7"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"git.example.com"),
        (b"X-Forwarded-Port", b"80"),
        (b"X-Request-Id", b"id-1"),
        (b"PRIVATE-TOKEN", b"ours"),
    )


@pytest.mark.parametrize("named", [b"private-token", b"x-forwarded-for", b"X-Request-Id, via", b"x-forwarded-proto, x"])
def test_connection_cannot_remove_what_the_gateway_writes(named: bytes) -> None:
    request = head((b"Connection", named), (b"X-Forwarded-For", b"127.0.0.1"))
    fields = sent_up(HeaderRules(upstream_host=b"gitlab.internal"), request, admitted(), ((b"PRIVATE-TOKEN", b"ours"),))
    assert values(fields, b"private-token") == [b"ours"]
    assert values(fields, b"host") == [b"gitlab.internal"]
    assert values(fields, b"x-forwarded-for") == [b"192.0.2.7"]
    assert values(fields, b"x-request-id") == [b"id-1"]
    assert values(fields, b"x-forwarded-proto") == [b"http"]


def test_connection_may_not_name_what_the_body_means() -> None:
    with pytest.raises(Rejection) as refused:
        sent_up(HeaderRules(), head((b"Connection", b"content-type")), admitted())
    assert refused.value.code is Code.BAD_REQUEST


def test_without_a_host_of_its_own_the_clients_goes_up() -> None:
    assert values(sent_up(HeaderRules(shared=True), head(), admitted(b"a.example:8443")), b"host") == [b"a.example:8443"]


def test_a_trusted_proxy_is_believed() -> None:
    request = head((b"X-Forwarded-For", b"198.51.100.4"), (b"X-Forwarded-Proto", b"https"), (b"baggage", b"a=b"))
    fields = sent_up(HeaderRules(), request, admitted(trusted=True))
    assert values(fields, b"x-forwarded-for") == [b"198.51.100.4, 192.0.2.7"]
    assert values(fields, b"x-forwarded-proto") == [b"https"]
    assert values(fields, b"baggage") == [b"a=b"]
    strangers = sent_up(HeaderRules(), request, admitted())
    assert values(strangers, b"x-forwarded-proto") == [b"http"]
    assert values(strangers, b"baggage") == []


def test_the_throttle_bypass_is_not_a_clients_to_send() -> None:
    header_rules = HeaderRules(bypass=b"Gitlab-Bypass")
    for request in (head(), head((b"GITLAB-BYPASS", b"0"))):
        assert values(sent_up(header_rules, request, admitted()), b"gitlab-bypass") == [b"1"], "the gateway's own"
    assert values(sent_up(HeaderRules(), head(), admitted()), b"gitlab-bypass") == []


GITLAB = "https://gitlab.internal"
LOCATED = ResponseHead(302, ((b"Location", b"https://gitlab.internal/x?y"),), b"Found")


@pytest.mark.parametrize(
    ("public_url", "tls", "host", "location"),
    [
        ("https://git.example.com", False, b"elsewhere", b"https://git.example.com/x?y"),
        ("", False, b"git.example.com:8080", b"http://git.example.com:8080/x?y"),
        ("", True, b"git.example.com", b"https://git.example.com/x?y"),
    ],
    ids=["configured", "plain", "tls"],
)
def test_gitlabs_own_address_leads_back_here(public_url: str, tls: bool, host: bytes, location: bytes) -> None:
    header_rules = HeaderRules(external_urls=(GITLAB,), public_url=public_url)
    for _ in range(2):
        down = header_rules.response_head(LOCATED, head(tls=tls), admitted(host))
        assert first(down.fields, b"location") == location
        assert (down.status, down.reason) == (302, b"Found")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("length", [b"0", b"5"])
def test_a_204_has_no_length(length: bytes, shared: bool) -> None:
    reply = ResponseHead(204, ((b"content-Length", length), (b"X-Total", b"1")), b"No Content")
    down = HeaderRules(external_urls=(GITLAB,), shared=shared).response_head(reply, head(), admitted())
    assert down.fields == ((b"X-Total", b"1"), (b"Via", b"1.1 gateway"))
    assert (down.status, down.reason) == (204, b"No Content")


@pytest.mark.parametrize(
    ("said", "tls", "trusted", "scheme"),
    [
        ((b"https",), False, True, b"https"),
        ((b"HTTPS",), False, True, b"https"),
        ((b"http",), True, True, b"http"),
        ((b"http", b"https"), False, True, b"https"),
        ((b"gopher",), True, True, b"https"),
        ((), False, True, b"http"),
        ((b"https",), False, False, b"http"),
    ],
)
def test_addresses_lead_back_by_the_scheme_that_the_client_used(
    said: tuple[bytes, ...], tls: bool, trusted: bool, scheme: bytes
) -> None:
    """As GitLab is told it: behind a proxy that ends TLS, a page's next one must not be fetched in the clear."""
    request, entered = head(*[(b"X-Forwarded-Proto", one) for one in said], tls=tls), admitted(trusted=trusted)
    down = HeaderRules(external_urls=(GITLAB,)).response_head(LOCATED, request, entered)
    assert first(down.fields, b"location") == scheme + b"://git.example.com/x?y"
    assert values(sent_up(HeaderRules(), request, entered), b"x-forwarded-proto") == [scheme]


def test_hosts_are_remembered_up_to_a_bound() -> None:
    """A client may name any host where none is configured: what is compiled for each must not pile up."""
    header_rules = HeaderRules(external_urls=(GITLAB,))
    for number in range(200):
        host = b"h%d.example" % number
        down = header_rules.response_head(LOCATED, head(), admitted(host))
        assert first(down.fields, b"location") == b"http://" + host + b"/x?y"
        assert len(header_rules._down) <= 64


def test_fields_that_clients_repeat_are_remembered_up_to_a_bound() -> None:
    header_rules = HeaderRules()
    for number in range(module._REPEATED_BOUND + 10):
        repeated = ((b"X-%d" % number, b""),)
        entered = msgspec.structs.replace(admitted(), repeated=repeated)
        assert header_rules.end_to_end(head(*repeated), entered)[:1] == repeated
    assert 0 < len(header_rules._repeated) <= module._REPEATED_BOUND


def test_a_shared_cache_rewrites_nothing() -> None:
    header_rules = HeaderRules(external_urls=(GITLAB,), shared=True)
    assert (
        first(header_rules.response_head(LOCATED, head(), admitted()).fields, b"location") == b"https://gitlab.internal/x?y"
    )


@pytest.mark.parametrize(
    ("status", "fields", "shared", "expected"),
    [
        (503, (), False, [b"10"]),
        (503, ((b"retry-after", b"60"),), False, [b"60"]),
        (503, (), True, []),
        (500, (), False, []),
        (200, (), False, []),
    ],
)
def test_a_503_says_when_to_come_back(status: int, fields: Fields, shared: bool, expected: list[bytes]) -> None:
    down = HeaderRules(shared=shared).response_head(ResponseHead(status, fields), head(), admitted())
    assert values(down.fields, b"retry-after") == expected


def test_workhorses_instructions_are_dropped_and_counted() -> None:
    header_rules = HeaderRules()
    down = header_rules.response_head(
        ResponseHead(200, ((b"X-Sendfile", b"/etc/passwd"), (b"A", b"1"))), head(), admitted()
    )
    assert first(down.fields, b"x-sendfile") is None
    assert first(down.fields, b"a") == b"1"
    assert header_rules.leaks == 1
    header_rules.response_head(ResponseHead(200, ((b"A", b"1"),)), head(), admitted())
    assert header_rules.leaks == 1


def test_the_callers_name_is_the_gateways_to_write() -> None:
    header_rules = HeaderRules(attribution=(b"X-Caller", True))
    request = head((b"x-caller", b"root"), (b"X_Caller", b"root"), (b"User-Agent", b"curl/8"), (b"Connection", b"x-caller"))
    entered = admitted()
    fields = header_rules.request_fields(header_rules.end_to_end(request, entered), request, entered, (), "backstage")[0]
    assert values(fields, b"x-caller") == [b"backstage"]
    assert values(fields, b"x_caller") == []
    assert values(fields, b"user-agent") == [b"curl/8 gitlab-gateway (backstage)"]
