"""The outbox: everything in its order, together, and nothing to the dead."""

from __future__ import annotations

import asyncio

from gateway.outbox import MOST, Outbox


class Wire(asyncio.WriteTransport):
    def __init__(self, log: list[tuple[Wire, bytes]]) -> None:
        super().__init__()
        self.log = log
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.log.append((self, bytes(data)))


async def test_what_one_turn_brings_is_written_in_order_at_its_end() -> None:
    log: list[tuple[Wire, bytes]] = []
    one, other = Wire(log), Wire(log)
    outbox = Outbox(asyncio.get_running_loop())
    for turn in range(2):
        put = [(one, b"a%d" % turn), (other, b"b"), (one, b"c")]
        for wire, octets in put:
            outbox.put(wire, octets)
        assert not log
        await asyncio.sleep(0)
        assert log == put
        log.clear()


async def test_many_do_not_wait_for_the_turn_to_end() -> None:
    log: list[tuple[Wire, bytes]] = []
    wire, outbox = Wire(log), Outbox(asyncio.get_running_loop())
    for number in range(2 * MOST + 1):
        outbox.put(wire, b"%d" % number)
    assert len(log) == 2 * MOST
    await asyncio.sleep(0)
    assert [octets for _, octets in log] == [b"%d" % number for number in range(2 * MOST + 1)]


async def test_what_is_flushed_is_not_written_again() -> None:
    log: list[tuple[Wire, bytes]] = []
    wire, outbox = Wire(log), Outbox(asyncio.get_running_loop())
    outbox.flush()
    outbox.put(wire, b"a")
    outbox.flush()
    assert log == [(wire, b"a")]
    outbox.put(wire, b"b")
    await asyncio.sleep(0)
    assert log == [(wire, b"a"), (wire, b"b")]


async def test_nothing_is_written_to_a_connection_that_was_closed_meanwhile() -> None:
    log: list[tuple[Wire, bytes]] = []
    dead, alive = Wire(log), Wire(log)
    outbox = Outbox(asyncio.get_running_loop())
    outbox.put(dead, b"a")
    outbox.put(alive, b"b")
    dead.closed = True
    outbox.flush()
    assert log == [(alive, b"b")]


async def test_what_writing_puts_is_not_lost() -> None:
    """A transport may call its protocol back while it writes."""
    log: list[tuple[Wire, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())
    wire = Wire(log)

    class Talker(Wire):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            super().write(data)
            outbox.put(wire, b"more")

    talker = Talker(log)
    outbox.put(talker, b"a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == [(talker, b"a"), (wire, b"more")]
