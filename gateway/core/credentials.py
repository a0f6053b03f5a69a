"""Every credential carrier that GitLab reads; the result is one credential or a refusal.

GitLab prefers a parameter to a header and tries several kinds in turn (its auth_finders.rb). Here nothing is preferred: a
request with two credentials is refused, so that what was checked is what GitLab uses. Bodies: ``body_credentials``.
"""

from __future__ import annotations

import binascii
import enum
import re
from collections.abc import Iterable

import msgspec

from .catalogue import Operation, Surface
from .errors import Code, Rejection, bad_request, unauthenticated
from .gateway_key import holds_gateway_key, is_gateway_key
from .messages import Field, Fields
from .query import Parameter, cut_parameters, query_parameters
from .secret import Secret
from .target import Target


class CredentialKind(enum.StrEnum):
    """What sort of credential was presented (by its carrier, not by its text: prefixes are configurable in GitLab)."""

    NONE = "none"
    TOKEN = "token"  # noqa: S105 — PRIVATE-TOKEN, Bearer, or their parameters
    JOB_TOKEN = "job_token"  # noqa: S105
    DEPLOY_TOKEN = "deploy_token"  # noqa: S105
    BASIC = "basic"
    SESSION = "session"
    OPAQUE = "opaque"
    """Only GitLab can judge it: an ``Authorization`` of another scheme, a runner, SCIM, feed or trigger token. The secret
    is empty if it is in a body that nobody has read yet (a runner's, a trigger's, an OAuth client's)."""


class Carrier(enum.StrEnum):
    """Where the credential was found."""

    PRIVATE_TOKEN = "private-token"  # noqa: S105
    BEARER = "bearer"
    BASIC = "basic"
    AUTHORIZATION = "authorization"
    JOB_TOKEN = "job-token"  # noqa: S105
    DEPLOY_TOKEN = "deploy-token"  # noqa: S105
    SURFACE = "surface"
    """A field that only one surface reads: ``Runner-Token``, ``X-NuGet-ApiKey`` …"""
    QUERY = "query"
    BODY = "body"
    COOKIE = "cookie"


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The one credential that a request presents, not yet verified."""

    kind: CredentialKind
    secret: Secret
    carrier: Carrier | None = None
    parameter: str = ""
    """For QUERY and BODY: the parameter's name (``private_token``, ``access_token``, ``bearer_token``, ``job_token`` …)."""
    username: str = ""
    """For BASIC: the user name."""
    sudo: str | None = None
    """The user named by ``Sudo`` or ``sudo``; a capability, not a credential."""
    target: bytes = b""
    """The raw target without credential parameters: what is forwarded, and what cache keys are made of. A ``sudo``
    parameter stays, because GitLab repeats it in ``Link``; if it is not granted, the request is refused: it is never just
    removed."""
    upstream_fields: Fields = ()
    """The fields with which this credential goes up, if it does: as received, or moved from a parameter."""
    sudo_fields: Fields = ()
    """``Sudo`` as received, if it came as a field."""
    other_tokens: tuple[Secret, ...] = ()
    """The values of ``token`` in the query that are not this credential; ``is_second_token`` says what they are."""

    def __repr__(self) -> str:
        return f"Claim({self.kind.value}, {self.carrier and self.carrier.value})"

    @property
    def stays_in_target(self) -> bool:
        """Whether the secret stays in ``target``, where only GitLab can judge it."""
        return self.kind is CredentialKind.OPAQUE and self.carrier is Carrier.QUERY

    @property
    def is_in_body(self) -> bool:
        """Whether the credential is in the body, where only GitLab will find and judge it."""
        return self.kind is CredentialKind.OPAQUE and self.carrier is Carrier.BODY


# Which field or parameter carries what

_PRIVATE, _AUTHORIZATION, _JOB, _DEPLOY, _COOKIE, _SUDO, _SURFACE, _TWIN = range(1, 9)

