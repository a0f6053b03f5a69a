"""The real things, started: gateways as processes of their own, upstreams in threads beside the tests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.wire import ask

ROOT = Path(__file__).parent.parent.parent
START_S = 30.0
T = TypeVar("T")

_SERVING = re.compile(r"serving .* on (?:127\.0\.0\.1|\[::1\]):(\d+), admin on 127\.0\.0\.1:(\d+)")


class LoopThread:
    """An event loop of its own, for servers that must answer while a test waits for a client."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="upstreams", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def call(self, work: Callable[[], object]) -> None:
        """Do something small in the loop, and wait until it is done."""

        async def done() -> None:
            work()

        self.run(done())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


class Lines:
    """A pipe's lines, read by a thread as they come, so that tests can wait for one without polling."""

    def __init__(self, pipe: Any) -> None:
        self.all: list[str] = []
        self._pipe = pipe
        self._changed = threading.Condition()
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            for line in self._pipe:
                with self._changed:
                    self.all.append(line)
                    self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def find(self, holds: Callable[[str], T | None], timeout_s: float = START_S, start: int = 0) -> T:
        """What ``holds`` makes of the first line, from number ``start`` on, that it makes anything of."""
        with self._changed:
            seen = start
            while True:
                for line in self.all[seen:]:
                    found = holds(line)
                    if found is not None:
                        return found
                seen = len(self.all)
                if self.ended or not self._changed.wait(timeout_s):
                    raise AssertionError("no such line:\n" + "".join(self.all[-20:]))

    def join(self) -> None:
        self._thread.join(30)


class GatewayProcess:
    """``python -m gateway serve``, waited for until it is ready."""

    def __init__(self, config: Mapping[str, Any], directory: Path, secrets: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.file = directory / "gateway.yaml"
        self.file.write_text(
            json.dumps(
                {
                    "version": 1,
                    "listen": {"address": "127.0.0.1:0", "admin": "127.0.0.1:0"},
                    "state_dir": str(directory / "state"),
                    **config,
                }
            )
        )
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(directory), **(secrets or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(self.file)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.audit = Lines(self.process.stdout)
        self.log = Lines(self.process.stderr)
        try:
            self.port, self.admin_port = self.log.find(_ports)
            assert ask(self.admin_port, "/readyz").status == 200
        except BaseException:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command of the gateway's, on the same configuration."""
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments, "--config", str(self.file)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=True,
        )

    def new_key(self, identity: str) -> str:
        return self.command("keys", "new", identity).stdout.splitlines()[-1]

    def audited(self, request_id: str) -> dict[str, Any]:
        """The audit line of an answered request."""

        def wanted(line: str) -> dict[str, Any] | None:
            return dict(json.loads(line)) if f'"{request_id}"' in line else None

        return self.audit.find(wanted)

    def metrics(self) -> str:
        return ask(self.admin_port, "/metrics").body.decode()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
            self.audit.join()
            self.log.join()


def _ports(line: str) -> tuple[int, int] | None:
    found = _SERVING.search(line)
    return (int(found[1]), int(found[2])) if found is not None else None
