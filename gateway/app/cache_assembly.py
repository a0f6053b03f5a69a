"""Wires the cache and what belongs to it: store, project names, hooks."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable

from ..cache import Cache, NoCache, PrivateCache, SharedCache, SharedPolicy
from ..cache.hook_watch import HookWatch
from ..config import Config
from ..config.model import Cache as CacheSettings
from ..config.vocabulary import CacheMode
from ..core.client_address import TrustedPeers
from ..core.hook_verifier import HookVerifier
from ..core.private_caching import PrivatePolicy
from ..core.project_names import ProjectNames
from ..edge.hooks import ExchangeRecorder, HookReceiver
from ..ports import CacheStore, Downstream
from ..stores.cache_leases import RedisLeases
from ..stores.cache_levels import TRUST_S, TwoLevelCacheStore
from ..stores.cache_memory import MemoryCacheStore
from ..stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from ..stores.codec import Codec
from ..stores.redis_link import RedisLink
from ..stores.redis_subscriber import RedisSubscriber

log = logging.getLogger("gateway.cache")

Handle = Callable[[Downstream], Awaitable[None]]
_CHECK_EVERY_S = 0.5
_MAX_BACK_S = 1.0


def private_policy(config: Config) -> PrivatePolicy:
    """What the operator allows, in the private cache's terms."""
    settings = config.cache
    return PrivatePolicy(
        ttl_s=settings.ttl,
        access_ttl_s=settings.access_ttl,
        stale_if_error_s=settings.stale_if_error,
        max_entry_bytes=settings.max_entry,
        route_ttl_s={route.match: route.ttl for route in settings.routes},
        immutable=settings.immutable,
        hold_s=settings.hooks.hold if settings.hooks is not None else 0.0,
        prefix=config.upstream.url.path,
    )


def _form_digest(config: Config) -> bytes:
    """A digest of the settings that decide, besides the request, in what form GitLab's answers are stored."""
    gitlab = config.upstream.external_url or config.upstream.url
    said = f"{gitlab}\n{config.listen.public_url}\n{config.upstream.rewrite_json}"
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest().encode("ascii")


def _may_reuse(settings: CacheSettings) -> bool:
    """Whether any answer may be reused without asking GitLab, and copies may be kept in this process for that."""
    lifetimes = (settings.ttl, *(route.ttl for route in settings.routes))
    return bool(settings.near_bytes) and (settings.mode is CacheMode.SHARED or settings.immutable or max(lifetimes) > 0)


class CacheAssembly:
    """The cache of one gateway, with its stores, project names and hooks.

    Args:
        config: The gateway's configuration.
        link: The link to the shared store; None: the store is in memory.
        encryption_key: Returns the encryption key; called only where there is a link.
    """

    def __init__(self, config: Config, link: RedisLink | None, encryption_key: Callable[[], bytes]) -> None:
        settings = config.cache
        self._settings = settings
        self.names = ProjectNames()
        self.store: CacheStore | None = None
        self.memory: MemoryCacheStore | None = None
        self.redis: RedisCacheStore | None = None
        self.levels: TwoLevelCacheStore | None = None
        self.leases: RedisLeases | None = None
        self.watch: HookWatch | None = None
        self.receiver: HookReceiver | None = None
        self.cache: Cache = NoCache()
        self._drift_s = float("-inf")
        self._watcher: asyncio.Task[None] | None = None
        if settings.mode is CacheMode.OFF:
            return
        if link is not None:
            codec = Codec(encryption_key())
            self.store = self.redis = far = RedisCacheStore(link, codec)
            if _may_reuse(settings):
                subscriber = RedisSubscriber(
                    link.endpoint, channel=GONE_CHANNEL, name=f"{link.name}-ear", clock=time.monotonic
                )
                self.leases = RedisLeases(link, codec, lambda: far.publishes and subscriber.heard_within(TRUST_S))
                self.store = self.levels = TwoLevelCacheStore(
                    far, subscriber, max_bytes=settings.near_bytes, clock=time.monotonic, leases=self.leases
                )
        else:
            self.store = self.memory = MemoryCacheStore(settings.max_bytes, time.monotonic)
        if settings.mode is CacheMode.SHARED:
            policy = SharedPolicy(stale_if_error_s=settings.stale_if_error, max_entry_bytes=settings.max_entry)
            self.cache = SharedCache(self.store, policy)
            return
        if settings.hooks is not None:
            self.watch = HookWatch(self.store, time.monotonic, settings.hooks.max_silence)
        copies = self.levels if self.memory is None else self.memory
        finder_for = copies.finder_for if copies is not None else None
        self.cache = PrivateCache(
            self.store,
            private_policy(config),
            names=self.names,
            hooks=self.watch,
            finder_for=finder_for,
            leases=self.leases,
            local_store=self.memory,
            remote_store=self.levels or self.redis,
            form_digest=_form_digest(config),
        )

    def start(self) -> None:
        """Listen to Redis, and watch the clock that the age of answers is measured by. Needs a running loop."""
        if self.levels is not None:
            self.levels.start()
        if self.levels is not None or self.memory is not None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="cache clock")

    async def close(self) -> None:
        """Stop what ``start`` began; the cache itself is closed separately."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self.check_clock(time.time(), time.monotonic())
            await asyncio.sleep(_CHECK_EVERY_S)

    def check_clock(self, wall: float, monotonic: float) -> None:
        """Forget what is in memory if the clock has gone back: it would look younger than it is."""
        drift_s = wall - monotonic
        back_s, self._drift_s = self._drift_s - drift_s, drift_s
        if back_s < _MAX_BACK_S:
            return
        log.warning("the clock went back by %.0f s: the cache in memory is emptied", back_s)
        if self.levels is not None:
            self.levels.forget()
        if self.memory is not None:
            self.memory.forget()

    def with_hooks(self, recorder: ExchangeRecorder, peers: TrustedPeers, handle: Handle) -> Handle:
        """``handle``, behind a receiver of hooks where these are configured."""
        hooks = self._settings.hooks
        if hooks is None or self.store is None or self.watch is None:
            return handle
        self.receiver = HookReceiver(
            hooks.path,
            HookVerifier(hooks.secret),
            peers,
            store=self.store,
            watch=self.watch,
            names=self.names,
            wall=time.time,
            hold_s=hooks.hold,
            recorder=recorder,
            handle=handle,
        )
        return self.receiver.handle
