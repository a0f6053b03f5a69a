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
import secrets
import time
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
from ..core.adaptive import AdaptiveSettings
from ..core.breaker import BreakerSettings
from ..core.catalogue import Catalogue
from ..core.client_address import TrustedPeers
from ..core.dialect import LimitDialect, NoDialect
from ..core.header_rules import HeaderRules
from ..core.json_urls import JsonUrlRewriter
from ..core.limit_headers import LimitHeaders
from ..core.limit_plan import Limits
from ..core.limits import OnOutage
from ..core.peer_guard import PeerGuard
from ..core.request_validation import GitLabRequestValidator, SharedRequestValidator, ValidationSettings
from ..core.secret import Secret
from ..edge.server import TrafficServer
from ..edge.settings import EdgeSettings
from ..hardening import most_connections
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
from ..state_dir import open_state_dir, secret
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
from ..upstream.admission import AdmissionSettings, AdmittingUpstream
from ..upstream.client import HttpUpstream, UpstreamSettings
from ..upstream.documents import HttpDocuments
from .audit_assembly import open_audit
from .cache_assembly import CacheAssembly
from .credential_assembly import CredentialAssembly
from .early_refusals import EarlyRefusals
from .key_admin import KeyAdmin
from .key_assembly import KeyAssembly, no_keys, with_token_endpoint
from .limit_admin import LimitAdmin
from .null_objects import AllowAll, NoAuthentication, NoPlaces, NoTokens
from .recent_requests import RecentRequests
from .worker_slot import WorkerSlot

if TYPE_CHECKING:  # these import a JOSE library, which only configurations with an issuer need
    from ..identity.oidc_issuer import Issuer
    from ..identity.workloads import WorkloadTokens

log = logging.getLogger("gateway.app")


# Wiring


class Assembly:
    """Everything one process is made of. Made by ``assemble``, closed by its exit stack."""

    def __init__(self, config: Config, slot: WorkerSlot | None = None) -> None:
        self.config = config
        self.slot = slot
        self.keys = Keyring(config, slot.key if slot is not None else b"")
        self.catalogue = Catalogue.decode(routes.read())
        self.stack = contextlib.AsyncExitStack()
        self.metrics = Metrics(__version__, self.catalogue.gitlab)
        self.upstream = HttpUpstream(_upstream_settings(config))
        self.admitting_upstream = AdmittingUpstream(self.upstream, _admission_settings(config))
        self.buckets: BucketStore | None = None
        self.limits: LimitStage | None = None
        self.bandwidth: BandwidthStage
        self.limit_admin: LimitAdmin | None = None
        self.key_assembly: KeyAssembly | None = None
        self.key_admin: KeyAdmin | None = None
        self.exchange: TokenExchange | None = None
        self.links: list[RedisLink] = []
        self.audit: AuditLog | None = None
        self.recent: RecentRequests | None = None
        """Kept only where there is an admin key with which to ask about them."""
        self.cache_assembly: CacheAssembly
        self.tokens: StaticTokenSource | None = None
        self.credentials: CredentialAssembly | None = None
        self.header_rules = _header_rules(config)
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


class Keyring:
    """The gateway's own keys: configured, or made once in ``state_dir``. Each purpose has a key of its own.

    Without ``make`` none is made, and a missing key raises StateRefused.
    """

    def __init__(self, config: Config, process: bytes = b"", *, make: bool = True) -> None:
        self._config = config
        self._make = make
        self.process = process or secrets.token_bytes(32)

    def _named(self, name: str, configured: Secret | None) -> bytes:
        if configured is not None:
            return configured.reveal().encode("utf-8", "surrogateescape")
        return secret(open_state_dir(Path(self._config.state_dir), make=self._make), name, make=self._make)

    @property
    def pepper(self) -> bytes:
        return self._named("pepper", self._config.secrets.pepper)

    @property
    def partition(self) -> bytes:
        """The key for cache partitions: this process's own, unless other gateways share the cache's store."""
        return self.encryption if self._config.cache_is_shared else self.process

    @property
    def encryption(self) -> bytes:
        return self._named("encryption_key", self._config.secrets.encryption_key)

    @property
    def audit(self) -> bytes:
        return self._named("audit_key", self._config.secrets.audit_key)


