"""Levels for ``explain``: from a real Redis, and in words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.app.explaining import Explained
from gateway.app.limit_changes import LimitChange, StoredChange
from gateway.app.limit_levels import Bucket, Levels, describe, levels, shared_levels
from gateway.config import Config
from gateway.core.limit_plan import bucket_key
from gateway.core.limits import Decision, Limit, Scope, Take
from gateway.core.pacing import PaceReport
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.changes_redis import RedisChanges
from gateway.stores.paces_redis import RedisPaces
from gateway.stores.redis_link import RedisLink
from tests.fakes.world import CONFIGURATION, SECRETS, configured

NOW = 1_800_000_000.0
CALLER = Limit("caller", Scope.CALLER, 1.0, 50.0)
PLACES = Limit("places", Scope.CALLER, 5.0, 5.0, concurrent=True)


def asking(*takes: Take, use: str = "", unnamed: frozenset[str] = frozenset()) -> Explained:
    return Explained(True, (), takes=takes, credentials=(use,) if use else (), unnamed=unnamed)


def take(limit: Limit = CALLER, cost: float = 1.0) -> Take:
    return Take(bucket_key(limit.id, "reader"), limit, cost)


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="test")
    yield link
    await link.close()


def sharing(url: str, tmp_path: Path) -> Config:
    return configured(f"{CONFIGURATION}{SECRETS}stores: {{shared: '{url}'}}\n", tmp_path)


async def test_what_gateways_have_taken_and_operators_changed_is_seen(
    redis_url: str, link: RedisLink, tmp_path: Path
) -> None:
    config = sharing(redis_url, tmp_path)
    buckets = RedisBuckets(RedisLink.from_url(redis_url, timeout_s=60.0, name="buckets"))
    await buckets.take([take(cost=20.0), take(PLACES)], b"one")
    stored = StoredChange(LimitChange("caller", "reader", factor=2.0), NOW + 60)
    await RedisChanges(link).put(take().key, msgspec.json.encode(stored))
    await RedisPaces(link).put({"sa": PaceReport(30.0, 1.5, 40.0, 0.0)})
    before = sorted(await link.execute("KEYS", "*"))  # type: ignore[type-var, arg-type]
    seen = await shared_levels(config, asking(take(), take(PLACES), use="sa"), wall=lambda: NOW)
    assert not seen.unknown
    caller, places = seen.buckets.values()
    assert 30 <= caller.remaining < 100
    assert (caller.burst, caller.factor, caller.until) == (100.0, 2.0, NOW + 60)
    assert (places.remaining, places.burst) == (4.0, 5.0)
    assert 0 < seen.paces["sa"].blocked_s <= 30
    assert seen.paces["sa"].rate == 1.5
    over = await shared_levels(config, asking(take()), wall=lambda: NOW + 61)
    assert (over.buckets[take().key].factor, over.paces) == (None, {})
    assert sorted(await link.execute("KEYS", "*")) == before  # type: ignore[type-var, arg-type]
    await buckets.close()


@pytest.mark.parametrize("note", [b"\xff", b'{"wish":{"limit":"gone","subject":"reader","pause":true},"until":9e9}'])
async def test_notes_of_others_are_passed_over(redis_url: str, link: RedisLink, tmp_path: Path, note: bytes) -> None:
    await RedisChanges(link).put(take().key, note)
    seen = await shared_levels(sharing(redis_url, tmp_path), asking(take()))
    assert seen.buckets[take().key] == Bucket(50.0, 50.0, 1.0)


async def test_a_redis_that_is_away_is_said(tmp_path: Path) -> None:
    seen = await shared_levels(sharing("redis://127.0.0.1:1/0", tmp_path), asking(take(), use="sa"))
    assert seen.unknown == "Redis does not answer (ConnectionRefusedError)"


def test_no_states_are_no_levels() -> None:
    assert levels(Decision(True, (), NOW, degraded=True), [take()], {}, {}).unknown


@pytest.mark.parametrize(
    ("limit", "cost", "held", "words"),
    [
        (CALLER, 1.0, Bucket(50.0, 50.0, 1.0), "50 of 50 left"),
        (CALLER, 1.0, Bucket(20.0, 50.0, 1.0), "20 of 50 left, full in 30 s"),
        (CALLER, 4.0, Bucket(1.0, 50.0, 0.5), "1 of 50 left; would refuse, for 6 s"),
        (CALLER, 99.0, Bucket(48.0, 50.0, 1.0), "48 of 50 left; would refuse, for 2 s"),
        (CALLER, 1.0, Bucket(-2.0, 50.0, 1.0), "-2 of 50 left; would refuse, for 3 s"),
        (
            msgspec.structs.replace(CALLER, shadow=True),
            1.0,
            Bucket(0.0, 50.0, 1.0),
            "would refuse, for 1 s if it were enforced",
        ),
        (
            CALLER,
            1.0,
            Bucket(9.0, 100.0, 2.0, factor=2.0, until=NOW),
            "set to 2 times by an operator until 2027-01-15T08:00",
        ),
        (CALLER, 1.0, Bucket(0.0, 50.0, 1.0, paused=True, until=NOW), "0 of 50 left; paused by an operator until 2027"),
        (PLACES, 1.0, Bucket(2.0, 5.0, 5.0), "3 of 5 in progress"),
        (PLACES, 1.0, Bucket(0.0, 5.0, 5.0), "5 of 5 in progress; would refuse"),
    ],
)
def test_a_bucket_in_words(limit: Limit, cost: float, held: Bucket, words: str) -> None:
    asked = take(limit, cost)
    ((stage, line),) = describe(asking(asked), Levels({asked.key: held}))
    assert (stage, line.startswith(f"{limit.id} of reader: ")) == ("bucket", True)
    assert words in line


def test_what_cannot_be_known_is_said() -> None:
    assert describe(asking(take()), Levels(unknown="nobody answers")) == [("levels", "not known: nobody answers")]
    assert "unknown to the gateway" in describe(asking(take()), Levels())[0][1]
    assert "--caller" in describe(asking(take(), unnamed=frozenset({take().key})), Levels())[0][1]


def test_gitlabs_own_limit_in_words() -> None:
    assert "it is not used for 12 s" in describe(asking(use="sa"), Levels(paces={"sa": PaceReport(12.0)}))[0][1]
    assert (
        "90 requests per minute are left of GitLab's limit for 40 s"
        in describe(asking(use="sa"), Levels(paces={"sa": PaceReport(0.0, 1.5, 40.0)}))[0][1]
    )
