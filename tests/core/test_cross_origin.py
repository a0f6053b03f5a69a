"""Preflights need no credential, and nothing else passes for one."""

from __future__ import annotations

import pytest

from gateway.core.access import PrincipalKind
from gateway.core.cross_origin import is_preflight, preflight_principal
from gateway.core.messages import Field, RequestHead
from gateway.core.target import parse_target

ORIGIN = (b"Origin", b"https://app.example.com")
METHOD = (b"Access-Control-Request-Method", b"DELETE")


def is_preflight_of(*fields: Field, method: str = "OPTIONS", target: bytes = b"/api/v4/projects/1", **more: bool) -> bool:
    return is_preflight(RequestHead(method, target, fields, **more), parse_target(target))


@pytest.mark.parametrize("target", [b"/api/v4/projects/a%2Fb", b"/api/graphql", b"/oauth/token"])
def test_a_preflight(target: bytes) -> None:
    assert is_preflight_of(ORIGIN, METHOD, target=target)


def test_no_preflight() -> None:
    assert not is_preflight_of(METHOD)
    assert not is_preflight_of(ORIGIN)
    assert not is_preflight_of(ORIGIN, METHOD, method="GET")
    assert not is_preflight_of(ORIGIN, METHOD, has_body=True)
    assert not is_preflight_of(ORIGIN, METHOD, target=b"/team/app.git/info/refs")
    assert not is_preflight_of(ORIGIN, METHOD, target=b"/")


def test_nobody_asks() -> None:
    assert (preflight_principal("10.0.0.1").kind, preflight_principal("10.0.0.1").brokered) == (
        PrincipalKind.PASSTHROUGH,
        False,
    )
    # As others without a name: whoever holds a /64 has no turn, bucket or line for each of its addresses.
    assert preflight_principal("2001:db8::7").id == preflight_principal("2001:db8::8").id == "passthrough:2001:db8::/64"
