"""The field in which a brokered token goes up: each of GitLab's surfaces reads its own. A table; nothing acts here."""

from __future__ import annotations

import base64
import enum

from ..core.catalogue import Operation, Surface
from ..core.messages import Field


class Carrier(enum.StrEnum):  # not a bare enum, whose hash is a call in Python
    """A place GitLab reads a personal access token from."""

    PRIVATE_TOKEN = "private-token"  # noqa: S105
    BEARER = "bearer"
    BASIC = "basic"
    BASIC_AS_USER = "named"
    """Basic, with the name of the token's own user."""
    RAW_AUTHORIZATION = "bare"
    """The whole of ``Authorization``, without a scheme."""


_SURFACES = {
    # `git_http_client_controller.rb` reads Basic and nothing else; with an access token, any user name will do.
    Surface.GIT: Carrier.BASIC,
    Surface.LFS: Carrier.BASIC,
    Surface.REGISTRY: Carrier.BASIC,
    Surface.MLFLOW: Carrier.BEARER,
    Surface.MCP: Carrier.BEARER,
}

_PACKAGES = (
    ("/packages/npm/", Carrier.BEARER),
    ("/packages/cargo/", Carrier.BEARER),
    ("/packages/ml_models/", Carrier.BEARER),
    ("PUT /api/v4/projects/:id/packages/terraform/", Carrier.PRIVATE_TOKEN),
    ("/projects/:id/packages/terraform/", Carrier.BASIC_AS_USER),
    ("/packages/terraform/", Carrier.BEARER),
    ("/packages/pypi", Carrier.BASIC),
    ("/packages/debian/", Carrier.BASIC_AS_USER),
    ("/packages/helm/", Carrier.BASIC),
    ("/packages/rpm", Carrier.BASIC_AS_USER),
    ("/packages/go/", Carrier.BASIC),
    ("/packages/composer", Carrier.BASIC),
    ("/packages/nuget", Carrier.BASIC_AS_USER),
    ("/packages/rubygems/", Carrier.RAW_AUTHORIZATION),
    ("/packages/conan/", Carrier.BASIC),
)
"""Package formats that do not read ``PRIVATE-TOKEN`` (GitLab: ``sent_through`` in each of ``lib/api/*_packages.rb``). Where
that says ``personal_access_token_with_username``, any user name but that of the token's user gets 401."""
ANY_NAME = "oauth2"
"""The user name that is sent where GitLab takes any."""


# Those of nearly every request, bound once: an enum's class looks its members up anew each time.
_REST, _PRIVATE_TOKEN = Surface.REST, Carrier.PRIVATE_TOKEN


def carrier_for(operation: Operation) -> Carrier:
    """The one carrier that this operation's surface reads."""
    if operation.surface is _REST:
        return _PRIVATE_TOKEN
    if operation.surface is Surface.PACKAGES:
        return next((carrier for part, carrier in _PACKAGES if part in operation.route), Carrier.PRIVATE_TOKEN)
    return _SURFACES.get(operation.surface, Carrier.PRIVATE_TOKEN)


def credential_field(carrier: Carrier, token: str, name: str = ANY_NAME) -> Field:
    """The field line that carries ``token``. Both the token and ``name``, GitLab's name for its user, are visible ASCII."""
    octets = token.encode("ascii")
    match carrier:
        case Carrier.PRIVATE_TOKEN:
            return (b"PRIVATE-TOKEN", octets)
        case Carrier.BEARER:
            return (b"Authorization", b"Bearer " + octets)
        case Carrier.RAW_AUTHORIZATION:
            return (b"Authorization", octets)
        case Carrier.BASIC | Carrier.BASIC_AS_USER:
            user = name if carrier is Carrier.BASIC_AS_USER else ANY_NAME
            return (b"Authorization", b"Basic " + base64.b64encode(b"%b:%b" % (user.encode("ascii"), octets)))
