"""A client that is found gone in the very turn in which it was to be told, on either lane: it left once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.edge.connection import Connection
from gateway.forward_lane import LaneRequest
from gateway.short_lane import _PendingAnswer
from tests.edge.wire import SOON_S
from tests.fakes.port import CACHED, LiveWorld, port
from tests.fakes.world import CONFIGURATION, SECRETS

PAGES = "/api/v4/projects/1/issues?page=%d"
MOMENTS: dict[str, tuple[type, str]] = {
    "the buckets have answered, short lane": (_PendingAnswer, "on_decision"),
    "the buckets have answered": (LaneRequest, "on_decision"),
    "the store has answered": (LaneRequest, "on_lead"),
    "GitLab has answered": (LaneRequest, "on_answer"),
}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_it_left_once(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, moment: str, drained: bool
) -> None:
    stores = f'{SECRETS}stores: {{shared: "{redis_url}", keys: "sqlite:///{tmp_path}/keys.db"}}\n'
    async with port(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 5000") + CACHED + stores) as at:
        await _learn(at, short="short" in moment)
        (connection,) = at.server.connections
        assert isinstance(connection, Connection)
        where, name = MOMENTS[moment]
        real = getattr(where, name)

        def leaves(self: object, *told: Any) -> None:
            assert connection.transport is not None
            connection.transport.close()  # as the end of what a client sends does, read just before
            real(self, *told)
            if drained:
                asking = connection._pending
                assert asking is not None
                assert asking[0].drained() == b""

        monkeypatch.setattr(where, name, leaves)
        await at.client.send(at.request(PAGES % (900 if "short" in moment else 5), caller="reader"))
        await until(lambda: connection.transport is None)
        gateway = at.made.gateway
        assert gateway.in_flight == 0
        assert [(x.status, x.aborted) for x in at.made.seen.exchanges] == [(499, "client")]
        await until(lambda: at.made.up.open == 0)


async def _learn(at: LiveWorld, *, short: bool) -> None:
    for page in range(901, 1900):
        await at.ask(PAGES % (900 if short else page), caller="reader")
        if at.short if short else at.forwarded:
            break
    assert at.short if short else at.forwarded
    at.made.seen.exchanges.clear()
