"""The audit's thread, over a sink that fails in every way: nothing out of order, nothing twice, nothing lost in silence."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.audit_chain import Chain, chain_key, verify
from gateway.telemetry.audit_writer import ROOM_BYTES, AuditWriter
from gateway.telemetry.sinks import Tail
from gateway.telemetry.spool import Spool


class Moody:
    """A sink that takes what ``mood`` says of each write: so many octets, or an error."""

    def __init__(self, mood: Callable[[int], int] = lambda size: size) -> None:
        self.octets = b""
        self.mood = mood
        self.sync_fails = self.is_empty = False
        self.held = threading.Event()
        self.held.set()
        self.closed = False

    def write(self, lines: bytes) -> int:
        assert self.held.wait(30)
        taken = min(len(lines), self.mood(len(lines)))
        if taken <= 0:
            raise OSError(28, "No space left on device")
        self.octets += lines[:taken]
        self.is_empty = False
        return taken

    def sync(self) -> None:
        if self.sync_fails:
            raise OSError(5, "Input/output error")

    def empty(self) -> None:
        self.octets, self.is_empty = b"", True

    def was_emptied(self) -> bool:
        return self.is_empty

    def close(self) -> None:
        self.closed = True


def line(number: int) -> bytes:
    return b'{"schema":1,"n":%d}\n' % number


def lines(first: int, last: int) -> bytes:
    return b"".join(line(number) for number in range(first, last))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


def nothing(_: int) -> int:
    return 0


async def test_what_is_offered_is_written_in_order() -> None:
    sink = Moody()
    writer = AuditWriter(sink)
    for number in range(100):
        writer.offer(line(number))
    writer.close()
    assert sink.octets == lines(0, 100)
    assert sink.closed


async def test_what_the_sink_does_not_take_waits_and_follows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.01, claim_pause_s=3600.0)
    for number in range(10):
        writer.offer(line(number))
    await until(lambda: writer.spooled_bytes == len(lines(0, 10)))
    assert (writer.failing, writer.blocked, writer.dropped) == (True, False, 0)
    sink.mood = lambda size: size
    await until(lambda: not writer.failing)
    writer.offer(line(10))
    writer.close()
    assert sink.octets == lines(0, 11)
    assert writer.spooled_bytes == 0
    assert list(tmp_path.iterdir()) == []
    assert [record.message for record in caplog.records] == [
        "the audit sink fails: No space left on device",
        "the audit sink takes lines again",
    ]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (BlockingIOError(11, os.strerror(11)), "it stalls"),
        (BlockingIOError(11, "another process is in the middle of a line"), "another process is in the middle of a line"),
        (ValueError(), "ValueError"),
    ],
)
@pytest.mark.parametrize("part", [0, 7])
async def test_the_log_says_what_stopped_the_sink_on_the_way(
    caplog: pytest.LogCaptureFixture, error: Exception, why: str, part: int
) -> None:
    """Once: a disk that was full after a part of a line is a full disk."""
    takes = [part] if part else []

    def mood(_: int) -> int:
        if takes:
            return takes.pop()
        raise error

    sink = Moody(mood)
    writer = AuditWriter(sink)
    writer.offer(lines(0, 3))
    await until(lambda: writer.failing and "fails" in caplog.text)
    writer.close()
    assert [record.message for record in caplog.records if "fails" in record.message] == [f"the audit sink fails: {why}"]
    assert sink.octets == lines(0, 3)[:part]


async def test_whatever_the_sink_takes_the_record_is_whole(tmp_path: Path) -> None:
    """Any history of parts and failures, and a chain over it."""
    for seed in range(40):
        chance = random.Random(seed)
        key = chain_key(b"k" * 32)
        chain = Chain(key, "0" * 16)
        sink = Moody(lambda size, chance=chance: chance.choice([0, 0, 1, 7, size // 2, size]))
        writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.0001)
        offered = b""
        for number in range(chance.randrange(1, 60)):
            event = b'{"schema":1,"event":"chain_opened"}' if number == 0 else b'{"schema":1,"n":%d}' % number
            linked = chain.link(event) + b"\n"
            offered += linked
            writer.offer(linked)
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        sink.mood = lambda size: size
        await until(lambda writer=writer, sink=sink, offered=offered: len(sink.octets) >= len(offered))
        writer.close()
        assert sink.octets == offered, f"seed {seed}"
        assert list(verify(sink.octets.splitlines(), key, still_open=True)) == []


async def test_a_process_that_ends_leaves_it_to_the_next(tmp_path: Path) -> None:
    sink = Moody(nothing)
    first = AuditWriter(sink, Spool(tmp_path, 1 << 20))
    first.offer(lines(0, 5))
    first.close()
    assert sink.octets == b""
    spool = Spool(tmp_path, 1 << 20)
    spool.claim()
    sink.mood = lambda size: size
    second = AuditWriter(sink, spool)
    second.offer(lines(5, 8))
    second.close()
    assert sink.octets == lines(0, 8)


async def test_one_process_after_the_other_goes_on_where_the_sink_stands(tmp_path: Path) -> None:
    """A disk that is full but for some octets now and then: each takes parts, and leaves what it could not write."""
    for seed in range(60):
        chance = random.Random(seed)
        sink = Moody()
        offered = b""
        for process in range(6):
            sink.mood = (
                (lambda size: size)
                if process == 5
                else lambda size, chance=chance: chance.choice([0, 0, 1, 7, size // 2, size])  # type: ignore[misc]
            )
            whole, _, torn = sink.octets.rpartition(b"\n")
            spool = Spool(tmp_path, 1 << 20)
            spool.claim()
            first = spool.resume(Tail(whole.rpartition(b"\n")[2], torn))
            writer = AuditWriter(sink, spool, partial_line=torn, torn=first, retry_s=0.0001)
            for _ in range(chance.randrange(1, 6)):
                one = b'{"schema":1,"n":%d,"x":"%b"}\n' % (len(offered), b"x" * chance.randrange(30))
                offered += one
                writer.offer(one)
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            writer.close()
        assert sink.octets == offered, f"seed {seed}"
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails_first", [False, True])
@pytest.mark.parametrize("kept", [None, b"", line(7)])
async def test_a_line_that_another_process_cut_is_ended_first(
    tmp_path: Path, kept: bytes | None, fails_first: bool
) -> None:
    """Before what that process left, and though the sink takes nothing for a while."""
    sink = Moody(nothing if fails_first else lambda size: size)
    spool = None if kept is None else Spool(tmp_path, 1 << 20)
    if spool is not None and kept:
        spool.append(kept)
    writer = AuditWriter(sink, spool, partial_line=b'{"sch', torn=b"\n", retry_s=0.0001)
    if fails_first:
        writer.offer(line(1))
        await until(lambda: writer.failing and writer._queued == 0)
        sink.mood = lambda size: size
    writer.offer(line(2))
    writer.close()
    first = line(1) if fails_first and spool is not None else b""
    assert sink.octets == b"\n" + (kept or b"") + first + line(2)
    assert writer.dropped == (fails_first and spool is None)


# No room


async def test_a_spool_that_is_full_blocks_until_it_is_not(tmp_path: Path) -> None:
    sink = Moody(nothing)
    size = ROOM_BYTES + 1000
    writer = AuditWriter(sink, Spool(tmp_path, size), retry_s=0.01)
    assert not writer.blocked
    writer.offer(line(0))
    await until(lambda: writer.spooled_bytes > 0)
    assert not writer.blocked
    some = lines(1000, 1100)
    writer.offer(some)
    assert writer.blocked, "the lines of requests in progress still have room"
    assert writer.has_room(ROOM_BYTES - len(some))
    assert not writer.has_room(size)
    sink.mood = lambda size: size
    await until(lambda: not writer.failing)
    assert not writer.blocked
    writer.close()
    assert sink.octets == line(0) + some


async def test_a_disk_that_fails_as_well_blocks_at_once_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []
    sink = Moody(lambda size: nothing(tries.append(size) or size))
    writer = AuditWriter(sink, Spool(tmp_path / "nowhere", 1 << 20), retry_s=0.01)
    writer.offer(line(0))
    await until(lambda: writer.blocked)
    settling = asyncio.ensure_future(writer.write_durably(line(1)))
    await until(lambda: len(tries) > 9)
    assert writer.has_room(1000)
    (tmp_path / "nowhere").mkdir()
    assert await settling, "what is new waits for what is held"
    assert writer.spooled_bytes == len(lines(0, 2))
    assert not writer.blocked
    sink.mood = lambda size: size
    writer.close()
    assert sink.octets == lines(0, 2)
    assert caplog.text.count("spool fails") == 1


async def test_a_sink_that_hangs_fills_memory_to_a_bound() -> None:
    sink = Moody()
    sink.held.clear()
    writer = AuditWriter(sink, Spool(None, 1 << 20), queue_bytes=ROOM_BYTES + 100)
    writer.offer(b"x" * 99 + b"\n")
    assert not writer.blocked
    writer.offer(b"y\n")
    assert writer.blocked
    sink.held.set()
    await until(lambda: not writer.blocked)
    writer.close()


# Without a spool


async def test_without_a_spool_lines_are_lost_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    sink = Moody(nothing)
    writer = AuditWriter(sink)
    writer.offer(lines(0, 3))
    await until(lambda: writer.dropped == 3)
    writer.offer(lines(3, 5))
    await until(lambda: writer.dropped == 5)
    assert (writer.failing, writer.blocked) == (True, False)
    sink.mood = lambda size: size
    writer.offer(line(5))
    await until(lambda: not writer.failing)
    writer.close()
    assert sink.octets == line(5)
    assert caplog.text.count("sink fails") == 1


async def test_a_line_cut_short_is_ended_before_another_begins() -> None:
    takes = [len(line(0)) + 4]
    sink = Moody(lambda _: takes.pop() if takes else 0)
    writer = AuditWriter(sink)
    writer.offer(lines(0, 4))
    await until(lambda: writer.dropped == 2)
    writer.offer(line(4))
    await until(lambda: writer.dropped == 3)
    sink.mood = lambda size: size
    writer.offer(line(5))
    writer.close()
    assert sink.octets == lines(0, 2) + line(5)


# Somebody makes room


@pytest.mark.parametrize("spools", [True, False])
async def test_a_line_that_the_sink_had_a_part_of_when_it_was_emptied_begins_anew(tmp_path: Path, spools: bool) -> None:
    """`truncate -s 0`, or logrotate's `copytruncate`: who reads on finds whole lines."""
    takes = [len(line(0)) + 7, 3]
    sink = Moody(lambda _: takes.pop(0) if takes else 0)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20) if spools else None, retry_s=0.01)
    writer.offer(lines(0, 3))
    await until(lambda: writer.failing and writer._queued == 0)
    sink.empty()
    writer.offer(line(3))
    await until(lambda: writer._queued == 0)
    takes.append(9)
    writer.offer(line(4))
    await until(lambda: not takes)
    assert sink.octets == line(1)[:9]
    sink.mood = lambda size: size
    writer.close()
    assert sink.octets == (lines(1, 5) if spools else line(4)), "or none of it"
    assert writer.dropped == (0 if spools else 3)


