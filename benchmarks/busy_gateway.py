"""The gateway as it is, with many series in its metrics, and with two kinds of background work that signals start.

    python -m benchmarks.busy_gateway CONFIG SERIES JWKS_URL

SIGHUP reads certificates again, as in a gateway with TLS: the system's authorities, and a pair beside CONFIG. SIGUSR1
fetches an issuer's keys anew, ten RSA keys, and checks a token's signature: no caller could cause that as often as a
measurement needs it. All other work is started through the gateway's own interfaces.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import json
import os
import signal
import ssl
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import uvloop
from joserfc import jws
from joserfc.jwk import KeySet, RSAKey

from gateway.app.certificates import Certificates
from gateway.app.serving import serving
from gateway.config import load
from gateway.core.exchange import Exchange
from gateway.edge.tls import ListenerTls
from gateway.identity.oidc_issuer import FRESH_S, Issuer
from gateway.telemetry import logging as operator_log
from gateway.telemetry.metrics import Metrics
from gateway.upstream.documents import HttpDocuments
from gateway.upstream.origin import tls_context

KEYS = 10


def fill_metrics(metrics: Metrics, series: int) -> None:
    """Fill the metrics with ``series`` series, by counting requests that were never made."""
    for number in range(series):
        x = Exchange(
            f"r{number}", 0.0, "GET", "127.0.0.1", operation=f"GET /api/v4/{number // 10}", status=200 + number % 10
        )
        metrics.observe(x, 0.001)


async def serve(path: Path, series: int, url: str) -> None:
    loaded = load(path.read_text(), os.environ, lambda name: Path(name).read_text())
    if loaded.config is None:
        raise SystemExit(str(loaded.problems))
    operator_log.configure("warning")
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    documents = HttpDocuments(None)
    keys = [RSAKey.generate_key(2048, {"kid": str(number), "use": "sig", "alg": "RS256"}) for number in range(KEYS)]
    (path.parent / "jwks.json").write_text(json.dumps(KeySet([*keys]).as_dict(private=False)))
    token = jws.serialize_compact({"alg": "RS256", "kid": "0"}, b"{}", keys[0])
    issuer = Issuer(url, documents, jwks_uri=url, monotonic=functools.partial(next, itertools.count(0.0, FRESH_S + 1)))
    pair = ListenerTls(str(path.parent / "pair-cert.pem"), str(path.parent / "pair-key.pem"))
    trusted: deque[ssl.SSLContext] = deque(maxlen=1)
    under_way: set[asyncio.Task[bool]] = set()

    def refresh() -> None:
        task = loop.create_task(issuer.has_signed(token, "RS256", "0"))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    async with serving(loaded.config) as started:
        fill_metrics(started.parts.metrics, series)

        def authorities() -> Callable[[], None]:
            return functools.partial(trusted.append, tls_context(None))

        certificates = Certificates([], {"authorities": authorities, "pair": pair.read})
        certificates.watch()
        loop.add_signal_handler(signal.SIGHUP, certificates.reload)
        loop.add_signal_handler(signal.SIGUSR1, refresh)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 100)
        await stop.wait()
        await certificates.close()
    await issuer.close()
    await documents.close()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
