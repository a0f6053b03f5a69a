"""How many octets per second may flow to the callers who share a limit: a token bucket that lends.

Octets are charged before they go, and go when the debt for them is paid off. So the streams that share a pipe take turns
piece by piece, and in any time ``t`` at most ``burst + rate * t`` octets flow.
"""

from __future__ import annotations

from .limits import Limit

MIN_RATE = 16 * 1024
"""The lowest rate, in octets per second. Below it, clients and load balancers take a download for dead."""
MAX_RATE = 1_000_000_000
_BURST_S = 0.25
_LEAST_BURST = 64 * 1024
_MOST_PIPES = 4096


def burst_of(rate: float) -> float:
    """How many octets flow at once after a pause: a quarter of a second's worth, and at least one piece."""
    return max(float(_LEAST_BURST), rate * _BURST_S)


class Pipe:
    """One bucket. All instants come from one monotonic clock, in seconds; amounts are octets."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def charge(self, octets: int, now: float) -> float:
        """Charge ``octets``, and say in how many seconds they may go. They stay charged even if the client leaves."""
        self._refill(now)
        self._left -= octets
        return max(0.0, -self._left / self._rate)

    def idle(self, now: float) -> bool:
        """Whether the bucket is full: a new one would behave the same."""
        self._refill(now)
        return self._left >= self._burst

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now


class Pipes:
    """A pipe for each bucket's key; bounded.

    Args:
        most: How many pipes are remembered. Beyond that the idle ones are dropped, then the oldest; a stream that uses a
            dropped pipe keeps it.
    """

    def __init__(self, most: int = _MOST_PIPES) -> None:
        self._most = most
        self._pipes: dict[str, Pipe] = {}

    def __len__(self) -> int:
        return len(self._pipes)

    def pipe(self, key: str, limit: Limit, now: float) -> Pipe:
        """The pipe of ``key``."""
        pipe = self._pipes.get(key)
        if pipe is None:
            if len(self._pipes) >= self._most:
                self._pipes = {name: one for name, one in self._pipes.items() if not one.idle(now)}
                if len(self._pipes) >= self._most:
                    del self._pipes[next(iter(self._pipes))]
            pipe = self._pipes[key] = Pipe(limit.rate, limit.burst, now)
        return pipe
