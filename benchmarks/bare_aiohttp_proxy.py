"""A bare proxy of aiohttp's own parts, to measure the gateway against: low-level server, ``ClientSession``, no policy.

python -m benchmarks.bare_aiohttp_proxy LISTEN_PORT ORIGIN_PORT
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
import yarl
from aiohttp import web

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"})


async def serve(port: int, origin: int) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
    ) as session:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
            url = yarl.URL(f"http://127.0.0.1:{origin}{request.raw_path}", encoded=True)
            body = request.content if request.body_exists else None
            async with session.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
                whole = await answer.read()
                kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP]
                response = web.Response(status=answer.status, body=whole)
                response.headers.clear()
                response.headers.extend(kept)
                return response

        server = web.Server(handle, access_log=None)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, backlog=4096)
        await listening.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
