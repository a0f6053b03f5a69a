"""The composition root: configuration in, a running gateway out. Nothing is wired anywhere else.

    data port ───── edge.server ── Gateway.handle ─┬─ core.entry · body_stage          pure, no I/O
                                                   ├─ identity ──── key store, GitLab  cached
                                                   ├─ core.access                      pure
                                                   ├─ buckets ───── memory | Redis     one round trip
                                                   ├─ broker ────── GitLab             checked before first use
                                                   ├─ cache ─────── memory | Redis     one round trip
                                                   └─ upstream ──── GitLab             the way up
    admin port ──── edge.admin ── metrics · readiness · redacted configuration

What is off is replaced by a null object chosen here, so that the road needs no ``if enabled``. Everything that must be
closed is on one exit stack, and closed in the reverse order of its making.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__, routes
from ..answer_stage import AnswerStage
from ..bandwidth_stage import BandwidthStage
from ..body_stage import BodyStage, UnreadBodyStage
from ..broker.place_resolver import GitlabPlaceResolver
from ..broker.static import StaticTokenSource
from ..broker.token_api import TokenApi
from ..config import Config
from ..config import compile as compiled
from ..config.vocabulary import CacheMode, OnBuckets
from ..core.access import Rules
from ..core.client_address import TrustedPeers
from ..core.dialect import LimitDialect, NoDialect
from ..core.json_urls import JsonUrlRewriter
from ..core.limit_headers import LimitHeaders
from ..core.limit_plan import Limits
from ..core.limits import OnOutage
from ..core.peer_guard import PeerGuard
from ..core.request_validation import GitLabRequestValidator, SharedRequestValidator
from ..core.secret import Secret
from ..edge.server import TrafficServer
from ..identity.authenticator import PrincipalAuthenticator
from ..identity.gitlab_tokens import GitlabTokens
from ..identity.settings import IdentitySettings
from ..identity.token_exchange import TokenExchange
from ..identity.verifier import GitlabVerifier
from ..limit_stage import LimitStage
from ..pacing_stage import PacingStage
from ..pipeline import Gateway
from ..place_stage import LOOKUP_OPERATION
from ..ports import BucketStore
from ..stages import Observer, Stages
from ..state_dir import open_state_dir
from ..stores.bucket_memory import MemoryBuckets
from ..stores.bucket_redis import RedisBuckets
from ..stores.changes_redis import RedisChanges
from ..stores.credential_vault import SealedStore
from ..stores.credentials_redis import RedisCredentials
from ..stores.credentials_sqlite import SqliteCredentials
from ..stores.paces_redis import RedisPaces
from ..stores.redis_endpoint import HashTag
from ..stores.redis_link import RedisLink
from ..telemetry.audit import AuditLog
from ..telemetry.metrics import Metrics
from ..upstream.admission import AdmittingUpstream
from ..upstream.client import HttpUpstream
from ..upstream.documents import HttpDocuments
from .audit_assembly import open_audit
from .cache_assembly import CacheAssembly
from .component_settings import (
    admission_settings,
    edge_settings,
    header_rules,
    limit_subjects,
    upstream_host,
    upstream_settings,
    validation_settings,
)
from .credential_assembly import CredentialAssembly
from .early_refusals import EarlyRefusals
from .key_admin import KeyAdmin
from .key_assembly import KeyAssembly, no_keys, with_token_endpoint
from .keyring import Keyring
from .limit_admin import LimitAdmin
from .null_objects import AllowAll, NoAuthentication, NoPlaces, NoTokens
from .recent_requests import RecentRequests
from .worker_slot import WorkerSlot

if TYPE_CHECKING:  # these import a JOSE library, which only configurations with an issuer need
    from ..identity.oidc_issuer import Issuer
    from ..identity.workloads import WorkloadTokens

log = logging.getLogger("gateway.app")


class Assembly:
    """Everything one process is made of. Made by ``assemble``, closed by its exit stack."""

    def __init__(self, config: Config, slot: WorkerSlot | None = None) -> None:
        self.config = config
        self.slot = slot
        self.keys = Keyring(config, slot.key if slot is not None else b"")
        self.catalogue = routes.catalogue()
        self.stack = contextlib.AsyncExitStack()
        self.metrics = Metrics(__version__, self.catalogue.gitlab)
        self.upstream = HttpUpstream(upstream_settings(config))
        self.admitting_upstream = AdmittingUpstream(self.upstream, admission_settings(config))
        self.buckets: BucketStore | None = None
        self.limits: LimitStage | None = None
        self.bandwidth: BandwidthStage
        self.limit_admin: LimitAdmin | None = None
        self.key_assembly: KeyAssembly | None = None
        self.key_admin: KeyAdmin | None = None
        self.exchange: TokenExchange | None = None
        self.links: list[RedisLink] = []
        self.audit: AuditLog
        self.admin_refusals = Counter[int]()
        """What the admin port refused, by status."""
        self.recent: RecentRequests | None = None
        """Kept only where there is an admin key with which to ask about them."""
        self.cache_assembly: CacheAssembly
        self.tokens: StaticTokenSource | None = None
        self.credentials: CredentialAssembly | None = None
        self.header_rules = header_rules(config)
        self.gateway: Gateway
        self.server: TrafficServer
        self.alarms: dict[str, str] = {}
        """Broker credentials that GitLab refuses, and why the operator must act."""

    def link(self, url: Secret, name: str, timeout_s: float, tag: HashTag) -> RedisLink:
        """One more Redis connection, watched by readiness."""
        link = RedisLink.from_url(url.reveal(), timeout_s=timeout_s, name=f"gitlab-gateway-{name}", tag=tag)
        self.links.append(link)
        self.stack.push_async_callback(link.close)
        return link

    def alarm(self, credential_id: str, healthy: bool) -> None:
        """Record and log what the broker reports about one of its credentials."""
        if healthy:
            if self.alarms.pop(credential_id, None) is not None:
                log.warning("GitLab accepts credential %s again", credential_id)
            return
        self.alarms[credential_id] = "refused"
        log.error("GitLab refuses credential %s: its pool leaves it out; without one, its requests get 502", credential_id)


async def assemble(config: Config, slot: WorkerSlot | None = None) -> Assembly:
    """Wire a gateway, or one worker of several. Raises StateRefused, CredentialsRefused, OSError, with all closed again."""
    parts = Assembly(config, slot) if slot is None else Assembly(slot.share(config), slot)
    try:
        await wire(parts)
    except BaseException:
        await parts.stack.aclose()
        raise
    return parts


async def wire(parts: Assembly) -> None:
    """Make what ``parts`` still lacks, and put it together. Raises as ``assemble`` does, with what is open on its stack."""
    config, stack = parts.config, parts.stack
    parts.audit = open_audit(config, lambda: parts.keys.audit, turns=parts.slot.turns if parts.slot is not None else None)
    stack.callback(parts.audit.close)
    stack.push_async_callback(parts.admitting_upstream.close)
    peers = TrustedPeers([str(network) for network in config.listen.trusted_proxies])
    validation = validation_settings(config)
    caching = parts.cache_assembly = _cache(parts)
    stack.push_async_callback(caching.cache.close)
    if config.admin.keys:
        parts.recent = RecentRequests()
    if config.cache.mode is CacheMode.SHARED:
        stages = _shared_cache_stages(parts, SharedRequestValidator(validation, peers))
    else:
        stages = await _gitlab_stages(parts, GitLabRequestValidator(validation, parts.catalogue, peers), validation.prefix)
    parts.gateway = Gateway(stages)
    handle = with_token_endpoint(parts.exchange, parts.gateway, peers, validation.hosts)
    early = EarlyRefusals()
    early.gateway = parts.gateway
    parts.server = TrafficServer(
        caching.with_hooks(parts.gateway, peers, handle), early, edge_settings(config, peers), parts.gateway.try_answer
    )


def _observers(parts: Assembly) -> tuple[Observer, ...]:
    always = (parts.metrics, parts.audit)
    return always if parts.recent is None else (*always, parts.recent)


def _shared_cache_stages(parts: Assembly, entry: SharedRequestValidator) -> Stages:
    """The stages of ``cache.mode: shared``, a plain cache in front of any origin: no callers, no rules, no limits."""
    parts.bandwidth = BandwidthStage(Limits.compile((), names=parts.cache_assembly.names))
    idle = LimitStage(MemoryBuckets())
    return Stages(
        entry=entry,
        bodies=UnreadBodyStage(),
        authenticator=NoAuthentication(),
        access=AllowAll(),
        dialect=NoDialect(),
        limits=idle,
        pacing=PacingStage(idle, wall=time.time),
        bandwidth=parts.bandwidth,
        tokens=NoTokens(),
        places=NoPlaces(),
        header_rules=parts.header_rules,
        answers=AnswerStage(parts.header_rules),
        cache=parts.cache_assembly.cache,
        upstream=parts.admitting_upstream,
        observers=_observers(parts),
        audit=parts.audit,
        anonymous=True,
    )


async def _gitlab_stages(parts: Assembly, entry: GitLabRequestValidator, prefix: bytes) -> Stages:
    """The stages in front of a GitLab whose paths begin with ``prefix``."""
    config, stack, names = parts.config, parts.stack, parts.cache_assembly.names
    host = ((b"Host", upstream_host(config)),)
    buckets = parts.buckets = _buckets(parts)
    stack.push_async_callback(buckets.close)
    limiting = parts.limits = LimitStage(buckets)
    stack.push_async_callback(limiting.close)
    parts.bandwidth = BandwidthStage(Limits.compile(compiled.bandwidths(config), names=names))
    verifier = GitlabVerifier(parts.upstream, wall=time.time, prefix=prefix, fields=host)
    tokens = parts.tokens = await _start_broker(parts, verifier, TokenApi(parts.upstream, prefix=prefix, fields=host))
    settings = compiled.identity_settings(config)
    authenticator = _authenticator(parts, settings, verifier)
    stack.push_async_callback(authenticator.close)
    if parts.key_assembly is not None:
        await parts.key_assembly.check_store()
        parts.key_admin = parts.key_assembly.key_admin(parts.audit, authenticator.forget_key)
        parts.exchange = parts.key_assembly.exchange(authenticator)
    rules = Rules.compile(compiled.rules(config))
    limits = Limits.compile(compiled.limits(config), compiled.costs(config), names)
    pacing = _start_pacing(parts, limits, limiting, tokens)
    return Stages(
        entry=entry,
        bodies=BodyStage(),
        authenticator=authenticator,
        access=rules,
        dialect=LimitDialect(limits, LimitHeaders(limits, key=parts.keys.process)),
        limits=limiting,
        pacing=pacing,
        bandwidth=parts.bandwidth,
        tokens=tokens,
        places=GitlabPlaceResolver(
            parts.upstream,
            monotonic=time.monotonic,
            prefix=prefix,
            fields=host,
            by_group_id=rules.by_group_id,
            on_project=names.learn,
            on_answer=lambda credential, head: pacing.learn(credential, head, LOOKUP_OPERATION.name),
        ),
        header_rules=parts.header_rules,
        answers=_answers(parts),
        cache=parts.cache_assembly.cache,
        upstream=parts.admitting_upstream,
        observers=_observers(parts),
        audit=parts.audit,
        anonymous=settings.anonymous is not None,
        tunnel_idle_s=config.upstream.timeouts.tunnel_idle,
    )


async def _start_broker(parts: Assembly, verifier: GitlabVerifier, token_api: TokenApi) -> StaticTokenSource:
    """Make the source of upstream tokens, have each checked by GitLab, and start what rotates them."""
    config = parts.config
    credentials = compiled.credentials(config)
    tokens = StaticTokenSource(
        credentials,
        verifier,
        verifier.fetch_username,
        partition_key=parts.keys.partition,
        monotonic=time.monotonic,
        alarm=parts.alarm,
    )
    assembly = parts.credentials = CredentialAssembly(
        config,
        credentials,
        tokens,
        token_api,
        store=lambda: _credential_store(parts),
        key=lambda: parts.keys.encryption,
        audit=parts.audit,
        refused=parts.alarms,
    )
    parts.stack.push_async_callback(assembly.close)
    unsure = await assembly.load()  # they may have successors that are not known yet
    required = parts.slot.new_tokens.difference(unsure) if parts.slot is not None else ()
    serves_on = parts.slot is not None and parts.slot.restarted
    for warning in await tokens.verify_at_start(required, serves_on=serves_on):
        log.warning("%s", warning)
    assembly.rotator.start()
    return tokens


def _start_pacing(parts: Assembly, limits: Limits, limiting: LimitStage, tokens: StaticTokenSource) -> PacingStage:
    """Start what keeps upstream credentials within GitLab's own limits, and what lets operators change ours."""
    shared_store, stack = parts.config.stores.shared, parts.stack
    link = parts.link(shared_store.url, "changes", 0.25, HashTag.LIMITS) if shared_store.shared else None
    pacing = PacingStage(
        limiting,
        wall=time.time,
        credentials=[one.id for one in compiled.credentials(parts.config)],
        store=RedisPaces(link) if link is not None else None,
    )
    tokens.pick_by(pacing.remaining)
    pacing.start()
    stack.callback(pacing.close)
    changes = RedisChanges(link) if link is not None else None
    parts.limit_admin = LimitAdmin(
        limits, limiting, parts.audit, changes, pacing=pacing, subjects=limit_subjects(parts.config)
    )
    parts.limit_admin.start()
    stack.callback(parts.limit_admin.close)
    return pacing


