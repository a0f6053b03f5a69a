"""Upstream credentials written in the configuration: one token each, checked before its first use.

Closed, never open: a credential that GitLab does not take, or that may do more than its owner declared, is not given out.
One case is left: a GitLab that was away when the gateway started could not be asked. Its credentials are used meanwhile
(what a caller may do with them, rules decide; ``Sudo`` never passes unasked), and are checked as soon as an answer is
unmistakably GitLab's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable

import msgspec

from ..core.access import Permit, Principal
from ..core.catalogue import Operation
from ..core.errors import Code, Rejection, Source
from ..core.secret import Secret, keyed_hash
from ..ports import NotAnswering, Presentation, TokenVerifier, UpstreamCredential
from .carriers import Carrier, carrier_for, field

_RETRY_S = 30.0
"""How long a credential that GitLab refused is not tried again."""
_DOUBT_S = 5.0
"""How often a 401 may make the broker ask GitLab about a credential: some routes answer 401 to good ones."""
_CHECK_TIMEOUT_S = 10.0
_POWERFUL = frozenset({"sudo", "admin_mode"})
_TOKEN = re.compile(r"[!-~]{1,8192}", re.ASCII)


class StaticCredential(msgspec.Struct, frozen=True):
    """One of ``credentials:``."""

    id: str
    token: Secret
    sudo: bool = False
    """Its owner knows that it may act as anybody."""


class CredentialsRefused(Exception):  # noqa: N818 — a decision, told to the operator at start
    """``problems``: one line for each credential that must not be used, without a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Held:
    """One credential and what is known of it. Instants are monotonic."""

    __slots__ = ("by_carrier", "checked", "credential", "doubted_at", "lock", "reason", "refused_until", "trusted")

    def __init__(self, credential: StaticCredential, partition_key: bytes) -> None:
        token = credential.token.reveal()
        if _TOKEN.fullmatch(token) is None:
            raise CredentialsRefused([f"credential `{credential.id}` holds what cannot be a token"])
        self.credential = credential
        partition = keyed_hash(partition_key, token)
        self.by_carrier = {
            carrier: UpstreamCredential(credential.id, (field(carrier, token),), partition) for carrier in Carrier
        }
        self.checked = False
        self.trusted = False
        self.refused_until = 0.0
        self.doubted_at: float | None = None
        self.reason = ""
        self.lock = asyncio.Lock()


