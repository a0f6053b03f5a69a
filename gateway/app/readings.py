"""What the parts count and report themselves, for metrics and readiness; described in docs/operations.md."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.breaker import BreakerState
from ..edge.admin import REFUSED, Readiness
from ..telemetry import logging as operator_log
from ..telemetry.audit import AuditLog
from ..telemetry.audit_writer import AuditWriter
from ..telemetry.metrics import Reading
from .assembly import Assembly
from .cache_assembly import CacheAssembly
from .certificates import Certificates


def readings(parts: Assembly, certificates: Certificates | None = None) -> Iterable[Reading]:
    """The numbers that the parts keep themselves; docs/operations.md describes each."""
    upstream, server = parts.upstream, parts.server
    yield Reading("gitlab_gateway_requests_in_flight", "Requests being served.", parts.gateway.in_flight)
    yield Reading("gitlab_gateway_client_connections", "Client connections open.", server.client_connections.open)
    yield Reading(
        "gitlab_gateway_client_connections_refused",
        "Client connections refused by a connection limit.",
        server.client_connections.refused,
        total=True,
    )
    yield Reading(
        "gitlab_gateway_slow_heads",
        "Connections closed because a request head did not arrive in time.",
        server.slow_heads,
        total=True,
    )
    yield Reading("gitlab_gateway_tunnels_open", "WebSockets open.", len(server.tunnels))
    for direction, size in (("in", server.tunnel_bytes_in), ("out", server.tunnel_bytes_out)):
        yield Reading(
            "gitlab_gateway_tunnel_bytes",
            "Octets through tunnels, from clients (in) and to them (out).",
            size,
            total=True,
            labels={"direction": direction},
        )
    for state, count in (("idle", upstream.idle), ("busy", upstream.open - upstream.idle)):
        yield Reading("gitlab_gateway_upstream_connections", "Connections to GitLab.", count, labels={"state": state})
    admitting_upstream = parts.admitting_upstream
    waiting = upstream.waiting + admitting_upstream.waiting
    yield Reading("gitlab_gateway_upstream_waiting", "Requests waiting for a place at GitLab.", waiting)
    yield Reading(
        "gitlab_gateway_upstream_limit",
        "Requests that may be at GitLab at one time, as learned from latency.",
        admitting_upstream.limit,
    )
    for priority, count in admitting_upstream.shed_total.items():
        yield Reading(
            "gitlab_gateway_upstream_shed",
            "Requests refused because there was no place at GitLab in time.",
            count,
            total=True,
            labels={"priority": priority.value},
        )
    if parts.limits is not None:
        yield Reading("gitlab_gateway_limit_waiting", "Requests waiting for a limit.", parts.limits.waiting)
        yield Reading(
            "gitlab_gateway_limit_absorbed",
            "Requests that waited for a limit and were then admitted.",
            parts.limits.absorbed_total,
            total=True,
        )
    yield Reading("gitlab_gateway_bandwidth_waiting", "Answers held back by a bandwidth limit.", parts.bandwidth.waiting)
    for name, octets in parts.bandwidth.octets_total.items():
        labels = {"limit": name}
        yield Reading(
            "gitlab_gateway_bandwidth_bytes", "Octets under a bandwidth limit.", octets, total=True, labels=labels
        )
        yield Reading(
            "gitlab_gateway_bandwidth_waited_seconds",
            "Time that pieces of answers were held back by a bandwidth limit.",
            parts.bandwidth.waited_s[name],
            total=True,
            labels=labels,
        )
    yield Reading("gitlab_gateway_upstream_connects", "Connections made to GitLab.", upstream.connects_total, total=True)
    yield Reading(
        "gitlab_gateway_upstream_retries",
        "Requests sent again because a reused connection had been closed.",
        upstream.retries_total,
        total=True,
    )
    for state_name in BreakerState:
        yield Reading(
            "gitlab_gateway_upstream_breaker",
            "1 for the state the circuit breaker is in.",
            float(upstream.breaker_state is state_name),
            labels={"state": state_name.value},
        )
    yield Reading(
        "gitlab_gateway_upstream_leaked_headers",
        "Answers with Workhorse's internal headers: upstream.url bypasses Workhorse.",
        parts.header_rules.leaks,
        total=True,
    )
    if parts.credentials is not None:
        yield from parts.credentials.readings()
    if certificates is not None:
        yield Reading(
            "gitlab_gateway_certificates_failing",
            "1 while a changed certificate can't be used and the previous one stays in use.",
            float(certificates.failing),
        )
        if (left_s := certificates.left_s) is not None:
            text = "Seconds until the certificate in use expires."
            yield Reading("gitlab_gateway_certificate_expires_seconds", text, left_s)
    for link in parts.links:
        yield Reading(
            "gitlab_gateway_store_up",
            "1 while a shared store answers.",
            float(link.healthy),
            labels={"store": link.name},
        )
        yield Reading(
            "gitlab_gateway_store_failures",
            "Calls that a shared store did not answer, or refused because it is full, read-only or loading.",
            link.failures,
            labels={"store": link.name},
            total=True,
        )
    for status in REFUSED:
        yield Reading(
            "gitlab_gateway_admin_refusals",
            "Requests that the admin port refused because of who asked.",
            parts.admin_refusals[status],
            total=True,
            labels={"status": str(status)},
        )
    yield Reading(
        "gitlab_gateway_log_dropped",
        "Lines of the operator's log that were dropped because nobody read it, or a disk was full.",
        operator_log.dropped(),
        total=True,
    )
    yield from _cache_readings(parts.cache_assembly)
    yield from _audit_readings(parts.audit)


def _audit_readings(audit: AuditLog) -> Iterable[Reading]:
    yield Reading("gitlab_gateway_audit_events", "Audit lines rendered.", audit.events, total=True)
    yield Reading(
        "gitlab_gateway_audit_dropped",
        "Audit lines lost because neither sink nor spool had room.",
        audit.dropped,
        total=True,
    )
    writer = audit.writer
    failing = float(writer.failing or writer.sync_failing or writer.is_hanging)
    yield Reading(
        "gitlab_gateway_audit_failing", "1 while the audit's sink takes no lines, hangs or can't be synced.", failing
    )
    yield Reading(
        "gitlab_gateway_audit_blocked",
        "1 while requests are refused because audit lines have no room.",
        float(writer.blocked),
    )
    yield Reading("gitlab_gateway_audit_spool_bytes", "Octets of audit lines waiting on disk.", writer.spooled_bytes)


def _cache_readings(cache_assembly: CacheAssembly) -> Iterable[Reading]:
    memory, redis, levels, watch, hooks = (
        cache_assembly.memory,
        cache_assembly.redis,
        cache_assembly.levels,
        cache_assembly.watch,
        cache_assembly.receiver,
    )
    if memory is not None:
        yield Reading("gitlab_gateway_cache_bytes", "Octets in the memory store, as counted.", memory.used_bytes)
        yield Reading("gitlab_gateway_cache_entries", "Answers in the memory store.", len(memory))
        yield Reading("gitlab_gateway_cache_evictions", "Answers evicted to make room.", memory.evictions, total=True)
    if redis is not None:
        yield Reading(
            "gitlab_gateway_cache_outages", "Calls that the cache's store did not answer.", redis.outages, total=True
        )
    if levels is not None:
        near = levels.near
        yield Reading(
            "gitlab_gateway_cache_near_bytes", "Octets of local copies of the shared store's answers.", near.used_bytes
        )
        yield Reading("gitlab_gateway_cache_near_entries", "Local copies of the shared store's answers.", len(near))
        yield Reading(
            "gitlab_gateway_cache_near_hits",
            "Lookups answered from a local copy, without a round trip.",
            levels.hits,
            total=True,
        )
        yield Reading(
            "gitlab_gateway_cache_near_up",
            "1 while purges are heard; otherwise no local copy is used.",
            levels.trouble is None,
        )
    if cache_assembly.leases is not None:
        yield Reading(
            "gitlab_gateway_cache_led",
            "Requests sent to GitLab on behalf of all gateways.",
            cache_assembly.leases.led,
            total=True,
        )
        yield Reading(
            "gitlab_gateway_cache_followed",
            "Requests that waited for another gateway's answer.",
            cache_assembly.leases.followed,
            total=True,
        )
    yield Reading("gitlab_gateway_cache_projects_known", "Projects known by number and path.", len(cache_assembly.names))
    if watch is not None:
        silence_s = watch.silence_s
        yield Reading(
            "gitlab_gateway_hooks_silence_seconds",
            "Seconds since the last webhook; -1: none ever came.",
            -1.0 if silence_s is None else silence_s,
        )
        yield Reading(
            "gitlab_gateway_hooks_silent",
            "1 while no webhook has come for too long: every reuse is revalidated.",
            float(watch.silent),
        )
    if hooks is not None:
        for outcome, count in (
            ("purged", hooks.purged_total),
            ("repeated", hooks.repeated_total),
            ("refused", hooks.refused_total),
        ):
            yield Reading(
                "gitlab_gateway_hooks", "Webhooks received, by outcome.", count, total=True, labels={"outcome": outcome}
            )


def readiness(parts: Assembly, certificates: Certificates | None = None) -> Readiness:
    checks = {"traffic": "down: draining" if parts.server.draining else "ok"}
    state = parts.upstream.breaker_state
    checks["upstream"] = "ok" if state is BreakerState.CLOSED else f"degraded: breaker {state.value}"
    for link in parts.links:
        checks[f"store {link.name}"] = "ok" if link.healthy else f"degraded: {link.trouble or 'not asked yet'}"
    levels = parts.cache_assembly.levels
    if levels is not None:
        checks["cache copies"] = "ok" if levels.trouble is None else f"degraded: not used, {levels.trouble}"
    if parts.cache_assembly.watch is not None:
        silent = parts.cache_assembly.watch.silent
        checks["hooks"] = "degraded: no webhook came lately, every reuse is revalidated" if silent else "ok"
    if parts.credentials is not None:
        checks |= parts.credentials.checks()
    checks["audit"] = _audit_state(parts.audit.writer)
    if certificates is not None and certificates.failing:
        checks["certificates"] = "degraded: a changed file can't be used, the previous one stays in use"
    return Readiness(not parts.server.draining, checks)


def _audit_state(writer: AuditWriter) -> str:
    if writer.blocked:
        return "degraded: there is no room for lines, requests are refused"
    if writer.is_hanging:
        return "degraded: the sink does not return, lines wait in memory"
    if not writer.failing and writer.sync_failing:
        follows = (
            "requests that change something are refused"
            if writer.durable
            else "lines that it took from the spool stay in it"
        )
        return f"degraded: the sink can't be synced, {follows}"
    if not writer.failing:
        return "ok"
    return "degraded: the sink fails, lines are spooled" if writer.has_spool else "degraded: lines are being lost"
