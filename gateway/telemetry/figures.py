"""What one process has counted, as a value that another can add up: rows of requests, histograms, readings.

Totals are added. So are most states; for the others, tables here say what holds for several processes together: an alarm is
on if it is on in any of them, and a thing is up if it is up in all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

import msgspec

Kind = tuple[str | int, ...]


class Histogram(msgspec.Struct, frozen=True, array_like=True):
    """A histogram: the count of each bucket, and the total time."""

    counts: tuple[int, ...]
    total_s: float


class Number(msgspec.Struct, frozen=True, array_like=True):
    """One number, with the attributes of a ``metrics.Reading``."""

    name: str
    help: str
    value: float
    total: bool
    labels: dict[str, str]


class Row(msgspec.Struct, frozen=True, array_like=True):
    """The requests of one kind."""

    kind: Kind
    count: int
    bytes_in: int
    bytes_out: int


class Figures(msgspec.Struct, frozen=True, array_like=True):
    """What one process has counted, at one moment."""

    rows: tuple[Row, ...] = ()
    durations: dict[str, Histogram] = {}
    upstream: Histogram = Histogram((), 0.0)
    numbers: tuple[Number, ...] = ()

    def totals(self) -> Figures:
        """What remains when the process is gone: everything but the gauges."""
        return msgspec.structs.replace(self, numbers=tuple(number for number in self.numbers if number.total))

    @property
    def requests(self) -> int:
        """How many requests the process has answered."""
        return sum(row.count for row in self.rows)


_MERGED_BY_MAX = frozenset(
    {
        "gitlab_gateway_audit_blocked",
        "gitlab_gateway_audit_failing",
        "gitlab_gateway_cache_projects_known",
        "gitlab_gateway_certificates_failing",
        "gitlab_gateway_credential_refused",
        "gitlab_gateway_credential_rotation_failing",
        "gitlab_gateway_hooks_silence_seconds",
        "gitlab_gateway_hooks_silent",
        "gitlab_gateway_upstream_breaker",
    }
)
_MERGED_BY_MIN = frozenset(
    {
        "gitlab_gateway_cache_near_up",
        "gitlab_gateway_certificate_expires_seconds",
        "gitlab_gateway_credential_expires_seconds",
        "gitlab_gateway_store_up",
    }
)
"""Gauges that are not amounts: for several processes, the largest value (``_MERGED_BY_MAX``) or the smallest
(``_MERGED_BY_MIN``) counts."""


def merge(parts: Sequence[Figures]) -> Figures:
    """What several processes have counted in all."""
    rows: dict[Kind, tuple[int, int, int]] = {}
    durations: dict[str, Histogram] = {}
    upstream = Histogram((), 0.0)
    for part in parts:
        for row in part.rows:
            count, bytes_in, bytes_out = rows.get(row.kind, (0, 0, 0))
            rows[row.kind] = count + row.count, bytes_in + row.bytes_in, bytes_out + row.bytes_out
        for cache, histogram in part.durations.items():
            durations[cache] = _add_histograms(durations.get(cache, Histogram((), 0.0)), histogram)
        upstream = _add_histograms(upstream, part.upstream)
    return Figures(
        tuple(Row(kind, *sums) for kind, sums in rows.items()),
        durations,
        upstream,
        tuple(_merge_numbers(one for part in parts for one in part.numbers)),
    )


def _add_histograms(one: Histogram, other: Histogram) -> Histogram:
    if not one.counts or not other.counts:
        return one if one.counts else other
    return Histogram(tuple(a + b for a, b in zip(one.counts, other.counts, strict=True)), one.total_s + other.total_s)


def _merge_numbers(numbers: Iterable[Number]) -> Iterable[Number]:
    found: dict[tuple[str, ...], Number] = {}
    for one in numbers:
        key = (one.name, *one.labels.values())
        before = found.get(key)
        found[key] = (
            one if before is None else msgspec.structs.replace(one, value=_merge_operator(one)(before.value, one.value))
        )
    return found.values()


def _merge_operator(number: Number) -> Callable[[float, float], float]:
    if number.total:
        return operator.add
    return max if number.name in _MERGED_BY_MAX else min if number.name in _MERGED_BY_MIN else operator.add
