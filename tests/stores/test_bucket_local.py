"""One gateway's share during an outage."""

from __future__ import annotations

from gateway.core.limits import Limit, Scope, Take
from gateway.stores.bucket_local import LocalBuckets

LIMIT = Limit("l", Scope.CALLER, 10.0, 40.0)
SMALL = Limit("small", Scope.TEAM, 0.1, 1.0)


class Clock:
    at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


def admitted(store: LocalBuckets, share: float, known: float | None = None, tries: int = 100) -> int:
    return sum(store.take([Take("k", LIMIT)], [known], share).allowed for _ in range(tries))


def test_a_share_of_burst_and_rate() -> None:
    clock = Clock()
    store = LocalBuckets(clock=clock)
    assert admitted(store, 0.5) == 20
    clock.at += 1
    assert admitted(store, 0.5) == 5


def test_starts_from_what_was_last_known() -> None:
    assert admitted(LocalBuckets(clock=Clock()), 0.5, known=10.0) == 5


def test_a_share_is_never_below_one_token() -> None:
    store = LocalBuckets(clock=Clock())
    assert store.take([Take("s", SMALL)], [None], 0.25).allowed
    assert not store.take([Take("s", SMALL)], [None], 0.25).allowed


def test_a_changed_share_counts_from_then_on() -> None:
    clock = Clock()
    store = LocalBuckets(clock=clock)
    assert admitted(store, 1.0) == 40
    clock.at += 100
    assert admitted(store, 0.25) == 10


def test_told_in_the_limit_the_caller_knows_and_marked_degraded() -> None:
    decision = LocalBuckets(clock=Clock()).take([Take("k", LIMIT), Take("s", SMALL)], [None, None], 0.5)
    assert decision.degraded
    assert [found.limit for found in decision.states] == [LIMIT, SMALL]


def test_cleared_it_starts_anew() -> None:
    store = LocalBuckets(clock=Clock())
    admitted(store, 1.0)
    store.clear()
    assert admitted(store, 1.0) == 40