async def assemble(config: Config, slot: WorkerSlot | None = None) -> Assembly:
    """Wire a gateway, or one worker of several. Raises StateRefused, CredentialsRefused, OSError, with all closed again."""
    parts = Assembly(config, slot) if slot is None else Assembly(slot.share(config), slot)
    try:
        await _assemble(parts)
    except BaseException:
        await parts.stack.aclose()
        raise
    return parts


async def _assemble(parts: Assembly) -> None:
    config, stack = parts.config, parts.stack
    parts.audit = open_audit(config, lambda: parts.keys.audit, turns=parts.slot.turns if parts.slot is not None else None)
    stack.callback(parts.audit.close)
    stack.push_async_callback(parts.admitting_upstream.close)
    peers = TrustedPeers([str(network) for network in config.listen.trusted_proxies])
    entry_settings = _entry_settings(config)
    shared = config.cache.mode is CacheMode.SHARED
    caching = parts.cache_assembly = _cache(parts)
    cache = caching.cache
    stack.push_async_callback(cache.close)
    parts.bandwidth = BandwidthStage(Limits.compile(() if shared else compiled.bandwidths(config), names=caching.names))
    observers: tuple[Observer, ...] = (parts.metrics, parts.audit)
    if config.admin.keys:
        parts.recent = RecentRequests()
        observers = (*observers, parts.recent)
    if shared:
        idle = LimitStage(MemoryBuckets())
        stages = Stages(
            entry=SharedRequestValidator(entry_settings, peers),
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
            cache=cache,
            upstream=parts.admitting_upstream,
            observers=observers,
            audit=parts.audit,
            anonymous=True,
        )
    else:
        parts.buckets = _buckets(parts)
        stack.push_async_callback(parts.buckets.close)
        parts.limits = LimitStage(parts.buckets)
        stack.push_async_callback(parts.limits.close)
        verifier = GitlabVerifier(
            parts.upstream,
            wall=time.time,
            prefix=entry_settings.prefix,
            fields=((b"Host", _upstream_host(config)),),
        )
        credentials = compiled.credentials(config)
        parts.tokens = StaticTokenSource(
            credentials,
            verifier,
            verifier.fetch_username,
            partition_key=parts.keys.partition,
            monotonic=time.monotonic,
            alarm=parts.alarm,
        )
        credential_assembly = parts.credentials = CredentialAssembly(
            config,
            credentials,
            parts.tokens,
            TokenApi(parts.upstream, prefix=entry_settings.prefix, fields=((b"Host", _upstream_host(config)),)),
            store=lambda: _credential_store(parts),
            key=lambda: parts.keys.encryption,
            audit=parts.audit,
            refused=parts.alarms,
        )
        stack.push_async_callback(credential_assembly.close)
        for warning in await parts.tokens.verify_at_start(await credential_assembly.load()):
            log.warning("%s", warning)
        credential_assembly.rotator.start()
        settings = compiled.identity_settings(config)
        authenticator = _authenticator(parts, settings, verifier)
        stack.push_async_callback(authenticator.close)
        if parts.key_assembly is not None:
            await parts.key_assembly.check_store()
            parts.key_admin = parts.key_assembly.key_admin(parts.audit, authenticator.forget_key)
            parts.exchange = parts.key_assembly.exchange(authenticator)
        rules = Rules.compile(compiled.rules(config))
        limits = Limits.compile(compiled.limits(config), compiled.costs(config), caching.names)
        shared_store = config.stores.shared
        changes_link = parts.link(shared_store.url, "changes", 0.25, HashTag.LIMITS) if shared_store.shared else None
        pacing = PacingStage(
            parts.limits,
            wall=time.time,
            credentials=[one.id for one in credentials],
            store=RedisPaces(changes_link) if changes_link is not None else None,
        )
        parts.tokens.pick_by(pacing.remaining)
        pacing.start()
        stack.callback(pacing.close)
        changes = RedisChanges(changes_link) if changes_link is not None else None
        parts.limit_admin = LimitAdmin(limits, parts.limits, parts.audit, changes, pacing=pacing)
        parts.limit_admin.start()
        stack.callback(parts.limit_admin.close)
        stages = Stages(
            entry=GitLabRequestValidator(entry_settings, parts.catalogue, peers),
            bodies=BodyStage(),
            authenticator=authenticator,
            access=rules,
            dialect=LimitDialect(limits, LimitHeaders(limits, key=parts.keys.process)),
            limits=parts.limits,
            pacing=pacing,
            bandwidth=parts.bandwidth,
            tokens=parts.tokens,
            places=GitlabPlaceResolver(
                parts.upstream,
                monotonic=time.monotonic,
                prefix=entry_settings.prefix,
                fields=((b"Host", _upstream_host(config)),),
                by_group_id=rules.by_group_id,
                on_project=caching.names.learn,
                on_answer=lambda credential, head: pacing.learn(credential, head, LOOKUP_OPERATION.name),
            ),
            header_rules=parts.header_rules,
            answers=_answers(parts),
            cache=cache,
            upstream=parts.admitting_upstream,
            observers=observers,
            audit=parts.audit,
            anonymous=settings.anonymous is not None,
            tunnel_idle_s=config.upstream.timeouts.tunnel_idle,
        )
    parts.gateway = Gateway(stages)
    handle = with_token_endpoint(parts.exchange, parts.gateway, peers, entry_settings.hosts)
    early = EarlyRefusals()
    early.gateway = parts.gateway
    parts.server = TrafficServer(
        caching.with_hooks(parts.gateway, handle), early, _edge_settings(config, peers), parts.gateway.at_once
    )


