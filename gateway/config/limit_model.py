"""The part of the configuration about limits and costs. As in ``model``, a field's docstring is its description."""

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
    """How many tokens a request takes from a bucket."""

    REQUEST = "request"
    WEIGHTED = "weighted"


class LimitMatch(Section, frozen=True):
    """Which requests a limit applies to: conditions that must all hold. One that is left out holds."""

    access: Access | None = None
    """`read` or `write`, as the route catalogue classes the operation; unlike in rules, `write` does not include read."""
    methods: tuple[Method, ...] | None = None
    """HTTP methods, one of which the request must have."""
    routes: tuple[Route, ...] | None = None
    """Routes, one of which the request must match: `/template` or `METHOD /template`, as in rules."""
    surfaces: tuple[Surface, ...] | None = None
    """GitLab's HTTP surfaces (`rest`, `git` …), one of which the route must belong to."""


class Settle(Section, frozen=True):
    """How the answer changes the cost of a request."""

    cached: float = 1.0
    """Share of the cost that remains if the cache answered without asking GitLab; `0` gives all of it back."""
    not_modified: float = 1.0
    """Share of the cost that remains if GitLab only answered 304."""
    second: float = 0.0
    """Tokens for each second that GitLab worked on the request (`X-Runtime`), or that the gateway waited for it in vain."""
    mebibyte: float = 0.0
    """Tokens for each MiB of the answer."""


class LimitEntry(Section, frozen=True):
    """How fast, how much or how many at once: one bucket per caller, team, project or address."""

    id: Id
    """Name of the limit in audit, metrics and `explain`."""
    by: Scope
    """Who shares a bucket: each caller, identity, team, address or project has its own, or the organisation has one."""
    rate: RateWords | None = None
    """How fast tokens flow back into the bucket: `600/min`. A limit has exactly one of `rate`, `concurrent`,
    `bandwidth`."""
    burst: int | None = None
    """How many tokens may be taken at once; if absent, the number in `rate`."""
    concurrent: int | None = None
    """Maximum number of requests in progress at one time."""
    bandwidth: Bandwidth | None = None
    """Maximum speed of all streamed answers of one bucket together, through each gateway: `20MiB/s`."""
    match: LimitMatch | None = None
    """Which requests the limit applies to; if absent, all."""
    cost: CostMode = CostMode.REQUEST
    """`request`: each request takes one token; `weighted`: as many as its operation weighs."""
    settle: Settle | None = None
    """How the answer changes the cost of the request; if absent, not at all."""
    absorb: Duration = 0.0
    """A request that would be admitted within this time waits for its turn instead of being refused."""
    advertise: bool = False
    """Send this limit's numbers to callers as `RateLimit-*`. If no limit has this, the first that applies is sent: those
    without `match` come first, and among them those `by: caller`."""
    mode: Mode = Mode.ENFORCE
    """`enforce`, or `shadow`: requests are counted and measured, but never refused."""
    on_error: OnBuckets | None = None
    """What happens to this limit while the shared buckets are unavailable; if absent, `stores.on_error.buckets` applies."""

    def limit(self, *, shadow: bool = False) -> Limit:
        """The limit as the limiter takes it; ``shadow`` puts it into shadow mode, whatever its own mode is."""
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
    """The cost of one operation."""

    match: Route
    """The operation: `METHOD /template`, as `gitlab-gateway routes` lists it."""
    cost: float
    """Tokens that the operation takes from limits with `cost: weighted`; `0`: none."""