_SLOTS = {
    b"private-token": _PRIVATE,
    b"authorization": _AUTHORIZATION,
    b"job-token": _JOB,
    b"deploy-token": _DEPLOY,
    b"cookie": _COOKIE,
    b"sudo": _SUDO,
    b"runner-token": _SURFACE,
    b"x-nuget-apikey": _SURFACE,
    b"x-gitlab-static-object-token": _SURFACE,
    b"unleash-instanceid": _SURFACE,
    b"dpop": _SURFACE,
}
# The only surfaces on which each of these is a credential; elsewhere it is dropped. DPoP proves a caller's own token on any
# surface.
_SURFACES = {
    b"runner-token": frozenset({Surface.RUNNER}),
    b"x-nuget-apikey": frozenset({Surface.PACKAGES}),
    b"x-gitlab-static-object-token": frozenset({Surface.WEB_TOKEN, Surface.WEB}),
    b"unleash-instanceid": frozenset({Surface.UNLEASH}),
}
_TWINS = frozenset(name.replace(b"-", b"_") for name in _SLOTS if b"-" in name)

CREDENTIAL_FIELDS = frozenset(_SLOTS) | _TWINS
"""Lower-cased names of the fields that a caller's request brings up only by :func:`credential_fields`; in ``-`` and ``_``
spellings, which Rack reads alike."""

TOKEN_PARAMETERS = {
    "private_token": (CredentialKind.TOKEN, b"PRIVATE-TOKEN", b""),
    "access_token": (CredentialKind.TOKEN, b"Authorization", b"Bearer "),
    "bearer_token": (CredentialKind.TOKEN, b"Authorization", b"Bearer "),
    "job_token": (CredentialKind.JOB_TOKEN, b"JOB-TOKEN", b""),
}
"""Parameter → its kind, and the field and scheme it is moved to."""
CREDENTIAL_PARAMETERS = frozenset(TOKEN_PARAMETERS)
_JOBS = frozenset({"job_token"})
FEED_PARAMETERS = frozenset({"feed_token", "rss_token"})
"""GitLab reads these only from a parameter."""

# Surfaces whose Bearer is not a user's token (SCIM's, an agent's, the registry's), and those where GitLab must judge even a
# request without any credential in its head: the credential is in the body, or in a parameter of the surface's own.
_OPAQUE_BEARER = frozenset({Surface.SCIM, Surface.KAS, Surface.REGISTRY, Surface.GEO, Surface.INTERNAL})
_JUDGED_BY_GITLAB = frozenset({Surface.RUNNER, Surface.OAUTH, Surface.UNLEASH, Surface.OBSERVABILITY})
_TOKEN_PARAMETER = frozenset({Surface.RUNNER, Surface.WEB_TOKEN, Surface.PACKAGES})
_READS_TOKEN = _TOKEN_PARAMETER | {Surface.WEB}  # raw files at addresses that the catalogue does not know
_TRIGGER = "/trigger/pipeline"
_MODULE_FILE = "/terraform/modules/v1/:module_namespace/:module_name/:module_system/*module_version/file"
_COOKIES_WITHOUT_LOGIN = frozenset({Surface.WEB, Surface.OAUTH, Surface.WEBSOCKET, Surface.WEB_TOKEN})

# A query without any of these holds no parameter that matters here, however encoded: %4x to %7x are the letters and "_".
_SUSPECT = re.compile(rb"token|sudo|_method|%[4-7]")
_VISIBLE = re.compile(rb"[!-~\x80-\xff]+")
_LOGIN_COOKIES = (b"_gitlab_session", b"remember_user_token")


class _Slots(dict[bytes, int]):
    """Name as spelt → slot, 0 for none; a bounded number is remembered."""

    def __missing__(self, name: bytes) -> int:
        key = name.lower()
        slot = _TWIN if key in _TWINS else _SLOTS.get(key, 0)
        if len(name) <= 64:
            if len(self) >= 4096:
                self.clear()
            self[name] = slot
        return slot


_slots = _Slots()


def is_second_token(kind: CredentialKind, operation: Operation, *, brokered: bool) -> bool:
    """Whether a parameter ``token`` beside a credential of ``kind`` is one too many.

    It is the token of a trigger, a runner, a job, a module, or of a user for raw files, and GitLab may go by it alone: then
    what was judged here is not what GitLab uses. Elsewhere it is a parameter like any other (a hook's secret). Callers
    whose own credentials go up may send both, as clients do: python-gitlab triggers pipelines with its own token in the
    head, runners send a job's token twice. But they may not send it beside a job token, in whose place GitLab takes it, nor
    as a job token with nothing beside it but a cookie, which nobody here judges. Terraform fetches a module by the address
    that it was handed, including the token, with whatever its ``.netrc`` has for that host.
    """
    trigger = operation.name.endswith(_TRIGGER)
    if operation.name.endswith(_MODULE_FILE) or not (trigger or operation.job_token or operation.surface in _READS_TOKEN):
        return False
    if brokered or trigger:
        return brokered
    return kind is CredentialKind.JOB_TOKEN or (
        operation.job_token and (kind is CredentialKind.SESSION or kind is CredentialKind.NONE)
    )


