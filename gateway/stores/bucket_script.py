"""The script that takes from the buckets of many requests in one step: its text, its arguments, its answer."""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources

import msgspec

from ..core.limits import BucketState, Decision, Limit, Take, Takes, affordable, bucket_state
from ..core.plain_takes import admitted
from .redis_link import Argument

_PACKED_TAKE = struct.Struct("<dddB")
_CLOCK = struct.Struct("<d")
_BUCKET = struct.Struct("<dB")
_SHADOW, _LAST, _PLACES = 1, 2, 4
_MEMO_BOUND = 1024


class BucketOp(enum.IntEnum):
    """What is to be done with the buckets; the value is the script's flag."""

    TAKE = 0
    SETTLE = 8
    """``cost`` more tokens are owed to each bucket, each by itself."""
    RELEASE = 16
    """The places held under ``lease`` are free again."""
    RENEW = 32
    """The places held under ``lease`` are still in use."""


# A global, since it is read for every request: an enum's class looks its members up anew each time.
_TAKE = BucketOp.TAKE


class BatchItem(msgspec.Struct):
    """One request's part in a script call."""

    takes: Sequence[Take]
    lease: bytes = b""
    """Names this request among those in progress; needed where a take is of a concurrent limit."""
    op: BucketOp = BucketOp.TAKE
    then: Callable[[Decision], None] | None = None
    """Called with the decision on a take; None: nobody waits for it, or not any more."""

    def cancel(self) -> None:
        """Forget who waited for the decision: nobody does any more."""
        self.then = None


class Script:
    """A Lua script and the two ways to call it: by its hash, and in full where Redis does not know it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.by_hash = _bulk("EVALSHA", self.sha)
        self.in_full = _bulk("EVAL", text)

    @classmethod
    def named(cls, name: str) -> Script:
        """Read one of the package's own scripts."""
        return cls(resources.files(__package__).joinpath("lua", name).read_text(encoding="utf-8"))


class TakePacker:
    """Packs takes for the script, and remembers the packed forms: limits and costs are few."""

    def __init__(self) -> None:
        # Keyed by the limit's identity: hashing a struct costs more than all the rest. The limit is kept alive, so that no
        # other limit gets the same identity.
        self._packed: dict[tuple[int, float, bool], tuple[bytes, Limit]] = {}

    def arguments(self, batch: Sequence[BatchItem]) -> list[Argument]:
        """The number of keys, the keys and the packed takes: what follows the script in ``EVALSHA``."""
        keys: list[Argument] = []
        packed_takes: list[Argument] = []
        for item in batch:
            takes, lease, op = item.takes, item.lease, item.op
            last = len(takes) - 1
            for index, take in enumerate(takes):
                keys.append(take.key)
                if op is _TAKE:
                    packed = self._pack_take(take, index == last)
                    packed_takes.append(packed + lease if take.limit.concurrent else packed)
                else:
                    limit = take.limit
                    packed_takes.append(_PACKED_TAKE.pack(limit.per_us, limit.burst, take.cost, op) + lease)
        return [len(keys), *keys, *packed_takes]

    def command(self, script: bytes, batch: Sequence[BatchItem]) -> bytes:
        """The whole call, ready for the wire. ``script`` is the script's ``by_hash`` or ``in_full``."""
        parts: list[tuple[bytes, bytes]] = []
        count = 0
        for item in batch:
            takes = item.takes
            packed = takes.packed if type(takes) is Takes and item.op is _TAKE else None
            if packed is None:
                packed = self._pack(item)
            parts.append(packed)
            count += len(takes)
        keys, packed_takes = zip(*parts, strict=True)
        number = b"%d" % count
        head = b"*%d\r\n%b$%d\r\n%b\r\n" % (3 + 2 * count, script, len(number), number)
        return b"".join((head, *keys, *packed_takes))

    def _pack(self, item: BatchItem) -> tuple[bytes, bytes]:
        _, *arguments = self.arguments([item])
        middle = len(arguments) // 2
        packed = (_bulk(*arguments[:middle]), _bulk(*arguments[middle:]))
        takes = item.takes
        if type(takes) is Takes and item.op is _TAKE and takes.plain:
            takes.packed = packed  # the same for every request: no lease is named
        return packed

    def _pack_take(self, take: Take, last: bool) -> bytes:
        memo = (id(take.limit), take.cost, last)
        held = self._packed.get(memo)
        if held is None:
            limit = take.limit
            flags = (_SHADOW if limit.shadow else 0) | (_LAST if last else 0) | (_PLACES if limit.concurrent else 0)
            packed = _PACKED_TAKE.pack(limit.per_us, limit.burst, affordable(limit, take.cost), flags)
            if len(self._packed) >= _MEMO_BOUND:
                self._packed.clear()
            held = self._packed[memo] = (packed, limit)
        return held[0]


def decisions(batch: Sequence[BatchItem], answer: object) -> list[Decision]:
    """Decode the script's answer into one decision per request. An item that is not a take is always allowed.

    Raises:
        ValueError: ``answer`` is not an answer to these requests.
    """
    count = 0
    for item in batch:
        count += len(item.takes)
    if not isinstance(answer, bytes) or len(answer) != _CLOCK.size + _BUCKET.size * count:
        raise ValueError("not an answer of the script")
    numbers = _answer_struct(count).unpack(answer)
    now, tokens, enough = numbers[0] / 1_000_000, numbers[1::2], numbers[2::2]
    none_short = 0 not in enough
    at = 0
    results = []
    for item in batch:
        takes = item.takes
        end = at + len(takes)
        if type(takes) is Takes and takes.plain and (none_short or 0 not in enough[at:end]):
            results.append(admitted(takes, tokens[at:end], now))
        else:
            states: list[BucketState] = []
            allowed = True
            for take, had, left in zip(takes, enough[at:end], tokens[at:end], strict=True):
                states.append(bucket_state(take.limit, had == 1, left, take.cost))
                allowed = allowed and (had == 1 or take.limit.shadow)
            results.append(Decision(allowed, tuple(states), now))
        at = end
    return results


@lru_cache(maxsize=1024)
def _answer_struct(count: int) -> struct.Struct:
    return struct.Struct("<d" + "dB" * count)


def _bulk(*arguments: Argument) -> bytes:
    """A command's arguments as RESP writes them."""
    octets = [one if isinstance(one, bytes) else str(one).encode() for one in arguments]
    return b"".join([b"$%d\r\n%b\r\n" % (len(one), one) for one in octets])
