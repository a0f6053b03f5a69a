"""A world behind a data port, on a real socket: what the connection does by itself and what the stages do, together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.core.errors import Rejection
from gateway.core.messages import Fields, ResponseHead
from gateway.core.refusal import render
from gateway.edge.server import TrafficServer
from gateway.edge.settings import EdgeSettings
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from tests.edge.wire import SOON_S, Client
from tests.fakes.world import CONFIGURATION, OWN, Answer, World, world

TARGET = "/api/v4/projects/1/issues?page=2"
ETAG = b'W/"0123456789abcdef0123456789abcdef"'
ISSUES: Fields = (
    (b"Content-Type", b"application/json"),
    (b"Etag", ETAG),
    (b"Link", b'<http://gitlab.test/api/v4/projects/1/issues?page=3>; rel="next"'),
    (b"X-Total", b"7"),
    (b"Vary", b"Origin, Accept-Language"),
)
CACHED = "cache: {ttl: 60s, access_ttl: 60s}\n"


def issues(body: bytes = b"[]", fields: Fields = ISSUES) -> Answer:
    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        return Reply(ResponseHead(200, fields), whole=body)

    return answer


class LiveWorld:
    """A world behind a data port, and one client."""

    def __init__(self, made: World, server: TrafficServer, client: Client, port: int) -> None:
        self.made = made
        self.server = server
        self.client = client
        self.port = port

    def request(self, target: str = TARGET, *lines: str, caller: str = OWN) -> bytes:
        credential = [f"PRIVATE-TOKEN: {self.made.keys.get(caller, caller)}"] if caller else []
        return "\r\n".join([f"GET {target} HTTP/1.1", "Host: git.example.com", *credential, *lines, "", ""]).encode()

    async def ask(
        self, target: str = TARGET, *lines: str, caller: str = OWN, client: Client | None = None
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """One answer; ``self.short`` says which way it came."""
        self.made.calls.clear()
        client = client or self.client
        await client.send(self.request(target, *lines, caller=caller))
        status, fields, body = await client.answer()
        return status, dict(fields), body

    @property
    def short(self) -> bool:
        """The last answer came on the short lane: neither the cache's own stage nor GitLab was called."""
        return not {"entry.target", "limits.admit", "cache.fetch", "cache.lead_now"} & set(self.made.calls)

    @property
    def forwarded(self) -> bool:
        """The last answer came from GitLab on the forward lane."""
        calls = set(self.made.calls)
        return "upstream.send_soon" in calls and not {"entry.target", "cache.fetch", "upstream.send"} & calls

    async def learn(self, target: str = TARGET, *lines: str, caller: str = OWN) -> None:
        """Until the lane knows the way: forwarded, stored, answered from the cache."""
        for _ in range(3):
            await self.ask(target, *lines, caller=caller)
        assert self.short


def freeze_key_cache(made: World) -> None:
    """A key is looked up again after a second: a machine that pauses would send its next request the long way."""
    keys = made.made.gateway.stages.authenticator._keys  # type: ignore[attr-defined]
    at = keys._monotonic()
    keys._monotonic = lambda: at


def freeze_clock(made: World) -> None:
    """An answer's age is sent in whole seconds: what is compared with another must not be a moment older."""
    gateway, at = made.gateway, made.gateway._wall()
    gateway._wall = gateway.lane._wall = gateway.forward_lane.wall = lambda: at


@asynccontextmanager
async def port(
    directory: Path, text: str = CONFIGURATION + CACHED, answer: Answer | None = None
) -> AsyncIterator[LiveWorld]:
    def early(rejection: Rejection, _peer: str) -> tuple[ResponseHead, bytes]:
        return render(rejection)

    async with world(directory, text, answer or issues()) as made:
        gateway = made.gateway
        server = TrafficServer(gateway.handle, early, EdgeSettings(), gateway.try_answer)
        listening = await server.listen("127.0.0.1", 0)
        number = listening.sockets[0].getsockname()[1]
        client = Client(*await asyncio.open_connection("127.0.0.1", number))
        try:
            freeze_key_cache(made)
            yield LiveWorld(made, server, client, number)
        finally:
            client.writer.close()
            listening.close()
            server.pre_shutdown()
            await server.shutdown(SOON_S)
