"""Prometheus metrics: one class, a registry of its own, plain numbers.

Labels come from closed sets or from the catalogue (an unknown route is ``other``): never a path, a user or a token.
Every name and label is in docs/operations.md, "Metrics"; a test keeps the two in step.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ..core.errors import Code
from ..core.exchange import Exchange
from .figures import Figures, Histogram, Number, Row
from .series import Cell, LabelledCounter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LIMITED = Code.RATE_LIMITED.value

_PAUSE_S = 0.001
_ROWS_PER_PAUSE = 256
"""How many rows are processed between two pauses: about 0.2 ms of work."""

_T = TypeVar("_T")


class _HistogramCounts:
    """A histogram, in plain numbers: ``observe`` of the library's bound child takes a lock, and four times as long."""

    __slots__ = ("counts", "total_s")

    def __init__(self, histogram: Histogram | None = None) -> None:
        self.counts = list(histogram.counts) if histogram is not None and histogram.counts else [0] * (len(_SECONDS) + 1)
        self.total_s = histogram.total_s if histogram is not None else 0.0

    @property
    def value(self) -> Histogram:
        return Histogram(tuple(self.counts), self.total_s)


class _Row:
    """The counts of requests that are alike in every label of every metric."""

    __slots__ = ("bytes_in", "bytes_out", "cells", "count", "duration", "kind", "owner")

    def __init__(self, owner: Metrics, kind: _Kind, duration: _HistogramCounts) -> None:
        self.owner = owner
        self.kind = kind
        self.duration = duration
        self.count = self.bytes_in = self.bytes_out = 0
        self.cells: tuple[Cell, ...] = ()
        """The series that count its requests; empty until metrics are first asked for."""


class _Kind(NamedTuple):
    operation: str
    method: str
    status: int
    cache_status: str
    cache_reason: str
    principal: str
    upstream_status: int
    code: str
    limit: str
    shadow: str
    near: str
    aborted: str


