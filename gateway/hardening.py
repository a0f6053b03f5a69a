"""What every process that serves does first, before it holds a secret or a socket."""

from __future__ import annotations

import contextlib
import os
import resource

_OWN = 64
"""Descriptors for the ports, Redis, files and whoever asks at the admin port."""


def harden() -> None:
    """No core dump may hold a token; as many connections as the system lets us have; and no socket in place of a standard
    stream that somebody closed. Children inherit all three."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(upstream: int) -> int:
    """How many clients may be connected, for connections ``upstream`` and whatever the gateway needs to have descriptors
    left: with none, requests of those who are connected fail, and probes do."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = soft - _OWN
    # No client has more than one upstream.
    return 0 if soft == resource.RLIM_INFINITY else max(soft // 4, left // 2, left - upstream)