def _answers(parts: Assembly) -> AnswerStage:
    config = parts.config
    public = config.listen.public_url
    if not config.upstream.rewrite_json or public is None:
        return AnswerStage(parts.header_rules)
    names = [str(url).rstrip("/") for url in (config.upstream.external_url, config.upstream.url) if url is not None]
    origins = tuple(name.encode() for name in dict.fromkeys(names) if name != str(public).rstrip("/"))
    addresses = JsonUrlRewriter(origins, str(public).rstrip("/").encode()) if origins else None
    return AnswerStage(parts.header_rules, addresses, max_bytes=config.cache.max_entry)


def _buckets(parts: Assembly) -> BucketStore:
    config = parts.config
    if not config.stores.shared.shared:
        return MemoryBuckets()
    outage = {OnBuckets.LOCAL: OnOutage.LOCAL, OnBuckets.OPEN: OnOutage.OPEN, OnBuckets.CLOSED: OnOutage.CLOSED}
    link = parts.link(config.stores.shared.url, "buckets", 0.05, HashTag.LIMITS)
    return RedisBuckets(link, on_outage=outage[config.stores.on_error.buckets])


def _cache(parts: Assembly) -> CacheAssembly:
    config = parts.config
    shared = config.cache_is_shared and config.cache.mode is not CacheMode.OFF
    link = parts.link(config.stores.shared.url, "cache", 0.1, HashTag.CACHE) if shared else None
    return CacheAssembly(config, link, lambda: parts.keys.encryption)


