"""Keeps upstream tokens alive: follows the gateways' shared store, replaces tokens in time, warns before one ends.

    every second:  read the store ── switch to what is newer there
                        ├── something due, or left half done? ── lead, or leave it to whoever does ── one step of each
                        └── something sealed under another key? ── lead, or leave it ── seal it under the present key

No gateway goes back behind what it has seen in the store: a record that is gone, or older than before, is put back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence

import msgspec

from ..core.token_record import ALARM_DAYS, DAY_S, Rotation, RotationStep, TokenRecord, alarm_days, is_due
from ..ports import StoreUnavailable
from .rotation import Plan, RotationFailed, RotationSteps, Superseded, TokensInUse, Vault, everybody_has_read

log = logging.getLogger("gateway.credentials")

FOLLOW_EVERY_S = 1.0
LEASE_S = 30.0
_RENEW_LEASE_EVERY_S = 10.0
_RETRY_S = (60.0, 3600.0)
"""The first and the longest pause after a failure; each pause is twice the one before."""
_RESEAL_AGAIN_S = 600.0
"""How long a gateway leaves a record alone that it has sealed anew: another one, whose key is still the former one, or
already the next, may do the same to it."""
_CLOSE_S = 20.0
"""How long a step that is under way may take when the gateway stops: one that is cut off may lose a token."""


class VaultBroken(Exception):  # noqa: N818 — a decision, told to the operator at start
    """Some records cannot be decrypted; nothing was overwritten. ``problems``: one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class CredentialState(msgspec.Struct, frozen=True):
    """What an operator is shown of one credential; never the token."""

    id: str
    expires_at: float | None
    """Unix seconds; None: never, or not known."""
    alarm_days: int | None
    """The smallest of ``ALARM_DAYS`` that has been reached; None: there is time."""
    rotates: str
    """``manager`` or ``self``; empty: it is only watched."""
    step: str
    """The step of a rotation that is under way; empty: there is none."""
    version: int
    """The version of its record; 0: the configured token is in use."""
    failure: str
    """Why the last rotation failed; empty: it did not."""


class _Failure(msgspec.Struct, frozen=True):
    words: str
    count: int
    retry_at: float


