"""A plain shared cache authenticates nobody, forbids nothing and brokers nothing."""

from __future__ import annotations

import inspect

import pytest

from gateway.app.null_objects import AllowAll, NoAuthentication, NoTokens
from gateway.core.access import Permit, PrincipalKind, Rules
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Claim, CredentialKind
from gateway.core.messages import RequestHead
from gateway.core.secret import Secret
from gateway.core.target import parse_target
from gateway.ports import UpstreamCredential

CLAIM = Claim(CredentialKind.NONE, Secret(""))
OPERATION = Operation("origin", Access.READ, Surface.WEB)
HEAD = RequestHead("GET", b"/", ())


async def test_everybody_is_let_in_everywhere() -> None:
    anyone = NoAuthentication()
    principal = await anyone.authenticate(CLAIM, OPERATION, HEAD)
    assert (principal.kind, principal.brokered) == (PrincipalKind.ANONYMOUS, False)
    assert principal is await anyone.authenticate(CLAIM, OPERATION, HEAD)
    assert await anyone.still_accepts(CLAIM)
    anyone.report_401(CLAIM, principal, HEAD)
    await anyone.close()
    permit = AllowAll().authorise(principal, OPERATION, parse_target(b"/"), "PURGE")
    assert permit.use == ""


async def test_there_is_nothing_to_broker() -> None:
    tokens = NoTokens()
    with pytest.raises(AssertionError):
        await tokens.credential(Permit("shared"), OPERATION)
    assert await tokens.refused(UpstreamCredential("sa", (), b"")) is False
    assert not tokens.has_unchecked
    tokens.gitlab_answered()
    await tokens.close()


def test_what_stands_in_for_the_rules_is_asked_as_they_are() -> None:
    real, stand_in = inspect.signature(Rules.authorise).parameters, inspect.signature(AllowAll.authorise).parameters
    assert list(stand_in) == [name for name in real if name in stand_in]
