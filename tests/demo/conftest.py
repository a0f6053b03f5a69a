"""A demo GitLab of each test's own, and a way to ask it without any client's opinions."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
async def gitlab() -> AsyncIterator[DemoGitLab]:
    demo = build_demo_gitlab()
    await demo.start()
    yield demo
    await demo.close()


@pytest.fixture
def ask(gitlab: DemoGitLab) -> Callable[..., Any]:
    """``await ask("GET", "/api/v4/user", token)``: the target goes out as it is written."""
    import asyncio

    def once(
        method: str,
        target: str,
        token: str | None,
        headers: Mapping[str, str] | None,
        body: bytes | str | None,
        data: object,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", int(gitlab.url.rpartition(":")[2]), timeout=20)
        sent = dict(headers or {})
        if token is not None:
            sent["PRIVATE-TOKEN"] = token
        if data is not None:
            sent["Content-Type"], body = "application/json", json.dumps(data)
        try:
            connection.request(method, target, body, sent)
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    async def ask(
        method: str,
        target: str,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | str | None = None,
        data: object = None,
    ) -> Reply:
        return await asyncio.to_thread(once, method, target, token, headers, body, data)

    return ask