def allowed_in_body(claim: Claim, operation: Operation) -> frozenset[str]:
    """The credential parameters that may stay in a body for GitLab to judge, if the head holds no credential: OAuth's own,
    and ``job_token`` where the operation takes one. Other bodies that GitLab judges (with a runner's ``token``) may hold
    none: given a user's token as well, GitLab lists that user's runners."""
    if not claim.is_in_body:
        return frozenset()
    if operation.surface is Surface.OAUTH:
        return CREDENTIAL_PARAMETERS
    return _JOBS if operation.job_token else frozenset()


def without_carriers(fields: Fields) -> tuple[Fields, list[Field]]:
    """``fields`` without those that may carry a credential, and the latter by themselves."""
    carriers = [field for field in fields if _slots[field[0]]]
    if not carriers:
        return fields, carriers
    return tuple([field for field in fields if not _slots[field[0]]]), carriers


class _GatheredCredentials:
    """The credentials in a head, gathered in one pass."""

    __slots__ = ("authorization", "cookies", "dpop", "parameters", "session", "sudo_fields", "sudos", "surface", "tokens")

    def __init__(self) -> None:
        self.tokens: list[tuple[int, Field]] = []
        self.cookies: list[Field] = []
        self.session = b""
        self.surface: list[Field] = []
        self.dpop: list[Field] = []
        self.sudos: list[str] = []
        self.sudo_fields: list[Field] = []
        self.parameters: list[Parameter] = []


def read_claim(fields: Iterable[Field], method: str, target: Target, operation: Operation) -> Claim:
    """The one credential in a request's head.

    Raises:
        Rejection: AMBIGUOUS_CREDENTIAL (400) for two, or for one spelt so that readers differ; UNAUTHENTICATED (401) for
            one that cannot be valid, and for a gateway key that would go up beside what GitLab judges; METHOD_OVERRIDE
            (400) for ``_method`` in the query.
    """
    carriers = [field for field in fields if _slots[field[0]]]
    query = target.query
    suspect = query is not None and _SUSPECT.search(query) is not None
    if len(carriers) == 1 and not suspect:
        # Nearly every request: one token in one field.
        slot = _slots[carriers[0][0]]
        if slot <= _DEPLOY and carriers[0][1]:
            read = _read(slot, carriers[0], operation.surface)
            return Claim(read[0], Secret(read[2]), read[1], "", read[3], None, target.raw, (carriers[0],))
    found = _GatheredCredentials()
    for field in carriers:
        _gather(found, _slots[field[0]], field, operation.surface)
    if query is not None and suspect:
        _gather_parameters(found, query)
    claim = _judge(found, target, operation, method)
    if _leaks_key(found, claim):
        raise unauthenticated("a gateway key where GitLab would be shown it")
    return claim


def _gather(found: _GatheredCredentials, slot: int, field: Field, surface: Surface) -> None:
    name, value = field
    if slot == _TWIN:
        # Rack would read it as the real field. No client of GitLab can mean that, since GitLab's NGINX drops such names.
        raise bad_request(code=Code.AMBIGUOUS_CREDENTIAL, close=True)
    if not value:
        return
    if slot <= _DEPLOY:
        found.tokens.append((slot, field))
    elif slot == _COOKIE:
        found.cookies.append(field)
        for login in _LOGIN_COOKIES:
            start = value.find(login)
            if start >= 0:
                found.session = value[start:].partition(b"=")[2].partition(b";")[0]
                break
    elif slot == _SUDO:
        found.sudos.append(_text(value))
        found.sudo_fields.append(field)
    else:
        key = name.lower()
        if key == b"dpop":
            found.dpop.append(field)
        elif surface in _SURFACES[key]:
            found.surface.append(field)


def _gather_parameters(found: _GatheredCredentials, query: bytes) -> None:
    for parameter in query_parameters(query):
        name = parameter.name
        if name == "sudo":
            if not parameter.plain:
                raise two_credentials()
            if parameter.value:
                found.sudos.append(_text(parameter.value))
        elif name in CREDENTIAL_PARAMETERS or name in FEED_PARAMETERS or name == "token":
            if not parameter.plain and name != "token":
                raise two_credentials()
            found.parameters.append(parameter)
        elif name == "_method":
            # Rack reads it only from a form; a client that puts it here is trying what a gateway overlooks.
            raise bad_request(code=Code.METHOD_OVERRIDE)


