"""Plain takes: the short way decides as the long one."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.limits import Held, Level, Limit, Scope, Take, Takes, decide
from gateway.core.plain_takes import admit, admitted, refuse

T0 = 1_800_000_000_000_000
LIMITS = [
    Limit("wide", Scope.TEAM, 7 / 3, 20.0),
    Limit("narrow", Scope.CALLER, 1 / 7, 3.0),
    Limit("small", Scope.ORGANISATION, 1e-4, 1.5),
]
AGES = st.one_of(st.integers(-(10**9), 10**9), st.integers(-20_000, 20_000), st.just(0))
LEVELS = st.one_of(
    st.none(),
    st.tuples(st.one_of(st.floats(-50.0, 50.0), st.just(math.nan)), AGES.map(T0.__add__)),
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(LIMITS), st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 1.5]), LEVELS), min_size=1, max_size=4
    )
)
def test_the_short_way_decides_as_the_long_one(asked: list[tuple[Limit, float, Level | None]]) -> None:
    takes = Takes([Take(f"k{place}", limit, cost) for place, (limit, cost, _) in enumerate(asked)])
    assert len(takes.plain) == len(takes)
    levels = [level for _, _, level in asked]
    held: dict[str, Held] = {
        take.key: (*level, take.limit) for take, level in zip(takes, levels, strict=True) if level is not None
    }
    before = list(map(repr, held.items()))  # a NaN is not itself
    expected, stored = decide(takes, levels, T0)
    went_back = any(level is not None and level[1] > T0 for level in levels)
    refused = refuse(takes, held, T0)
    assert (refused is None) is (expected.allowed or went_back)
    if refused is not None:
        assert (refused.allowed, refused.states, refused.now) == (False, expected.states, expected.now)
        assert (refused.refusal, refused.tightest, refused.shadowed) == (expected.refusal, expected.tightest, "")
        assert refused.asked is takes
    decision = admit(takes, held, T0)
    if decision is None:
        assert not expected.allowed
        assert list(map(repr, held.items())) == before
        return
    assert held == {take.key: (*level, take.limit) for take, level in zip(takes, stored, strict=True) if level is not None}
    for made in (decision, admitted(takes, [bucket.remaining for bucket in expected.states], T0 / 1_000_000)):
        assert (made.allowed, made.states, made.now) == (expected.allowed, expected.states, expected.now)
        assert (made.tightest, made.refusal, made.shadowed) == (expected.tightest, None, "")
        assert (made.limit, made.remaining) == (expected.tightest.limit, expected.tightest.remaining)  # type: ignore[union-attr]