class Metrics:
    """Observes finished exchanges and exports what the parts count themselves.

    A request is counted once, in the row of its kind; the metrics are sums over rows, computed when they are asked for.
    """

    def __init__(self, version: str, catalogue_version: str = "", registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._build = (version, catalogue_version)
        self._rows: dict[tuple[object, ...], _Row] = {}
        self._durations: dict[str, _HistogramCounts] = {}
        self._upstream = _HistogramCounts()
        self._series = [LabelledCounter(*definition) for definition in _COUNTERS]
        for counter in self._series:
            if counter.labels == ("code",):
                # From 0 on: a series that appears only with its first refusal has, to Prometheus, not increased by it.
                for code in Code:
                    counter.with_labels((code.value,))
        self._sum_lock = threading.Lock()
        self.registry.register(_CallbackCollector(self._counters))
        self._others_registry = CollectorRegistry()
        """All metrics but the counters that have many series."""
        for one in (self.registry, self._others_registry):
            one.register(_CallbackCollector(self._others))

    def observe(self, x: Exchange, duration_s: float) -> None:
        """Count one finished exchange."""
        memo = x.observer_memo
        if memo is None:
            row = self._row_of(x)
        else:
            known = memo.metrics_row
            if isinstance(known, _Row) and known.owner is self:
                row = known
            else:
                row = memo.metrics_row = self._row_of(x)
        row.count += 1
        if x.bytes_in:
            row.bytes_in += x.bytes_in
        row.bytes_out += x.bytes_out
        histogram = row.duration
        histogram.counts[bisect_left(_SECONDS, duration_s)] += 1
        histogram.total_s += duration_s
        if x.upstream_status:
            histogram, waited_s = self._upstream, x.upstream_first_byte_s
            histogram.counts[bisect_left(_SECONDS, waited_s)] += 1
            histogram.total_s += waited_s

    def _row_of(self, x: Exchange) -> _Row:
        kind = (
            x.operation,
            x.method,
            x.status,
            x.cache_status,
            x.cache_reason,
            x.principal_kind,
            x.upstream_status,
            x.code,
            x.limit_id if x.code == _LIMITED else "",
            x.limit_shadow,
            x.limit_id if x.limit_near else "",
            x.aborted,
        )
        row = self._rows.get(kind)
        return row if row is not None else self._row(_Kind(*kind))

    def _row(self, kind: _Kind) -> _Row:
        if kind.method not in _METHODS:  # a client may call it anything
            kind = kind._replace(method="other")
        row = self._rows.get(kind)
        if row is None:
            duration = self._durations.setdefault(kind.cache_status or "none", _HistogramCounts())
            row = self._rows[kind] = _Row(self, kind, duration)
        return row

    def _sum_rows(self) -> None:
        """Sum up the rows into series, while requests go on: rows are listed in one step, and their numbers only grow."""
        for series in self._series:
            for cell in _with_pauses(series.cells.values(), _ROWS_PER_PAUSE):
                cell.count = 0
        for row in _with_pauses(list(self._rows.values()), _ROWS_PER_PAUSE):
            cells, count = row.cells, row.count
            if not cells:
                cells = row.cells = tuple([cell for series in self._series for cell in series.cells_of(row.kind)])
            for cell in cells:
                cell.count += count

    def _counters(self) -> Iterator[Metric]:
        with self._sum_lock:
            self._sum_rows()
            yield from [series.family() for series in self._series]

    def _others(self) -> Iterator[Metric]:
        """The metrics that have few series, summed up as in ``_sum_rows``."""
        rows = list(self._rows.values())
        durations = HistogramMetricFamily(
            "gitlab_gateway_http_request_duration_seconds",
            "From the parsed head to the last octet of the answer, by what the cache did.",
            labels=["cache"],
        )
        for cache, histogram in list(self._durations.items()):
            durations.add_metric([cache], *_cumulative(histogram))
        yield durations
        upstream = HistogramMetricFamily(
            "gitlab_gateway_upstream_first_byte_seconds",
            "From when GitLab had been sent the whole request to the head of its answer.",
        )
        upstream.add_metric([], *_cumulative(self._upstream))
        yield upstream
        yield CounterMetricFamily(
            "gitlab_gateway_http_request_body_bytes",
            "Octets of request bodies received.",
            value=sum(row.bytes_in for row in _with_pauses(rows, _ROWS_PER_PAUSE)),
        )
        yield CounterMetricFamily(
            "gitlab_gateway_http_response_bytes",
            "Octets of answers sent, heads included.",
            value=sum(row.bytes_out for row in _with_pauses(rows, _ROWS_PER_PAUSE)),
        )
        build = GaugeMetricFamily(
            "gitlab_gateway_build_info",
            "Always 1; the gateway's version and the GitLab version of its route catalogue.",
            labels=["version", "catalogue"],
        )
        build.add_metric(self._build, 1)
        yield build

    def figures(self, read: Callable[[], Iterable[Reading]]) -> Figures:
        """Everything as a value, with the numbers that other parts keep themselves; in any thread, as in ``_others``."""
        return Figures(
            tuple(Row(tuple(row.kind), row.count, row.bytes_in, row.bytes_out) for row in list(self._rows.values())),
            {cache: counts.value for cache, counts in list(self._durations.items())},
            self._upstream.value,
            tuple(Number(one.name, one.help, float(one.value), one.total, one.labels) for one in read()),
        )

    def load_figures(self, figures: Figures) -> None:
        """Export ``figures``, which other processes have counted. To be called once."""
        for kind, count, bytes_in, bytes_out in map(msgspec.structs.astuple, figures.rows):
            row = self._rows[kind] = _Row(self, _Kind(*kind), _HistogramCounts())
            row.count, row.bytes_in, row.bytes_out = count, bytes_in, bytes_out
        self._durations = {cache: _HistogramCounts(histogram) for cache, histogram in figures.durations.items()}
        self._upstream = _HistogramCounts(figures.upstream)
        self.add_readings(
            lambda: [Reading(n.name, n.help, n.value, total=n.total, labels=n.labels) for n in figures.numbers]
        )

    def add_readings(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Add numbers that a part keeps itself, read at each scrape."""
        for registry in (self.registry, self._others_registry):
            registry.register(_ReadingsCollector(read))

    def render(self) -> bytes:
        """All metrics in the text format. Outside the main thread this takes its time: half a second for fifty thousand
        series."""
        pieces: list[bytes] = []
        with self._sum_lock:
            self._sum_rows()
            for series in self._series:
                pieces.append(series.head)
                lines = [cell.line for cell in _with_pauses(list(series.cells.values()), _ROWS_PER_PAUSE)]
                pieces += [
                    b"".join(lines[at : at + _ROWS_PER_PAUSE])
                    for at in _with_pauses(range(0, len(lines), _ROWS_PER_PAUSE), 1)
                ]
        return b"".join((*pieces, generate_latest(self._others_registry)))


class Reading:
    """One number that another part counts: a gauge, or a counter if ``total``."""

    __slots__ = ("help", "labels", "name", "total", "value")

    def __init__(
        self, name: str, text: str, value: float, *, total: bool = False, labels: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.help = text
        self.value = value
        self.total = total
        self.labels = labels or {}


class _ReadingsCollector(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def describe(self) -> Iterable[CounterMetricFamily]:
        return []

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for reading in self._read():
            family = families.get(reading.name)
            if family is None:
                make = CounterMetricFamily if reading.total else GaugeMetricFamily
                family = families[reading.name] = make(reading.name, reading.help, labels=list(reading.labels))
            family.add_metric(list(reading.labels.values()), reading.value)
        yield from families.values()


def _with_pauses(things: Iterable[_T], most: int) -> Iterator[_T]:
    """``things``, with a pause after every ``most`` of them, but not in the main thread.

    Python runs one thread at a time, and takes a while to make a thread hand over that does not do so by itself: requests
    would wait that long at each of their system calls.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    for number, thing in enumerate(things, 1):
        yield thing
        if not is_main_thread and number % most == 0:
            time.sleep(_PAUSE_S)


class _CallbackCollector(Collector):
    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return self._families()


def _cumulative(histogram: _HistogramCounts) -> tuple[list[tuple[str, float]], float]:
    counts = list(histogram.counts)
    bounds = [*map(floatToGoString, _SECONDS), "+Inf"]
    return [(bound, sum(counts[: at + 1])) for at, bound in enumerate(bounds)], histogram.total_s


# Name, help text, label names, and the label values of the series that count requests of a kind.
_COUNTERS: tuple[tuple[str, str, tuple[str, ...], Callable[[_Kind], list[tuple[str, ...]]]], ...] = (
    (
        "gitlab_gateway_http_requests",
        "Requests answered, by operation of the route catalogue and status; 499: the client went away.",
        ("operation", "method", "status"),
        lambda kind: [(kind.operation, kind.method, str(kind.status))],
    ),
    (
        "gitlab_gateway_upstream_responses",
        "GitLab's own answers, by status.",
        ("status",),
        lambda kind: [(str(kind.upstream_status),)] if kind.upstream_status else [],
    ),
    (
        "gitlab_gateway_refusals",
        "Requests the gateway answered itself instead of GitLab, by code.",
        ("code",),
        lambda kind: [(kind.code,)] if kind.code else [],
    ),
    (
        "gitlab_gateway_cache_requests",
        "What the cache did with each request that came to it, and why.",
        ("status", "reason"),
        lambda kind: [(kind.cache_status, kind.cache_reason)] if kind.cache_status else [],
    ),
    (
        "gitlab_gateway_principals",
        "Authenticated requests, by how the caller was recognised.",
        ("kind",),
        lambda kind: [(kind.principal,)] if kind.principal else [],
    ),
    (
        "gitlab_gateway_limit_decisions",
        "Requests refused by a limit, admitted near it, or that a shadow limit would have refused.",
        ("limit", "outcome"),
        lambda kind: [
            (limit, outcome)
            for limit, outcome in ((kind.limit, "refused"), (kind.shadow, "shadow"), (kind.near, "near"))
            if limit
        ],
    ),
    (
        "gitlab_gateway_aborted_responses",
        "Answers cut off after their first octet, by the side that failed.",
        ("by",),
        lambda kind: [(kind.aborted,)] if kind.aborted else [],
    ),
)