def _judge(found: _GatheredCredentials, target: Target, operation: Operation, method: str) -> Claim:
    if len(set(found.sudos)) > 1:
        raise two_credentials()
    sudo = found.sudos[0] if found.sudos else None
    raw = target.raw
    parameter = None
    if found.parameters:
        raw = cut_parameters(raw, CREDENTIAL_PARAMETERS)
        parameter = _one_parameter(found)
    if parameter is not None:
        return _from_parameter(parameter, found, sudo, raw)
    if not found.tokens:
        return _claim_without_credential(found, raw, sudo, operation, method)
    kind, carrier, secret, username, field = _one_field(found, operation.surface)
    return Claim(
        kind,
        Secret(secret),
        carrier,
        username=username,
        sudo=sudo,
        target=raw,
        upstream_fields=(field, *found.surface, *found.dpop),
        sudo_fields=tuple(found.sudo_fields[:1]),
        other_tokens=_other_tokens(found),
    )


def _leaks_key(found: _GatheredCredentials, claim: Claim) -> bool:
    """Whether a gateway key is where GitLab would see it. If one is the credential itself, no credential field goes up."""
    if any(each.name == "token" and holds_gateway_key(_text(each.value)) for each in found.parameters):
        return True
    if is_gateway_key(claim.secret.reveal()):
        return False
    beside = (*found.surface, *found.dpop, *found.cookies)
    return any(field in claim.upstream_fields and holds_gateway_key(_text(field[1])) for field in beside)


def _one_parameter(found: _GatheredCredentials) -> Parameter | None:
    """The credential in the query, if there is one. Raises Rejection if there is another beside it."""
    present = [parameter for parameter in found.parameters if parameter.name != "token" and parameter.value]
    if not present:
        return None
    if any(parameter.name == "access_token" for parameter in present) and any(
        slot == _AUTHORIZATION and value[:7].lower() == b"bearer " for slot, (_, value) in found.tokens
    ):
        raise both_bearer_and_access_token()
    if len(present) > 1 or found.tokens or found.surface:
        raise two_credentials()
    return present[0]


def _from_parameter(parameter: Parameter, found: _GatheredCredentials, sudo: str | None, raw: bytes) -> Claim:
    if _VISIBLE.fullmatch(parameter.value) is None:
        # No token holds a blank or a control octet, which in a field could end the line.
        raise unauthenticated("a blank or a control octet in a credential")
    kind, upstream_fields = CredentialKind.OPAQUE, tuple[Field, ...]()
    if parameter.name in CREDENTIAL_PARAMETERS:
        kind, upstream_fields = moved_parameter(parameter.name, parameter.value)
    return Claim(
        kind,
        Secret(_text(parameter.value)),
        Carrier.QUERY,
        parameter.name,
        sudo=sudo,
        target=raw,
        upstream_fields=upstream_fields + tuple(found.dpop),
        sudo_fields=tuple(found.sudo_fields[:1]),
        other_tokens=_other_tokens(found),
    )


def _one_field(found: _GatheredCredentials, surface: Surface) -> tuple[CredentialKind, Carrier, str, str, Field]:
    """The credential in the field that GitLab would read first; any other field must carry the same secret."""
    tokens = sorted(found.tokens, key=lambda token: token[0])
    slot, field = tokens[0]
    kind, carrier, secret, username = _read(slot, field, surface)
    for slot, other in tokens[1:]:
        other_kind, _, other_secret, other_username = _read(slot, other, surface)
        if Secret(other_secret) != Secret(secret) or (other_kind is kind and other_username != username):
            raise two_credentials()
    return kind, carrier, secret, username, field


def _read(slot: int, field: Field, surface: Surface) -> tuple[CredentialKind, Carrier, str, str]:
    """Kind, carrier, secret and user name of one field."""
    if slot == _PRIVATE:
        return CredentialKind.TOKEN, Carrier.PRIVATE_TOKEN, _text(field[1]), ""
    if slot == _AUTHORIZATION:
        return _authorization(field[1], surface)
    if slot == _DEPLOY:
        return CredentialKind.DEPLOY_TOKEN, Carrier.DEPLOY_TOKEN, _text(field[1]), ""
    # On the runners' surface a runner speaks for its job; only GitLab knows which runner may.
    kind = CredentialKind.OPAQUE if surface is Surface.RUNNER else CredentialKind.JOB_TOKEN
    return kind, Carrier.JOB_TOKEN, _text(field[1]), ""