async def test_it_begins_anew_out_of_memory_as_well(tmp_path: Path) -> None:
    """Where the spool's disk fails, too."""
    takes = [len(line(0)) + 7, 3]
    sink = Moody(lambda _: takes.pop(0) if takes else 0)
    writer = AuditWriter(sink, Spool(tmp_path / "nowhere", 1 << 20), retry_s=0.01)
    writer.offer(lines(0, 3))
    await until(lambda: writer.blocked)
    sink.empty()
    sink.mood = lambda size: size
    await until(lambda: not writer.blocked)
    writer.close()
    assert sink.octets == lines(1, 3)


async def test_a_cut_line_is_not_ended_in_a_sink_that_was_emptied() -> None:
    sink = Moody()
    sink.empty()
    writer = AuditWriter(sink, partial_line=b'{"sch', torn=b"\n")
    writer.offer(line(0))
    writer.close()
    assert sink.octets == line(0)


# On disk before something happens


async def test_durable_means_synced(caplog: pytest.LogCaptureFixture) -> None:
    sink = Moody()
    writer = AuditWriter(sink)
    assert await writer.write_durably(line(0))
    assert sink.octets == line(0)
    sink.sync_fails = True
    assert not await writer.write_durably(line(1))
    assert "synced to disk" in caplog.text
    sink.mood = nothing
    assert not await writer.write_durably(line(2)), "lost"
    writer.close()


