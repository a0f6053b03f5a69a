"""Limits while the gateway runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

import pytest

from gateway.app.explaining import Explained
from gateway.app.limit_admin import LimitAdmin
from gateway.core.access import Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.limit_plan import Limits, bucket_key
from gateway.core.limits import Limit, Scope, Take
from gateway.core.messages import ResponseHead
from gateway.core.target import parse_target
from gateway.limit_stage import LimitStage
from gateway.pacing_stage import PacingStage
from gateway.ports import StoreUnavailable
from gateway.stores.bucket_memory import MemoryBuckets
from gateway.telemetry.audit import AuditLog
from gateway.telemetry.audit_writer import AuditWriter
from tests.fakes.sink import MemorySink

OPERATION = Operation("GET /api/v4/user", Access.READ, Surface.REST)
TARGET = parse_target(b"/api/v4/user")
NOW = 1_800_000_000.0
BOT = Principal("bot", PrincipalKind.KEY, "bot", team="t")


class Limited:
    def __init__(self) -> None:
        self.limits = Limits.compile(
            [
                Limit("caller", Scope.CALLER, 0.001, 4.0),
                Limit("team", Scope.TEAM, 0.001, 40.0),
                Limit("places", Scope.CALLER, 9.0, 9.0, concurrent=True),
            ]
        )
        self.stage = LimitStage(MemoryBuckets())
        self.pacing = PacingStage(self.stage, wall=lambda: NOW, monotonic=lambda: NOW)
        self.limit_admin = LimitAdmin(self.limits, self.stage, None, pacing=self.pacing)

    async def admitted(self, tries: int) -> int:
        count = 0
        for number in range(tries):
            takes = self.limits.takes_for(BOT, OPERATION, TARGET, "GET", "")
            ticket = await self.stage.admit(takes, BOT, f"{number}")
            ticket.close(None)
            count += ticket.decision.allowed
        return count

    async def change(self, **body: object) -> Any:
        return await self.limit_admin.change("admin:x", "127.0.0.1", {"limit": "caller", "subject": "bot", **body})


async def test_raised_lowered_and_back_to_what_is_configured() -> None:
    gateway = Limited()
    assert await gateway.admitted(10) == 4
    await gateway.change(reset=True)
    await gateway.change(factor=2.0)
    assert await gateway.admitted(10) == 4  # what is in the bucket is in it; it may hold more from now on
    await gateway.change(reset=True)
    await gateway.change(factor=0.5)
    assert await gateway.admitted(10) == 2
    assert (await gateway.change(reset=True))["until"] is None
    assert await gateway.admitted(10) == 4
    gateway.limit_admin.close()


async def test_a_change_ends_by_itself() -> None:
    gateway = Limited()
    assert (await gateway.change(pause=True, seconds=1.0))["until"]
    assert await gateway.admitted(10) == 10
    (timer,) = [change.timer for change in gateway.limit_admin._active.values()]
    timer._run()
    assert await gateway.admitted(10) == 4


async def test_the_hottest_are_known_where_the_stores_clock_is_another() -> None:
    gateway = Limited()
    gateway.limit_admin = LimitAdmin(gateway.limits, gateway.stage, None, wall=lambda: time.time() + 3600.0)
    await gateway.admitted(6)
    for _ in range(2):
        top: Any = await gateway.limit_admin.top(5)
        assert [(one["caller"], one["asked"]) for one in top["callers"]] == [("bot", 6)]
    gateway.limit_admin.close()


async def test_the_hottest_with_their_buckets() -> None:
    gateway = Limited()
    await gateway.admitted(6)
    await gateway.change(factor=3.0)
    top: Any = await gateway.limit_admin.top(5)
    assert [(one["caller"], one["asked"], one["refused"]) for one in top["callers"]] == [("bot", 6, 2)]
    assert [(one["limit"], one["burst"]) for one in top["callers"][0]["buckets"]] == [("caller", 12.0), ("places", 9.0)]
    assert top["callers"][0]["buckets"][0]["remaining"] < 1
    assert top["changed"][0]["factor"] == 3.0
    assert top["waiting"] == 0
    gateway.limit_admin.close()
    assert (await asyncio.wait_for(gateway.limit_admin.top(1), 1))["changed"] == []  # type: ignore[index]


async def test_buckets_as_they_are_and_as_they_were_changed() -> None:
    gateway = Limited()
    await gateway.admitted(3)
    takes = gateway.limits.takes_for(BOT, OPERATION, TARGET, "GET", "")
    gateway.pacing.learn("sa", ResponseHead(429, ((b"Retry-After", b"17"),)))
    await gateway.change(factor=2.0, seconds=60.0)
    await gateway.change(limit="team", subject="t", pause=True)
    stranger = Take(bucket_key("other", "bot"), Limit("other", Scope.CALLER, 1.0, 1.0))
    for _ in range(2):  # looking changes nothing
        levels = await gateway.limit_admin.levels(Explained(True, (), takes=(*takes, stranger), credentials=("sa",)))
        assert list(levels.buckets) == [take.key for take in takes]
        caller, team, places = levels.buckets.values()
        assert (caller.burst, caller.factor, caller.paused, 1 <= caller.remaining < 1.1) == (8.0, 2.0, False, True)
        assert (team.burst, team.factor, team.paused, team.until > 0) == (40.0, None, True, True)
        assert (places.burst, places.remaining, places.until) == (9.0, 9.0, 0.0)
        assert (levels.paces["sa"].blocked_s, levels.unknown) == (17.0, "")
    gateway.limit_admin.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param({"limit": "other", "pause": True}, "not one of those configured", id="unknown-limit"),
        pytest.param({}, "one of factor, pause and reset", id="nothing-asked"),
        pytest.param({"pause": True, "reset": True}, "one of factor, pause and reset", id="two-things-asked"),
        pytest.param({"factor": 0.0}, "factor: must be from", id="factor-zero"),
        pytest.param({"factor": 1e9}, "factor: must be from", id="factor-huge"),
        pytest.param({"pause": True, "seconds": 0.0}, "seconds: must be from", id="no-time"),
        pytest.param({"pause": True, "seconds": 1e9}, "seconds: must be from", id="too-long"),
        pytest.param({"pause": True, "subject": ""}, "subject: must be", id="no-subject"),
        pytest.param({"pause": True, "subject": "a\nb"}, "subject: must be", id="line-break"),
        pytest.param({"pause": "yes"}, "Expected `bool`", id="type"),
        pytest.param({"pausing": True}, "unknown field", id="unknown-key"),
    ],
)
async def test_what_can_t_be_done(body: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        await Limited().change(**body)


async def test_who_can_have_no_bucket_is_not_taken_for_somebody() -> None:
    """A misspelt team would be told that it was done, and nothing would have changed."""
    gateway = Limited()
    limit_admin = LimitAdmin(gateway.limits, gateway.stage, None, subjects={Scope.TEAM: frozenset({"t", "u"})})
    asked = {"limit": "team", "factor": 2.0, "seconds": 60.0}
    with pytest.raises(ValueError, match="subject: has no bucket of `team`, which is by team: t, u"):
        await limit_admin.change("admin:x", "127.0.0.1", {**asked, "subject": "tea"})
    await limit_admin.change("admin:x", "127.0.0.1", {**asked, "subject": "t"})
    await limit_admin.change("admin:x", "127.0.0.1", {**asked, "limit": "caller", "subject": "user:42"})
    limit_admin.close()


@pytest.mark.parametrize(
    ("subject", "written"),
    [
        ("anonymous:2001:db8::1", "anonymous:2001:db8::1"),
        ("platform/api", "platform/api"),
        ("bot&status=200 limit=evil", "bot%26status%3D200%20limit%3Devil"),
        ("100%?#ü", "100%25%3F%23%C3%BC"),
    ],
)
async def test_a_subject_says_nothing_else_in_the_audit(subject: str, written: str) -> None:
    gateway, lines = Limited(), MemorySink()
    audit = AuditLog(AuditWriter(lines))
    limit_admin = LimitAdmin(gateway.limits, gateway.stage, audit)
    await limit_admin.change(
        "admin:x", "127.0.0.1", {"limit": "caller", "subject": subject, "pause": True, "seconds": 60.0}
    )
    limit_admin.close()
    audit.close()
    (line,) = lines.octets.splitlines()
    assert json.loads(line)["target"] == f"/-/limits?limit=caller&subject={written}&pause&seconds=60"


async def test_changes_are_bounded() -> None:
    gateway = Limited()
    for number in range(1000):
        await gateway.change(subject=f"bot-{number}", pause=True)
    with pytest.raises(ValueError, match="too many"):
        await gateway.change(pause=True)
    await gateway.change(reset=True)
    gateway.limit_admin.close()


# Among gateways


class MemoryChanges:
    """A store of changes in memory, that may be away."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.away = False
        self.read_by = asyncio.Event()

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("away")

    async def read(self) -> dict[str, bytes]:
        self._reach()
        self.read_by.set()
        seen = dict(self.stored)
        await asyncio.sleep(0)  # an answer is on its way for a while
        return seen

    async def put(self, name: str, octets: bytes) -> None:
        self._reach()
        self.stored[name] = octets

    async def drop(self, names: Iterable[str]) -> None:
        self._reach()
        for name in names:
            self.stored.pop(name, None)


