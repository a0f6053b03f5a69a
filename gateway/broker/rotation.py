"""Replaces an upstream token, step by step, so that a crash at any step loses nothing.

With a manager, which can make and revoke tokens for the token's user:

    written: creating ── make ── check ── written: settling, with the token ── switch ── all have read ── revoke the old
         │                                      │                                                             │
         └ crash: find by name, revoke,         └ crash: go on from here ─────────────────────────────────────┘
           begin again

Without a manager, the token replaces itself. GitLab then ends the old token in the very call that returns the new one, so
there is one window that nothing can close: GitLab has replaced the token, and the answer is lost. The attempt is recorded
beforehand, and never repeated: GitLab takes a token that asks twice for stolen, and revokes its whole family.

Only the leader comes here; every write names the version it was made from and, except in ``_persist``, the leader's fence.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from ..core.secret import Secret
from ..core.token_record import DAY_S, Rotation, RotationStep, TokenRecord
from ..ports import StoreUnavailable
from .token_api import CallRefused, NewToken, OutcomeUnknown, TokenApi, TokenFacts, TokenOwner

log = logging.getLogger("gateway.rotation")

NAME = "gitlab-gateway"
SILENT_S = 15.0
"""A gateway that has not read the store for this long is not waited for: it reads anew before it believes a refusal."""
_MOST_NAMES = 16
_PERSIST_EVERY_S = 1.0


class RotationFailed(Exception):  # noqa: N818 — told to the operator; tried again later
    """A rotation failed for now. The message says why, without a secret."""


class Superseded(Exception):  # noqa: N818 — a state of the world the caller acts on
    """Another gateway leads by now, or has changed the record."""


class Plan(msgspec.Struct, frozen=True):
    """What the configuration says about one token."""

    id: str
    """The id of the credential, or of the member of a pool."""
    record: str
    """The id of its record: ``core.token_record.record_id``."""
    configured: Secret
    before_s: float
    lifetime_s: float
    overlap_s: float
    manager: str = ""
    group: str = ""


class TokenSnapshot(Protocol):
    """Everything in a vault at one moment, ``now`` by the vault's own clock."""

    @property
    def tokens(self) -> dict[str, TokenRecord]: ...
    @property
    def broken(self) -> tuple[str, ...]: ...
    @property
    def under_other_keys(self) -> tuple[str, ...]: ...
    @property
    def now(self) -> float: ...
    @property
    def readers(self) -> dict[str, float]: ...


class Vault(Protocol):
    """Where records are kept; see ``stores.credential_vault``."""

    async def read(self, reader: str) -> TokenSnapshot: ...
    async def put(self, token: TokenRecord, expect: int, fence: int | None) -> bool: ...
    async def lead(self, holder: str, lease_s: float) -> int | None: ...
    async def resign(self, holder: str) -> None: ...
    async def durability_warning(self) -> str: ...
    async def close(self) -> None: ...


class TokensInUse(Protocol):
    """The tokens that requests are given; see ``StaticTokenSource``."""

    def token(self, credential_id: str) -> Secret: ...
    def switch(self, credential_id: str, token: Secret, expires_at: float | None, *, checked: bool = True) -> None: ...
    def expires_at(self, credential_id: str) -> float | None: ...
    def recheck_refused(self) -> None: ...


Note = Callable[[str, str], None]
"""Called with (what happened, credential id), for the audit."""