async def test_the_spool_is_as_good(tmp_path: Path) -> None:
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20))
    assert await writer.write_durably(line(0))
    assert (tmp_path / "audit-0.spool").read_bytes() == line(0)
    writer.close()


async def test_what_was_promised_leaves_the_spool_when_the_sinks_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), durable=True, retry_s=0.01, claim_pause_s=0.0)
    assert await writer.write_durably(line(0))
    done: list[str] = []
    truncate = os.ftruncate

    def truncating(descriptor: int, size: int) -> None:
        done.append(f"spool cut after {len(sink.octets)}")
        truncate(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", truncating)
    monkeypatch.setattr(sink, "sync", lambda: done.append(f"synced {len(sink.octets)}"))
    sink.mood = lambda size: size
    size = len(line(0))
    await until(lambda: not writer.spooled_bytes)
    assert done == [f"synced {size}", f"spool cut after {size}"]
    left = Spool(tmp_path, 1 << 20)
    left.append(line(1))
    left.close()
    await until(lambda: sink.octets == lines(0, 2) and not writer.spooled_bytes)
    writer.close()
    assert done[2:] == [f"synced {2 * size}", f"spool cut after {2 * size}"]


@pytest.mark.parametrize("durable", [False, True])
async def test_what_left_the_spool_does_not_come_back_with_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Where the sink has it for good; else it may well."""
    kept = tmp_path / "audit-0.spool"
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), durable=durable, retry_s=0.01)
    assert await writer.write_durably(line(0))
    on_disk = [kept.stat().st_size]
    monkeypatch.setattr(os, "fsync", lambda descriptor: on_disk.append(os.fstat(descriptor).st_size))
    sink.mood = lambda size: size
    await until(lambda: not kept.stat().st_size)
    writer.close()
    assert on_disk[-1] == (0 if durable else len(line(0)))


async def test_what_was_promised_stays_in_the_spool_while_the_sink_cannot_be_synced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sink has it, and may lose it: it is written again. Whoever waits for that learns it."""
    kept = tmp_path / "audit-0.spool"
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), durable=True, retry_s=0.01, claim_pause_s=0.01)
    assert await writer.write_durably(line(0))
    sink.sync_fails = True
    sink.mood = lambda size: size
    await until(lambda: writer.sync_failing and not writer.failing)
    assert not await writer.write_durably(line(1))
    assert (sink.octets, kept.read_bytes(), writer.spooled_bytes) == (lines(0, 2), line(0), 0)
    sink.sync_fails = False
    await until(lambda: not kept.stat().st_size)
    assert not writer.sync_failing
    assert await writer.write_durably(line(2))
    sink.sync_fails = True
    sink.mood = nothing
    assert await writer.write_durably(line(3)), "the sink has nothing of it"
    sink.mood = lambda size: size
    writer.close()
    assert sink.octets == lines(0, 2) + line(0) + lines(2, 4)
    assert kept.read_bytes() == line(3), "for the next process"
    assert [record.message for record in caplog.records] == [
        "the audit sink fails: No space left on device",
        "the audit cannot be synced to disk: Input/output error",
        "the audit sink takes lines again",
        "the audit can be synced to disk again",
        f"lines the audit sink accepted before a failed fsync are written again: {len(line(0))} octets",
        "the audit sink fails: No space left on device",
        "the audit cannot be synced to disk: Input/output error",
        "the audit sink takes lines again",
    ]


