"""Gateway keys on the admin port: reads and writes JSON, and leaves what is done to ``KeyAdmin``."""

from __future__ import annotations

import datetime
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec

from ..core.admin_permission import Permission
from ..core.key_record import KeyRecord, format_instant
from ..edge.admin import AdminRefused, AdminRequest, AdminResponse, Endpoint
from ..identity.key_issuer import KeyTerms, NoSuchKey, TermsRefused
from ..ports import KeyRefused, NotDone, StoreUnavailable
from .key_admin import Actor, AuditFull, KeyAdmin, Unconfirmed, state_of

_PAGE = 20
_LONGEST_PAGE = 100
_OVERLAP_S = 86_400.0
_SEE = (Permission.READ, Permission.KEYS)  # whoever issues keys must be able to find them again
_CHANGE = (Permission.KEYS,)
_STATES = ("live", "pending", "expired", "revoked")

Instant = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
Handler = Callable[[KeyAdmin, AdminRequest], Awaitable[AdminResponse]]


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /-/keys``."""

    identity: str
    not_before: Instant | None = None
    expires_at: Instant | None = None
    cidr: tuple[str, ...] = ()
    note: str = ""


class ImportedKey(NewKey, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /-/keys/import``."""

    sha256: str


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /-/keys/:id/rotate``."""

    overlap_s: float = _OVERLAP_S
    expires_at: Instant | None = None


class ShownKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key as the API shows it: the key itself only once."""

    id: str
    identity: str
    state: str
    origin: str
    created_at: str
    not_before: str | None = None
    expires_at: str | None = None
    revoked_at: str | None = None
    last_used_at: str | None = None
    cidr: tuple[str, ...] = ()
    note: str | None = None
    replaced_by: str | None = None
    key: str | None = None
    """The key itself: in the answer to the request that made it, and nowhere else."""


def key_endpoints(key_admin: KeyAdmin) -> tuple[Endpoint, ...]:
    """The endpoints to list, get, create, import, rotate and revoke keys."""

    def of(method: str, path: str, handle: Handler, needs: tuple[Permission, ...], *query: str) -> Endpoint:
        async def answer(request: AdminRequest) -> AdminResponse:
            try:
                return await handle(key_admin, request)
            except NoSuchKey as missing:
                raise AdminRefused(404, str(missing)) from None
            except TermsRefused as refused:
                raise AdminRefused(400, str(refused)) from None
            except KeyRefused as refused:
                raise AdminRefused(409, str(refused)) from None
            except (AuditFull, Unconfirmed) as unavailable:
                raise AdminRefused(503, str(unavailable)) from None
            except NotDone as refused:
                raise AdminRefused(503, f"{refused}: nothing was changed") from None
            except StoreUnavailable:
                raise AdminRefused(503, "the key store does not answer: whether anything changed is not known") from None

        return Endpoint(method, path, answer, needs, frozenset(query))

    return (
        of("GET", "/-/keys", _list, _SEE, "identity", "state", "page", "per_page"),
        of("POST", "/-/keys", _create, _CHANGE),
        of("POST", "/-/keys/import", _import, _CHANGE),
        of("GET", "/-/keys/{id}", _get, _SEE),
        of("POST", "/-/keys/{id}/rotate", _rotate, _CHANGE),
        of("DELETE", "/-/keys/{id}", _revoke, _CHANGE),
    )


async def _list(key_admin: KeyAdmin, request: AdminRequest) -> AdminResponse:
    page = _number(request.query.get("page", "1"), "page", 1_000_000)
    per_page = _number(request.query.get("per_page", str(_PAGE)), "per_page", _LONGEST_PAGE)
    state = request.query.get("state")
    if state is not None and state not in _STATES:
        raise ValueError(f"state: must be one of {', '.join(_STATES)}")
    records = await key_admin.list(request.query.get("identity"))
    shown = [_shown(record) for record in records if _is_for(request, record.identity)]
    if state is not None:
        shown = [one for one in shown if one.state == state]
    here = shown[(page - 1) * per_page : page * per_page]
    more = {"next_page": page + 1} if len(shown) > page * per_page else {}
    return AdminResponse({"keys": here, **more})


