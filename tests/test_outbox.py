"""The outbox: everything in its order, together where there are many, and nothing to the dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.outbox import FEW, MOST, Outbox

Log = list[tuple["Wire", bytes]]


class Wire(asyncio.WriteTransport):
    def __init__(self, log: Log, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.log = log
        self.then = then
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.log.append((self, bytes(data)))
        self.then()


async def crowded(outbox: Outbox) -> None:
    """After a turn of many, so the next is expected to be one."""
    for _ in range(FEW + 1):
        outbox.put(Wire([]), b"")
    await asyncio.sleep(0)


@pytest.fixture
async def outbox() -> Outbox:
    one = Outbox(asyncio.get_running_loop())
    await crowded(one)
    return one


async def test_what_one_turn_brings_is_written_in_order_at_its_end(outbox: Outbox) -> None:
    log: Log = []
    one, other = Wire(log), Wire(log)
    for turn in range(3):
        put = [(one, b"a%d" % turn), (other, b"b"), (one, b"c")]
        for wire, octets in put:
            outbox.put(wire, octets)
        assert not log
        await asyncio.sleep(0)
        assert log == put
        log.clear()


async def test_where_there_are_few_none_waits(outbox: Outbox) -> None:
    log: Log = []
    wire = Wire(log)
    outbox.put(wire, b"a")
    assert not log, "there were many a moment ago"
    await asyncio.sleep(0)
    for number in range(3):
        log.clear()
        for _ in range(FEW):
            outbox.put(wire, b"%d" % number)
        assert log == [(wire, b"%d" % number)] * FEW
        await asyncio.sleep(0)
    await crowded(outbox)
    outbox.put(wire, b"b")
    assert len(log) == FEW


async def test_many_do_not_wait_for_the_turn_to_end(outbox: Outbox) -> None:
    log: Log = []
    wire = Wire(log)
    for number in range(2 * MOST + 1):
        outbox.put(wire, b"%d" % number)
    assert len(log) == 2 * MOST
    await asyncio.sleep(0)
    assert [octets for _, octets in log] == [b"%d" % number for number in range(2 * MOST + 1)]


async def test_what_is_flushed_is_not_written_again(outbox: Outbox) -> None:
    log: Log = []
    wire = Wire(log)
    outbox.flush()
    outbox.put(wire, b"a")
    outbox.flush()
    assert log == [(wire, b"a")]
    outbox.put(wire, b"b")
    await asyncio.sleep(0)
    assert log == [(wire, b"a"), (wire, b"b")]


async def test_nothing_is_written_to_a_connection_that_was_closed_meanwhile(outbox: Outbox) -> None:
    log: Log = []
    dead, alive = Wire(log), Wire(log)
    outbox.put(dead, b"a")
    outbox.put(alive, b"b")
    dead.closed = True
    outbox.flush()
    assert log == [(alive, b"b")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    outbox.put(dead, b"c")
    await asyncio.sleep(0)
    outbox.put(dead, b"d")
    assert log == [(alive, b"b")]


async def test_what_writing_puts_is_not_lost(outbox: Outbox) -> None:
    """A transport may call its protocol back while it writes."""
    log: Log = []
    wire = Wire(log)
    talker = Wire(log, lambda: outbox.put(wire, b"more"))
    outbox.put(talker, b"a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == [(talker, b"a"), (wire, b"more")]


async def test_one_that_cannot_be_written_to_costs_nobody_else(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    log: Log = []
    gone: list[Wire] = []
    broken, wire = Wire(log, lambda: 1 / 0), Wire(log)  # type: ignore[arg-type, return-value]
    broken.abort = lambda: gone.append(broken)  # type: ignore[method-assign]
    outbox.put(broken, b"a")
    outbox.put(wire, b"b")
    await asyncio.sleep(0)
    assert log[-1] == (wire, b"b")
    assert gone == [broken]
    assert "could not be written to" in caplog.text