async def test_what_could_not_be_synced_is_written_again_until_it_can(tmp_path: Path) -> None:
    """Linux says once that it could not write, and then that all is well: it has dropped what it could not."""
    kept = tmp_path / "audit-0.spool"
    sink = Moody(nothing)
    writer = AuditWriter(
        sink, Spool(tmp_path, 1 << 20), durable=True, retry_s=0.001, claim_pause_s=0.001, rewrite_pause_s=0.0
    )
    assert await writer.write_durably(line(0))
    dropped, synced = [0], [0]

    def sync() -> None:
        new = len(sink.octets) > synced[0]
        synced[0] = len(sink.octets)
        if new and dropped[0] < 3:
            dropped[0] += 1
            raise OSError(5, "Input/output error")

    sink.sync = sync  # type: ignore[method-assign]
    sink.mood = lambda size: size
    await until(lambda: not kept.stat().st_size)
    assert not writer.sync_failing
    writer.close()
    assert sink.octets == line(0) * 4


async def test_what_could_not_be_synced_is_not_written_again_at_once_each_time(tmp_path: Path) -> None:
    """A disk that takes all, and is sure of nothing, must not be filled with it. Changes go on."""
    sink = Moody(nothing)
    writer = AuditWriter(
        sink, Spool(tmp_path, 1 << 20), durable=True, retry_s=0.001, claim_pause_s=0.001, rewrite_pause_s=3600.0
    )
    assert await writer.write_durably(line(0))
    synced: list[int] = []

    def sync() -> None:
        synced.append(len(sink.octets))
        if synced.count(synced[-1]) == 1:
            raise OSError(5, "Input/output error")

    sink.sync = sync  # type: ignore[method-assign]
    sink.mood = lambda size: size
    await until(lambda: len(sink.octets) > len(line(0)) and not writer.sync_failing)
    sink.sync = lambda: None  # type: ignore[method-assign]
    assert await writer.write_durably(line(1))
    asked = len(synced)
    writer.close()
    assert len(synced) == asked
    assert sink.octets == line(0) * 2 + line(1)
    assert (tmp_path / "audit-0.spool").read_bytes() == line(0)


