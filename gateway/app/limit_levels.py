"""What buckets hold at this moment, and what GitLab said about a credential: for ``explain``, from a gateway or Redis."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ..config import Config
from ..config import compile as compiled
from ..core.limit_plan import parse_bucket_key
from ..core.limits import Decision, Take
from ..core.pacing import PaceReport
from ..ports import StoreUnavailable
from ..stores.bucket_peek import peek
from ..stores.changes_redis import RedisChanges
from ..stores.paces_redis import RedisPaces
from ..stores.redis_endpoint import HashTag
from ..stores.redis_link import RedisLink, RedisUnavailable
from .explaining import Explained
from .limit_changes import StoredChange, changed_limit, decode_change

_TIMEOUT_S = 2.0


class Bucket(msgspec.Struct, frozen=True):
    """One bucket, by the limit in force for it."""

    remaining: float
    """Tokens, or places; negative where more was used than there was."""
    burst: float
    rate: float
    """Tokens per second that flow back."""
    factor: float | None = None
    """The factor that an operator set."""
    paused: bool = False
    until: float = 0.0
    """When the operator's change ends, in Unix seconds."""

    def wait_s(self, cost: float) -> float:
        """Seconds until ``cost`` is available; 0 when it already is."""
        return max(0.0, (min(cost, self.burst) - self.remaining) / self.rate)


class Levels(msgspec.Struct, frozen=True):
    """What is known about buckets and credentials. ``unknown`` says why nothing is."""

    buckets: dict[str, Bucket] = {}
    """The buckets by key."""
    paces: dict[str, PaceReport] = {}
    """What GitLab said about its limit on each credential, where anything is known."""
    unknown: str = ""


def levels(
    decision: Decision, takes: Sequence[Take], changes: Mapping[str, StoredChange], paces: dict[str, PaceReport]
) -> Levels:
    """Combine the buckets of ``decision`` with operators' changes. ``takes`` name the limits in force."""
    if len(decision.states) != len(takes):
        return Levels(unknown="the gateway's Redis does not answer")
    buckets = {}
    for take, state in zip(takes, decision.states, strict=True):
        change = changes.get(take.key)
        buckets[take.key] = Bucket(
            round(state.remaining, 3),
            state.limit.burst,
            state.limit.rate,
            change.change.factor if change is not None else None,
            change is not None and change.change.pause,
            change.until if change is not None else 0.0,
        )
    return Levels(buckets, paces)


async def shared_levels(config: Config, explained: Explained, *, wall: Callable[[], float] = time.time) -> Levels:
    """Read the levels from Redis, as the gateways that share it see them. Reading changes nothing."""
    url = config.stores.shared.url.reveal()
    link = RedisLink.from_url(url, timeout_s=_TIMEOUT_S, name="explain", tag=HashTag.LIMITS)
    try:
        stored = await RedisChanges(link).read()
        paces = await RedisPaces(link).read(explained.credentials)
        changes, in_force = {}, []
        for take in explained.takes:
            change, limit = _decode(stored.get(take.key), config), take.limit
            if change is not None and change.until > wall():
                changes[take.key] = change
                limit = changed_limit(limit, change.change) or limit
            in_force.append(Take(take.key, limit, take.cost))
        return levels(await peek(link, in_force), in_force, changes, paces)
    except (RedisUnavailable, StoreUnavailable):
        return Levels(unknown=f"Redis does not answer ({link.trouble or 'no reason given'})")
    finally:
        await link.close()


def _decode(octets: bytes | None, config: Config) -> StoredChange | None:
    if octets is None:
        return None
    try:
        return decode_change(octets, compiled.limits(config))[1]
    except ValueError:
        return None


# In words


def describe(explained: Explained, found: Levels) -> list[tuple[str, str]]:
    """One line per bucket, and one for each credential about whose limit GitLab has said something."""
    if found.unknown:
        return [("levels", f"not known: {found.unknown}")]
    lines = []
    for take in explained.takes:
        limit_id, subject = parse_bucket_key(take.key)
        if take.key in explained.unnamed:
            lines.append(("bucket", f"{limit_id}: each caller has one of its own; name a caller with --caller"))
        elif take.key not in found.buckets:
            lines.append(("bucket", f"{limit_id} of {subject}: unknown to the gateway that was asked"))
        else:
            lines.append(("bucket", f"{limit_id} of {subject}: {_bucket(take, found.buckets[take.key])}"))
    for credential in explained.credentials:
        pace = found.paces.get(credential, PaceReport())
        if pace.blocked_s > 0:
            lines.append(("pace", f"GitLab throttles `{credential}`: it is not used for {_span(pace.blocked_s)}"))
        elif pace.rate > 0 and pace.window_s > 0:
            words = f"{pace.rate * 60:.3g} requests per minute are left of GitLab's limit for {_span(pace.window_s)}"
            lines.append(("pace", f"`{credential}` at GitLab's pace: {words}"))
    return lines


def _bucket(take: Take, held: Bucket) -> str:
    if take.limit.concurrent:
        words = f"{held.burst - held.remaining:g} of {held.burst:g} in progress"
        refuses = "would refuse" if held.remaining < 1 else ""
    else:
        words = f"{held.remaining:g} of {held.burst:g} left"
        wait_s = held.wait_s(take.cost)
        refuses = f"would refuse, for {_span(wait_s)}" if wait_s > 0 else ""
        if not refuses and held.remaining < held.burst:
            words += f", full in {_span((held.burst - held.remaining) / held.rate)}"
    if held.paused:
        refuses = ""
    elif refuses and take.limit.shadow:
        refuses += " if it were enforced"
    changed = ""
    if held.until:
        until = datetime.datetime.fromtimestamp(held.until, datetime.UTC).isoformat(timespec="seconds")
        effect = "paused" if held.paused else f"set to {held.factor:g} times"
        changed = f"{effect} by an operator until {until.replace('+00:00', 'Z')}"
    return "; ".join([part for part in (words, refuses, changed) if part])


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
