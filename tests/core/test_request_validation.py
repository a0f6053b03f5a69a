"""The head stages: a request that can be understood in one way only, or a refusal."""

from __future__ import annotations

import pytest

from gateway import routes
from gateway.core import request_validation
from gateway.core.catalogue import Surface
from gateway.core.client_address import TrustedPeers
from gateway.core.credentials import CredentialKind
from gateway.core.errors import Code, Rejection
from gateway.core.messages import Field, RequestHead
from gateway.core.request_validation import (
    METHODS,
    AdmittedRequest,
    GitLabRequestValidator,
    SharedRequestValidator,
    ValidationSettings,
)

CATALOGUE = routes.catalogue()
HOST = (b"Host", b"git.example.com")
PEERS = TrustedPeers(["10.0.0.0/8"])
Validator = GitLabRequestValidator | SharedRequestValidator


def gitlab(**settings: object) -> GitLabRequestValidator:
    return GitLabRequestValidator(ValidationSettings(**settings), CATALOGUE, PEERS)  # type: ignore[arg-type]


def shared(**settings: object) -> SharedRequestValidator:
    return SharedRequestValidator(ValidationSettings(**settings), PEERS)  # type: ignore[arg-type]


def head(method: str = "GET", target: bytes = b"/api/v4/projects", *fields: Field, **more: object) -> RequestHead:
    return RequestHead(method, target, fields or (HOST,), peer="192.0.2.7", **more)  # type: ignore[arg-type]


def enter(validator: Validator, request: RequestHead) -> AdmittedRequest:
    target = validator.target(request)
    return validator.admit(request, target, validator.operation(request, target))


def refused(validator: Validator, request: RequestHead) -> Rejection:
    with pytest.raises(Rejection) as raised:
        enter(validator, request)
    return raised.value


both = pytest.mark.parametrize("make", [gitlab, shared])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_gitlabs_methods_enter(method: str) -> None:
    assert enter(gitlab(), head(method)).operation.surface is Surface.REST


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "PURGE"])
def test_other_methods_do_not(method: str) -> None:
    rejection = refused(gitlab(), head(method))
    assert (rejection.status, rejection.code) == (405, Code.METHOD_NOT_ALLOWED)
    assert dict(rejection.headers)[b"Allow"] == b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert rejection.close == (method in {"TRACE", "CONNECT"})


def test_a_shared_cache_takes_every_method_but_tunnels() -> None:
    assert enter(shared(), head("PROPFIND", b"/anything")).claim.kind is CredentialKind.NONE
    for method in ("CONNECT", "TRACE"):
        rejection = refused(shared(), head(method))
        assert (rejection.status, rejection.close) == (405, True)


@both
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ((HOST, (b"Content-Length", b"1"), (b"Content-Length", b"2")), 400, Code.BAD_REQUEST),
        ((HOST, (b"Transfer-Encoding", b"gzip")), 501, Code.NOT_IMPLEMENTED),
        ((HOST, (b"Expect", b"the-unexpected")), 417, Code.EXPECTATION_FAILED),
        ((HOST, *[(b"X-%d" % number, b"") for number in range(300)]), 431, Code.HEADERS_TOO_LARGE),
        ((HOST, (b"X", b"y" * 20000)), 431, Code.HEADERS_TOO_LARGE),
        ((HOST, *[(b"X", b"y" * 10000)] * 7), 431, Code.HEADERS_TOO_LARGE),
        (((b"Accept", b"*/*"),), 400, Code.BAD_REQUEST),
        ((HOST, HOST), 400, Code.BAD_REQUEST),
        (((b"Host", b"a b"),), 400, Code.BAD_REQUEST),
    ],
    ids=["lengths", "coding", "expect", "count", "field", "sum", "no host", "two hosts", "bad host"],
)
def test_what_no_request_may_say(make: type[Validator], fields: tuple[Field, ...], status: int, code: Code) -> None:
    rejection = refused(make(), head("GET", b"/api/v4/projects", *fields))
    assert (rejection.status, rejection.code) == (status, code)