async def test_what_is_written_again_does_not_begin_within_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sink has a part of one, and the spool's disk no room for its rest."""
    takes = [5]
    sink = Moody(lambda _: takes.pop() if takes else 0)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), durable=True, retry_s=0.001)
    assert await writer.write_durably(line(0))
    spooled = writer._spool
    assert spooled is not None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spooled, "append", full)
    takes += [7, len(line(0)) - 5]  # the last first
    sink.sync_fails = True
    waiting = asyncio.ensure_future(writer.write_durably(line(1)))
    await until(lambda: writer.sync_failing and writer.blocked)
    sink.sync_fails = False
    await until(lambda: not writer.sync_failing)
    sink.mood = lambda size: size
    assert not await waiting
    await until(lambda: not (tmp_path / "audit-0.spool").stat().st_size)
    writer.close()
    assert sink.octets == lines(0, 2) + line(0)


@pytest.mark.parametrize("spools", [False, True])
async def test_that_the_sink_can_be_synced_again_is_found_without_a_change(tmp_path: Path, spools: bool) -> None:
    sink = Moody()
    sink.sync_fails = True
    spool = Spool(tmp_path, 1 << 20) if spools else None
    writer = AuditWriter(sink, spool, durable=True, retry_s=0.01, claim_pause_s=3600.0)
    assert not await writer.write_durably(line(0))
    assert writer.sync_failing
    sink.sync_fails = False
    await until(lambda: not writer.sync_failing)
    writer.close()
    assert sink.octets == line(0)


async def test_what_a_process_before_wrote_is_synced_before_it_leaves_the_spool(tmp_path: Path) -> None:
    """It stands in both. Until the sink can be, what the spool alone holds is promised all the same."""
    left = Spool(tmp_path, 1 << 20)
    left.append(lines(0, 2))
    left.close()
    spool = Spool(tmp_path, 1 << 20)
    spool.claim()
    spool.resume(Tail(line(0)[:-1]))
    sink = Moody(nothing)
    sink.octets, sink.sync_fails = line(0), True
    writer = AuditWriter(sink, spool, durable=True, retry_s=0.01)
    assert await writer.write_durably(line(2))
    assert not writer.sync_failing
    sink.mood = lambda size: size
    await until(lambda: writer.sync_failing)
    assert (tmp_path / "audit-0.spool").read_bytes() == lines(0, 3)
    writer.close()


