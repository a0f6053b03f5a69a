"""The fuzz targets, a little: octets at random, seeds mutated, and whatever a long run once found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS

FINDS = Path(__file__).parent / "finds"


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with a few pieces put in, taken out or doubled."""

    def change(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for at, cut, put in changes:
            at %= len(seed) + 1
            seed = seed[:at] + put + seed[at + cut :]
        return seed

    pieces = st.binary(max_size=4) | st.sampled_from(
        [b"\r\n", b"%2e", b"%25", b"..", b'"', b"\0", b"&", b";", b"[]", b"_", b": "]
    )
    changes = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 4), pieces), max_size=4)
    return st.builds(change, st.sampled_from(seeds), changes)


@pytest.mark.parametrize("name", TARGETS)
def test_octets_end_in_a_verdict(name: str) -> None:
    @settings(max_examples=1200, deadline=None)
    @given(st.binary(max_size=200) | mutated(SEEDS[name]))
    def check(octets: bytes) -> None:
        TARGETS[name](octets)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_holds(name: str) -> None:
    for find in sorted((FINDS / name).glob("*")):
        TARGETS[name](find.read_bytes())


def test_seeds_reach_what_they_are_for() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    for name, seeds in SEEDS.items():
        for seed in seeds:
            TARGETS[name](seed)
