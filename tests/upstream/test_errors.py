"""Every failure has its row, and every foreign exception its failure."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from gateway.core.errors import Code, Source
from gateway.upstream.errors import LOCAL_FAILURES, Failure, UpstreamFailure, classify, rejection


@pytest.mark.parametrize("failure", list(Failure))
def test_every_failure_is_told(failure: Failure) -> None:
    refusal = rejection(failure, "detail")
    assert refusal.status in (502, 503, 504)
    assert refusal.message.startswith(str(refusal.status))
    assert refusal.proxy_error
    assert refusal.detail == "detail"
    assert (dict(refusal.headers).get(b"Retry-After") is not None) == (refusal.status == 503)


@pytest.mark.parametrize(
    ("failure", "code", "status", "token"),
    [
        (Failure.DNS, Code.UPSTREAM_DNS, 502, "dns_error"),
        (Failure.DNS_TIMEOUT, Code.UPSTREAM_DNS, 504, "dns_timeout"),
        (Failure.REFUSED, Code.UPSTREAM_REFUSED, 502, "connection_refused"),
        (Failure.RESET, Code.UPSTREAM_RESET, 502, "connection_terminated"),
        (Failure.CONNECT_TIMEOUT, Code.UPSTREAM_CONNECT_TIMEOUT, 504, "connection_timeout"),
        (Failure.FIRST_BYTE_TIMEOUT, Code.UPSTREAM_TIMEOUT, 504, "http_response_timeout"),
        (Failure.TLS_CERTIFICATE, Code.UPSTREAM_TLS, 502, "tls_certificate_error"),
        (Failure.BREAKER_OPEN, Code.UPSTREAM_BREAKER_OPEN, 503, "destination_unavailable"),
        (Failure.BUSY, Code.UPSTREAM_BUSY, 503, "connection_limit_reached"),
        (Failure.INCOMPLETE, Code.UPSTREAM_RESET, 502, "http_response_incomplete"),
    ],
)
def test_proxy_status_table(failure: Failure, code: Code, status: int, token: str) -> None:
    refusal = rejection(failure)
    assert (refusal.code, refusal.status, refusal.proxy_error, refusal.source) == (code, status, token, Source.UPSTREAM)


@pytest.mark.parametrize(("wait_s", "value"), [(0.0, b"1"), (0.2, b"1"), (9.01, b"10")])
def test_retry_after_is_rounded_up_and_never_zero(wait_s: float, value: bytes) -> None:
    assert rejection(Failure.BREAKER_OPEN, retry_after_s=wait_s).headers == ((b"Retry-After", value),)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ssl.SSLCertVerificationError("x"), Failure.TLS_CERTIFICATE),
        (ssl.SSLError("x"), Failure.TLS),
        (socket.gaierror(-2, "x"), Failure.DNS),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), Failure.REFUSED),
        (FileNotFoundError(errno.ENOENT, "x"), Failure.REFUSED),
        (OSError(errno.EHOSTUNREACH, "x"), Failure.UNROUTABLE),
        (OSError(errno.ETIMEDOUT, "x"), Failure.CONNECT_TIMEOUT),
        (ConnectionResetError(errno.ECONNRESET, "x"), Failure.RESET),
        (OSError(errno.EMFILE, "x"), Failure.NO_SOCKETS),
        (OSError("Multiple exceptions"), Failure.REFUSED),
        (ConnectionAbortedError("TLS handshake is taking too long"), Failure.RESET),
        (ConnectionResetError(), Failure.RESET),
    ],
)
def test_classify(error: OSError, failure: Failure) -> None:
    assert classify(error) is failure


def test_our_own_shortages_are_not_gitlabs_failures() -> None:
    assert {Failure.BUSY, Failure.NO_SOCKETS, Failure.BREAKER_OPEN} <= LOCAL_FAILURES
    assert not LOCAL_FAILURES & {Failure.RESET, Failure.REFUSED, Failure.FIRST_BYTE_TIMEOUT}


def test_a_failure_names_itself() -> None:
    assert str(UpstreamFailure(Failure.RESET)) == "RESET"