async def test_what_another_promised_is_synced_where_nothing_is_promised_any_more(tmp_path: Path) -> None:
    """`durability: batched`, after a gateway with `before_write`: at the start, and what is taken up later."""
    kept = tmp_path / "audit-0.spool"
    left = Spool(tmp_path, 1 << 20)
    left.append(line(0))
    left.close()
    spool = Spool(tmp_path, 1 << 20)
    spool.claim()
    sink = Moody()
    sink.sync_fails = True
    writer = AuditWriter(sink, spool, retry_s=0.01, claim_pause_s=0.01, rewrite_pause_s=0.0)
    for number in range(2):
        await until(lambda: writer.sync_failing and not writer.spooled_bytes)
        assert kept.read_bytes() == line(number)
        sink.sync_fails = False
        await until(lambda path=kept: not writer.sync_failing and not path.stat().st_size)  # type: ignore[misc]
        sink.sync_fails = True
        if number == 0:
            other = Spool(tmp_path, 1 << 20)
            other.append(line(1))
            other.close()
            kept = tmp_path / "audit-1.spool"
    sink.mood = nothing
    writer.offer(line(2))
    await until(lambda: writer.spooled_bytes > 0)
    sink.mood = lambda size: size
    await until(lambda: not kept.stat().st_size)
    assert not writer.sync_failing, "of its own lines nothing was promised"
    writer.close()
    assert sink.octets == line(0) * 2 + line(1) * 2 + line(2)


async def test_of_lines_in_both_both_are_synced(tmp_path: Path) -> None:
    """The first in the sink, the next in the spool, because it failed between them."""
    takes = [len(line(0))]
    sink = Moody(lambda _: takes.pop() if takes else 0)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), durable=True)
    sink.sync_fails = True
    assert not await writer.write_durably(lines(0, 2))
    assert sink.octets == line(0)
    assert await writer.write_durably(line(2)), "the sink has nothing of it"
    writer.close()


async def test_memory_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path / "nowhere", 1 << 20))
    assert not await writer.write_durably(line(0))
    writer.close()
    assert "1 audit lines found no room" in caplog.text


async def test_those_who_wait_together_share_one_sync(caplog: pytest.LogCaptureFixture) -> None:
    sink = Moody()
    sink.held.clear()
    writer = AuditWriter(sink)
    waiting = [asyncio.ensure_future(writer.write_durably(line(number))) for number in range(50)]
    await asyncio.sleep(0)
    waiting[7].cancel()
    sink.held.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [one for one in done if one is not True] == [done[7]]
    assert isinstance(done[7], asyncio.CancelledError)
    writer.close()
    assert sink.octets == lines(0, 50)


async def test_a_sink_that_hangs_ends_the_wait_and_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Moody()
    sink.held.clear()
    writer = AuditWriter(sink, patience_s=0.01)
    assert not await writer.write_durably(line(0))
    with caplog.at_level(logging.ERROR):
        writer.close()
    assert "does not return" in caplog.text
    sink.held.set()


async def test_a_sink_that_fails_when_it_is_closed_is_logged_and_fails_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a network's file system does, whose server is full. The process ends as it would."""
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.01)
    writer.offer(line(0))
    await until(lambda: writer.spooled_bytes > 0)
    sink.mood = lambda size: size

    def close() -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(sink, "close", close)
    writer.close()
    assert "the audit sink fails: Disk quota exceeded" in caplog.text
    assert list(tmp_path.iterdir()) == []


