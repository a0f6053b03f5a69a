"""Start, serve, drain, stop: in this process, and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import aiohttp
import pytest

from gateway.app.serving import StopRequest, serving, start_unless_stopped
from gateway.core.breaker import BreakerState
from tests.fakes.gitlab import FakeGitLab, response, stall
from tests.fakes.world import configured

TEXT = """\
version: 1
upstream: {{url: "{url}"}}
listen: {{address: "127.0.0.1:0", admin: "127.0.0.1:0"}}
identities: [{{id: anyone, anonymous: true}}]
"""


async def status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        await answer.read()
        return answer.status


async def test_ready_means_that_requests_are_served(tmp_path: Path) -> None:
    async with FakeGitLab(response(200, b"{}")) as gitlab:
        config = configured(TEXT.format(url=gitlab.url), tmp_path)
        async with serving(config) as started, aiohttp.ClientSession() as session:
            assert started.admin_place == f"127.0.0.1:{started.admin_address[1]}"
            assert await status(session, f"http://{started.admin_place}/readyz") == 200
            assert await status(session, f"http://{started.place}/api/v4/version") == 200
            async with session.get(f"http://{started.admin_place}/metrics") as answer:
                text = await answer.text()
            assert (
                'gitlab_gateway_http_requests_total{method="GET",operation="GET /api/v4/version",status="200"} 1.0' in text
            )
            parts = started.parts
        assert parts.upstream.open == 0
        assert parts.server.client_connections.open == 0
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://{started.place}/")


@pytest.mark.parametrize("stops", [True, False])
async def test_who_is_told_to_go_before_it_serves_leaves_nothing_behind(tmp_path: Path, stops: bool) -> None:
    stop_request, before = StopRequest(), asyncio.all_tasks()
    if stops:
        stop_request.request()
    async with contextlib.AsyncExitStack() as stack:
        started = await start_unless_stopped(
            stack, stop_request, configured(TEXT.format(url="http://127.0.0.1:9"), tmp_path)
        )
        assert (started is None) is stops
        await asyncio.sleep(0)
        waiting = [task for task in asyncio.all_tasks() - before if "Event.wait" in repr(task)]
        assert not waiting, "nobody waits to be told any more"
    assert asyncio.all_tasks() == before


async def _said(caplog: pytest.LogCaptureFixture) -> str:
    while not (found := [one for one in caplog.records if "can't be reached" in one.getMessage()]):
        await asyncio.sleep(0.01)
    (record,) = found
    assert record.levelname == "WARNING"
    return record.getMessage()


async def test_a_gitlab_that_can_t_be_reached_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(configured(TEXT.format(url="http://127.0.0.1:9"), tmp_path)):
        said = await _said(caplog)
    assert said == "GitLab can't be reached at 127.0.0.1:9 (upstream_refused): requests fail until it can"


async def test_the_start_waits_for_no_gitlab(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that takes connections, and never answers a handshake."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as silent:
        place = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        text = TEXT.format(url=f"https://{place}").replace('"}', '", timeouts: {connect: 300ms}}', 1)
        async with serving(configured(text, tmp_path)):
            assert "can't be reached" not in caplog.text
            assert (
                await _said(caplog)
                == f"GitLab can't be reached at {place} (upstream_connect_timeout): requests fail until it can"
            )


async def test_nothing_is_said_of_a_gitlab_that_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with FakeGitLab() as gitlab, serving(configured(TEXT.format(url=gitlab.url), tmp_path)):
        while any(task.get_name() == "look for GitLab" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)
    assert "can't be reached" not in caplog.text


@pytest.mark.parametrize("key", ["address", "admin"])
async def test_a_port_that_is_taken_is_named_and_closes_what_was_opened(tmp_path: Path, key: str) -> None:
    config = configured(TEXT.format(url="http://127.0.0.1:9"), tmp_path)
    async with serving(config) as started:
        place = {"address": started.place, "admin": started.admin_place}[key]
        taken = TEXT.format(url="http://127.0.0.1:9").replace(f'{key}: "127.0.0.1:0"', f'{key}: "{place}"')
        with pytest.raises(OSError, match=f"listen.{key} {place}: Address already in use"):
            async with serving(configured(taken, tmp_path)):
                pass


async def test_who_has_no_answer_at_the_deadline_is_told(tmp_path: Path) -> None:
    async with FakeGitLab(stall()) as gitlab, aiohttp.ClientSession() as session:
        text = TEXT.format(url=gitlab.url).replace("listen: {", "listen: {drain: {deadline: 100ms}, ")
        async with serving(configured(text, tmp_path)) as started:
            asking = asyncio.ensure_future(session.get(f"http://{started.place}/api/v4/version"))
            await gitlab.until(lambda fake: len(fake.requests) == 1)
        got = await asking
        assert (got.status, got.headers["Connection"]) == (503, "close")
        assert "Retry-After" in got.headers


async def test_readiness_ends_before_the_port_closes(tmp_path: Path) -> None:
    """As long as the notice lasts, requests are answered, each with the end of its connection; a second signal ends it."""
    async with FakeGitLab() as gitlab, aiohttp.ClientSession() as session:
        gitlab.stand(b"/api/v4/version", lambda _: response(200, b"{}"))
        process, traffic, admin = await started_process(tmp_path, gitlab.url, drain="{notice: 1h}")
        try:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                while await status(session, f"http://{admin}/readyz") == 200:
                    await asyncio.sleep(0)
                async with session.get(f"http://{traffic}/api/v4/version") as got:
                    assert (got.status, got.headers["Connection"]) == (200, "close")
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def started_process(tmp_path: Path, url: str, drain: str = "{}") -> tuple[Process, str, str]:
    """A gateway of its own, its data port and its admin port."""
    path = tmp_path / "gateway.yaml"
    text = (
        TEXT.format(url=url).replace("listen: {", f"listen: {{drain: {drain}, ")
        + f'state_dir: {tmp_path}\naudit: {{sink: "file:{tmp_path}/audit.jsonl"}}\n'
    )
    path.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "serve",
        "--config",
        str(path),
        stderr=PIPE,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert process.stderr is not None
    async with asyncio.timeout(20):
        async for line in process.stderr:
            if found := re.search(rb"serving \S+ on (\S+), admin on ([\w.:\[\]]+)", line):
                return process, found[1].decode(), found[2].decode()
    raise AssertionError("it did not start")


async def test_sigterm_lets_the_request_in_progress_end(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    answer = response(200, b"whole")
    answer.pieces = (go_on, *answer.pieces)
    async with FakeGitLab(answer) as gitlab:
        process, traffic, admin = await started_process(tmp_path, gitlab.url)
        try:
            async with aiohttp.ClientSession() as session:
                assert await status(session, f"http://{admin}/livez") == 200
                asking = asyncio.ensure_future(session.get(f"http://{traffic}/api/v4/version"))
                await gitlab.until(lambda fake: len(fake.requests) == 1)
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(20):
                    while await refuses(traffic) is False:
                        await asyncio.sleep(0)
                    go_on.set()
                    got = await asking
                    assert (got.status, await got.read()) == (200, b"whole")
                    assert got.headers["Connection"] == "close"
                    assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert b'"status":200' in (tmp_path / "audit.jsonl").read_bytes()


async def test_a_gateway_of_one_process_says_that_it_reads_no_configuration_again(tmp_path: Path) -> None:
    async with FakeGitLab() as gitlab:
        process, traffic, _ = await started_process(tmp_path, gitlab.url)
        try:
            assert process.stderr is not None
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(20):
                logged = [await process.stderr.readline() for _ in range(2)]
            assert b"certificates are reloaded, the configuration is not: that needs a restart" in logged[0]
            assert b"certificates reloaded" in logged[1]
            assert await refuses(traffic) is False
        finally:
            process.terminate()
            await process.communicate()


async def refuses(place: str) -> bool:
    """Nobody listens there any more."""
    host, _, port = place.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return True
    writer.close()
    return False


def test_the_breaker_has_the_states_that_are_reported() -> None:
    assert {state.value for state in BreakerState} == {"closed", "open", "half_open"}
