"""What every process that serves does first, before it holds a secret or a socket."""

from __future__ import annotations

import contextlib
import os
import resource

_RESERVED = 64
"""Descriptors kept back for the ports, Redis, files and clients of the admin port."""


def harden() -> None:
    """Allow no core dumps, which may hold tokens, and as many connections as the system grants; and open standard streams
    that were closed, so that no socket takes their place. Children inherit all three."""
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
    """How many clients may be connected (0: any number), so that descriptors are left for ``upstream`` connections to
    GitLab and for the gateway's own needs: without any left, the requests of connected clients fail, and so do probes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = soft - _RESERVED
    # No client has more than one connection upstream.
    return 0 if soft == resource.RLIM_INFINITY else max(soft // 4, left // 2, left - upstream)