class Shared:
    """Two gateways with one store of changes, and one clock."""

    def __init__(self) -> None:
        self.changes = MemoryChanges()
        self.now = 1000.0
        self.one, self.two = Limited(), Limited()
        for gateway in (self.one, self.two):
            gateway.limit_admin = LimitAdmin(gateway.limits, gateway.stage, None, self.changes, wall=lambda: self.now)

    def burst(self, gateway: Limited) -> float | None:
        takes = gateway.limits.takes_for(BOT, OPERATION, TARGET, "GET", "")
        return next((take.limit.burst for take in takes if take.limit.id == "caller"), None)

    def close(self) -> None:
        self.one.limit_admin.close()
        self.two.limit_admin.close()


async def test_other_gateways_apply_the_change_of_one() -> None:
    shared = Shared()
    assert (await shared.one.change(factor=2.0, seconds=60.0))["shared"] is True
    assert (shared.burst(shared.one), shared.burst(shared.two)) == (8.0, 4.0)
    await shared.two.limit_admin.refresh()
    await shared.two.limit_admin.refresh()
    assert shared.burst(shared.two) == 8.0
    await shared.two.change(pause=True)
    await shared.one.limit_admin.refresh()
    assert shared.burst(shared.one) is None
    await shared.one.change(reset=True)
    await shared.two.limit_admin.refresh()
    assert (shared.burst(shared.one), shared.burst(shared.two)) == (4.0, 4.0)
    shared.close()


