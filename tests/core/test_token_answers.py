"""Answers that hold the credential GitLab was asked with."""

from __future__ import annotations

import pytest

from gateway import routes
from gateway.core.errors import Code, Rejection
from gateway.core.target import parse_target
from gateway.core.token_answers import check_token_service, is_conan_login

CATALOGUE = routes.catalogue()


def check(raw: bytes, *, has_body: bool = False) -> None:
    target = parse_target(raw)
    check_token_service(CATALOGUE.match("GET", target), target, has_body=has_body)


@pytest.mark.parametrize(
    "raw",
    [
        b"/jwt/auth?service=container_registry",
        b"/jwt/auth?scope=repository:a/b:pull&service=container_registry&scope=repository:a/c:push",
        b"/api/v4/user?service=dependency_proxy",
    ],
)
def test_the_registrys_tokens_pass(raw: bytes) -> None:
    check(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"/jwt/auth",
        b"/jwt/auth?service=",
        b"/jwt/auth?service=dependency_proxy",
        b"/jwt/auth?service=container_registry&service=dependency_proxy",
        b"/jwt/auth?service=container_registry&service[]=dependency_proxy",
        b"/jwt/auth?service=container_registry&servic%65=dependency_proxy",
        b"/jwt/auth?service[]=container_registry",
        b"/jwt/auth?x=1;service=container_registry",
        b"/jwt/auth.json?service=dependency_proxy",
    ],
)
def test_tokens_of_any_other_service_are_refused(raw: bytes) -> None:
    with pytest.raises(Rejection) as refusal:
        check(raw)
    assert (refusal.value.code, refusal.value.status) == (Code.FORBIDDEN, 403)


def test_a_body_may_name_another_service() -> None:
    with pytest.raises(Rejection):
        check(b"/jwt/auth?service=container_registry", has_body=True)


@pytest.mark.parametrize(
    ("raw", "logs_in"),
    [
        (b"/api/v4/packages/conan/v1/users/authenticate", True),
        (b"/api/v4/projects/42/packages/conan/v1/users/authenticate", True),
        (b"/api/v4/projects/a%2Fb/packages/conan/v2/users/authenticate", True),
        (b"/api/v4/projects/42/packages/conan/v2/users/check_credentials", False),
        (b"/api/v4/user", False),
    ],
)
def test_a_conan_login(raw: bytes, logs_in: bool) -> None:
    assert is_conan_login(CATALOGUE.match("GET", parse_target(raw))) is logs_in


def test_every_operation_that_authenticates_so_is_known() -> None:
    found = {operation.name for operation in CATALOGUE.operations() if "users/authenticate" in operation.name}
    assert len(found) == 3
    assert all(is_conan_login(operation) for operation in CATALOGUE.operations() if operation.name in found)