async def _get(key_admin: KeyAdmin, request: AdminRequest) -> AdminResponse:
    return AdminResponse(_shown(await _find(key_admin, request)))


async def _create(key_admin: KeyAdmin, request: AdminRequest) -> AdminResponse:
    requested = msgspec.convert(request.body, NewKey)
    _refuse_others(request, requested.identity)
    key, record = await key_admin.issue(_actor(request), requested.identity, _terms(requested))
    return AdminResponse(msgspec.structs.replace(_shown(record), key=key.reveal()), 201)


async def _import(key_admin: KeyAdmin, request: AdminRequest) -> AdminResponse:
    requested = msgspec.convert(request.body, ImportedKey)
    _refuse_others(request, requested.identity)
    return AdminResponse(
        _shown(await key_admin.import_key(_actor(request), requested.identity, requested.sha256, _terms(requested))), 201
    )


async def _rotate(key_admin: KeyAdmin, request: AdminRequest) -> AdminResponse:
    requested = msgspec.convert(request.body, Rotation)
    expires_at = _seconds(requested.expires_at)
    await _refuse_foreign(key_admin, request)
    key, record = await key_admin.rotate(_actor(request), request.names["id"], requested.overlap_s, expires_at=expires_at)
    return AdminResponse(msgspec.structs.replace(_shown(record), key=key.reveal()), 201)


async def _revoke(key_admin: KeyAdmin, request: AdminRequest) -> AdminResponse:
    await _refuse_foreign(key_admin, request)
    await key_admin.revoke(_actor(request), request.names["id"])
    return AdminResponse(None, 204)


async def _refuse_foreign(key_admin: KeyAdmin, request: AdminRequest) -> None:
    if request.identities is not None:  # nothing is read before a key ends, unless it has to be
        await _find(key_admin, request)


def _is_for(request: AdminRequest, identity: str) -> bool:
    return request.identities is None or identity in request.identities


def _refuse_others(request: AdminRequest, identity: str) -> None:
    if not _is_for(request, identity):
        raise AdminRefused(403, f"403 Forbidden: the admin key is not for keys of `{identity}` (`admin.keys[].identities`)")


async def _find(key_admin: KeyAdmin, request: AdminRequest) -> KeyRecord:
    """The key that the path names. Raises NoSuchKey, also for one that the admin key is not for."""
    record = await key_admin.get(request.names["id"])
    if not _is_for(request, record.identity):
        raise NoSuchKey(f"no key has the id {record.id}")
    return record


def _terms(requested: NewKey) -> KeyTerms:
    return KeyTerms(_seconds(requested.not_before), _seconds(requested.expires_at), requested.cidr, requested.note)


def _actor(request: AdminRequest) -> Actor:
    return Actor(request.who, "admin", request.peer, request.method)


def _shown(record: KeyRecord) -> ShownKey:
    return ShownKey(
        id=record.id,
        identity=record.identity,
        state=state_of(record, time.time()),
        origin=record.origin.value,
        created_at=_instant(record.created_at),
        not_before=_instant_if(record.not_before),
        expires_at=_instant_if(record.expires_at),
        revoked_at=_instant_if(record.revoked_at),
        last_used_at=_instant_if(record.last_used_at),
        cidr=record.cidr,
        note=record.note or None,
        replaced_by=record.replaced_by or None,
    )


def _instant(at: float) -> str:
    return format_instant(at, "milliseconds")


def _instant_if(at: float | None) -> str | None:
    return None if at is None else _instant(at)


def _seconds(at: datetime.datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _number(text: str, name: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= most):
        raise ValueError(f"{name}: must be a number from 1 to {most}")
    return int(text)
