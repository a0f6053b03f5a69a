"""Failed logins, limited per peer before anything is looked up.

Each failure takes a token from the peer's bucket; a peer without a token has to wait. The guard keeps one float per peer
(the instant at which its bucket is full again) for a bounded number of peers, and counts addresses that one host can choose
freely as one peer.
"""

from __future__ import annotations

import ipaddress

_SUBJECT_BOUND = 4096
_UNPARSED_LENGTH = 64


class PeerGuard:
    """Allows ``failures`` at once, and as many more per ``window_s``. ``now`` is in monotonic seconds, ``peer`` is a
    :func:`subject`."""

    __slots__ = ("_failures", "_full_at", "_interval_s", "_peers", "_window_s")

    def __init__(self, *, failures: int = 20, window_s: float = 60.0, peers: int = 10_000) -> None:
        if failures < 1 or window_s <= 0 or peers < 1:
            raise ValueError("a peer guard allows at least one failure, over some time, for at least one peer")
        self._failures = failures
        self._window_s = window_s
        self._interval_s = window_s / failures
        self._peers = peers
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, peer: str, now: float) -> float:
        """Seconds until ``peer`` may fail again; 0.0 if it may now."""
        full_at = self._full_at.get(peer)
        if full_at is None:
            return 0.0
        if full_at <= now:
            del self._full_at[peer]
            return 0.0
        # A little tolerance: a caller that was told to wait this long must not come back one rounding error too early.
        wait_s = (full_at - now) - (self._window_s - self._interval_s)
        return wait_s if wait_s > 1e-6 else 0.0

    def note_failure(self, peer: str, now: float) -> None:
        """Count one failed login. Attempts that were under way when the bucket ran dry do not lengthen the wait."""
        full_at = max(self._full_at.pop(peer, now), now) + self._interval_s
        self._full_at[peer] = min(full_at, now + self._window_s)
        if len(self._full_at) > self._peers:
            # The first one is longest without a failure, since every failure re-inserts: the likeliest to be full again.
            del self._full_at[next(iter(self._full_at))]


_SUBJECTS: dict[str, str] = {}


def subject(address: str) -> str:
    """The peer that an address counts as: the address itself, or its /64 for IPv6, where every host has 2**64 of them.

    An IPv4-mapped IPv6 address counts as IPv4. A string that is no address (a Unix socket) counts as itself, cut to 64
    characters. Memoised.
    """
    known = _SUBJECTS.get(address)
    if known is not None:
        return known
    found = _subject(address)
    if len(_SUBJECTS) >= _SUBJECT_BOUND:
        _SUBJECTS.clear()
    _SUBJECTS[address] = found
    return found


def _subject(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_UNPARSED_LENGTH]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