async def test_what_others_left_is_written_by_who_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Workers that were replaced, or more of them than there are now: nobody may start for long who would take it up."""
    sink = Moody()
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), claim_pause_s=0.0)
    writer.offer(line(0))
    await until(lambda: sink.octets == line(0))
    left = [Spool(tmp_path, 1 << 20) for _ in range(3)]
    for number, one in enumerate(left, 1):
        one.append(line(number))
    for one in left:
        one.close()
    await until(lambda: len(sink.octets) == len(lines(0, 4)))
    writer.offer(line(4))
    writer.close()
    assert sorted(sink.octets.splitlines(keepends=True)) == [line(number) for number in range(5)]
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("of a process that has ended") == 3


async def test_what_others_left_is_not_touched_while_the_sink_fails(tmp_path: Path) -> None:
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.01, claim_pause_s=0.0)
    writer.offer(line(0))
    await until(lambda: writer.spooled_bytes > 0)
    left = Spool(tmp_path, 1 << 20)
    left.append(lines(1, 3))
    left.close()
    writer.offer(line(3))
    await until(lambda: writer.spooled_bytes == len(line(0) + line(3)))
    sink.mood = lambda size: size
    await until(lambda: len(sink.octets) == len(lines(0, 4)))
    writer.close()
    assert sink.octets == line(0) + line(3) + lines(1, 3)


async def test_of_what_others_left_no_line_is_written_that_the_sink_has(tmp_path: Path) -> None:
    sink = Moody()
    left = Spool(tmp_path, 1 << 20)
    left.append(lines(1, 5))
    left.close()
    tail = Tail(line(9)[:-1], before=frozenset({line(1)[:-1], line(2)[:-1]}))
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), tail=lambda: tail, claim_pause_s=0.0)
    await until(lambda: len(sink.octets) == len(lines(3, 5)))
    writer.close()
    assert sink.octets == lines(3, 5)


async def test_where_it_cannot_be_looked_for_lines_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Moody()
    writer = AuditWriter(sink, Spool(tmp_path / "gone", 1 << 20), claim_pause_s=0.0)
    for number in range(3):
        writer.offer(line(number))
        await until(lambda: len(sink.octets) == len(lines(0, number + 1)))  # noqa: B023
    writer.close()
    assert "the audit's spool fails" not in caplog.text


async def test_a_tail_that_cannot_be_read_costs_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def unreadable() -> Tail:
        raise PermissionError(13, "Permission denied")

    sink = Moody()
    left = Spool(tmp_path, 1 << 20)
    left.append(lines(0, 2))
    left.close()
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), tail=unreadable, claim_pause_s=0.0)
    await until(lambda: len(sink.octets) == len(lines(0, 2)))
    writer.close()
    assert "the audit's spool fails: Permission denied" in caplog.text


async def test_a_spool_that_cannot_be_read_is_a_failure_until_somebody_takes_it_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes behind it waits as well, and fills it; the sink is well all the time."""
    left = Spool(tmp_path, 1 << 20)
    left.append(line(0))
    left.close()
    spool = Spool(tmp_path, 2 * ROOM_BYTES)
    spool.claim()
    tries: list[int] = []

    def pread(descriptor: int, size: int, at: int) -> bytes:
        tries.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", pread)
    sink = Moody()
    writer = AuditWriter(sink, spool, retry_s=0.001)
    await until(lambda: writer.failing)
    writer.offer(line(1))
    await until(lambda: writer.spooled_bytes == len(lines(0, 2)) and len(tries) > 9)
    assert writer.has_room(ROOM_BYTES)
    assert not writer.has_room(2 * ROOM_BYTES)
    assert sink.octets == b""
    (tmp_path / "audit-0.spool").rename(tmp_path / "kept")
    await until(lambda: not writer.failing)
    writer.offer(line(2))
    await until(lambda: sink.octets == line(2))
    writer.close()
    assert (tmp_path / "kept").read_bytes() == lines(0, 2)
    assert [record.message for record in caplog.records] == [
        "the audit's spool fails: Input/output error",
        f"somebody truncated the audit's spool: {len(lines(0, 2))} octets that waited there are lost",
        "the audit sink takes lines again",
    ]