@both
def test_the_one_expectation(make: type[Validator]) -> None:
    assert enter(make(), head("POST", b"/api/v4/projects", HOST, (b"Expect", b" 100-Continue"))).host == b"git.example.com"


@both
def test_a_bad_target_is_refused(make: type[Validator]) -> None:
    assert refused(make(), head(target=b"/api/%2e%2e/x")).code is Code.BAD_TARGET
    assert refused(make(target_bytes=20), head(target=b"/" + b"a" * 20)).status == 414  # type: ignore[call-arg]


@both
@pytest.mark.parametrize(
    ("host", "taken"),
    [
        (b"git.example.com", True),
        (b"GIT.example.com:8443", True),
        (b"evil.example", False),
        (b"git.example.com.evil.example", False),
        (b"127.0.0.1", False),
    ],
)
def test_only_our_hosts(make: type[Validator], host: bytes, taken: bool) -> None:
    validator = make(hosts=frozenset({b"git.example.com"}))  # type: ignore[call-arg]
    request = head("GET", b"/api/v4/projects", (b"Host", host))
    if taken:
        assert enter(validator, request).host == host
        return
    rejection = refused(validator, request)
    assert (rejection.status, rejection.code, rejection.close) == (421, Code.MISDIRECTED, True)


@both
def test_http_10_needs_no_host(make: type[Validator]) -> None:
    request = head("GET", b"/api/v4/projects", (b"Accept", b"*/*"), http_10=True)
    assert enter(make(), request).host == b""


@both
def test_whose_request_it_is(make: type[Validator]) -> None:
    entered = enter(make(), head("GET", b"/api/v4/projects", HOST, (b"X-Forwarded-For", b"203.0.113.9")))
    assert (entered.client, entered.trusted_peer) == ("192.0.2.7", False)
    behind = RequestHead("GET", b"/api/v4/projects", (HOST, (b"X-Forwarded-For", b"203.0.113.9")), peer="10.1.2.3")
    entered = enter(make(), behind)
    assert (entered.client, entered.trusted_peer) == ("203.0.113.9", True)


def test_what_is_admitted_in_front_of_gitlab() -> None:
    entered = enter(gitlab(), head("GET", b"/api/v4/projects/a%2Fb", HOST, (b"PRIVATE-TOKEN", b"T")))
    assert entered.operation.name == "GET /api/v4/projects/:id"
    assert (entered.claim.kind, entered.claim.secret.reveal()) == (CredentialKind.TOKEN, "T")
    assert entered.target.raw == b"/api/v4/projects/a%2Fb"


def test_a_blocked_route_is_no_oracle() -> None:
    """404 whoever asks: an ambiguous credential is not even looked at."""
    fields = (HOST, (b"PRIVATE-TOKEN", b"A"), (b"Authorization", b"Bearer B"))
    for target in (b"/api/v4/internal/allowed", b"/api/v4/%69nternal/allowed"):
        rejection = refused(gitlab(), head("POST", target, *fields))
        assert (rejection.status, rejection.code) == (404, Code.BLOCKED_ROUTE)


def test_the_host_is_judged_before_the_route() -> None:
    request_validation = gitlab(hosts=frozenset({b"git.example.com"}))
    assert refused(request_validation, head("GET", b"/api/v4/internal/allowed", (b"Host", b"evil"))).status == 421


def test_the_relative_root_is_gitlabs() -> None:
    request_validation = gitlab(prefix=b"/gitlab")
    entered = enter(request_validation, head(target=b"/gitlab/api/v4/projects/1"))
    assert entered.operation.name == "GET /api/v4/projects/:id"
    assert refused(request_validation, head(target=b"/api/v4/projects/1")).status == 404


def test_a_shared_cache_reads_no_credential_and_blocks_nothing() -> None:
    fields = (HOST, (b"Authorization", b"Bearer A"), (b"PRIVATE-TOKEN", b"B"))
    entered = enter(shared(), head("GET", b"/api/v4/internal/x?private_token=c", *fields))
    assert entered.claim.kind is CredentialKind.NONE
    assert not entered.claim.secret
    assert entered.claim.target == b"/api/v4/internal/x?private_token=c"
    assert entered.operation.name == "origin"


