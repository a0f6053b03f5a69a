"""Counters with many series: the constant part of each line is kept, so that a scrape only appends the numbers.

The library takes some 15 µs per line: for fifty thousand lines, that is most of a second in which no request is served. The
text made here is the library's, octet for octet; a test checks that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

K = TypeVar("K")
_EXPONENT_FROM = 1_000_000
"""From this number on, the library writes powers of ten."""


class Cell:
    """One series."""

    __slots__ = ("count", "prefix")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        """Its line up to the number."""
        self.count = 0

    @property
    def line(self) -> bytes:
        count = self.count
        if count < _EXPONENT_FROM:
            return b"%b%d.0\n" % (self.prefix, count)
        return b"%b%b\n" % (self.prefix, str(floatToGoString(count)).encode())  # type: ignore[no-untyped-call]


class LabelledCounter(Generic[K]):
    """All series of one counter.

    Args:
        name: The counter's name, without ``_total``.
        text: What it counts.
        labels: The names of its labels.
        values_of: Gives the label values of each series that counts things of a kind.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], values_of: Callable[[K], list[tuple[str, ...]]]
    ) -> None:
        self.name = name
        self.text = text
        self.labels = tuple(labels)
        self._values_of = values_of
        self.cells: dict[tuple[str, ...], Cell] = {}
        self.head = _head(CounterMetricFamily(name, text, labels=labels))
        """The lines above its series."""

    def with_labels(self, values: tuple[str, ...]) -> Cell:
        """The series with these label values; a new one begins at 0."""
        cell = self.cells.get(values)
        if cell is None:
            cell = self.cells[values] = Cell(_line_prefix(self.name, self.labels, values))
        return cell

    def cells_of(self, kind: K) -> list[Cell]:
        """The series that count things of ``kind``."""
        return [self.with_labels(values) for values in self._values_of(kind)]

    def family(self) -> CounterMetricFamily:
        """The counter as a metric family of the library."""
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for values, cell in self.cells.items():
            family.add_metric(values, cell.count)
        return family


def _line_prefix(name: str, labels: Sequence[str], values: Sequence[str]) -> bytes:
    pairs = ",".join([f'{label}="{_escaped(value)}"' for label, value in sorted(zip(labels, values, strict=True))])
    return f"{name}_total{{{pairs}}} ".encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class _SingleFamilyCollector(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def _head(family: Metric) -> bytes:
    registry = CollectorRegistry()
    registry.register(_SingleFamilyCollector(family))
    return generate_latest(registry)
