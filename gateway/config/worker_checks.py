"""Checks of what several workers can't share. Called by ``checks``."""

from __future__ import annotations

from collections.abc import Iterator

from .model import Config
from .problems import Finding, error, warning
from .vocabulary import CacheMode, CachePlace

MOST_WORKERS = 64


def worker_findings(config: Config) -> Iterator[Finding]:
    """Every reason why ``listen.workers`` processes can't serve as one gateway, in the order of the file."""
    workers, stores = config.listen.workers, config.stores
    if not 1 <= workers <= MOST_WORKERS:
        yield error(("listen", "workers"), f"must be a number from 1 to {MOST_WORKERS}")
        return
    if workers == 1:
        return
    alone = "or `listen.workers` to 1"
    if not stores.shared.shared:
        message = f"is memory, which {workers} workers can't share: set it to redis://HOST:PORT/DB, {alone}"
        yield error(("stores", "shared"), message)
    elif config.cache.store is CachePlace.MEMORY and config.cache.mode is not CacheMode.OFF:
        message = f"is memory, so a purge would reach only one of {workers} workers: leave it out, {alone}"
        yield error(("cache", "store"), message)
    rotated = any(credential.rotate is not None for credential in config.credentials)
    if rotated and stores.credentials is not None and stores.credentials.scheme == "sqlite":
        message = f"is SQLite, where {workers} workers don't see who else uses a rotated token: set it to Redis, {alone}"
        yield error(("stores", "credentials"), message)
    if config.upstream.max_in_flight < workers:
        message = f"is below `listen.workers`, {workers}: each worker needs at least one place"
        yield error(("upstream", "max_in_flight"), message)
    for index, limit in enumerate(config.limits):
        if limit.bandwidth is not None:
            message = f"is counted by each of {workers} workers: with several connections a caller may get more"
            yield warning(("limits", index, "bandwidth"), message)