def test_repeated_fields_are_recognised_whatever_the_credential() -> None:
    validator = gitlab()
    agent = (b"User-Agent", b"glab")
    first, second = (
        enter(validator, head("GET", b"/api/v4/projects", HOST, agent, (b"PRIVATE-TOKEN", token))) for token in (b"a", b"b")
    )
    assert first.repeated == (HOST, agent)
    assert second.repeated is first.repeated
    assert (first.claim.secret.reveal(), second.claim.secret.reveal()) == ("a", "b")
    assert second.user_agent == b"glab"
    assert second.host == b"git.example.com"


def test_a_credential_beside_repeated_fields_is_still_judged() -> None:
    validator = gitlab()
    enter(validator, head())
    assert refused(validator, head("GET", b"/api/v4/projects", HOST, (b"PRIVATE-TOKEN", b"a\x00"))).code is Code.BAD_REQUEST
    assert refused(validator, head("GET", b"/api/v4/projects", HOST, (b"Private_Token", b"a"))).status == 400
    enough = gitlab(max_fields=1)
    enter(enough, head())
    assert refused(enough, head("GET", b"/api/v4/projects", HOST, (b"PRIVATE-TOKEN", b"a"))).status == 431


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(head("POST", has_body=True, content_length=1), id="a-body"),
        pytest.param(head(http_10=True), id="http-1.0"),
        pytest.param(head("GET", b"/api/v4/projects", HOST, (b"X-Long", b"x" * 3000)), id="long"),
        pytest.param(head("GET", b"/api/v4/projects", HOST, (b"PRIVATE-TOKEN", b"x" * 3000)), id="long-credential"),
        pytest.param(head("GET", b"http://git.example.com/api/v4/projects"), id="absolute-form"),
    ],
)
def test_what_is_not_remembered_is_judged_each_time(request_: RequestHead) -> None:
    validator = gitlab()
    for _ in range(2):
        admitted = enter(validator, request_)
        assert admitted.repeated == ()
        assert admitted.host == b"git.example.com"


def test_repeated_fields_without_a_host_are_refused_each_time() -> None:
    validator = gitlab()
    for _ in range(2):
        assert refused(validator, head("GET", b"/api/v4/projects", (b"Accept", b"*/*"))).code is Code.BAD_REQUEST


def test_few_repeated_fields_are_remembered() -> None:
    validator = gitlab()
    for number in range(1100):
        assert enter(validator, head("GET", b"/api/v4/projects", HOST, (b"X-N", b"%d" % number))).repeated


def test_a_repeated_head_is_judged_once() -> None:
    """A connection that polls hands in the very same head: what was made of it still holds."""
    request_validation = gitlab()
    again = RequestHead("GET", b"/api/v4/user", ((b"Host", b"git.example.com"), (b"PRIVATE-TOKEN", b"t")), memo=[])
    first_time = request_validation.admit(
        again, target := request_validation.target(again), request_validation.operation(again, target)
    )
    assert again.memo == [first_time]
    assert request_validation.target(again) is first_time.target
    assert request_validation.operation(again, target) is first_time.operation
    assert request_validation.admit(again, target, first_time.operation) is first_time


def test_a_refused_head_leaves_nothing_behind() -> None:
    request_validation = gitlab()
    bad = RequestHead("GET", b"/api/v4/internal/x", ((b"Host", b"git.example.com"),), memo=[])
    with pytest.raises(Rejection):
        request_validation.admit(bad, target := request_validation.target(bad), request_validation.operation(bad, target))
    assert bad.memo == []


def test_the_memory_of_fields_is_bounded() -> None:
    validator = gitlab()
    for number in range(request_validation._REPEATED_BOUND + 10):
        enter(validator, head("GET", b"/api/v4/projects", HOST, (b"X-%d" % number, b"")))
    assert 0 < len(validator._known) <= request_validation._REPEATED_BOUND
    kept = len(validator._known)
    enter(validator, head("GET", b"/api/v4/projects", HOST, (b"X", b"y" * request_validation._REPEATED_BYTES)))
    assert len(validator._known) == kept
