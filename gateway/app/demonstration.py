"""``demo``: the gateway in front of a small built-in GitLab, and examples to try."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile

import uvloop

from ..config import load
from ..config.load import Loaded
from ..demo.seed import TOKENS
from ..hardening import harden
from ..process_signals import OnSignal, run_process
from ..telemetry import logging as operator_log
from .serving import serving

_CONFIGURATION = """\
version: 1
upstream: {{url: "{gitlab}"}}
state_dir: {state_dir}
limits:
  - {{id: caller, by: caller, rate: 120/min, burst: 20, advertise: true}}
cache:
  routes:
    - {{match: GET /api/v4/projects/:id, ttl: 30s}}
audit: {{sink: "file:{state_dir}/audit.jsonl"}}
logging: {{level: warning}}
"""

_WORDS = """\
The gateway is at {gateway}, in front of a demo GitLab at {gitlab}.
Metrics and health: http://{admin}/metrics, /readyz. Audit: {state_dir}/audit.jsonl. Stop with Ctrl-C.

1. A path with %2F reaches GitLab as it was sent:

   curl -si -H 'PRIVATE-TOKEN: {token}' '{gateway}/api/v4/projects/platform%2Fapi/repository/branches/feature%2Flogin'

2. The same question twice: the second is answered from the cache, as a 304:

   curl -so /dev/null --etag-save {state_dir}/etag -H 'PRIVATE-TOKEN: {token}' '{gateway}/api/v4/projects/platform%2Fapi'
   curl -si --etag-compare {state_dir}/etag -H 'PRIVATE-TOKEN: {token}' '{gateway}/api/v4/projects/platform%2Fapi'

3. A burst earns a 429 that says when to come back:

   for i in $(seq 30); do curl -so /dev/null -w '%{{http_code}} ' -H 'PRIVATE-TOKEN: {token}' {gateway}/api/v4/user; done
"""


def demo(listen: str, admin: str) -> int:
    """Serve until SIGTERM or SIGINT, or until the terminal is gone unless started with ``nohup``; blocking.

    ``listen`` and ``admin`` are ``HOST:PORT``. Returns the exit code.
    """
    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    harden()
    with tempfile.TemporaryDirectory(prefix="gitlab-gateway-demo-") as state_dir:
        return run_process(lambda on_signal: _demo(listen, admin, state_dir, on_signal, ends), uvloop.new_event_loop)


async def _demo(listen: str, admin: str, state_dir: str, on_signal: OnSignal, ends: list[signal.Signals]) -> int:
    operator_log.configure("warning")
    stop = asyncio.Event()
    for number in ends:
        on_signal(number, stop.set)
    from ..demo.gitlab import build_demo_gitlab

    gitlab = build_demo_gitlab()
    await gitlab.start("127.0.0.1", 0)
    try:
        loaded = _configure(gitlab.url, state_dir, listen, admin)
        if loaded.config is None:  # one address for both ports, say
            print(*loaded.errors, sep="\n", file=sys.stderr)  # noqa: T201 — as `serve` does
            return 2
        async with serving(loaded.config) as started:
            gitlab.external_url = f"http://{started.place}"  # so that URLs in bodies lead back through the gateway, too
            print(  # noqa: T201 — printing is what this command does
                _WORDS.format(
                    gateway=f"http://{started.place}",
                    gitlab=gitlab.url,
                    admin=started.admin_place,
                    state_dir=state_dir,
                    token=TOKENS.ada,
                ),
                flush=True,
            )
            await stop.wait()
    finally:
        await gitlab.close()
    return 0


def _configure(gitlab: str, state_dir: str, listen: str, admin: str) -> Loaded:
    text = _CONFIGURATION.format(gitlab=gitlab, state_dir=state_dir)
    overrides: dict[tuple[str | int, ...], str] = {("listen", "address"): listen, ("listen", "admin"): admin}
    return load(text, os.environ, _no_file, overrides=overrides)


def _no_file(path: str) -> str:
    raise FileNotFoundError(path)
