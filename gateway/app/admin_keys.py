"""Gateway keys on the admin port: reads and writes JSON, and leaves what is done to the key office."""

from __future__ import annotations

import datetime
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec

from ..core.key_record import KeyRecord, told
from ..edge.admin import AdminRefused, Answer, Asked, Endpoint
from ..identity.issuing import KeyTerms, NoSuchKey, TermsRefused
from ..ports import KeyRefused, NotDone, StoreUnavailable
from .key_office import Actor, KeyOffice, RecordFull, Unsaid, state_of

_PAGE = 20
_LONGEST_PAGE = 100
_OVERLAP_S = 86_400.0
_STATES = ("live", "pending", "expired", "revoked")

Instant = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
Ask = Callable[[KeyOffice, Asked], Awaitable[Answer]]


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


def key_endpoints(office: KeyOffice) -> tuple[Endpoint, ...]:
    """The endpoints to list, get, create, import, rotate and revoke keys."""

    def of(method: str, path: str, ask: Ask, *query: str) -> Endpoint:
        async def answer(asked: Asked) -> Answer:
            try:
                return await ask(office, asked)
            except NoSuchKey as missing:
                raise AdminRefused(404, str(missing)) from None
            except TermsRefused as refused:
                raise AdminRefused(400, str(refused)) from None
            except KeyRefused as refused:
                raise AdminRefused(409, str(refused)) from None
            except (RecordFull, Unsaid) as unavailable:
                raise AdminRefused(503, str(unavailable)) from None
            except NotDone as refused:
                raise AdminRefused(503, f"{refused}: nothing was changed") from None
            except StoreUnavailable:
                raise AdminRefused(503, "the key store does not answer: whether anything changed is not known") from None

        return Endpoint(method, path, answer, frozenset(query))

    return (
        of("GET", "/-/keys", _list, "identity", "state", "page", "per_page"),
        of("POST", "/-/keys", _create),
        of("POST", "/-/keys/import", _import),
        of("GET", "/-/keys/{id}", _get),
        of("POST", "/-/keys/{id}/rotate", _rotate),
        of("DELETE", "/-/keys/{id}", _revoke),
    )


async def _list(office: KeyOffice, asked: Asked) -> Answer:
    page = _number(asked.query.get("page", "1"), "page", 1_000_000)
    per_page = _number(asked.query.get("per_page", str(_PAGE)), "per_page", _LONGEST_PAGE)
    state = asked.query.get("state")
    if state is not None and state not in _STATES:
        raise ValueError(f"state: must be one of {', '.join(_STATES)}")
    shown = [_shown(record) for record in await office.list(asked.query.get("identity"))]
    if state is not None:
        shown = [one for one in shown if one.state == state]
    here = shown[(page - 1) * per_page : page * per_page]
    more = {"next_page": page + 1} if len(shown) > page * per_page else {}
    return Answer({"keys": here, **more})


async def _get(office: KeyOffice, asked: Asked) -> Answer:
    return Answer(_shown(await office.get(asked.names["id"])))


async def _create(office: KeyOffice, asked: Asked) -> Answer:
    wish = msgspec.convert(asked.body, NewKey)
    key, record = await office.issue(_actor(asked), wish.identity, _terms(wish))
    return Answer(msgspec.structs.replace(_shown(record), key=key.reveal()), 201)


async def _import(office: KeyOffice, asked: Asked) -> Answer:
    wish = msgspec.convert(asked.body, ImportedKey)
    return Answer(_shown(await office.take_in(_actor(asked), wish.identity, wish.sha256, _terms(wish))), 201)


async def _rotate(office: KeyOffice, asked: Asked) -> Answer:
    wish = msgspec.convert(asked.body, Rotation)
    expires_at = _seconds(wish.expires_at)
    key, record = await office.rotate(_actor(asked), asked.names["id"], wish.overlap_s, expires_at=expires_at)
    return Answer(msgspec.structs.replace(_shown(record), key=key.reveal()), 201)


async def _revoke(office: KeyOffice, asked: Asked) -> Answer:
    await office.revoke(_actor(asked), asked.names["id"])
    return Answer(None, 204)


def _terms(wish: NewKey) -> KeyTerms:
    return KeyTerms(_seconds(wish.not_before), _seconds(wish.expires_at), wish.cidr, wish.note)


def _actor(asked: Asked) -> Actor:
    return Actor(asked.who, "admin", asked.peer, asked.method)


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
    return told(at, "milliseconds")


def _instant_if(at: float | None) -> str | None:
    return None if at is None else _instant(at)


def _seconds(at: datetime.datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _number(text: str, name: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= most):
        raise ValueError(f"{name}: must be a number from 1 to {most}")
    return int(text)
