"""Upstream tokens as the broker holds them, alone or in a pool: what is known of each, and which one goes up next.

Nothing here asks GitLab. A token is replaced by one assignment: a request has the old one or the new one, never a mixture.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from math import inf

import msgspec

from ..core.secret import Secret, keyed_hash
from ..ports import TokenStatus, UpstreamCredential
from .carriers import ANY_NAME, Carrier, credential_field

_TOKEN = re.compile(r"[!-~]{1,8192}", re.ASCII)


class StaticCredential(msgspec.Struct, frozen=True):
    """One token of ``credentials:``. The id of a pool's member is made of the pool's id and its position: ``readers/1``."""

    id: str
    token: Secret
    sudo: bool = False
    """Whether its owner has declared that it may act as anybody."""
    pool: str = ""
    """The id of the pool that it belongs to; empty: none."""
    view: Secret | None = None
    """What the cache partition is made of where the owner says that a pool's members see the same; None: the token."""


class HeldToken:
    """One token and what is known of it. Instants are monotonic, except ``expires_at``."""

    __slots__ = (
        "_key",
        "by_carrier",
        "checked",
        "credential",
        "doubt",
        "doubted_at",
        "expires_at",
        "lock",
        "overpowered",
        "reason",
        "refused_until",
        "silence",
        "token_status",
        "trusted",
        "unanswered",
        "user_name",
    )

    def __init__(self, credential: StaticCredential, partition_key: bytes) -> None:
        """Raises ValueError if the token could not be sent in a header field."""
        self._key = partition_key
        self.checked = False
        self.trusted = False
        self.overpowered = False
        """Whether it may do more than its owner declared: then it is misconfigured, not dead."""
        self.refused_until = 0.0
        self.doubted_at: float | None = None
        self.doubt = ""
        """Why GitLab could not say, when the token was last doubted, whether it still takes it."""
        self.expires_at: float | None = None
        """In Unix seconds, as GitLab said."""
        self.reason = ""
        self.user_name: str | None = None
        """GitLab's name for the token's user; None: GitLab must be asked before ``Carrier.BASIC_AS_USER`` is given out."""
        self.unanswered = 0
        """How often GitLab was asked about the token for a caller and did not answer."""
        self.silence = ""
        """Why GitLab did not answer, the last time."""
        self.lock = asyncio.Lock()
        self.token_status = TokenStatus()
        self.replace(credential)

    def replace(self, credential: StaticCredential) -> None:
        """Give out this token from now on. Raises ValueError, with nothing changed, if it could not be sent in a field."""
        token = credential.token.reveal()
        if _TOKEN.fullmatch(token) is None:
            raise ValueError(f"the token of credential `{credential.id}` is malformed")
        partition = keyed_hash(self._key, (credential.view or credential.token).reveal())
        name = self.user_name or ANY_NAME  # a successor belongs to the same user
        self.token_status.usable, self.token_status = False, TokenStatus(usable=self.trusted or not self.checked)
        by_carrier = {
            carrier: UpstreamCredential(
                credential.id, (credential_field(carrier, token, name),), partition, self.token_status
            )
            for carrier in Carrier
        }
        self.credential = credential
        self.by_carrier = by_carrier

    def set_user_name(self, name: str) -> None:
        """Remember GitLab's name for the token's user; empty: the token may not ask."""
        self.user_name = name
        current = self.by_carrier[Carrier.BASIC_AS_USER]
        fields = (credential_field(Carrier.BASIC_AS_USER, self.credential.token.reveal(), name or ANY_NAME),)
        if current.fields != fields:
            self.by_carrier[Carrier.BASIC_AS_USER] = UpstreamCredential(
                current.id, fields, current.partition, current.token_status
            )


class TokenPool:
    """Several tokens under one name."""

    __slots__ = ("_members", "_offered", "_turn", "remaining")

    def __init__(self, members: Sequence[HeldToken]) -> None:
        self._members = tuple(members)
        self._turn = 0
        self._offered: HeldToken | None = None
        self.remaining: Callable[[str], float] = lambda _: inf
        """How many more requests GitLab allows a member; see ``StaticTokenSource.pick_by``."""

    def offer(self) -> HeldToken:
        """As ``pick``, and the next ``pick`` prefers this member. A request that cannot use it yet goes the long way, which
        finds out what is missing; if two members took turns, the long way would always get the other one."""
        held = self._offered = self._next()
        return held

    def pick(self) -> HeldToken:
        """The member with the most requests left; equal ones take turns. A refused one is left out while there is
        another."""
        offered, self._offered = self._offered, None
        turn, best = self._turn, self._next()
        if offered is None or offered.refused_until:
            return best
        if self.remaining(offered.credential.id) < self.remaining(best.credential.id):
            return best
        self._turn = turn
        return offered

    def _next(self) -> HeldToken:
        members = self._members
        self._turn = (self._turn + 1) % len(members)
        best, most = members[self._turn], -2.0
        for at in range(self._turn - len(members), self._turn):
            held = members[at]
            if held.refused_until:
                continue
            left = self.remaining(held.credential.id)
            if left > most:
                best, most = held, left
        return best
