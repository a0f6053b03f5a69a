"""The script that takes from the buckets of many requests in one step: its text, its arguments, its answer."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from importlib import resources

from ..core.limits import BucketState, Decision, Limit, Take, affordable, state
from .redis_link import Argument

Request = Sequence[Take]

_WISH = struct.Struct("<dddB")
_CLOCK = struct.Struct("<d")
_BUCKET = struct.Struct("<dB")
_SHADOW = 1
_LAST = 2
_MEMO_BOUND = 1024


class Script:
    """A Lua script and the two ways to call it: by its hash, and in full where Redis has never seen it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def named(cls, name: str) -> Script:
        """One of the package's own."""
        return cls(resources.files(__package__).joinpath("lua", name).read_text(encoding="utf-8"))


class Wishes:
    """The packed form of a take, remembered: limits and costs are few."""

    def __init__(self) -> None:
        # By identity: hashing a struct costs more than all the rest. The limit is held, so that its identity stays its own.
        self._packed: dict[tuple[int, float, bool], tuple[bytes, Limit]] = {}

    def arguments(self, requests: Sequence[Request]) -> list[Argument]:
        """Number of keys, keys, wishes: what follows the script in ``EVALSHA``."""
        keys: list[Argument] = []
        wishes: list[Argument] = []
        for request in requests:
            last = len(request) - 1
            for index, take in enumerate(request):
                keys.append(take.key)
                wishes.append(self._wish(take, index == last))
        return [len(keys), *keys, *wishes]

    def _wish(self, take: Take, last: bool) -> bytes:
        memo = (id(take.limit), take.cost, last)
        held = self._packed.get(memo)
        if held is None:
            limit = take.limit
            flags = (_SHADOW if limit.shadow else 0) | (_LAST if last else 0)
            packed = _WISH.pack(limit.per_us, limit.burst, affordable(limit, take.cost), flags)
            if len(self._packed) >= _MEMO_BOUND:
                self._packed.clear()
            held = self._packed[memo] = (packed, limit)
        return held[0]


def decisions(requests: Sequence[Request], answer: object) -> list[Decision]:
    """The script's answer, request by request.

    Raises:
        ValueError: It is not an answer to these requests.
    """
    if not isinstance(answer, bytes) or len(answer) != _CLOCK.size + _BUCKET.size * sum(map(len, requests)):
        raise ValueError("not an answer of the script")
    now = _CLOCK.unpack_from(answer)[0] / 1_000_000
    offset = _CLOCK.size
    found = []
    for request in requests:
        states: list[BucketState] = []
        allowed = True
        for take in request:
            tokens, enough = _BUCKET.unpack_from(answer, offset)
            offset += _BUCKET.size
            states.append(state(take.limit, enough == 1, tokens, take.cost))
            allowed = allowed and (enough == 1 or take.limit.shadow)
        found.append(Decision(allowed, tuple(states), now))
    return found
