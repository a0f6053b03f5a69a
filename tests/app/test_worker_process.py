"""One worker as a process, with the test for its supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

from gateway.config.source import ConfigSource
from gateway.telemetry.figures import Figures
from gateway.workers.channel import (
    Begin,
    Channel,
    FinalFigures,
    Leave,
    Ready,
    Reload,
    Retire,
    ToSupervisor,
    WorkerQuestion,
    WorkerReply,
    decode_at_supervisor,
    open_channel,
)
from gateway.workers.connection_counts import ConnectionCounts, WorkerCounts
from gateway.workers.supervisor import worker_command
from tests.fakes.gitlab import FakeGitLab, response

TEXT = """
version: 1
upstream: {{url: "{url}"}}
listen: {{workers: 2}}
identities: [{{id: anyone, anonymous: true}}]
stores: {{shared: "{redis}"}}
secrets: {{pepper: "${{file:/p}}", encryption_key: "${{file:/e}}", audit_key: "${{file:/a}}"}}
state_dir: {place}/state
audit: {{sink: "{sink}"}}
"""


class Started:
    """The worker's process, its channel, the port that it accepts at, and the counts of another, who is nobody."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: Channel[ToSupervisor], port: int, sibling: WorkerCounts
    ) -> None:
        self.process = process
        self.channel = channel
        self.sibling = sibling
        self.port = port
        self.url = f"http://127.0.0.1:{port}/api/v4/version"

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def logged(self, words: bytes) -> None:
        """Waits for a line with ``words``."""
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            while words not in (line := await self.process.stderr.readline()):
                assert line, "it ended"

    async def log(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@asynccontextmanager
async def worker(tmp_path: Path, redis: str, url: str = "http://127.0.0.1:9", sink: str = "") -> AsyncIterator[Started]:
    source = ConfigSource(TEXT.format(url=url, redis=redis, place=tmp_path, sink=sink or f"file:{tmp_path}/audit"))
    source.load({}, lambda path: f"{path}-0123456789abcdef0123456789abcdef")
    ours, theirs = socket.socketpair()
    with (
        tempfile.TemporaryFile() as turns,
        tempfile.TemporaryFile() as counts,
        socket.socket() as traffic,
        socket.socket() as admin,
    ):
        for one in (traffic, admin):
            one.bind(("127.0.0.1", 0))
        fds = (traffic.fileno(), admin.fileno(), turns.fileno(), counts.fileno())
        process = await asyncio.create_subprocess_exec(
            *worker_command(),
            stdin=theirs,
            pass_fds=fds,
            stderr=PIPE,
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        )
        theirs.close()
        channel = await open_channel(ours, decode_at_supervisor)
        begin = Begin(1, 2, 5, source, b"k" * 32, fds[:1], fds[1:2], *fds[2:])
        channel.send(begin)
        sibling = ConnectionCounts(begin.counts).for_worker(4, begin.group)
        started = Started(process, channel, traffic.getsockname()[1], sibling)
    try:
        yield started
    finally:
        channel.close()
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def get(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status


async def test_it_serves_answers_and_leaves(tmp_path: Path, redis_url: str) -> None:
    async with FakeGitLab(response(200, b"{}")) as gitlab, worker(tmp_path, redis_url, gitlab.url) as started:
        assert await started.channel.receive() == Ready()
        assert await get(started.url) == 200
        started.channel.send(WorkerQuestion(5, "readiness", b""))
        reply = await started.channel.receive()
        assert isinstance(reply, WorkerReply)
        assert (reply.id, b"traffic" in reply.octets) == (5, True)
        await started.logged(b"worker 1 of 2 serves")
        started.channel.send(Reload())
        await started.logged(b"certificates reloaded")
        started.channel.send(Leave())
        assert await started.ended() == 0
        assert '"worker": 1' in await started.log()


async def test_it_tells_the_others_of_its_connections(tmp_path: Path, redis_url: str) -> None:
    def has(count: int) -> bool:
        """Who has two more is ahead of it, who has one more is not."""
        started.sibling.tell(count + 2)
        over = started.sibling.is_busier
        started.sibling.tell(count + 1)
        return over and not started.sibling.is_busier

    async def comes_to_have(count: int) -> None:
        async with asyncio.timeout(30):
            while not has(count):
                await asyncio.sleep(0.005)

    async with worker(tmp_path, redis_url) as started:
        started.sibling.tell(1000)
        assert not started.sibling.is_busier  # it does not accept yet
        assert await started.channel.receive() == Ready()
        assert has(0)
        writers = []
        for count in range(1, 4):
            writers.append((await asyncio.open_connection("127.0.0.1", started.port))[1])
            await comes_to_have(count)
            assert started.sibling.accepted_by_others == count
        # What it leaves to one that has fewer and hangs, it takes.
        started.sibling.join()
        started.sibling.tell(0)
        writers.append((await asyncio.open_connection("127.0.0.1", started.port))[1])
        async with asyncio.timeout(30):
            while started.sibling.accepted_by_others < 4:
                await asyncio.sleep(0.005)
        for writer in writers:
            writer.close()
        await comes_to_have(0)
        started.channel.send(Retire())
        await started.logged(b"replaced: draining")
        started.sibling.tell(1000)
        async with asyncio.timeout(30):
            while started.sibling.is_busier:
                await asyncio.sleep(0.005)
        assert await started.ended() == 0


async def test_one_that_is_replaced_stays_while_a_client_does(tmp_path: Path, redis_url: str) -> None:
    async with FakeGitLab() as gitlab, worker(tmp_path, redis_url, gitlab.url) as started:
        gitlab.stand(b"/api/v4/version", lambda _: response(200, b"{}"))
        assert await started.channel.receive() == Ready()
        async with aiohttp.ClientSession() as session:
            async with session.get(started.url) as answer:
                assert "Connection" not in answer.headers
                await answer.read()
            started.channel.send(Retire())
            await started.logged(b"replaced: draining")
            await asyncio.sleep(0.5)
            assert started.process.returncode is None
            async with session.get(started.url) as answer:
                assert (answer.status, answer.headers["Connection"]) == (200, "close")
                await answer.read()
        final = await started.channel.receive()
        assert isinstance(final, FinalFigures)
        assert msgspec.msgpack.decode(final.figures, type=Figures).requests == 2
        assert await started.ended() == 0


async def test_one_that_is_replaced_may_be_hurried(tmp_path: Path, redis_url: str) -> None:
    async with FakeGitLab() as gitlab, worker(tmp_path, redis_url, gitlab.url) as started:
        gitlab.stand(b"/api/v4/version", lambda _: response(200, b"{}"))
        assert await started.channel.receive() == Ready()
        async with aiohttp.ClientSession() as session, session.get(started.url):
            started.channel.send(Retire())
            await started.logged(b"replaced: draining")
            started.process.send_signal(signal.SIGTERM)  # to all processes at once: only the supervisor says to hurry
            await asyncio.sleep(0.5)
            assert started.process.returncode is None
            started.channel.send(Leave(at_once=True))
            assert await started.ended() == 0


async def test_a_supervisor_that_is_gone_ends_it(tmp_path: Path, redis_url: str) -> None:
    async with worker(tmp_path, redis_url) as started:
        assert await started.channel.receive() == Ready()
        started.channel.close()
        assert await started.ended() == 0
        assert "the supervisor is gone" in await started.log()


async def test_sigterm_ends_it_too(tmp_path: Path, redis_url: str) -> None:
    async with worker(tmp_path, redis_url) as started:
        assert await started.channel.receive() == Ready()
        started.process.send_signal(signal.SIGTERM)
        assert await started.ended() == 0


async def test_what_keeps_it_from_starting_is_in_the_log(tmp_path: Path, redis_url: str) -> None:
    async with worker(tmp_path, redis_url, sink=f"file:{tmp_path}/nowhere/audit") as started:
        assert await started.ended() == 1
        assert await started.channel.receive() is None
        assert "No such file or directory" in await started.log()


async def test_a_supervisor_that_says_nothing_has_no_worker(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(*worker_command(), stdin=theirs, env={"HOME": str(tmp_path)})
    theirs.close()
    ours.close()
    async with asyncio.timeout(30):
        assert await process.wait() == 1


async def test_where_no_thread_can_be_started_the_limit_is_reported(tmp_path: Path) -> None:
    """The first is that for signals, before there is a log."""
    limited = """
import threading
def start(_):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""
    python, *flags, option, run, package = worker_command()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            python, *flags, option, limited + run, package, stdin=theirs, stderr=PIPE, env={"HOME": str(tmp_path)}
        )
        async with asyncio.timeout(30):
            _, log = await process.communicate()
    assert (process.returncode, log) == (1, b"failed: no thread can be started: a limit of processes is reached\n")