class StaticTokenSource:
    """A TokenSource. ``monotonic`` is seconds; ``alarm(credential_id, is_healthy)`` hears of each change."""

    def __init__(
        self,
        credentials: Iterable[StaticCredential],
        verifier: TokenVerifier,
        *,
        partition_key: bytes,
        monotonic: Callable[[], float],
        alarm: Callable[[str, bool], None],
    ) -> None:
        """CredentialsRefused for a token that could not stand in a header field."""
        self._held = {credential.id: _Held(credential, partition_key) for credential in credentials}
        self._verifier = verifier
        self._monotonic = monotonic
        self._alarm = alarm
        self._recheck: asyncio.Task[None] | None = None
        self._recheck_at = 0.0
        self.unchecked = bool(self._held)

    async def verify_at_start(self) -> list[str]:
        """Ask GitLab about each credential; what it could not tell comes back as warnings, and is asked before first use.

        Raises CredentialsRefused for those it does not take, and those with sudo or admin scope not marked ``sudo: true``.
        """
        warnings: list[str] = []
        problems: list[str] = []
        held = list(self._held.values())
        # All at once: a GitLab that hangs delays the start by one timeout, not by one for each.
        for one, silence in zip(held, await asyncio.gather(*map(self._first_check, held)), strict=True):
            if silence:
                warnings.append(f"credential `{one.credential.id}` is not checked yet: {silence}")
            elif one.reason:
                (warnings if one.trusted else problems).append(f"credential `{one.credential.id}` {one.reason}")
        if problems:
            raise CredentialsRefused(problems)
        self.unchecked = any(not held.checked for held in self._held.values())
        return warnings

    def recognised(self) -> None:
        self.unchecked = False
        if self._recheck is None and self._monotonic() >= self._recheck_at:
            self._recheck_at = self._monotonic() + _DOUBT_S
            self._recheck = asyncio.get_running_loop().create_task(self._check_the_unchecked(), name="credential check")

    async def _check_the_unchecked(self) -> None:
        try:
            for held in self._held.values():
                with contextlib.suppress(NotAnswering, TimeoutError):
                    async with held.lock:
                        if not held.checked:
                            await self._check(held)
        finally:
            self._recheck = None
            self.unchecked = any(not held.checked for held in self._held.values())

    def is_healthy(self, credential_id: str) -> bool:
        """GitLab did not refuse it when last asked."""
        return self._held[credential_id].refused_until == 0.0

    async def credential(self, permit: Permit, principal: Principal, operation: Operation) -> UpstreamCredential:
        held = self._held.get(permit.use)
        if held is None:
            raise _refusal(502, f"there is no credential `{permit.use}`")
        if not held.trusted and held.checked:
            await self._establish(held)
        if self._monotonic() < held.refused_until:
            raise _refusal(502, f"credential `{permit.use}` {held.reason}")
        return held.by_carrier[carrier_for(operation)]

    async def refused(self, credential_id: str) -> bool:
        held = self._held.get(credential_id)
        if held is None:
            return True
        async with held.lock:
            now = self._monotonic()
            if now < held.refused_until:
                return True
            if held.doubted_at is not None and now < held.doubted_at + _DOUBT_S:
                return False
            held.doubted_at = now
            try:
                await self._check(held)
            except (NotAnswering, TimeoutError):
                return False
            return self._monotonic() < held.refused_until

    async def close(self) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
            await asyncio.gather(self._recheck, return_exceptions=True)

    async def _first_check(self, held: _Held) -> str:
        """Why it could not be checked; empty when it was."""
        try:
            async with held.lock:
                await self._check(held)
        except (NotAnswering, TimeoutError) as error:
            return _reason(error)
        return ""

    async def _establish(self, held: _Held) -> None:
        """The check before first use, or before the next try after a refusal: once, however many callers wait."""
        async with held.lock:
            if held.trusted or self._monotonic() < held.refused_until:
                return
            try:
                await self._check(held)
            except (NotAnswering, TimeoutError) as error:
                raise _refusal(503, f"credential `{held.credential.id}` cannot be checked: {_reason(error)}") from error

    async def _check(self, held: _Held) -> None:
        """Ask GitLab, and remember. Raises NotAnswering or TimeoutError, and then nothing has changed."""
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            try:
                verified = await self._verifier.verify(held.credential.token, Presentation.PRIVATE)
            except NotAnswering as silence:
                if silence.offered:
                    raise
                # Not a GitLab that can be asked: its own checks have to do, and `Sudo` never passes for brokered callers.
                self._settle(held, trusted=True, reason="may have any scope: its GitLab cannot be asked")
                return
        if verified is None:
            self._settle(held, trusted=False, reason="is not accepted by GitLab")
        elif (powers := sorted(_POWERFUL.intersection(verified.scopes or ()))) and not held.credential.sudo:
            self._settle(held, trusted=False, reason=f"has the scope {', '.join(powers)} but is not marked `sudo: true`")
        else:
            self._settle(held, trusted=True, reason="")

    def _settle(self, held: _Held, *, trusted: bool, reason: str) -> None:
        now = self._monotonic()
        was_refused = held.refused_until > 0.0
        held.checked, held.trusted, held.reason = True, trusted, reason
        held.refused_until = 0.0 if trusted else now + _RETRY_S
        if trusted is was_refused:
            self._alarm(held.credential.id, trusted)


def _reason(error: Exception) -> str:
    return str(error) or "no answer in time"


def _refusal(status: int, detail: str) -> Rejection:
    """The gateway's credential failed, not the caller's: never a 401."""
    message = "502 Bad Gateway" if status == 502 else "503 Service Unavailable"
    headers = ((b"Retry-After", str(int(_RETRY_S)).encode("ascii")),) if status == 503 else ()
    return Rejection(
        Code.BROKER_CREDENTIAL_REFUSED, status, message, headers=headers, source=Source.INTERNAL, detail=detail
    )
