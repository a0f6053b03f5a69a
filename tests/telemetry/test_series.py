"""What is kept of the lines of many series is what the library would write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from gateway.telemetry.series import LabelledCounter, _SingleFamilyCollector

TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", 'a"b', "a\\b", "a\nb", "é", "GET /api/v4/projects/:id"]))
COUNTS = st.one_of(st.integers(0, 20), st.sampled_from([999_999, 1_000_000, 1_234_567, 10**9, 10**15, 2**53, 10**21]))


def ours(series: LabelledCounter[tuple[str, ...]]) -> bytes:
    return series.head + b"".join([cell.line for cell in series.cells.values()])


def theirs(series: LabelledCounter[tuple[str, ...]]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_SingleFamilyCollector(series.family()))
    return generate_latest(registry)


@given(st.dictionaries(st.tuples(TEXTS, TEXTS), COUNTS, max_size=5))
def test_octet_for_octet_what_the_library_writes(counts: dict[tuple[str, ...], int]) -> None:
    series = LabelledCounter[tuple[str, ...]](
        "gitlab_gateway_things", 'Things\\, "all" of\nthem.', ("zone", "kind"), lambda kind: [kind]
    )
    for kind, count in counts.items():
        (cell,) = series.cells_of(kind)
        cell.count = count
    assert ours(series) == theirs(series)


def test_one_cell_for_all_that_are_alike() -> None:
    series = LabelledCounter[int]("things", "Things.", ("parity",), lambda number: [("even",)] if number % 2 == 0 else [])
    assert series.cells_of(1) == []
    assert series.cells_of(2) == series.cells_of(4)
    assert len(series.cells) == 1


def test_values_must_fit_the_labels() -> None:
    with pytest.raises(ValueError, match="zip"):
        LabelledCounter[str]("things", "Things.", ("one", "other"), lambda _: [("only",)]).cells_of("")
