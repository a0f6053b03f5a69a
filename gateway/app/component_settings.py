"""The settings of each component, as the configuration determines them. Nothing is opened or made here."""

from __future__ import annotations

from ..config import Config
from ..config.vocabulary import CacheMode
from ..core.adaptive import AdaptiveSettings
from ..core.breaker import BreakerSettings
from ..core.client_address import TrustedPeers
from ..core.header_rules import HeaderRules
from ..core.limits import Scope
from ..core.request_validation import ValidationSettings
from ..edge.admin import AdminKey, AdminSettings
from ..edge.settings import EdgeSettings
from ..hardening import most_connections
from ..upstream.admission import AdmissionSettings
from ..upstream.client import UpstreamSettings


def upstream_settings(config: Config) -> UpstreamSettings:
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


def admission_settings(config: Config) -> AdmissionSettings:
    most = config.upstream.max_in_flight
    return AdmissionSettings(AdaptiveSettings(most=most, least=min(10, most) if config.upstream.adaptive else most))


def validation_settings(config: Config) -> ValidationSettings:
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
        hosts=frozenset(host.encode("ascii") for host in hosts),
    )


def edge_settings(config: Config, peers: TrustedPeers) -> EdgeSettings:
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


def admin_settings(config: Config) -> AdminSettings:
    keys = [
        AdminKey(
            key.id,
            bytes.fromhex(key.sha256),
            frozenset(key.may),
            None if key.identities is None else frozenset(key.identities),
        )
        for key in config.admin.keys
    ]
    return AdminSettings(tuple(keys), frozenset({config.listen.admin.host.lower()}))


def limit_subjects(config: Config) -> dict[Scope, frozenset[str]]:
    """Whom the buckets of limits by identity, team and organisation can be for; who calls is known only when they do."""
    return {
        Scope.IDENTITY: frozenset(identity.id for identity in config.identities) | {"passthrough"},
        Scope.TEAM: frozenset(identity.team for identity in config.identities if identity.team),
        Scope.ORGANISATION: frozenset({"all"}),
    }


def upstream_host(config: Config) -> bytes:
    """The one Host that GitLab sees: the name it believes it has, so that whatever it derives from Host is right."""
    for url in (config.upstream.external_url, config.listen.public_url, config.upstream.url):
        if url is not None:
            return url.authority.encode("ascii")
    raise AssertionError("upstream.url is required")


def header_rules(config: Config) -> HeaderRules:
    if config.cache.mode is CacheMode.SHARED:
        return HeaderRules(shared=True)
    names = dict.fromkeys(str(url) for url in (config.upstream.external_url, config.upstream.url) if url is not None)
    return HeaderRules(
        upstream_host=upstream_host(config),
        external_urls=tuple(names),
        public_url=str(config.listen.public_url or ""),
        prefix=config.upstream.url.path,
        bypass=(config.upstream.throttle_bypass_header or "").encode("ascii"),
        attribution=_attribution(config),
    )


def _attribution(config: Config) -> tuple[bytes, bool] | None:
    attribution = config.upstream.attribution
    return None if attribution is None else ((attribution.header or "").encode("ascii"), attribution.user_agent)
