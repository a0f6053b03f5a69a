"""One upstream token as the broker holds it, and a pool of them: what is known of each, and which one goes up next.

Nothing here asks anybody. A token is replaced by one assignment: a request has the old one or the new one, never a mixture.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from math import inf

import msgspec

from ..core.secret import Secret, keyed_hash
from ..ports import Standing, UpstreamCredential
from .carriers import ANY_NAME, Carrier, field

_TOKEN = re.compile(r"[!-~]{1,8192}", re.ASCII)


class StaticCredential(msgspec.Struct, frozen=True):
    """One token of ``credentials:``. A member of a pool is called by the pool and its place: ``readers/1``."""

    id: str
    token: Secret
    sudo: bool = False
    """Its owner knows that it may act as anybody."""
    pool: str = ""
    """Which pool it belongs to."""
    view: Secret | None = None
    """What all who see the same share, where their owner says that they do; None: whoever holds this very token."""


class Held:
    """One token and what is known of it. Instants are monotonic, but ``expires_at``."""

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
        "standing",
        "trusted",
        "user_name",
        "vain",
    )

    def __init__(self, credential: StaticCredential, partition_key: bytes) -> None:
        """ValueError where the token could not stand in a header field."""
        self._key = partition_key
        self.checked = False
        self.trusted = False
        self.overpowered = False
        """It may do more than its owner declared: configured wrongly, rather than dead."""
        self.refused_until = 0.0
        self.doubted_at: float | None = None
        self.doubt = ""
        """Why GitLab could not say whether it still takes it, when it was last doubted."""
        self.expires_at: float | None = None
        """Unix seconds, as GitLab said."""
        self.reason = ""
        self.user_name: str | None = None
        """What GitLab calls the token's user; None: to be asked before ``Carrier.NAMED`` is given out."""
        self.vain = 0
        """How often a caller had GitLab asked about it, and nothing came."""
        self.silence = ""
        """Why, the last time."""
        self.lock = asyncio.Lock()
        self.standing = Standing()
        self.replace(credential)

    def replace(self, credential: StaticCredential) -> None:
        """Hand out this token from now on. ValueError, and nothing has changed, where it could not stand in a field."""
        token = credential.token.reveal()
        if _TOKEN.fullmatch(token) is None:
            raise ValueError(f"credential `{credential.id}` holds what cannot be a token")
        partition = keyed_hash(self._key, (credential.view or credential.token).reveal())
        name = self.user_name or ANY_NAME  # a successor is the same user's
        self.standing.good, self.standing = False, Standing(good=self.trusted or not self.checked)
        by_carrier = {
            carrier: UpstreamCredential(credential.id, (field(carrier, token, name),), partition, self.standing)
            for carrier in Carrier
        }
        self.credential = credential
        self.by_carrier = by_carrier

    def call(self, name: str) -> None:
        """The token's user is called so; empty: nobody may know."""
        self.user_name = name
        given = self.by_carrier[Carrier.NAMED]
        fields = (field(Carrier.NAMED, self.credential.token.reveal(), name or ANY_NAME),)
        if given.fields != fields:
            self.by_carrier[Carrier.NAMED] = UpstreamCredential(given.id, fields, given.partition, given.standing)


class HeldPool:
    """Several tokens under one name."""

    __slots__ = ("_members", "_offered", "_turn", "remaining")

    def __init__(self, members: Sequence[Held]) -> None:
        self._members = tuple(members)
        self._turn = 0
        self._offered: Held | None = None
        self.remaining: Callable[[str], float] = lambda _: inf
        """How many requests GitLab leaves a member; see ``StaticTokenSource.pick_by``."""

    def offer(self) -> Held:
        """As ``pick``. The next ``pick`` is this one: whoever was offered a member that it cannot go with yet learns on the
        long way how to, and would of two in turn never be offered that one there."""
        held = self._offered = self._next()
        return held

    def pick(self) -> Held:
        """The member with the most left; those alike take turns. A refused one is left out while there is another."""
        offered, self._offered = self._offered, None
        turn, best = self._turn, self._next()
        if offered is None or offered.refused_until:
            return best
        if self.remaining(offered.credential.id) < self.remaining(best.credential.id):
            return best
        self._turn = turn
        return offered

    def _next(self) -> Held:
        members = self._members
        self._turn = (self._turn + 1) % len(members)
        best, most = members[self._turn], -2.0
        for place in range(self._turn - len(members), self._turn):
            held = members[place]
            if held.refused_until:
                continue
            left = self.remaining(held.credential.id)
            if left > most:
                best, most = held, left
        return best