class RotationSteps:
    """Advances rotations.

    Args:
        api: GitLab's calls for tokens.
        vault: Where each step is written ahead, and tokens are kept.
        tokens: Where a new token takes its place.
        wall: The time in Unix seconds.
        name: Makes the part of a token's name that has never been used.
        note: Called with what the audit should say.
        pause: Waits between attempts to keep a token that exists nowhere else.
    """

    def __init__(
        self,
        api: TokenApi,
        vault: Vault,
        tokens: TokensInUse,
        *,
        wall: Callable[[], float],
        name: Callable[[], str],
        note: Note,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._vault = vault
        self._tokens = tokens
        self._wall = wall
        self._name = name
        self._note = note
        self._pause = pause

    async def begin(self, plan: Plan, record: TokenRecord, fence: int) -> TokenRecord:
        """Replace the token now. Returns the record as it is then. ``record.rotation`` is None, ``CREATING`` or ``LOST``.

        Raises RotationFailed, Superseded, StoreUnavailable; the next attempt goes on from what is written.
        """
        if why := await self._vault.durability_warning():
            raise RotationFailed(why)
        if plan.manager:
            return await self._create(plan, record, fence)
        return await self._rotate_self(plan, record, fence)

    async def give_up(self, plan: Plan, record: TokenRecord, fence: int) -> TokenRecord:
        """Give up a rotation whose gateway asked GitLab to replace the token and was not heard of since: report
        that, and never ask again."""
        assert record.rotation is not None
        record = await self._write(record, fence, rotation=msgspec.structs.replace(record.rotation, step=RotationStep.LOST))
        self._report_lost(plan, "the gateway that asked has not been heard from since")
        return record

    # With a manager

    async def _create(self, plan: Plan, record: TokenRecord, fence: int) -> TokenRecord:
        manager = self._tokens.token(plan.manager)
        names: tuple[str, ...] = ()
        if record.rotation is not None:  # an earlier attempt may have left a token that nobody holds
            names = record.rotation.names
            await self._sweep(plan, record, names, old_id=0)
        old = await self._current_facts(plan, record)
        if old.granular:
            raise RotationFailed("the token has fine-grained permissions, which a manager can't copy: leave `manager` out")
        name = f"{NAME} {plan.id} {self._name()}"
        names = (*names, name)[-_MOST_NAMES:]
        log.info("rotation of %s: asking for a new token", plan.id)
        record = await self._write(
            record,
            fence,
            rotation=Rotation(RotationStep.CREATING, names, old.id, self._wall()),
            token_id=old.id,
            user_id=old.user_id,
            scopes=old.scopes,
            expires_at=old.ends_at,
        )
        owner = TokenOwner(old.user_id, plan.group)
        try:
            minted = await self._api.create(manager, owner, name, old.scopes, self._expiry_day(plan))
        except CallRefused as refused:
            await self._write(record, fence, rotation=None)
            raise RotationFailed(f"the manager could not create a new token: {refused}") from refused
        except OutcomeUnknown as lost:
            raise RotationFailed(f"the answer to creating a new token was lost: {lost}") from lost
        try:
            await self._check(minted, old)
            log.info("rotation of %s: the new token works", plan.id)
            record = await self._write(
                record,
                fence,
                token=minted.token,
                token_id=minted.facts.id,
                expires_at=minted.facts.ends_at,
                rotation=Rotation(RotationStep.SETTLING, names, old.id, self._wall()),
            )
        except (RotationFailed, Superseded):
            await self._discard(manager, owner, minted)
            raise
        log.info("rotation of %s: the new token is stored", plan.id)
        self._tokens.switch(plan.id, minted.token, minted.facts.ends_at)
        self._note("rotated", plan.id)
        return record

    async def _check(self, minted: NewToken, old: TokenFacts) -> None:
        try:
            facts = await self._api.describe(minted.token)
        except (CallRefused, OutcomeUnknown) as silence:
            raise RotationFailed(f"the new token can't be checked: {silence}") from silence
        if facts is None:
            raise RotationFailed("GitLab does not accept the new token")
        if facts.user_id != old.user_id or set(facts.scopes) != set(old.scopes):
            raise RotationFailed("the new token is not what was asked for: another user, or other scopes")

    async def _discard(self, manager: Secret, owner: TokenOwner, minted: NewToken) -> None:
        """Revoke a new token that will not be used. If this fails, the token is found by its name later."""
        try:
            await self._api.revoke(manager, owner, minted.facts.id)
        except (CallRefused, OutcomeUnknown) as silence:
            log.warning("a new token that will not be used could not be revoked yet: %s", silence)

    async def settle(self, plan: Plan, record: TokenRecord, fence: int) -> TokenRecord:
        """Revoke the old token, now that every gateway has the new one, and whatever else this rotation made.

        Raises as ``begin``.
        """
        assert record.rotation is not None
        assert record.token is not None
        if not plan.manager:
            raise RotationFailed("only a `manager` can revoke the old token, and the configuration no longer names one")
        try:
            facts = await self._api.describe(record.token)
        except (CallRefused, OutcomeUnknown) as silence:
            raise RotationFailed(f"the new token can't be checked: {silence}") from silence
        if facts is None:
            raise RotationFailed("GitLab no longer accepts the new token: the old one is left as it is")
        await self._sweep(plan, record, record.rotation.names, old_id=record.rotation.old_id)
        record = await self._write(record, fence, rotation=None)
        log.info("rotation of %s: the old token is revoked", plan.id)
        self._note("revoked_old", plan.id)
        return record

    async def _sweep(self, plan: Plan, record: TokenRecord, names: tuple[str, ...], *, old_id: int) -> None:
        """Revoke the old token, and all tokens with one of ``names`` but the one in use."""
        manager, owner = self._tokens.token(plan.manager), TokenOwner(record.user_id, plan.group)
        try:
            for facts in await self._api.active(manager, owner):
                spare = facts.id == record.token_id
                if not spare and (facts.id == old_id or facts.name in names):
                    await self._api.revoke(manager, owner, facts.id)
        except (CallRefused, OutcomeUnknown) as silence:
            raise RotationFailed(f"the manager could not revoke old tokens: {silence}") from silence

    async def _current_facts(self, plan: Plan, record: TokenRecord) -> TokenFacts:
        """The facts about the present token. If it has merely expired, they come from the record."""
        try:
            facts = await self._api.describe(self._tokens.token(plan.id))
        except (CallRefused, OutcomeUnknown) as silence:
            raise RotationFailed(f"the token can't be checked: {silence}") from silence
        if facts is not None:
            return facts
        ended = record.expires_at is not None and record.expires_at <= self._wall()
        if ended and record.user_id and record.scopes:
            return TokenFacts(record.token_id, record.user_id, scopes=record.scopes)
        # Whoever revoked it may have had a reason: what was taken away is not given back by a machine.
        raise RotationFailed("GitLab no longer accepts the token: put a new one into the configuration")

    # Without a manager

    async def _rotate_self(self, plan: Plan, record: TokenRecord, fence: int) -> TokenRecord:
        token = self._tokens.token(plan.id)
        old = await self._current_facts(plan, msgspec.structs.replace(record, user_id=0))
        attempt = Rotation(RotationStep.ROTATING, (f"{NAME} {plan.id} {self._name()}",), old.id, self._wall())
        record = await self._write(
            record,
            fence,
            rotation=attempt,
            token_id=old.id,
            user_id=old.user_id,
            scopes=old.scopes,
            expires_at=old.ends_at,
        )
        log.info("rotation of %s: the token replaces itself", plan.id)
        try:
            minted = await self._api.rotate_self(token, self._expiry_day(plan))
        except CallRefused as refused:
            await self._write(record, fence, rotation=None)
            raise RotationFailed(f"the token may not replace itself: {refused}") from refused
        except OutcomeUnknown as lost:
            record = await self._write(record, fence, rotation=msgspec.structs.replace(attempt, step=RotationStep.LOST))
            self._report_lost(plan, str(lost))
            return record
        # From here on the new token is the only one, and exists nowhere but here: use it at once, and keep it at any price.
        self._tokens.switch(plan.id, minted.token, minted.facts.ends_at)
        record = await self._persist(plan, record, minted)
        self._note("rotated", plan.id)
        return record

    async def _persist(self, plan: Plan, record: TokenRecord, minted: NewToken) -> TokenRecord:
        """Write the new token until the store has it. This needs no leadership: a rotation that was given up meanwhile is
        completed all the same."""
        names = record.rotation.names if record.rotation is not None else ()
        made = msgspec.structs.replace(
            record,
            version=record.version + 2,  # above what giving it up would have written
            token=minted.token,
            token_id=minted.facts.id,
            expires_at=minted.facts.ends_at,
            rotation=None,
        )
        has_logged = False
        while True:
            try:
                for expect in (record.version, record.version + 1):
                    if await self._vault.put(made, expect, None):
                        log.info("rotation of %s: the new token is stored", plan.id)
                        return made
                stored = (await self._vault.read("")).tokens.get(plan.record)
                if stored is not None and stored.token == minted.token:
                    return stored  # an earlier write got through, and its answer did not
                if stored is None or stored.rotation is None or stored.rotation.names != names:
                    raise Superseded
                # It is this attempt, given up and sealed under other keys since.
                record, made = stored, msgspec.structs.replace(made, version=stored.version + 2)
            except StoreUnavailable as outage:
                if not has_logged:
                    log.error("rotation of %s: the new token can't be stored yet: %s", plan.id, outage)
                has_logged = True
                await self._pause(_PERSIST_EVERY_S)

    def _report_lost(self, plan: Plan, why: str) -> None:
        log.error(
            "rotation of %s: GitLab may have replaced the token, and the new one was not received (%s). GitLab is not "
            "asked again. When requests with the token fail, put a new one into the configuration",
            plan.id,
            why,
        )
        self._note("rotation_lost", plan.id)

    # In both cases

    async def _write(self, record: TokenRecord, fence: int, **changes: object) -> TokenRecord:
        made = msgspec.structs.replace(record, version=record.version + 1, **changes)
        if not await self._vault.put(made, record.version, fence):
            raise Superseded
        return made

    def _expiry_day(self, plan: Plan) -> str:
        """The day on which a new token is to end. GitLab allows 365 days, and counts in its own time zone."""
        days = min(364.0, plan.lifetime_s / DAY_S)
        end = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC) + datetime.timedelta(days=days)
        return end.date().isoformat()


def everybody_has_read(readers: Mapping[str, float], since: float, now: float) -> bool:
    """Whether each gateway that still reads the store has done so after ``since``; all by the store's own clock."""
    return all(at > since for at in readers.values() if now - at <= SILENT_S)
