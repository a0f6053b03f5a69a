"""Wires the upstream credentials: the store of rotated tokens, their rotation, and what operators may ask of them."""

from __future__ import annotations

import contextlib
import functools
import math
import secrets
import time
from collections.abc import Callable, Container, Iterator

import msgspec

from ..broker.rotation import Plan, RotationSteps
from ..broker.rotator import CredentialState, TokenRotator, VaultBroken
from ..broker.static import CredentialsRefused, StaticTokenSource
from ..broker.token_api import TokenApi
from ..broker.token_pool import StaticCredential
from ..config import Config
from ..core.exchange import Exchange
from ..core.token_record import DAY_S, RotationStep, record_id
from ..ports import StoreUnavailable
from ..state_dir import SECRET_BYTES
from ..stores.credential_vault import CredentialVault, SealedStore
from ..telemetry.audit import AuditLog
from ..telemetry.metrics import Reading

_LOST = (
    "GitLab may have replaced the token and the new one was not received: when requests with it fail, put a new token "
    "into the configuration"
)


class CredentialAssembly:
    """The upstream credentials of one gateway.

    Args:
        config: The gateway's configuration.
        credentials: Every upstream token that is configured.
        tokens: The source that gives out the tokens in use.
        api: GitLab's token API.
        store: Opens the store; called only where a token is to be rotated.
        key: Returns the encryption key; called only then, too. Keys that merely decrypt come from the configuration.
        audit: Where rotations are recorded.
        refused: Ids of the credentials that GitLab refuses at present.
    """

    def __init__(
        self,
        config: Config,
        credentials: tuple[StaticCredential, ...],
        tokens: StaticTokenSource,
        api: TokenApi,
        *,
        store: Callable[[], SealedStore],
        key: Callable[[], bytes],
        audit: AuditLog | None,
        refused: Container[str],
    ) -> None:
        self._tokens = tokens
        self._ids = frozenset(one.id for one in credentials)
        self._audit = audit
        self._refused = refused
        plans = _plans(config, credentials)
        self._vault = CredentialVault(store(), key(), _decryption_keys(config)) if plans else None
        self.rotator = TokenRotator(
            [one.id for one in credentials],
            plans,
            self._vault,
            self._steps(api, self._vault) if self._vault is not None else None,
            tokens,
            wall=time.time,
            me=secrets.token_hex(8),
        )
        tokens.look_for_successor = self.rotator.look_for_successor

    def _steps(self, api: TokenApi, vault: CredentialVault) -> RotationSteps:
        name = functools.partial(secrets.token_hex, 6)
        return RotationSteps(api, vault, self._tokens, wall=time.time, name=name, note=self._audit_rotation)

    async def load(self) -> tuple[str, ...]:
        """Put rotated tokens in place; returns the ids of credentials that may have a successor that is not known. Raises
        CredentialsRefused."""
        try:
            await self.rotator.load()
        except VaultBroken as broken:
            raise CredentialsRefused(broken.problems) from broken
        return self.rotator.unsure

    async def close(self) -> None:
        await self.rotator.close()
        if self._vault is not None:
            await self._vault.close()

    # What operators may ask

    def list(self) -> object:
        """Every credential, as JSON; never a token."""
        return {
            "credentials": [self._shown(state) for state in self.rotator.states()],
            "under_decryption_keys": self.rotator.under_decryption_keys,
        }

    async def rotate(self, who: str, peer: str, credential_id: str) -> object:
        """Replace a token now, and return its new state as JSON. Raises ValueError with a message for the operator."""
        if credential_id not in self._ids:
            raise ValueError(f"credential: is not one of those configured ({', '.join(sorted(self._ids))})")
        try:
            state = await self.rotator.rotate(credential_id)
        except StoreUnavailable as outage:
            self._write_audit(who, "admin", peer, "credential rotation asked for", credential_id, 503)
            raise ValueError(f"this credential can't be rotated now: {outage}") from outage
        except ValueError:
            self._write_audit(who, "admin", peer, "credential rotation asked for", credential_id, 400)
            raise
        self._write_audit(who, "admin", peer, "credential rotation asked for", credential_id, 200)
        return self._shown(state)

    def _shown(self, state: CredentialState) -> dict[str, object]:
        return {**msgspec.structs.asdict(state), "accepted": state.id not in self._refused}

    # Figures and readiness

    def readings(self) -> Iterator[Reading]:
        """Figures about the credentials, described in docs/operations.md."""
        now = time.time()
        for state in self.rotator.states():
            labels = {"credential": state.id}
            yield Reading(
                "gitlab_gateway_credential_refused",
                "1 while GitLab refuses an upstream credential.",
                float(state.id in self._refused),
                labels=labels,
            )
            yield Reading(
                "gitlab_gateway_credential_expires_seconds",
                "Seconds until an upstream credential expires; negative once it has, infinite if no expiry is known.",
                state.expires_at - now if state.expires_at is not None else math.inf,
                labels=labels,
            )
            yield Reading(
                "gitlab_gateway_credential_rotation_failing",
                "1 while an upstream credential that should be replaced can't be, or its new token was lost.",
                float(bool(state.failure) or state.step == RotationStep.LOST),
                labels=labels,
            )

    def checks(self) -> dict[str, str]:
        """The readiness checks of the credentials on which an operator must act."""
        now = time.time()
        found = {}
        for state in self.rotator.states():
            words = []
            if state.id in self._refused:
                words.append("GitLab refuses it")
            if state.alarm_days is not None and state.expires_at is not None:
                left = state.expires_at - now
                words.append(f"expires in {left / DAY_S:.1f} days" if left > 0 else "has expired")
            if state.step == RotationStep.LOST:
                words.append(_LOST)
            if state.failure:
                words.append(f"rotation fails: {state.failure}")
            if words:
                found[f"credential {state.id}"] = f"degraded: {'; '.join(words)}"
        return found

    # The audit

    def _audit_rotation(self, what: str, credential_id: str) -> None:
        self._write_audit("gateway", "gateway", "", what, credential_id, 200)

    def _write_audit(self, who: str, kind: str, peer: str, what: str, credential_id: str, status: int) -> None:
        if self._audit is None:
            return
        x = Exchange(f"credential-{secrets.token_hex(8)}", time.monotonic(), "POST" if peer else "", peer)
        x.operation, x.principal, x.principal_kind, x.status = what, who, kind, status
        x.target, x.permit_use = f"/-/credentials/{credential_id}".encode(), credential_id
        self._audit.observe(x)


def _decryption_keys(config: Config) -> Iterator[bytes]:
    for one in config.secrets.decryption_keys:
        text = one.reveal()
        yield text.encode("utf-8", "surrogateescape")
        # A key that was made in `state_dir` is octets, and its file holds them in hex.
        if len(text) == 2 * SECRET_BYTES:
            with contextlib.suppress(ValueError):
                yield bytes.fromhex(text)


def _plans(config: Config, credentials: tuple[StaticCredential, ...]) -> tuple[Plan, ...]:
    found = []
    configured = {one.id: one for one in config.credentials}
    for one in credentials:
        name = one.pool or one.id
        rotate = configured[name].rotate
        if rotate is not None:
            found.append(
                Plan(
                    one.id,
                    record_id(name, one.token),
                    one.token,
                    rotate.before,
                    rotate.lifetime,
                    rotate.overlap,
                    rotate.manager,
                    rotate.group or "",
                )
            )
    return tuple(found)
