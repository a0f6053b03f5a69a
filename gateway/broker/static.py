"""The tokens that GitLab sees: checked before their first use, given out by name, replaced while requests go on.

Closed, never open: a credential that GitLab does not take, or that may do more than its owner declared, is not given out.
There is one exception: a GitLab that was away when the gateway started could not be asked. Its credentials are used
meanwhile (rules decide what a caller may do with them; ``Sudo`` never passes unasked), and are checked as soon as an answer
is unmistakably GitLab's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

import msgspec

from ..core.access import Permit
from ..core.catalogue import Operation
from ..core.errors import Code, Rejection, Source
from ..core.secret import Secret
from ..ports import NotAnswering, Presentation, TokenVerifier, UpstreamCredential
from .carriers import Carrier, carrier_for
from .token_pool import HeldToken, StaticCredential, TokenPool

_RETRY_S = 30.0
"""How long a credential that GitLab refused is not tried again."""
_DOUBT_S = 5.0
"""How often, at most, a 401 makes the broker ask GitLab about a credential: some routes answer 401 to good ones."""
_CHECK_TIMEOUT_S = 10.0
_POWERFUL = frozenset({"sudo", "admin_mode"})


class CredentialsRefused(Exception):  # noqa: N818 — a decision, told to the operator at start
    """``problems``: one line for each credential that must not be used, without a secret; ``warnings``: of the others."""

    def __init__(self, problems: list[str], warnings: Collection[str] = ()) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.warnings = tuple(warnings)


class StaticTokenSource:
    """A TokenSource.

    Args:
        credentials: Single ones, and members of pools.
        verifier: Asks GitLab about them.
        fetch_username: Asks for GitLab's name for a token's user; empty if the token may not ask. Raises NotAnswering.
        partition_key: The key of the hashes that name cache partitions.
        monotonic: A clock, in seconds.
        alarm: Called with ``(credential id, is healthy)`` at each change.
    """

    def __init__(
        self,
        credentials: Iterable[StaticCredential],
        verifier: TokenVerifier,
        fetch_username: Callable[[Secret], Awaitable[str]],
        *,
        partition_key: bytes,
        monotonic: Callable[[], float],
        alarm: Callable[[str, bool], None],
    ) -> None:
        """Raises CredentialsRefused for a token that could not be sent in a header field."""
        try:
            self._held = {credential.id: HeldToken(credential, partition_key) for credential in credentials}
        except ValueError as problem:
            raise CredentialsRefused([str(problem)]) from None
        pools: dict[str, list[HeldToken]] = {}
        for held in self._held.values():
            if held.credential.pool:
                pools.setdefault(held.credential.pool, []).append(held)
        self._pools = pools
        self._single = {name: held for name, held in self._held.items() if not held.credential.pool}
        self._shared = {name: TokenPool(members) for name, members in pools.items()}
        self._verifier = verifier
        self._fetch_username = fetch_username
        self._monotonic = monotonic
        self._alarm = alarm
        self._recheck: asyncio.Task[None] | None = None
        self._recheck_at = 0.0
        self.has_unchecked = bool(self._held)
        self.look_for_successor: Callable[[], Awaitable[None]] | None = None
        """Finds out whether another gateway has replaced a refused token."""

    async def verify_at_start(self, required: Collection[str] = (), *, serves_on: bool = False) -> list[str]:
        """Ask GitLab about each credential. Returns warnings for those that GitLab does not take, and those that could not
        be checked yet; both are asked about again later.

        Raises CredentialsRefused for those with sudo or admin scope that are not marked ``sudo: true``, and for those of
        ``required`` that GitLab does not take, unless it takes another member of their pool; never where the gateway
        ``serves_on``, whatever becomes of them: they are not given out.
        """
        warnings: list[str] = []
        problems: list[str] = []
        held = list(self._held.values())
        # All at once: a GitLab that hangs delays the start by one timeout, not by one for each.
        for one, silence in zip(held, await asyncio.gather(*map(self._first_check, held)), strict=True):
            name = one.credential.id
            if silence:
                warnings.append(f"credential `{name}` is not checked yet: {silence}")
            elif one.reason:
                needed = name in required and not self._has_working_sibling(one)
                spared = one.trusted or serves_on or not (one.overpowered or needed)
                (warnings if spared else problems).append(f"credential `{name}` {one.reason}")
        if problems:
            raise CredentialsRefused(problems, warnings)
        self.has_unchecked = any(not held.checked for held in self._held.values())
        return warnings

    def _has_working_sibling(self, held: HeldToken) -> bool:
        return any(not other.refused_until for other in self._pools.get(held.credential.pool, ()))

    def gitlab_answered(self) -> None:
        if self._may_start_check():
            self.has_unchecked = False
            self._start_check()

    def recheck_refused(self) -> None:
        """Ask again about refused ones when their time is over: no request waits for them, and of one that nobody uses
        nothing else would tell that GitLab takes it again."""
        now = self._monotonic()
        if any(0 < held.refused_until <= now for held in self._held.values()) and self._may_start_check():
            self._start_check()

    def _may_start_check(self) -> bool:
        return self._recheck is None and self._monotonic() >= self._recheck_at

    def _start_check(self) -> None:
        self._recheck_at = self._monotonic() + _DOUBT_S
        self._recheck = asyncio.get_running_loop().create_task(self._check_the_unchecked(), name="credential check")

    async def _check_the_unchecked(self) -> None:
        try:
            for held in self._held.values():
                async with held.lock:
                    if not held.checked or 0 < held.refused_until <= self._monotonic():
                        try:
                            await self._check(held)
                        except (NotAnswering, TimeoutError) as error:  # callers that wait for the lock do not ask again
                            held.unanswered, held.silence = held.unanswered + 1, _reason(error)
        finally:
            self._recheck = None
            self.has_unchecked = any(not held.checked for held in self._held.values())

    def pick_by(self, remaining: Callable[[str], float]) -> None:
        """Choose among the members of a pool by how many more requests GitLab allows each: infinity if it has not said, -1
        if it refuses."""
        for pool in self._shared.values():
            pool.remaining = remaining

    def expires_at(self, credential_id: str) -> float | None:
        """When it expires, in Unix seconds, as GitLab said when it was asked; None: never, or not known yet."""
        return self._held[credential_id].expires_at

    def token(self, credential_id: str) -> Secret:
        """The token that is given out at present; for rotation alone."""
        return self._held[credential_id].credential.token

    def switch(self, credential_id: str, token: Secret, expires_at: float | None, *, checked: bool = True) -> None:
        """Give out ``token`` from now on. ``checked``: whether GitLab took it when asked. Raises ValueError if it cannot be
        a token."""
        held = self._held[credential_id]
        held.replace(msgspec.structs.replace(held.credential, token=token))
        held.expires_at = expires_at
        if checked:
            self._settle(held, trusted=True, reason="")

    async def credential(self, permit: Permit, operation: Operation) -> UpstreamCredential:
        held = self._single.get(permit.use)
        if held is None:
            pool = self._shared.get(permit.use)
            if pool is None:
                raise _refusal(502, f"there is no credential `{permit.use}`")
            held = pool.pick()
        if not held.trusted and held.checked:
            await self._establish(held)
        if self._monotonic() < held.refused_until:
            raise _refusal(502, f"credential `{held.credential.id}` {held.reason}")
        carrier = carrier_for(operation)
        if carrier is Carrier.BASIC_AS_USER and held.user_name is None:
            await self._learn_name(held)
        return held.by_carrier[carrier]

    def credential_now(self, permit: Permit, operation: Operation) -> UpstreamCredential | None:
        held = self._single.get(permit.use)
        if held is None:
            pool = self._shared.get(permit.use)
            if pool is None:
                return None
            held = pool.offer()
        if not held.token_status.usable:
            return None
        carrier = carrier_for(operation)
        if carrier is Carrier.BASIC_AS_USER and held.user_name is None:
            return None
        return held.by_carrier[carrier]

    async def refused(self, credential: UpstreamCredential) -> bool:
        held = self._held.get(credential.id)
        if held is None:
            return True
        async with held.lock:
            if not any(credential is given for given in held.by_carrier.values()):
                return True  # replaced since it was given out
            now = self._monotonic()
            if now < held.refused_until:
                return True
            if held.doubted_at is not None and now < held.doubted_at + _DOUBT_S:
                if held.doubt:
                    raise _unchecked(held, held.doubt)
                return False
            before = held.by_carrier
            try:
                await self._check(held)
            except (NotAnswering, TimeoutError) as error:
                held.doubted_at, held.doubt = self._monotonic(), _reason(error)
                raise _unchecked(held, held.doubt) from error
            # Not earlier: an answer may take longer than a doubt lasts, and a caller that leaves learns nothing for others.
            held.doubted_at = self._monotonic()
            return self._monotonic() < held.refused_until or held.by_carrier is not before

    async def close(self) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
            await asyncio.gather(self._recheck, return_exceptions=True)

    async def _first_check(self, held: HeldToken) -> str:
        """Check a credential. Returns why it could not be checked; empty if it was."""
        try:
            async with held.lock:
                await self._check(held)
        except (NotAnswering, TimeoutError) as error:
            return _reason(error)
        return ""

    async def _establish(self, held: HeldToken) -> None:
        """Check a refused credential before the next try: once, however many callers wait."""
        unanswered = held.unanswered
        async with held.lock:
            if held.trusted or self._monotonic() < held.refused_until:
                return
            if held.unanswered != unanswered:  # one by one, the last of a hundred would wait for a hundred timeouts
                raise _unchecked(held, held.silence)
            try:
                await self._check(held)
            except (NotAnswering, TimeoutError) as error:
                held.unanswered, held.silence = held.unanswered + 1, _reason(error)
                raise _unchecked(held, held.silence) from error

    async def _learn_name(self, held: HeldToken) -> None:
        """Ask for the name of the token's user: once, however many callers wait, and again after a 401, because users can
        be renamed."""
        unanswered = held.unanswered
        async with held.lock:
            if held.user_name is not None:
                return
            if held.unanswered != unanswered:  # as in ``_establish``
                raise _unknown_name(held)
            name = ""
            try:
                async with asyncio.timeout(_CHECK_TIMEOUT_S):
                    name = await self._fetch_username(held.credential.token)
            except (NotAnswering, TimeoutError) as error:
                if not isinstance(error, NotAnswering) or error.offered:
                    held.unanswered, held.silence = held.unanswered + 1, _reason(error)
                    raise _unknown_name(held) from error
            held.set_user_name(name)

    async def _check(self, held: HeldToken) -> None:
        """Ask GitLab, and remember the answer. Raises NotAnswering or TimeoutError; then nothing has changed."""
        credential = held.credential
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            try:
                verified = await self._verifier.verify(credential.token, Presentation.PRIVATE)
            except NotAnswering as silence:
                if silence.offered:
                    raise
                # This GitLab cannot be asked: its own checks have to do, and `Sudo` never passes for brokered callers.
                self._settle(held, trusted=True, reason="may have any scope: this GitLab can't be asked about tokens")
                return
            if verified is None and self.look_for_successor is not None:
                await self.look_for_successor()
        if held.credential is not credential:
            return  # replaced meanwhile: the answer is about the old one
        if verified is None:
            self._settle(held, trusted=False, reason="is not accepted by GitLab")
            return
        held.expires_at, held.user_name = verified.expires_at, None
        powers = sorted(_POWERFUL.intersection(verified.scopes or ()))
        held.overpowered = bool(powers) and not credential.sudo
        if held.overpowered:
            self._settle(held, trusted=False, reason=f"has the scope {', '.join(powers)} but is not marked `sudo: true`")
        else:
            self._settle(held, trusted=True, reason="")

    def _settle(self, held: HeldToken, *, trusted: bool, reason: str) -> None:
        now = self._monotonic()
        was_refused = held.refused_until > 0.0
        held.checked, held.trusted, held.reason, held.doubt = True, trusted, reason, ""
        held.refused_until = 0.0 if trusted else now + _RETRY_S
        held.token_status.usable = trusted
        if trusted is was_refused:
            self._alarm(held.credential.id, trusted)


def _reason(error: Exception) -> str:
    return str(error) or "no answer in time"


def _unchecked(held: HeldToken, reason: str) -> Rejection:
    return _refusal(503, f"credential `{held.credential.id}` cannot be checked: {reason}")


def _unknown_name(held: HeldToken) -> Rejection:
    return _refusal(503, f"GitLab's name for the user of credential `{held.credential.id}` is not known: {held.silence}")


def _refusal(status: int, detail: str) -> Rejection:
    """The refusal where the gateway's credential failed, not the caller's: never a 401."""
    message = "502 Bad Gateway" if status == 502 else "503 Service Unavailable"
    headers = ((b"Retry-After", str(int(_RETRY_S)).encode("ascii")),) if status == 503 else ()
    return Rejection(
        Code.BROKER_CREDENTIAL_REFUSED, status, message, headers=headers, source=Source.INTERNAL, detail=detail
    )
