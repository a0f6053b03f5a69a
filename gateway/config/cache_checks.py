"""Checks of the cache, and of what ``cache.mode: shared`` leaves without effect. Called by ``checks``."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..core.hook_verifier import HookVerifier
from .model import Config
from .problems import Finding, Path, error, warning
from .units import show_duration
from .vocabulary import CacheMode

EXCHANGE_PATH = "/-/gateway/token"
_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Config)}


def cache_findings(config: Config) -> Iterator[Finding]:
    """Settings of the cache that contradict each other, and settings beside it that its mode leaves without effect."""
    cache = config.cache
    if cache.mode is CacheMode.SHARED:
        for name, given in (("credentials", config.credentials), ("rules", config.rules)):
            if given:
                yield error((name,), "has no effect with `cache.mode: shared`, which has no credential stage")
        if any(identity.key is not None or identity.oidc is not None for identity in config.identities):
            yield error(("identities",), "has gateway keys or workloads, but `cache.mode: shared` has no credential stage")
        elif config.identities != _DEFAULTS["identities"]:
            yield warning(("identities",), "has no effect with `cache.mode: shared`: everybody is let in")
        if config.passthrough != _DEFAULTS["passthrough"]:
            yield warning(("passthrough",), "has no effect with `cache.mode: shared`: every credential is forwarded")
        for name in ("limits", "costs"):
            if getattr(config, name):
                yield warning((name,), "has no effect with `cache.mode: shared`: nobody is limited")
        for name in ("ttl", "routes"):
            if getattr(cache, name):
                yield warning(("cache", name), "has no effect with `mode: shared`: answers say how long they last")
    if cache.hooks is not None:
        if cache.mode is not CacheMode.PRIVATE:
            yield error(("cache", "hooks"), "belongs to `cache.mode: private`")
        if cache.hooks.max_silence <= 0:
            yield error(("cache", "hooks", "max_silence"), "must be more than 0")
        if cache.hooks.hold > 60:
            yield error(("cache", "hooks", "hold"), "is above 1m: nothing that changes would ever be stored")
        if cache.hooks.path == EXCHANGE_PATH:
            yield error(("cache", "hooks", "path"), "is taken: workloads ask for credentials there")
        try:
            HookVerifier(cache.hooks.secret)
        except ValueError as problem:
            yield error(("cache", "hooks", "secret"), str(problem))
    if cache.mode is CacheMode.PRIVATE and cache.access_ttl <= 0 and (cache.ttl > 0 or cache.routes):
        yield warning(("cache", "access_ttl"), "is 0, so no lifetime has an effect")
    elif cache.mode is CacheMode.PRIVATE:
        lives: list[tuple[Path, float]] = [
            (("cache", "routes", i, "ttl"), route.ttl) for i, route in enumerate(cache.routes)
        ]
        for path, ttl in ((("cache", "ttl"), cache.ttl), *lives):
            if ttl > cache.access_ttl:
                yield warning(path, f"has no effect beyond `cache.access_ttl` ({show_duration(cache.access_ttl)})")
    if cache.max_entry > cache.max_bytes:
        yield error(("cache", "max_entry"), "is more than `max_bytes`, the whole store")
    seen: set[str] = set()
    for index, route in enumerate(cache.routes):
        path = ("cache", "routes", index, "match")
        if route.match and not route.match.startswith("GET /"):
            yield error(path, "is not a GET: nothing else is cached; write `GET /api/v4/…`")
        if route.match in seen:
            yield error(path, "is given twice")
        seen.add(route.match)
