"""The gateway's refusals: one exception, a closed set of codes.

A stage raises :class:`Rejection` where it finds the reason; only ``core/refusal.py`` turns it into bytes. The code is the
one string that the marker header (``X-Gateway-Error``), the metric label, the audit line and the docs all use.
"""

from __future__ import annotations

import enum

from .messages import Field


class Source(enum.StrEnum):
    """Whose fault it is."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


class Code(enum.StrEnum):
    """Every reason why the gateway answers instead of GitLab."""

    # downstream: the request
    BAD_REQUEST = "bad_request"
    BAD_TARGET = "bad_target"
    TARGET_TOO_LONG = "target_too_long"
    HEADERS_TOO_LARGE = "headers_too_large"
    BODY_TOO_LARGE = "body_too_large"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    EXPECTATION_FAILED = "expectation_failed"
    REQUEST_TIMEOUT = "request_timeout"
    MISDIRECTED = "misdirected"
    VERSION_NOT_SUPPORTED = "version_not_supported"
    NOT_IMPLEMENTED = "not_implemented"
    UPGRADE_REFUSED = "upgrade_refused"
    PROXY_LOOP = "proxy_loop"
    # downstream: the caller
    AMBIGUOUS_CREDENTIAL = "ambiguous_credential"
    BODY_CREDENTIAL = "body_credential"
    BODY_UNDECIDABLE = "body_undecidable"
    UNAUTHENTICATED = "unauthenticated"
    TOO_MANY_FAILED_LOGINS = "too_many_failed_logins"
    FORBIDDEN = "forbidden"
    SUDO_FORBIDDEN = "sudo_forbidden"
    METHOD_OVERRIDE = "method_override"
    BLOCKED_ROUTE = "blocked_route"
    PROJECT_UNKNOWN = "project_unknown"
    RATE_LIMITED = "rate_limited"
    ONLY_IF_CACHED = "only_if_cached"
    # upstream
    UPSTREAM_DNS = "upstream_dns"
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_CONNECT_TIMEOUT = "upstream_connect_timeout"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_RESET = "upstream_reset"
    UPSTREAM_TLS = "upstream_tls"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    UPSTREAM_BREAKER_OPEN = "upstream_breaker_open"
    UPSTREAM_BUSY = "upstream_busy"
    BROKER_CREDENTIAL_REFUSED = "broker_credential_refused"
    # internal
    IDENTITY_UNAVAILABLE = "identity_unavailable"
    PLACE_UNAVAILABLE = "place_unavailable"
    LIMITER_UNAVAILABLE = "limiter_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    DRAINING = "draining"
    INTERNAL = "internal_error"


class Rejection(Exception):  # noqa: N818 — a decision, not a fault; "Rejection" is the field's noun
    """The gateway's own answer instead of GitLab's.

    Args:
        code: The reason, from the closed set.
        status: The HTTP status.
        message: What the caller reads, in GitLab's wording, e.g. ``401 Unauthorized``. Never holds a URL or a secret.
        headers: Extra response fields (``Retry-After``, ``Allow`` …).
        source: Whose fault it is.
        close: Close the client's connection after answering (framing can't be trusted, or a body was left unread).
        proxy_error: The RFC 9209 error token for ``Proxy-Status``, where one applies.
        detail: What the code alone does not say, for the audit; never sent, and it quotes nothing that was sent.
        rule: The rule that denied, for the audit; never sent.
        shadow: The shadow rule that would have decided otherwise, for the audit.
        oauth_error: Set where GitLab answers in OAuth's shape (``{"error": …, "error_description": …}``).
    """

    def __init__(
        self,
        code: Code,
        status: int,
        message: str,
        *,
        headers: tuple[Field, ...] = (),
        source: Source = Source.DOWNSTREAM,
        close: bool = False,
        proxy_error: str | None = None,
        detail: str = "",
        oauth_error: str = "",
        rule: str = "",
        shadow: str = "",
    ) -> None:
        super().__init__(code.value)
        self.code = code
        self.status = status
        self.message = message
        self.headers = headers
        self.source = source
        self.close = close
        self.proxy_error = proxy_error
        self.detail = detail
        self.oauth_error = oauth_error
        self.rule = rule
        self.shadow = shadow

    def __repr__(self) -> str:
        return f"Rejection({self.code.value}, {self.status})"


def bad_request(message: str = "400 Bad Request", code: Code = Code.BAD_REQUEST, *, close: bool = False) -> Rejection:
    """A 400: the fault is downstream."""
    return Rejection(code, 400, message, close=close, proxy_error="http_request_error")


def rate_limited() -> Rejection:
    """The 429 for an empty bucket; which bucket it is, and for how long it refuses, is reported separately."""
    return Rejection(Code.RATE_LIMITED, 429, "429 Too Many Requests", proxy_error="http_request_denied")


def drained(*, unsure: bool) -> Rejection:
    """The refusal when the gateway shuts down and can't wait for the answer. ``unsure``: GitLab may have done what it was
    asked, or may still do it, so the client is not told to retry."""
    if unsure:
        return Rejection(
            Code.DRAINING,
            504,
            "504 Gateway Timeout",
            source=Source.INTERNAL,
            close=True,
            proxy_error="http_response_timeout",
        )
    return Rejection(
        Code.DRAINING,
        503,
        "503 Service Unavailable",
        headers=((b"Retry-After", b"1"),),
        source=Source.INTERNAL,
        close=True,
        proxy_error="destination_unavailable",
    )


def unauthenticated(why: str = "") -> Rejection:
    """The only 401: unknown, revoked and expired credentials read alike. ``why`` is for the audit alone."""
    return Rejection(Code.UNAUTHENTICATED, 401, "401 Unauthorized", detail=why)


def forbidden(reason: str = "", code: Code = Code.FORBIDDEN) -> Rejection:
    """A 403 in GitLab's wording."""
    message = f"403 Forbidden - {reason}" if reason else "403 Forbidden"
    return Rejection(code, 403, message, proxy_error="http_request_denied")