class TokenRotator:
    """Looks after the upstream tokens of one gateway.

    Args:
        watched: The ids of all credentials.
        plans: One for each token that is rotated.
        vault: Where rotated tokens are kept.
        steps: Advances rotations; like the vault, None where nothing rotates.
        tokens: The tokens that requests are given.
        wall: The time in Unix seconds.
        me: The name of this process, among those that share the vault.
    """

    def __init__(
        self,
        watched: Sequence[str],
        plans: Sequence[Plan],
        vault: Vault | None,
        steps: RotationSteps | None,
        tokens: TokensInUse,
        *,
        wall: Callable[[], float],
        me: str,
    ) -> None:
        self._watched = tuple(watched)
        self._plans = {plan.id: plan for plan in plans}
        self._vault = vault
        self._steps = steps
        self._tokens = tokens
        self._wall = wall
        self._me = me
        self._known: dict[str, TokenRecord] = {}
        self._failures: dict[str, _Failure] = {}
        self._seen_at: dict[str, tuple[Rotation, float]] = {}
        """Credential → the rotation that is settling, and when this gateway first read of it, by the store's clock."""
        self._readers: dict[str, float] = {}
        self._stored_versions: dict[str, int] = {}
        self._now = 0.0
        self._alarmed_days: dict[str, int | None] = {}
        self._broken: tuple[str, ...] = ()
        self._under_other_keys: tuple[TokenRecord, ...] | None = None
        """None: the store has not been read yet."""
        self._resealed_at: dict[str, float] = {}
        """Record → when this gateway last sealed it under the present key."""
        self._away = False
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._manual_rotations: set[asyncio.Task[CredentialState]] = set()
        self.unsure: tuple[str, ...] = ()
        """Credentials that may have a successor which could not be looked up at start, or was lost."""

    async def load(self) -> None:
        """Read the store before any token is given out. Raises VaultBroken; an outage makes all that rotate ``unsure``."""
        if self._vault is None:
            return
        try:
            await self._read(checked=False)
        except StoreUnavailable as outage:
            self.unsure = tuple(self._plans)
            log.warning("rotated tokens can't be read: %s. Until they can be, the configured ones are tried", outage)
            return
        if self._broken:
            raise VaultBroken(
                [
                    f"credential `{name}`: its stored token can't be decrypted: it was written with a key that is neither "
                    "`secrets.encryption_key` nor in `secrets.decryption_keys`, or was changed. Nothing was overwritten"
                    for name in self._broken
                ]
            )
        at_risk = {RotationStep.ROTATING, RotationStep.LOST}
        self.unsure = tuple(
            name for name, record in self._known.items() if record.rotation and record.rotation.step in at_risk
        )

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="credentials")

    async def look_for_successor(self) -> None:
        """Read the store because GitLab refuses a token: perhaps another gateway has replaced it."""
        if self._vault is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._read(checked=True)

    async def tick(self) -> None:
        """Do one round, as drawn above."""
        if self._vault is not None and self._steps is not None:
            async with self._lock:
                try:
                    await self._read(checked=True)
                    await self._restore(self._vault)
                    await self._advance_due(self._vault, self._steps)
                    await self._reseal(self._vault)
                    self._report_outage(away=False)
                except StoreUnavailable as outage:
                    self._report_outage(away=True, why=str(outage))
        self._warn()
        self._tokens.recheck_refused()

    async def rotate(self, credential_id: str) -> CredentialState:
        """Replace a token now, whenever it ends. Raises StoreUnavailable, or ValueError with a message for the operator.

        It goes on even if the caller leaves: a step that is cut off may lose a token.
        """
        plan, vault, steps = self._plans.get(credential_id), self._vault, self._steps
        if plan is None or vault is None or steps is None:
            raise ValueError("this credential is not configured to rotate: see `gitlab-gateway credentials list`")
        task = asyncio.get_running_loop().create_task(self._rotate(plan, vault, steps), name="credential asked for")
        self._manual_rotations.add(task)
        task.add_done_callback(self._on_rotated)
        return await asyncio.shield(task)

    def _on_rotated(self, task: asyncio.Task[CredentialState]) -> None:
        self._manual_rotations.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, even if nobody waits for it any more

    async def _rotate(self, plan: Plan, vault: Vault, steps: RotationSteps) -> CredentialState:
        async with self._lock:
            await self._read(checked=True)
            if plan.id in self._broken:
                raise ValueError("this credential's record can't be decrypted")
            rotation = self._record_of(plan).rotation
            if rotation is not None and rotation.step in {RotationStep.SETTLING, RotationStep.ROTATING}:
                raise ValueError(f"this credential is being rotated already: {rotation.step.value}")
            async with _Lease(vault, self._me) as fence:
                if fence is None:
                    raise ValueError("another gateway is rotating at the moment: try again")
                try:
                    self._adopt(plan, await steps.begin(plan, self._record_of(plan), fence))
                except RotationFailed as failed:
                    raise ValueError(str(failed)) from failed
                except Superseded:
                    raise ValueError("another gateway changed this credential meanwhile: try again") from None
                self._failures.pop(plan.id, None)
        return self._state(plan.id)

    def states(self) -> list[CredentialState]:
        """The state of every credential, in the order of the configuration."""
        return [self._state(name) for name in self._watched]

    @property
    def under_decryption_keys(self) -> int | None:
        """How many records the present key does not open, but another one does; None: the store can't be read."""
        if self._vault is None:
            return 0
        return None if self._away or self._under_other_keys is None else len(self._under_other_keys)

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._lock.acquire()
        tasks = [*self._manual_rotations, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Following the store

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception:
                # Whatever it was, tokens go on expiring: the next round must come.
                log.exception("fault while looking after credentials")
            await asyncio.sleep(FOLLOW_EVERY_S)

    async def _read(self, *, checked: bool) -> None:
        assert self._vault is not None
        snapshot = await self._vault.read(self._me)
        self._now, self._readers = snapshot.now, snapshot.readers
        ours = {plan.id.partition("/")[0] for plan in self._plans.values()}
        broken = [record_id for record_id in snapshot.broken if record_id.partition("/")[0] in ours]
        by_record = {plan.record: plan.id for plan in self._plans.values()}
        known_broken = tuple(by_record.get(record_id, record_id) for record_id in broken)
        if known_broken != self._broken:
            for name in set(known_broken) - set(self._broken):
                log.error("the record of credential %s can't be decrypted; it is left as it is", name)
            self._broken = known_broken
        under_other_keys = tuple(snapshot.tokens[record_id] for record_id in snapshot.under_other_keys)
        if len(under_other_keys) != len(self._under_other_keys or ()):
            log.info("records encrypted under one of `secrets.decryption_keys`: %d", len(under_other_keys))
        self._under_other_keys = under_other_keys
        for plan in self._plans.values():
            record = snapshot.tokens.get(plan.record)
            if record is not None and record.version > self._record_of(plan).version:
                self._adopt(plan, record, checked=checked)
            self._stored_versions[plan.id] = record.version if record is not None else 0

    def _adopt(self, plan: Plan, record: TokenRecord, *, checked: bool = True) -> None:
        self._known[plan.id] = record
        if record.token is not None and record.token != self._tokens.token(plan.id):
            self._tokens.switch(plan.id, record.token, record.expires_at, checked=checked)
            log.info("credential %s: version %d of its token is in use", plan.id, record.version)

    async def _restore(self, vault: Vault) -> None:
        """Put back what the store has lost: a rotated token exists nowhere else."""
        for plan in self._plans.values():
            known, stored = self._record_of(plan), self._stored_versions.get(plan.id, 0)
            if stored < known.version and plan.id not in self._broken:
                log.error(
                    "the record of credential %s went back to version %d: the newer one is stored again", plan.id, stored
                )
                await vault.put(known, stored, None)

    def _to_reseal(self) -> list[TokenRecord]:
        now = self._wall()
        records = self._under_other_keys or ()
        return [one for one in records if abs(now - self._resealed_at.get(one.id, -math.inf)) >= _RESEAL_AGAIN_S]

    async def _reseal(self, vault: Vault) -> None:
        """Seal under the present key what another one opened, of whichever credential: also a record whose token is no
        longer configured would stop the next start without that key."""
        if not self._to_reseal():
            return
        async with _Lease(vault, self._me) as fence:
            if fence is None:
                return
            count = 0
            for record in self._to_reseal():
                # False: the previous leader has done it.
                if await vault.put(msgspec.structs.replace(record, version=record.version + 1), record.version, fence):
                    self._resealed_at[record.id] = self._wall()
                    count += 1
            log.info("records encrypted anew under `secrets.encryption_key`: %d", count)
            await self._read(checked=True)

    # Rotating

    def _record_of(self, plan: Plan) -> TokenRecord:
        return self._known.get(plan.id) or TokenRecord(plan.record, 0)

    def _expires_at(self, name: str) -> float | None:
        known = self._known.get(name)
        return known.expires_at if known is not None and known.token is not None else self._tokens.expires_at(name)

    def _has_step_due(self, plan: Plan) -> bool:
        now = self._wall()
        failure = self._failures.get(plan.id)
        if plan.id in self._broken or (failure is not None and now < failure.retry_at):
            return False
        rotation = self._record_of(plan).rotation
        if rotation is None:
            return is_due(self._expires_at(plan.id), now, plan.before_s)
        match rotation.step:
            case RotationStep.LOST:
                return False
            case RotationStep.SETTLING:
                return self._has_settled(plan, rotation)
            case RotationStep.CREATING | RotationStep.ROTATING:
                return True

    def _has_settled(self, plan: Plan, rotation: Rotation) -> bool:
        seen = self._seen_at.get(plan.id)
        if seen is None or seen[0] != rotation:
            seen = self._seen_at[plan.id] = (rotation, self._now)
        return self._now - seen[1] >= plan.overlap_s and everybody_has_read(self._readers, seen[1], self._now)

    async def _advance_due(self, vault: Vault, steps: RotationSteps) -> None:
        due = [plan for plan in self._plans.values() if self._has_step_due(plan)]
        if not due:
            return
        async with _Lease(vault, self._me) as fence:
            if fence is None:
                return
            await self._read(checked=True)  # the previous leader may have done it
            for plan in due:
                if self._has_step_due(plan):
                    await self._advance(steps, plan, fence)

    async def _advance(self, steps: RotationSteps, plan: Plan, fence: int) -> None:
        record = self._record_of(plan)
        step = record.rotation.step if record.rotation is not None else None
        try:
            if step is RotationStep.SETTLING:
                record = await steps.settle(plan, record, fence)
            elif step is RotationStep.ROTATING:
                record = await steps.give_up(plan, record, fence)
            else:
                record = await steps.begin(plan, record, fence)
        except Superseded:
            return
        except RotationFailed as failed:
            self._fail(plan, str(failed))
            return
        self._adopt(plan, record)
        self._failures.pop(plan.id, None)

    def _fail(self, plan: Plan, words: str) -> None:
        before = self._failures.get(plan.id)
        count = before.count + 1 if before is not None else 1
        first, longest = _RETRY_S
        wait_s = min(longest, first * 2.0 ** min(count - 1, 10))
        self._failures[plan.id] = _Failure(words, count, self._wall() + wait_s)
        log.error("rotation of %s failed: %s. Next try in %d s", plan.id, words, wait_s)

    # Reporting

    def _report_outage(self, *, away: bool, why: str = "") -> None:
        if away is not self._away:
            self._away = away
            log.warning("rotated tokens can't be read or written: %s", why) if away else log.warning(
                "the store of rotated tokens answers again"
            )

    def _warn(self) -> None:
        now = self._wall()
        for name in self._watched:
            expires_at = self._expires_at(name)
            days = alarm_days(expires_at, now)
            if days == self._alarmed_days.get(name):
                continue
            self._alarmed_days[name] = days
            if days is None or expires_at is None:
                continue
            report = log.error if days == ALARM_DAYS[-1] else log.warning
            left = (expires_at - now) / DAY_S
            report("credential %s %s", name, "has expired" if left <= 0 else f"expires in {left:.1f} days")

    def _state(self, name: str) -> CredentialState:
        plan, expires_at = self._plans.get(name), self._expires_at(name)
        record = self._known.get(name)
        failure = self._failures.get(name)
        rotation = record.rotation if record is not None else None
        words = "its record can't be decrypted" if name in self._broken else failure.words if failure is not None else ""
        return CredentialState(
            name,
            expires_at,
            alarm_days(expires_at, self._wall()),
            "" if plan is None else "manager" if plan.manager else "self",
            rotation.step.value if rotation is not None else "",
            record.version if record is not None and record.token is not None else 0,
            words,
        )


class _Lease:
    """The lease, kept for as long as the work takes. Entering it gives the fence, or None if another gateway leads."""

    def __init__(self, vault: Vault, me: str) -> None:
        self._vault = vault
        self._me = me
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> int | None:
        fence = await self._vault.lead(self._me, LEASE_S)
        if fence is not None:
            self._renewal = asyncio.get_running_loop().create_task(self._renew_lease(), name="credentials lease")
        return fence

    async def __aexit__(self, *_: object) -> None:
        if self._renewal is None:
            return
        self._renewal.cancel()
        await asyncio.gather(self._renewal, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            await self._vault.resign(self._me)

    async def _renew_lease(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_LEASE_EVERY_S)
            with contextlib.suppress(StoreUnavailable):
                await self._vault.lead(self._me, LEASE_S)
