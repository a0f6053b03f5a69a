"""Requests for a token exchange (RFC 8693 §2.1): read strictly, refused with the error codes of RFC 6749 §5.2.

What the standard offers and this endpoint doesn't is refused, not ignored, where ignoring it would grant more than was
asked for: another audience, a narrower scope, acting for somebody else.
"""

from __future__ import annotations

import urllib.parse

import msgspec

from .access import Principal
from .secret import Secret
from .workload_token import MAX_LENGTH

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 — a type's name
SUBJECT_TYPES = frozenset({"urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token"})
MAX_BODY_BYTES = MAX_LENGTH + 4096

_MOST_PARAMETERS = 20
_SHORTEST_S = 60
_KNOWN_ERRORS = {"scope": "invalid_scope", "audience": "invalid_target", "resource": "invalid_target"}
_UNSUPPORTED = ("actor_token", "actor_token_type", "client_secret", "client_assertion")


class TokenRefused(Exception):  # noqa: N818 — an answer
    """The request is refused. ``error`` is a code of RFC 6749 §5.2; the words quote nothing that was sent."""

    def __init__(self, error: str, words: str) -> None:
        super().__init__(words)
        self.error = error


class TokenRequest(msgspec.Struct, frozen=True):
    """What the caller asks for."""

    subject: Secret
    lifetime_s: float | None = None
    """The lifetime asked for; None: as long as possible."""


class TokenGrant(msgspec.Struct, frozen=True):
    """What was granted, and to whom."""

    key: Secret
    key_id: str
    principal: Principal
    lifetime_s: float


def read_token_request(media_type: str, body: bytes) -> TokenRequest:
    """Read a request's body. Raises TokenRefused."""
    if media_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise _invalid("the body must be application/x-www-form-urlencoded")
    given = _parameters(body)
    if given.get("grant_type") is None:
        raise _invalid("grant_type is missing")
    if given["grant_type"] != GRANT:
        raise TokenRefused("unsupported_grant_type", f"grant_type must be {GRANT}")
    for name in _UNSUPPORTED:
        if given.get(name):
            raise _invalid(f"{name} has no meaning here")
    for name, error in _KNOWN_ERRORS.items():
        if given.get(name):
            raise TokenRefused(error, f"{name} is decided by the rules of the identity")
    if given.get("requested_token_type") not in {None, "", ACCESS_TOKEN}:
        raise _invalid(f"requested_token_type must be {ACCESS_TOKEN}")
    if given.get("subject_token_type") not in SUBJECT_TYPES:
        raise _invalid("subject_token_type must be urn:ietf:params:oauth:token-type:jwt or …:id_token")
    if not given.get("subject_token"):
        raise _invalid("subject_token is missing")
    return TokenRequest(Secret(given["subject_token"]), _lifetime(given.get("expires_in")))


def not_accepted() -> TokenRefused:
    """The same answer for every subject token that is not accepted: unknown, expired, for somebody else, not matching."""
    return _invalid("the subject token is not accepted")


def _parameters(body: bytes) -> dict[str, str]:
    """The parameters of the form. None may occur twice (RFC 6749 §3.2)."""
    try:
        pairs = urllib.parse.parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_MOST_PARAMETERS,
        )
    except ValueError:
        raise _invalid("the body cannot be read as a form") from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise _invalid("a parameter is given twice")
    return given


def _lifetime(text: str | None) -> float | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) >= _SHORTEST_S):
        raise _invalid(f"expires_in must be a number of seconds, at least {_SHORTEST_S}")
    return float(text)


def _invalid(words: str) -> TokenRefused:
    return TokenRefused("invalid_request", words)