def _credential_store(parts: Assembly) -> SealedStore:
    stored = parts.config.stores.credentials
    assert stored is not None, "the loader fills it in"
    if stored.shared:
        return RedisCredentials(parts.link(stored.url, "credentials", 2.0, HashTag.CREDENTIALS))
    open_state_dir(Path(parts.config.state_dir))
    return SqliteCredentials(Path(stored.url.reveal().removeprefix("sqlite://")), wall=time.time)


def _workloads(parts: Assembly, settings: IdentitySettings) -> WorkloadTokens | None:
    if not settings.workloads:
        return None
    from ..identity.oidc_issuer import Issuer
    from ..identity.workloads import WorkloadTokens

    documents: dict[str | None, HttpDocuments] = {}
    known: dict[tuple[str, str, tuple[str, ...], str | None], Issuer] = {}
    issuers = {}
    for one in settings.workloads:
        if one.ca_file not in documents:
            documents[one.ca_file] = HttpDocuments(one.ca_file)
            parts.stack.push_async_callback(documents[one.ca_file].close)
        url = one.requirement.issuer
        same = (url, one.jwks_uri, one.algorithms, one.ca_file)
        if same not in known:
            known[same] = Issuer(
                url,
                documents[one.ca_file],
                monotonic=time.monotonic,
                jwks_uri=one.jwks_uri,
                algorithms=one.algorithms,
            )
        issuers[one.id] = known[same]
    return WorkloadTokens(
        settings.workloads, issuers, fingerprint_key=parts.keys.audit, wall=time.time, monotonic=time.monotonic
    )


