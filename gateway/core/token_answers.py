"""Answers in which GitLab returns the token that it was asked with: brokered callers must never get one of those.

Conan's log-in          a JWT with the token in it, in clear, valid for months (``Gitlab::ConanToken``)
                        → replaced by the caller's own key, which it presents next
the dependency proxy's  a JWT with the token in it (``Auth::DependencyProxyAuthenticationService``)
                        → refused: only GitLab judges what it opens
the registry's          a JWT that says what may be pulled or pushed for some minutes, and nothing else → passes
"""

from __future__ import annotations

from .catalogue import Operation
from .errors import Code, Rejection
from .query import query_parameters
from .target import Target

_LOG_IN = ("/packages/conan/v1/users/authenticate", "/packages/conan/v2/users/authenticate")
_REGISTRY = b"container_registry"


def is_conan_login(operation: Operation) -> bool:
    """Whether the operation answers with a token made from the one presented."""
    return operation.name.endswith(_LOG_IN)


def check_token_service(operation: Operation, target: Target, *, has_body: bool) -> None:
    """Check a brokered caller's request for a token. A body may name the service, too, and wins over the query.

    Raises:
        Rejection: FORBIDDEN (403) for a token of another service than the registry's.
    """
    if not operation.name.endswith("/jwt/auth"):
        return
    services = [
        parameter for parameter in query_parameters(target.query or b"") if parameter.name.partition("[")[0] == "service"
    ]
    if len(services) != 1 or not services[0].plain or services[0].value != _REGISTRY or has_body:
        raise Rejection(
            Code.FORBIDDEN,
            403,
            "403 Forbidden - Only the container registry's tokens are handed out to gateway keys",
            proxy_error="http_request_denied",
            detail="the answer would hold an upstream credential",
        )
