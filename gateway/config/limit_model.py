"""The part of the configuration that says how fast. As in ``model``, a field's docstring is its description."""

from __future__ import annotations

import enum

from ..core.bandwidth import burst_of
from ..core.catalogue import Access, Surface
from ..core.cost import Settlement
from ..core.limits import Limit, Match, OnOutage, Scope
from .section import Section
from .vocabulary import Bandwidth, Duration, Id, Method, Mode, OnBuckets, RateWords, Route

_OUTAGE = {OnBuckets.LOCAL: OnOutage.LOCAL, OnBuckets.OPEN: OnOutage.OPEN, OnBuckets.CLOSED: OnOutage.CLOSED}


class CostMode(enum.StrEnum):
    """What a request takes from a bucket."""

    REQUEST = "request"
    WEIGHTED = "weighted"


class LimitMatch(Section, frozen=True):
    """Which requests a limit is about. Conditions that must all hold; one left out holds."""

    access: Access | None = None
    """`read` or `write`, exactly, by the route catalogue."""
    methods: tuple[Method, ...] | None = None
    """HTTP methods."""
    routes: tuple[Route, ...] | None = None
    """`/template` or `METHOD /template`, as rules write them."""
    surfaces: tuple[Surface, ...] | None = None
    """GitLab's HTTP surfaces."""


class Settle(Section, frozen=True):
    """What the answer changes about the cost."""

    cached: float = 1.0
    """The share of the cost that remains where the cache answered without asking GitLab; `0` gives all of it back."""
    not_modified: float = 1.0
    """The share that remains where GitLab only said 304."""
    second: float = 0.0
    """Tokens for each second GitLab worked on it (`X-Runtime`), or was waited for in vain."""
    mebibyte: float = 0.0
    """Tokens for each MiB of the answer."""


class LimitEntry(Section, frozen=True):
    """How fast, or how many at once: one bucket per caller, team, project or address."""

    id: Id
    """Named by audit, metrics and `explain`."""
    by: Scope
    """Whose bucket."""
    rate: RateWords | None = None
    """How fast tokens flow back: `600/min`. This, `concurrent` or `bandwidth`."""
    burst: int | None = None
    """How many may be taken at once; absent: as many as the rate's number."""
    concurrent: int | None = None
    """How many requests may be in progress at one time."""
    bandwidth: Bandwidth | None = None
    """How fast streamed answers flow to them together, through each gateway: `20MiB/s`."""
    match: LimitMatch | None = None
    """Which requests it is about; absent: all."""
    cost: CostMode = CostMode.REQUEST
    """`request`: each takes one token; `weighted`: as many as its operation weighs."""
    settle: Settle | None = None
    """What the answer changes about the cost; absent: nothing."""
    absorb: Duration = 0.0
    """A request that would be admitted within this time waits for its turn instead of being refused."""
    advertise: bool = False
    """Its numbers are the `RateLimit-*` that callers see; absent everywhere: the first that applies."""
    mode: Mode = Mode.ENFORCE
    """`shadow`: counted and measured, never refused."""
    on_error: OnBuckets | None = None
    """While the shared buckets are away; absent: `stores.on_error.buckets`."""

    def limit(self, *, shadow: bool = False) -> Limit:
        """As the limiter takes it."""
        match = self.match or LimitMatch()
        settle = self.settle
        if self.rate is not None:
            rate, period_s = self.rate.per_second, self.rate.period_s
            burst = self.rate.count if self.burst is None else float(self.burst)
        elif self.bandwidth is not None:
            rate, period_s = float(self.bandwidth), 1.0
            burst = burst_of(rate)
        else:
            burst = float(self.concurrent or 0)
            rate, period_s = burst, 1.0
        return Limit(
            self.id,
            self.by,
            rate,
            burst,
            period_s,
            advertise=self.advertise,
            shadow=shadow or self.mode is Mode.SHADOW,
            match=Match(match.access, match.surfaces, match.routes, match.methods),
            concurrent=self.concurrent is not None and self.rate is None,
            on_outage=None if self.on_error is None else _OUTAGE[self.on_error],
            weighted=self.cost is CostMode.WEIGHTED,
            settlement=None
            if settle is None
            else Settlement(settle.cached, settle.not_modified, settle.second, settle.mebibyte),
            absorb_s=self.absorb,
        )


class CostEntry(Section, frozen=True):
    """What one operation weighs."""

    match: Route
    """`METHOD /template`, as `gitlab-gateway routes` lists it."""
    cost: float
    """Tokens it takes from limits with `cost: weighted`; `0`: nothing."""
