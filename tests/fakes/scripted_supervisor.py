"""A supervisor whose workers only speak on the channel, and do what a test wants of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.config import Config
from gateway.config.load import Loaded
from gateway.config.source import ConfigSource
from gateway.workers.channel import GroupStatus, Reloads
from gateway.workers.supervisor import Supervisor

ROOT = Path(__file__).parent.parent.parent
AT_ONCE = (0.0, 0.0)

WORKER = """
import asyncio, os, pathlib, socket, sys, time
root, directory = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(root))
import msgspec
from gateway.telemetry.figures import Figures
from gateway.workers.connection_counts import ConnectionCounts
from gateway.workers.channel import *

async def main():
    channel = await open_channel(socket.socket(fileno=os.dup(0)), decode_at_worker)
    begin = await channel.receive()
    assert begin.source.load(os.environ).config.listen.workers == begin.of
    for one in (*begin.traffic, *begin.admin, begin.turns, begin.counts):
        os.fstat(one)
    (directory / f"{begin.number}.worker_ids").open("a").write(f"{begin.worker_id} ")
    (directory / f"{begin.number}.starts").open("a").write("x")
    does = (directory / f"{begin.number}").read_text()
    if does == "fail":
        return 3
    if does == "slow":
        await asyncio.sleep(3600)
    (directory / f"{begin.number}.pid").write_text(str(os.getpid()))
    counts = ConnectionCounts(begin.counts).for_worker(begin.worker_id, begin.group)
    counts.join()
    counts.tell(10 * begin.number)
    channel.send(Ready())
    while (message := await channel.receive()) is not None:
        if not isinstance(message, WorkerQuestion):
            (directory / f"{begin.number}.heard").open("a").write(repr(message) + " ")
        if isinstance(message, WorkerQuestion):
            if does == "mute":
                continue
            channel.send(WorkerReply(message.id, b"%d" % begin.number))
        if isinstance(message, Retire) and does != "stay":
            channel.send(FinalFigures(msgspec.msgpack.encode(Figures())))
            return 0
        if isinstance(message, Leave) and does == "linger":
            await channel.flush_and_close()
            time.sleep(1.0)
            return 0
        if isinstance(message, Leave) and (message.at_once or does in {"serve", "mute"}):
            return 0
    return 7

sys.exit(asyncio.run(main()))
"""


TEXT = """
version: 1
upstream: {url: "http://127.0.0.1:9"}
listen: {address: "127.0.0.1:0", admin: "127.0.0.1:0", workers: %d, drain: {deadline: 0s}}
stores: {shared: "redis://127.0.0.1:9/0"}
secrets: {pepper: "${file:/p}", encryption_key: "${file:/e}", audit_key: "${file:/a}"}
"""


class ScriptedSupervisor:
    """A supervisor and what its workers are to do, by number: `serve`, `stay` (until hurried), `mute`,
    `fail`, `slow` (to start), `linger` (after its last message). ``text`` is the file, read at each SIGHUP."""

    def __init__(
        self,
        directory: Path,
        *does: str,
        pauses_s: tuple[float, float] = AT_ONCE,
        close_s: float = 20.0,
        alive_s: float = 60.0,
        start_s: float = 60.0,
    ) -> None:
        self.directory = directory
        self.does(*does)
        self.text = TEXT % len(does)
        self.reads = 0
        source, loaded = self.read()
        assert loaded.config is not None, loaded.problems
        self.config: Config = loaded.config
        command = [sys.executable, "-c", WORKER, str(ROOT), str(directory)]
        self.supervisor = Supervisor(
            self.config, source, command, self.read, pauses_s=pauses_s, close_s=close_s, alive_s=alive_s, start_s=start_s
        )
        self.on_signal = asyncio.get_running_loop().add_signal_handler
        self.running = asyncio.ensure_future(self.supervisor.run(self.on_signal))

    def read(self) -> tuple[ConfigSource, Loaded]:
        """As ``serve`` would again."""
        self.reads += 1
        if not self.text:
            raise ValueError("the file is gone")
        source = ConfigSource(self.text, "gateway.yaml")
        return source, source.load({}, lambda path: f"{path}-0123456789abcdef0123456789abcdef")

    def does(self, *does: str) -> None:
        for number, what in enumerate(does):
            (self.directory / f"{number}").write_text(what)

    def recorded(self, number: int, what: str) -> str:
        file = self.directory / f"{number}.{what}"
        return file.read_text() if file.exists() else ""

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                assert not self.running.done(), self.running.result()
                await asyncio.sleep(0.005)

    @property
    def group_status(self) -> GroupStatus:
        """Nobody, before the ports are bound."""
        return self.supervisor.group_status if hasattr(self.supervisor, "_group") else GroupStatus((False,), (), False)

    async def begun(self) -> None:
        await self.until(lambda: self.group_status.begun)

    async def reloaded(self) -> Reloads:
        """SIGHUP, and what has become of all of them when it is heeded."""
        before = self.group_status.reloads
        os.kill(os.getpid(), signal.SIGHUP)
        await self.until(lambda: self.group_status.reloads != before)
        return self.group_status.reloads

    async def code(self, *signals: int) -> int:
        for number in signals:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            return await self.running
