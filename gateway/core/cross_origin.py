"""CORS preflights: what a browser asks before the actual request. They never carry a credential, so none is required."""

from __future__ import annotations

from .access import Principal, PrincipalKind
from .messages import RequestHead, first
from .peer_guard import subject
from .target import Target

# Where GitLab answers preflights (its `config/application.rb`).
_PLACES = frozenset({"api", "oauth", ".well-known"})


def is_preflight(head: RequestHead, target: Target) -> bool:
    """Whether ``head`` is a preflight to a place where GitLab answers preflights."""
    return (
        head.method == "OPTIONS"
        and not head.has_body
        and target.segments[:1] != ()
        and target.segments[0] in _PLACES
        and first(head.fields, b"origin") is not None
        and first(head.fields, b"access-control-request-method") is not None
    )


def preflight_principal(address: str) -> Principal:
    """The principal of a preflight: nobody in particular, at an address."""
    return Principal(id=f"passthrough:{subject(address)}", kind=PrincipalKind.PASSTHROUGH, identity="passthrough")
