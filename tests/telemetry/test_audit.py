"""The audit: every request's line, in batches, by a sink that may fail."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.audit_chain import Chain, chain_key, verify
from gateway.core.errors import Code, Rejection
from gateway.telemetry.audit import (
    CHECKPOINT_S,
    AuditLog,
)
from gateway.telemetry.audit_line import SCHEMA
from gateway.telemetry.audit_writer import AuditWriter
from gateway.telemetry.spool import Spool

from .test_audit_line import exchange


class Lines:
    """A sink in memory; ``fails`` while set, waits while ``held``."""

    def __init__(self) -> None:
        self.octets = b""
        self.fails: type[Exception] | None = None
        self.held = threading.Event()
        self.held.set()
        self.closed = False
        self.synced = 0

    def write(self, lines: bytes) -> int:
        assert self.held.wait(30)
        if self.fails is not None:
            raise self.fails("no room")
        self.octets += lines
        return len(lines)

    def sync(self) -> None:
        self.synced += 1

    def was_emptied(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    @property
    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.octets.splitlines()]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


def log_to(sink: Lines) -> AuditLog:
    return AuditLog(AuditWriter(sink), wall=lambda: 1_800_000_000.5, monotonic=lambda: 100.25)


async def test_octets_that_are_no_text_are_written_all_the_same() -> None:
    sink = Lines()
    log = log_to(sink)
    log.observe(exchange(target=b"/\xff\xfe", user_agent=b"\xc3\x28\x00", sudo="\udcff\udcfe"))
    log.close()
    assert sink.events[0]["target"] == "/\\xff\\xfe"
    assert str(sink.events[0]["user_agent"]).startswith("\\xc3(")


# Batches


async def test_lines_come_in_order_and_soon() -> None:
    sink = Lines()
    log = log_to(sink)
    for number in range(1000):
        log.observe(exchange(number))
    assert sink.octets == b"", "nothing is rendered on the request's way"
    await until(lambda: sink.octets.count(b"\n") == 1000)
    assert [event["request_id"] for event in sink.events] == [f"r-{number}" for number in range(1000)]
    assert (log.events, log.dropped, log.writer.failing) == (1000, 0, False)
    log.close()


async def test_what_is_linked_in_between_keeps_its_place() -> None:
    """Between lines that are rendered and lines that are not, one comes that must be on disk at once."""
    sink = Lines()
    key = chain_key(b"k" * 32)
    chain = Chain(key, "0" * 16)
    log = AuditLog(
        AuditWriter(sink), wall=lambda: 1_800_000_000.5, monotonic=lambda: 100.25, chain=chain, before_write=True
    )
    for number in range(100):
        log.observe(exchange(number))
    await until(lambda: not log.pending)
    for number in range(100, 300):
        log.observe(exchange(number))
    await log.admit(exchange(1000))
    log.close()
    requests = [event["request_id"] for event in sink.events if "request_id" in event]
    assert [one for one in requests if one != "r-1000"] == [f"r-{number}" for number in range(300)]
    assert requests.index("r-1000") == 100
    assert list(verify(sink.octets.splitlines(), key)) == []


async def test_a_few_are_rendered_before_the_flush() -> None:
    """Else whoever comes with the flush waits for all of it."""
    log = log_to(Lines())
    for number in range(7):
        log.observe(exchange(number))
    await asyncio.sleep(0)
    assert (log.pending, log.events) == (7, 0)
    log.observe(exchange(7))
    await asyncio.sleep(0)
    assert (log.pending, log.events) == (0, 8)
    log.close()


async def test_close_writes_what_is_pending() -> None:
    sink = Lines()
    log = log_to(sink)
    for number in range(600):
        log.observe(exchange(number))
    log.close()
    assert len(sink.events) == 600
    assert sink.closed


async def test_a_slow_sink_stalls_nobody() -> None:
    """The loop goes on while the sink takes nothing."""
    sink = Lines()
    sink.held.clear()
    log = log_to(sink)
    for number in range(10):
        log.observe(exchange(number))
    await until(lambda: log.events == 10)
    for _ in range(100):
        await asyncio.sleep(0)
    assert sink.octets == b""
    sink.held.set()
    await until(lambda: sink.octets.count(b"\n") == 10)
    log.close()


@pytest.mark.parametrize("error", [OSError, ValueError])
async def test_a_failing_sink_is_counted_and_recovers(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    sink = Lines()
    sink.fails = error
    log = log_to(sink)
    with caplog.at_level(logging.ERROR):
        log.observe(exchange(1))
        log.observe(exchange(2))
        await until(lambda: log.dropped == 2)
        assert log.writer.failing
        log.observe(exchange(3))
        await until(lambda: log.dropped == 3)
    assert caplog.text.count("audit sink") == 1, "said once, not for each line"
    sink.fails = None
    log.observe(exchange(4))
    await until(lambda: b"r-4" in sink.octets)
    await until(lambda: not log.writer.failing)
    log.close()


async def test_what_finds_no_room_is_counted_logged_and_reported_in_the_audit(caplog: pytest.LogCaptureFixture) -> None:
    """The chain has no gap: it says itself how many lines it lacks."""
    sink, key = Lines(), chain_key(b"k" * 32)
    sink.held.clear()
    writer = AuditWriter(sink, queue_bytes=40_000)
    log = AuditLog(writer, chain=Chain(key, "0" * 16))
    with caplog.at_level(logging.ERROR):
        for number in range(256 * 4):
            log.observe(exchange(number))
        await until(lambda: log.dropped > 0)
    assert caplog.text.count("being dropped") == 1
    sink.held.set()
    await until(lambda: writer.has_room(20_000))
    log.observe(exchange(5000))
    log.close()
    reports = [event for event in sink.events if event.get("event") == "lines_lost"]
    assert sum(int(str(event["count"])) for event in reports) == log.dropped
    assert len([event for event in sink.events if "request_id" in event]) + log.dropped == 256 * 4 + 1
    assert list(verify(sink.octets.splitlines(), key)) == []


# Before a request goes up


async def test_by_default_nothing_waits() -> None:
    sink = Lines()
    sink.held.clear()
    log = log_to(sink)
    await log.admit(exchange(1))
    sink.held.set()
    log.close()
    assert sink.octets == b""


async def test_what_changes_something_waits_for_its_line() -> None:
    sink = Lines()
    sink.held.clear()
    log = AuditLog(AuditWriter(sink), wall=lambda: 1_800_000_000.5, monotonic=lambda: 100.25, before_write=True)
    x = exchange(1, method="POST", target=b"/api/v4/projects", rule="r", permit_use="sa", principal="ci")
    going_up = asyncio.ensure_future(log.admit(x))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not going_up.done()
    sink.held.set()
    await going_up
    assert (sink.synced, len(sink.events)) == (1, 1)
    assert sink.events[0] == {
        "schema": SCHEMA,
        "time": "2027-01-15T08:00:00.500Z",
        "event": "forwarding",
        "request_id": "r-1",
        "peer": "192.0.2.1",
        "method": "POST",
        "target": "/api/v4/projects",
        "operation": "other",
        "principal": "ci",
        "rule": "r",
        "upstream_credential": "sa",
    }
    log.close()


async def test_what_cannot_be_made_durable_does_not_go_up() -> None:
    sink = Lines()
    sink.fails = OSError
    log = AuditLog(AuditWriter(sink), before_write=True)
    with pytest.raises(Rejection) as refused:
        await log.admit(exchange(1))
    assert (refused.value.code, refused.value.status) == (Code.AUDIT_UNAVAILABLE, 503)
    log.close()


@pytest.mark.parametrize("blocks_reads", [False, True])
async def test_without_room_on_disk_nothing_changes_and_reads_by_choice(tmp_path: Path, blocks_reads: bool) -> None:
    sink = Lines()
    sink.fails = OSError
    writer = AuditWriter(sink, Spool(tmp_path, 1), retry_s=0.01)
    log = AuditLog(writer, blocks_reads=blocks_reads)
    log.observe(exchange(1))
    await until(lambda: writer.blocked)
    log.observe(exchange(2))
    await until(lambda: log.events == 2)
    assert log.closed is blocks_reads
    with pytest.raises(Rejection):
        await log.admit(exchange(3))
    sink.fails = None
    await until(lambda: not writer.blocked)
    log.observe(exchange(4))
    await until(lambda: b"r-4" in sink.octets)
    assert not log.closed
    await log.admit(exchange(5))
    log.close()


# The chain


async def test_a_chained_record_opens_closes_and_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    key = chain_key(b"k" * 32)
    sink, chain, now = Lines(), Chain(key, "0" * 16), [100.25]
    with caplog.at_level(logging.INFO, "gateway.audit"):
        log = AuditLog(
            AuditWriter(sink), wall=lambda: 1_800_000_000.5, monotonic=lambda: now[0], chain=chain, after="ab" * 32
        )
        log.observe(exchange(1))
        await until(lambda: log.events == 1)
        assert caplog.messages == []
        now[0] += CHECKPOINT_S
        log.observe(exchange(2))
        await until(lambda: log.events == 2)
        assert caplog.messages == [f"the audit's chain is at {chain.head}"]
        log.close()
    assert caplog.messages[1:] == [f"the audit's chain is at {chain.head}"]
    assert [event.get("event") for event in sink.events] == ["chain_opened", None, None, "chain_closed"]
    assert sink.events[0]["after"] == "ab" * 32
    assert list(verify(sink.octets.splitlines(), key, partial=True, heads=[chain.head])) == []
    assert list(verify(sink.octets.splitlines()[-1:], key, partial=True)) == [], "its closing line alone"