@pytest.mark.parametrize("left", [0, 4, len(line(0)), len(line(0)) + 5])
async def test_a_spool_that_somebody_cut_is_logged_and_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    """An operator whose disk is full."""
    takes = [len(line(0)) // 2]
    sink = Moody(lambda _: takes.pop() if takes else 0)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.01)
    writer.offer(lines(0, 3))
    await until(lambda: writer.spooled_bytes > 0)
    (kept,) = tmp_path.iterdir()
    os.truncate(kept, left)
    await until(lambda: "somebody truncated the audit's spool" in caplog.text)
    writer.offer(line(3))
    sink.mood = lambda size: size
    await until(lambda: sink.octets.endswith(line(3)))
    assert not writer.spooled_bytes
    writer.close()
    whole = lines(0, 3)[: max(left, len(line(0)) // 2)]
    assert sink.octets == whole + (b"" if whole.endswith(b"\n") else b"\n") + line(3)


async def test_behind_a_whole_line_a_spool_that_is_cut_leaves_nothing_to_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    takes = [len(line(0))]
    sink = Moody(lambda _: takes.pop() if takes else 0)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.01)
    writer.offer(lines(0, 3))
    await until(lambda: writer.spooled_bytes > 0)
    (kept,) = tmp_path.iterdir()
    os.truncate(kept, 0)
    await until(lambda: "somebody truncated the audit's spool" in caplog.text)
    sink.mood = lambda size: size
    writer.offer(line(3))
    writer.close()
    assert sink.octets == line(0) + line(3)


@pytest.mark.parametrize("stops", [False, True])
async def test_behind_a_cut_line_that_found_no_room_to_be_ended_lines_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """The spool's disk is full, the sink takes it all, or nothing behind it for a while."""
    left = Spool(tmp_path, 1 << 20)
    left.append(line(0) + line(1)[:9])
    left.close()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    spool = Spool(tmp_path, 1 << 20)
    spool.claim()
    assert spool.resume(Tail()) == b""
    sink = Moody(lambda size: 0 if stops and sink.octets else size)
    writer = AuditWriter(sink, spool, retry_s=0.01)
    if stops:
        await until(lambda: writer.failing)
        writer.offer(line(2))
        await until(lambda: writer.blocked)
        sink.mood = lambda size: size
    writer.offer(line(3))
    writer.close()
    assert sink.octets == line(0) + line(1)[:9] + b"\n" + (line(2) if stops else b"") + line(3)


async def test_a_spool_that_somebody_cut_and_cannot_be_emptied_is_logged_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the line that the sink has a part of is ended."""
    takes = [7]
    sink = Moody(lambda _: takes.pop() if takes else 0)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.01)
    writer.offer(line(0))
    await until(lambda: writer.spooled_bytes > 0)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", fails)
    (kept,) = tmp_path.iterdir()
    os.truncate(kept, 4)
    await until(lambda: "somebody truncated the audit's spool" in caplog.text)
    sink.mood = lambda size: size
    writer.offer(line(1))
    writer.close()
    assert sink.octets == line(0)[:7] + b"\n" + line(1)


async def test_what_others_left_is_not_looked_for_with_every_line(tmp_path: Path) -> None:
    writer = AuditWriter(Moody(), Spool(tmp_path, 1 << 20), claim_pause_s=3600.0)
    for number in range(2):  # after the first it looks
        assert await writer.write_durably(line(number))
    left = Spool(tmp_path, 1 << 20)
    left.append(line(9))
    left.close()
    for number in range(2, 5):
        assert await writer.write_durably(line(number))
    writer.close()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [line(9)]


@pytest.mark.parametrize("left", [0, 100])
async def test_a_spool_that_is_cut_while_it_is_written_on(tmp_path: Path, left: int) -> None:
    """Neither is it looked for what is gone without a pause, nor do lines that come meanwhile go with it."""
    sink = Moody(nothing)
    spool = Spool(tmp_path, 1 << 24)
    writer = AuditWriter(sink, spool)
    offered = lines(0, 100_000)
    writer.offer(offered)
    await until(lambda: writer.failing and writer.spooled_bytes > 0)
    (kept,) = tmp_path.iterdir()
    peeked: list[int] = []
    peek = spool.peek

    def peeking() -> bytes:
        octets = peek()
        peeked.append(len(octets))
        return octets

    def cutting(size: int) -> int:
        sink.mood = lambda size: size
        os.truncate(kept, left)
        return size

    spool.peek = peeking  # type: ignore[method-assign]
    sink.mood = cutting
    writer.offer(line(100_000))
    await until(lambda: not writer.spooled_bytes)
    writer.offer(line(100_001))
    await until(lambda: sink.octets.endswith(line(100_001)))
    writer.close()
    assert sink.octets == offered[: 1 << 20] + b"\n" + lines(100_000, 100_002)
    assert peeked.count(0) == 1


async def test_a_spool_that_somebody_removed_is_found_by_the_next_process_all_the_same(tmp_path: Path) -> None:
    sink = Moody(nothing)
    writer = AuditWriter(sink, Spool(tmp_path, 1 << 20), retry_s=0.01)
    assert await writer.write_durably(line(0))
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    assert await writer.write_durably(line(1))
    assert kept.read_bytes() == lines(0, 2)
    writer.close()
    assert kept.read_bytes() == lines(0, 2)
