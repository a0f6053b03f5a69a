"""Preflights need no credential, and nothing else passes for one."""

from __future__ import annotations

import pytest

from gateway.core.access import PrincipalKind
from gateway.core.cross_origin import asker, is_preflight
from gateway.core.messages import Field, RequestHead
from gateway.core.target import parse_target

ORIGIN = (b"Origin", b"https://app.example.com")
METHOD = (b"Access-Control-Request-Method", b"DELETE")


def asked(*fields: Field, method: str = "OPTIONS", target: bytes = b"/api/v4/projects/1", **more: bool) -> bool:
    return is_preflight(RequestHead(method, target, fields, **more), parse_target(target))


@pytest.mark.parametrize("target", [b"/api/v4/projects/a%2Fb", b"/api/graphql", b"/oauth/token"])
def test_a_preflight(target: bytes) -> None:
    assert asked(ORIGIN, METHOD, target=target)


def test_no_preflight() -> None:
    assert not asked(METHOD)
    assert not asked(ORIGIN)
    assert not asked(ORIGIN, METHOD, method="GET")
    assert not asked(ORIGIN, METHOD, has_body=True)
    assert not asked(ORIGIN, METHOD, target=b"/team/app.git/info/refs")
    assert not asked(ORIGIN, METHOD, target=b"/")


def test_nobody_asks() -> None:
    assert (asker("10.0.0.1").kind, asker("10.0.0.1").brokered) == (PrincipalKind.PASSTHROUGH, False)
    # As others without a name: whoever holds a /64 has no turn, bucket or line for each of its addresses.
    assert asker("2001:db8::7").id == asker("2001:db8::8").id == "passthrough:2001:db8::/64"