def _upstream_settings(config: Config) -> UpstreamSettings:
    upstream = config.upstream
    breaker = upstream.breaker
    return UpstreamSettings(
        url=str(upstream.url),
        connect_s=upstream.timeouts.connect,
        first_byte_s=upstream.timeouts.first_byte,
        idle_s=upstream.timeouts.idle,
        max_in_flight=upstream.max_in_flight,
        max_tunnels=upstream.max_tunnels,
        ca_file=upstream.ca_file,
        foreign_codings=config.cache.mode is CacheMode.SHARED,
        breaker=BreakerSettings(breaker.window, breaker.min_requests, breaker.error_ratio, breaker.open_for),
    )


def _admission_settings(config: Config) -> AdmissionSettings:
    most = config.upstream.max_in_flight
    return AdmissionSettings(AdaptiveSettings(most=most, least=min(10, most) if config.upstream.adaptive else most))


def _entry_settings(config: Config) -> ValidationSettings:
    listen, limits = config.listen, config.listen.limits
    hosts = [host.lower() for host in listen.hosts]
    if listen.public_url:
        hosts.append(listen.public_url.host)
    return ValidationSettings(
        target_bytes=limits.target_bytes,
        field_bytes=limits.field_bytes,
        header_bytes=limits.header_bytes,
        max_fields=limits.headers,
        prefix=config.upstream.url.path.encode(),
        hosts=frozenset(host.encode("idna" if not host.isascii() else "ascii") for host in hosts),
    )


def _edge_settings(config: Config, peers: TrustedPeers) -> EdgeSettings:
    limits, upstream = config.listen.limits, config.upstream
    return EdgeSettings(
        target_bytes=limits.target_bytes,
        field_bytes=limits.field_bytes,
        max_fields=limits.headers,
        request_head_s=limits.request_head,
        body_idle_s=limits.body_idle,
        body_rate=limits.body_rate,
        idle_s=limits.idle,
        max_connections=limits.connections or most_connections(upstream.max_in_flight + 2 * upstream.max_tunnels),
        max_connections_per_peer=limits.connections_per_peer,
        uncounted_peer=peers.trusts,
        sets_correlation_aside=config.cache.mode is not CacheMode.SHARED,  # any field may be named in ``Vary`` there
    )


def _upstream_host(config: Config) -> bytes:
    """The one Host that GitLab sees: the name it believes it has, so that whatever it derives from Host is right."""
    for url in (config.upstream.external_url, config.listen.public_url, config.upstream.url):
        if url is not None:
            return url.authority.encode("idna" if not url.authority.isascii() else "ascii")
    raise AssertionError("upstream.url is required")


def _header_rules(config: Config) -> HeaderRules:
    if config.cache.mode is CacheMode.SHARED:
        return HeaderRules(shared=True)
    names = dict.fromkeys(str(url) for url in (config.upstream.external_url, config.upstream.url) if url is not None)
    return HeaderRules(
        upstream_host=_upstream_host(config),
        external_urls=tuple(names),
        public_url=str(config.listen.public_url or ""),
        prefix=config.upstream.url.path,
        bypass=(config.upstream.throttle_bypass_header or "").encode("ascii"),
        attribution=_attribution(config),
    )


def _attribution(config: Config) -> tuple[bytes, bool] | None:
    attribution = config.upstream.attribution
    return None if attribution is None else ((attribution.header or "").encode("ascii"), attribution.user_agent)


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