def _authenticator(parts: Assembly, settings: IdentitySettings, verifier: GitlabVerifier) -> PrincipalAuthenticator:
    config, keys = parts.config, parts.keys
    fingerprint_key = keys.audit
    if settings.keys or settings.workloads:
        stored = config.stores.keys
        link = parts.link(stored.url, "keys", 0.25, HashTag.KEYS) if stored is not None and stored.shared else None
        parts.key_assembly = KeyAssembly(config, settings, lambda: keys.pepper, link)
        parts.stack.push_async_callback(parts.key_assembly.store.close)
        gateway_keys = parts.key_assembly.gateway_keys(fingerprint_key)
    else:
        gateway_keys = no_keys(keys.process, fingerprint_key)
    own_tokens = None
    if settings.gitlab_token is not None:
        own_tokens = GitlabTokens(
            verifier,
            settings.gitlab_token,
            fingerprint_key=fingerprint_key,
            partition_key=keys.partition,
            wall=time.time,
            monotonic=time.monotonic,
        )
    return PrincipalAuthenticator(
        settings,
        gateway_keys,
        own_tokens,
        PeerGuard(),
        _workloads(parts, settings),
        process_key=keys.process,
        fingerprint_key=fingerprint_key,
        monotonic=time.monotonic,
    )
