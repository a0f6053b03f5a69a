"""Prometheus metrics: one class, a registry of its own, children bound once. The only user of prometheus-client.

Labels come from closed sets or from the catalogue (an unknown route is ``other``): never a path, a user, a token.
Every name and label is in docs/operations.md, "Metrics"; a test keeps the two in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ..core.errors import Code
from ..core.exchange import Exchange

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Observes finished exchanges and exports what the parts count themselves."""

    def __init__(self, version: str, catalogue_version: str = "", registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
        registry = self.registry = registry if registry is not None else CollectorRegistry()
        self._requests = Counter(
            "gitlab_gateway_http_requests",
            "Requests answered, by operation of the route catalogue and status; 499 is a client that went away.",
            ["operation", "method", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            "gitlab_gateway_http_request_duration_seconds",
            "From the parsed head to the last octet of the answer, by what the cache did.",
            ["cache"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._upstream = Histogram(
            "gitlab_gateway_upstream_first_byte_seconds",
            "From sending a request up to the head of GitLab's answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._upstream_statuses = Counter(
            "gitlab_gateway_upstream_responses",
            "GitLab's own answers, by status.",
            ["status"],
            registry=registry,
        )
        self._refusals = Counter(
            "gitlab_gateway_refusals",
            "Requests the gateway answered itself instead of GitLab, by code.",
            ["code"],
            registry=registry,
        )
        self._cache = Counter(
            "gitlab_gateway_cache_requests",
            "What the cache did with each request that came to it, and why.",
            ["status", "reason"],
            registry=registry,
        )
        self._principals = Counter(
            "gitlab_gateway_principals",
            "Authenticated requests, by how the caller was recognised.",
            ["kind"],
            registry=registry,
        )
        self._limited = Counter(
            "gitlab_gateway_limit_decisions",
            "Requests refused by a limit, or that a shadow limit would have refused.",
            ["limit", "outcome"],
            registry=registry,
        )
        self._aborted = Counter(
            "gitlab_gateway_aborted_responses",
            "Answers cut after their first octet, by the side that failed.",
            ["by"],
            registry=registry,
        )
        self._bytes_in = Counter(
            "gitlab_gateway_http_request_body_bytes", "Octets of request bodies received.", registry=registry
        )
        self._bytes_out = Counter(
            "gitlab_gateway_http_response_bytes", "Octets of answers sent, heads included.", registry=registry
        )
        Gauge(
            "gitlab_gateway_build_info",
            "Always 1; the gateway's version and the GitLab version of its route catalogue.",
            ["version", "catalogue"],
            registry=registry,
        ).labels(version, catalogue_version).set(1)
        # Bound children: `labels()` costs more than the increment (3.4 to 1.0 µs).
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        self._cache_children: dict[tuple[str, str], Counter] = {}
        self._duration_children: dict[str, Histogram] = {}
        self._principal_children: dict[str, Counter] = {}
        self._upstream_children: dict[int, Counter] = {}

    def observe(self, x: Exchange, duration_s: float) -> None:
        """Count one finished exchange."""
        key = (x.operation, x.method, x.status)
        requests = self._request_children.get(key)
        if requests is None:
            method = x.method if x.method in _METHODS else "other"
            requests = self._request_children[key] = self._requests.labels(x.operation, method, str(x.status))
        requests.inc()
        cache = x.cache_status or "none"
        duration = self._duration_children.get(cache)
        if duration is None:
            duration = self._duration_children[cache] = self._duration.labels(cache)
        duration.observe(duration_s)
        if x.cache_status:
            pair = (x.cache_status, x.cache_reason)
            cached = self._cache_children.get(pair)
            if cached is None:
                cached = self._cache_children[pair] = self._cache.labels(*pair)
            cached.inc()
        if x.principal_kind:
            principal = self._principal_children.get(x.principal_kind)
            if principal is None:
                principal = self._principal_children[x.principal_kind] = self._principals.labels(x.principal_kind)
            principal.inc()
        if x.upstream_status:
            upstream = self._upstream_children.get(x.upstream_status)
            if upstream is None:
                upstream = self._upstream_children[x.upstream_status] = self._upstream_statuses.labels(
                    str(x.upstream_status)
                )
            upstream.inc()
            self._upstream.observe(x.upstream_first_byte_s)
        if x.code:
            self._refusals.labels(x.code).inc()
            if x.limit_id and x.code == Code.RATE_LIMITED.value:
                self._limited.labels(x.limit_id, "refused").inc()
        if x.limit_shadow:
            self._limited.labels(x.limit_shadow, "shadow").inc()
        if x.aborted:
            self._aborted.labels(x.aborted).inc()
        if x.bytes_in:
            self._bytes_in.inc(x.bytes_in)
        self._bytes_out.inc(x.bytes_out)

    def export(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Add numbers that a part keeps itself, read at each scrape."""
        self.registry.register(_Readings(read))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class Reading:
    """One number somebody else counts: a gauge, or a counter when ``total``."""

    __slots__ = ("help", "labels", "name", "total", "value")

    def __init__(
        self, name: str, text: str, value: float, *, total: bool = False, labels: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.help = text
        self.value = value
        self.total = total
        self.labels = labels or {}


class _Readings(Collector):
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