def _authorization(value: bytes, surface: Surface) -> tuple[CredentialKind, Carrier, str, str]:
    scheme, _, rest = value.partition(b" ")
    scheme = scheme.lower()
    rest = rest.strip(b" ")
    if scheme == b"bearer":
        if not rest:
            raise unauthenticated("Bearer without a token")
        return CredentialKind.OPAQUE if surface in _OPAQUE_BEARER else CredentialKind.TOKEN, Carrier.BEARER, _text(rest), ""
    if scheme == b"basic":
        try:
            decoded = binascii.a2b_base64(rest, strict_mode=True)
        except binascii.Error:
            raise unauthenticated("Basic that is not base64") from None
        username, password = map(_text, decoded.partition(b":")[::2])
        if holds_gateway_key(username) and not is_gateway_key(password):
            raise unauthenticated("a gateway key as the user name: it belongs in the password")
        return CredentialKind.BASIC, Carrier.BASIC, password, username
    # Negotiate, GL-Geo, a RubyGems key as the whole value.
    return CredentialKind.OPAQUE, Carrier.AUTHORIZATION, _text(value), ""


def _claim_without_credential(
    found: _GatheredCredentials, raw: bytes, sudo: str | None, operation: Operation, method: str
) -> Claim:
    """The claim of a head without a user's credential: a surface's own, a session, one GitLab will find in the body, or
    none."""
    surface = operation.surface
    kind, carrier, parameter, secret, upstream_fields = CredentialKind.NONE, None, "", b"", tuple[Field, ...]()
    token = next((each for each in found.parameters if each.name == "token" and each.value), None)
    trigger = operation.name.endswith(_TRIGGER)
    if found.surface:
        kind, carrier, secret = CredentialKind.OPAQUE, Carrier.SURFACE, found.surface[0][1]
        upstream_fields = tuple(found.surface)
    elif token is not None and (trigger or surface in _TOKEN_PARAMETER):
        kind, carrier, parameter, secret = CredentialKind.OPAQUE, Carrier.QUERY, "token", token.value
    elif found.session:
        kind, carrier, secret, upstream_fields = CredentialKind.SESSION, Carrier.COOKIE, found.session, tuple(found.cookies)
    elif surface in _JUDGED_BY_GITLAB or (trigger and method == "POST"):
        kind, carrier, parameter = CredentialKind.OPAQUE, Carrier.BODY, "token"
    elif surface in _COOKIES_WITHOUT_LOGIN:
        upstream_fields = tuple(found.cookies)
    return Claim(
        kind,
        Secret(_text(secret)),
        carrier,
        parameter,
        sudo=sudo,
        target=raw,
        upstream_fields=upstream_fields,
        sudo_fields=tuple(found.sudo_fields[:1]),
        other_tokens=_other_tokens(found) if parameter != "token" or carrier is Carrier.BODY else (),
    )


def _other_tokens(found: _GatheredCredentials) -> tuple[Secret, ...]:
    return tuple([Secret(_text(each.value)) for each in found.parameters if each.name == "token" and each.value])


def credential_fields(claim: Claim) -> Fields:
    """The fields with which a caller's own credential goes up, including ``Sudo``."""
    return claim.upstream_fields + claim.sudo_fields


def moved_parameter(name: str, value: bytes) -> tuple[CredentialKind, Fields]:
    """The kind of a credential parameter, and the field that carries it upstream. ``value`` is decoded and visible."""
    kind, field, scheme = TOKEN_PARAMETERS[name]
    return kind, ((field, scheme + value),)


def both_bearer_and_access_token() -> Rejection:
    """GitLab's own answer to a Bearer token beside ``access_token``, whatever the two hold (rack-oauth2)."""
    return Rejection(
        Code.AMBIGUOUS_CREDENTIAL,
        400,
        "Both Authorization header and payload includes access token.",
        oauth_error="invalid_request",
    )


def two_credentials() -> Rejection:
    """The refusal of a request with two credentials, whichever they are."""
    return bad_request("400 Bad Request - more than one credential", Code.AMBIGUOUS_CREDENTIAL)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")
