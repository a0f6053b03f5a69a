"""A shared cache in front of one origin and nothing else: the cache's own part of the gateway, for the conformance suite.

Usage: python shared_proxy.py ORIGIN_URL PORT
"""

from __future__ import annotations

import asyncio
import sys
import time

from gateway.cache import CacheRequest, SharedCache, SharedPolicy, with_conditions
from gateway.core.cache_entry import end_to_end
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.errors import Rejection
from gateway.core.messages import Fields, ResponseHead, first
from gateway.edge.downstream import AiohttpDownstream
from gateway.edge.server import EdgeSettings, TrafficServer
from gateway.ports import Reply, UpstreamRequest
from gateway.stores.cache_memory import MemoryCacheStore
from gateway.upstream.client import LeanUpstream, UpstreamSettings

OTHER = Operation(name="other", access=Access.WRITE, surface=Surface.WEB, known=False)


class SharedProxy:
    def __init__(self, origin: str) -> None:
        self.upstream = LeanUpstream(UpstreamSettings(url=origin))
        store = MemoryCacheStore(64 << 20, time.monotonic)
        self.cache = SharedCache(store, SharedPolicy(stale_if_error_s=600.0))

    async def handle(self, downstream: AiohttpDownstream) -> None:
        head, body = downstream.head, downstream.body
        fields = end_to_end(head.fields)
        request = CacheRequest(
            method=head.method,
            target=head.target,
            fields=fields,
            operation=OTHER,
            has_authorization=first(fields, b"authorization") is not None,
            has_body=head.has_body,
        )

        async def forward(given: Fields) -> Reply:
            up = UpstreamRequest(head.method, head.target, with_conditions(fields, given), head.content_length)
            return await self.upstream.send(up, body)

        try:
            reply, _ = await self.cache.fetch(request, forward, time.time)
        except Rejection as rejection:
            text = rejection.message.encode()
            refusal = ResponseHead(rejection.status, (*rejection.headers, (b"Content-Type", b"text/plain")))
            await downstream.respond(refusal, text)
            return
        try:
            answer = ResponseHead(reply.head.status, end_to_end(reply.head.fields), reply.head.reason)
            if reply.whole is not None:
                await downstream.respond(answer, reply.whole)
                return
            await downstream.start(answer)
            assert reply.chunks is not None
            async for chunk in reply.chunks:
                await downstream.write(chunk)
            await downstream.finish()
        finally:
            reply.release()


async def serve(origin: str, port: int) -> None:
    proxy = SharedProxy(origin)

    def render_early(rejection: Rejection, peer: str) -> tuple[ResponseHead, bytes]:
        del peer
        return ResponseHead(rejection.status, ()), b""

    server = await TrafficServer(proxy.handle, render_early, EdgeSettings()).listen("127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
