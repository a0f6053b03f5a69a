"""The gateway's refusals."""

from __future__ import annotations

import re

import pytest

from gateway.core.errors import Code, Rejection, Source, bad_request, drained, forbidden, unauthenticated


@pytest.mark.parametrize("code", Code)
def test_a_code_is_one_plain_word(code: Code) -> None:
    """It stands in a header, a metric label, an audit line and a docs table alike."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code.value)


def test_a_rejection_keeps_what_it_was_given() -> None:
    rejection = Rejection(
        Code.UPSTREAM_TLS,
        502,
        "502 Bad Gateway",
        headers=((b"A", b"b"),),
        source=Source.UPSTREAM,
        close=True,
        proxy_error="tls_certificate_error",
        detail="expired",
        oauth_error="invalid_request",
    )
    assert (rejection.code, rejection.status, rejection.message) == (Code.UPSTREAM_TLS, 502, "502 Bad Gateway")
    assert (rejection.headers, rejection.source, rejection.close) == (((b"A", b"b"),), Source.UPSTREAM, True)
    assert (rejection.proxy_error, rejection.detail, rejection.oauth_error) == (
        "tls_certificate_error",
        "expired",
        "invalid_request",
    )


def test_printing_one_shows_neither_message_nor_detail() -> None:
    rejection = Rejection(Code.FORBIDDEN, 403, "the message", detail="the detail")
    assert repr(rejection) == "Rejection(forbidden, 403)"
    assert str(rejection) == "forbidden"


def test_who_may_come_back_after_a_drain() -> None:
    sure, unsure = drained(unsure=False), drained(unsure=True)
    assert (sure.status, sure.headers, sure.close) == (503, ((b"Retry-After", b"1"),), True)
    assert (unsure.status, unsure.headers, unsure.close) == (504, (), True)
    assert sure.code is unsure.code is Code.DRAINING


def test_bad_request() -> None:
    plain = bad_request()
    assert (plain.code, plain.status, plain.message, plain.close) == (Code.BAD_REQUEST, 400, "400 Bad Request", False)
    other = bad_request("400 Bad Request - so", Code.BODY_CREDENTIAL, close=True)
    assert (other.code, other.message, other.close) == (Code.BODY_CREDENTIAL, "400 Bad Request - so", True)


def test_there_is_one_401() -> None:
    rejection = unauthenticated()
    assert (rejection.code, rejection.status, rejection.message) == (Code.UNAUTHENTICATED, 401, "401 Unauthorized")


@pytest.mark.parametrize(
    ("reason", "message"), [("", "403 Forbidden"), ("not for you", "403 Forbidden - not for you")], ids=["bare", "reason"]
)
def test_forbidden(reason: str, message: str) -> None:
    rejection = forbidden(reason)
    assert (rejection.status, rejection.message, rejection.code) == (403, message, Code.FORBIDDEN)
    assert forbidden(reason, Code.SUDO_FORBIDDEN).code is Code.SUDO_FORBIDDEN


def test_the_rule_that_denied_is_for_the_audit_alone() -> None:
    refused = Rejection(Code.FORBIDDEN, 403, "403 Forbidden", rule="no-issues")
    assert refused.rule == "no-issues"
    assert "no-issues" not in f"{refused!r} {refused}"
