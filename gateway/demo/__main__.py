"""``python -m gateway.demo [HOST:PORT]``: the demo GitLab alone, until interrupted."""

from __future__ import annotations

import asyncio
import signal
import sys

from .gitlab import build_demo_gitlab
from .seed import TOKENS


async def _serve(host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gitlab = build_demo_gitlab()
    await gitlab.start(host, port)
    print(
        f"demo GitLab on {gitlab.url}\n  curl --header 'PRIVATE-TOKEN: {TOKENS.ada}' '{gitlab.url}/api/v4/user'", flush=True
    )
    await stop.wait()
    await gitlab.close()


if __name__ == "__main__":
    _host, _, _port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8090").rpartition(":")
    _host = _host.strip("[]") or "127.0.0.1"
    if not _port.isdecimal():
        sys.exit("usage: python -m gateway.demo [HOST:PORT]")
    try:
        asyncio.run(_serve(_host, int(_port)))
    except (OSError, OverflowError) as refused:
        sys.exit(f"demo GitLab: {_host}:{_port}: {refused}")
