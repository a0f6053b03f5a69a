"""Checks of limits and costs. Called by ``checks``."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.bandwidth import MAX_RATE, MIN_RATE
from ..core.limits import MOST_BURST
from .limit_model import CostMode, LimitEntry
from .model import Config
from .problems import Finding, Path, error, warning

_LONGEST_WAIT_S = 60.0


def limit_findings(config: Config) -> Iterator[Finding]:
    """Limits that refuse everybody, or nobody, or say two things."""
    advertised: str | None = None
    teams = any(identity.team for identity in config.identities)
    for index, limit in enumerate(config.limits):
        path: Path = ("limits", index)
        yield from _amount(limit, path)
        if limit.advertise:
            if advertised is not None:
                yield error((*path, "advertise"), f"is already claimed by `{advertised}`: callers see one limit's numbers")
            advertised = advertised or limit.id
        if limit.by == "team" and not teams:
            yield warning((*path, "by"), "never applies: no identity has a `team`")


def _amount(limit: LimitEntry, path: Path) -> Iterator[Finding]:
    if limit.burst is not None and limit.burst < 1:
        yield error((*path, "burst"), "must be at least 1, or every request is refused")
    if limit.bandwidth is not None:
        yield from _bandwidth_amount(limit, limit.bandwidth, path)
    elif limit.rate is None and limit.concurrent is None:
        yield error((*path, "rate"), "is missing: give a `rate`, `concurrent` for how many at once, or `bandwidth`")
    elif limit.rate is not None and limit.concurrent is not None:
        yield error((*path, "concurrent"), "is given together with `rate`: write two limits")
    elif limit.rate is not None and limit.burst is None and limit.rate.count < 1:
        yield error((*path, "burst"), "is missing, and the rate is below one: say how many may be taken at once")
    if limit.concurrent is not None:
        if limit.concurrent < 1:
            yield error((*path, "concurrent"), "must be at least 1, or every request is refused")
        for key, given in (
            ("burst", limit.burst is not None),
            ("cost", limit.cost is not CostMode.REQUEST),
            ("settle", limit.settle is not None),
            ("advertise", limit.advertise),
        ):
            if given:
                yield error((*path, key), "is for a `rate` only: a request in progress holds one place")
    taken = ("rate", limit.rate.count if limit.rate is not None and limit.burst is None else None)
    for key, most in (("burst", limit.burst), ("concurrent", limit.concurrent), taken):
        if most is not None and most > MOST_BURST:
            hint = ": give a `burst`" if key == "rate" else ""
            yield error((*path, key), f"is above {MOST_BURST:.0f}, the most that a bucket holds{hint}")
    if limit.absorb > _LONGEST_WAIT_S:
        yield error((*path, "absorb"), "is above 1m: clients and load balancers give up before that")
    for key in ("cached", "not_modified", "second", "mebibyte") if limit.settle is not None else ():
        value = getattr(limit.settle, key)
        share = key in {"cached", "not_modified"}
        if not 0 <= value <= (1 if share else 1e6):
            yield error((*path, "settle", key), "must be a share: from 0 to 1" if share else "must be from 0 to 1000000")
    for key, conditions in (("methods", limit.match.methods), ("routes", limit.match.routes)) if limit.match else ():
        if conditions == ():
            yield error((*path, "match", key), "is an empty list, which nothing matches: remove the key or fill it")


def _bandwidth_amount(limit: LimitEntry, bandwidth: int, path: Path) -> Iterator[Finding]:
    if not MIN_RATE <= bandwidth <= MAX_RATE:
        yield error(
            (*path, "bandwidth"), "must be from 16KiB/s (below that, clients take a download for dead) to 1000000000B/s"
        )
    for key, given in (
        ("rate", limit.rate is not None),
        ("concurrent", limit.concurrent is not None),
        ("burst", limit.burst is not None),
        ("cost", limit.cost is not CostMode.REQUEST),
        ("settle", limit.settle is not None),
        ("absorb", limit.absorb > 0),
        ("advertise", limit.advertise),
        ("on_error", limit.on_error is not None),
    ):
        if given:
            yield error((*path, key), "is given together with `bandwidth`, which refuses nobody: write two limits")


def cost_findings(config: Config) -> Iterator[Finding]:
    """Costs that nothing pays, or that are given twice."""
    seen: set[str] = set()
    for index, entry in enumerate(config.costs):
        if not 0 <= entry.cost <= 1e6:
            yield error(("costs", index, "cost"), "must be from 0 to 1000000")
        if entry.match and not entry.match.partition(" ")[2]:
            yield error(("costs", index, "match"), "names no method: write `METHOD /template`")
        if entry.match in seen:
            yield error(("costs", index, "match"), "is given twice")
        seen.add(entry.match)
    if config.costs and not any(limit.cost is CostMode.WEIGHTED for limit in config.limits):
        yield warning(("costs",), "has no effect: no limit has `cost: weighted`")