async def test_a_bucket_that_was_reset_is_full_though_others_learn_of_it_later() -> None:
    shared, buckets = Shared(), MemoryBuckets()
    for gateway in (shared.one, shared.two):
        gateway.stage = LimitStage(buckets)
        gateway.limit_admin = LimitAdmin(gateway.limits, gateway.stage, None, shared.changes, wall=lambda: shared.now)
    await shared.one.change(factor=0.25)
    await shared.two.limit_admin.refresh()
    assert await shared.one.admitted(10) == 1
    await shared.two.change(reset=True)
    assert await shared.one.admitted(10) == 1, "it does not know yet, and has cut the bucket down once more"
    await shared.one.limit_admin.refresh()
    assert (await shared.one.admitted(4), await shared.two.admitted(4)) == (4, 0)
    shared.close()


async def test_a_change_whose_time_is_over_is_removed_and_changes_nothing() -> None:
    shared = Shared()
    await shared.one.change(factor=2.0, seconds=60.0)
    for later, kept in ((61.0, 1), (3600.0, 0)):
        shared.now += later
        await shared.two.limit_admin.refresh()
        assert shared.burst(shared.two) == 4.0
        assert len(shared.changes.stored) == kept
        await shared.one.limit_admin.refresh()
        assert shared.burst(shared.one) == 4.0
    shared.close()


async def test_a_gateway_whose_clock_is_ahead_ends_nobody_elses_change() -> None:
    shared = Shared()
    ahead = LimitAdmin(shared.two.limits, shared.two.stage, None, shared.changes, wall=lambda: shared.now + 300.0)
    assert (await shared.one.change(factor=2.0, seconds=240.0))["shared"] is True
    for _ in range(2):
        await ahead.refresh()
        await shared.one.limit_admin.refresh()
    assert (shared.burst(shared.one), shared.burst(shared.two)) == (8.0, 4.0)
    shared.close()


async def test_without_the_store_a_change_is_this_gateways_and_lasts() -> None:
    shared = Shared()
    await shared.two.change(factor=3.0)
    shared.changes.away = True
    assert (await shared.one.change(factor=2.0))["shared"] is False
    await shared.one.limit_admin.refresh()
    await shared.two.limit_admin.refresh()
    assert (shared.burst(shared.one), shared.burst(shared.two)) == (8.0, 12.0)
    shared.changes.away, shared.changes.stored = False, {}
    await shared.one.limit_admin.refresh()
    await shared.two.limit_admin.refresh()
    assert (shared.burst(shared.one), shared.burst(shared.two)) == (8.0, 4.0)
    shared.close()


async def test_what_was_read_before_a_change_does_not_undo_it() -> None:
    shared = Shared()
    reading = asyncio.ensure_future(shared.one.limit_admin.refresh())
    await asyncio.sleep(0)
    await shared.one.change(factor=2.0)
    await reading
    assert shared.burst(shared.one) == 8.0
    shared.close()


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\xff",
        b'{"wish":{"limit":"gone","subject":"bot","factor":2},"until":9000}',
        b'{"wish":{"limit":"caller","subject":"bot","factor":1e9},"until":9000}',
        b'{"wish":{"limit":"caller","subject":"other","factor":2},"until":9000}',
        b'{"wish":{"limit":"caller","subject":"bot","new":1},"until":9000}',
    ],
)
async def test_changes_of_gateways_that_are_otherwise_are_passed_over(octets: bytes) -> None:
    shared = Shared()
    shared.changes.stored["{gw}:b:caller:bot"] = octets
    await shared.one.limit_admin.refresh()
    assert shared.burst(shared.one) == 4.0
    assert len(shared.changes.stored) == 1
    shared.close()


async def test_the_store_is_followed_from_the_start_until_closed() -> None:
    shared = Shared()
    await shared.one.change(factor=2.0)
    shared.two.limit_admin.start()
    await asyncio.wait_for(shared.changes.read_by.wait(), 30)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert shared.burst(shared.two) == 8.0
    follower = shared.two.limit_admin._follower
    shared.close()
    assert follower is not None
    await asyncio.gather(follower, return_exceptions=True)
    assert follower.cancelled()
    alone = Limited()
    alone.limit_admin.start()
    await alone.limit_admin.refresh()
    alone.limit_admin.close()
