"""What the parts count and report themselves."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.app.assembly import Assembly, assemble
from gateway.app.certificates import Certificates
from gateway.app.readings import readiness, readings
from gateway.telemetry.audit_writer import AuditWriter
from tests.fakes.sink import MemorySink
from tests.fakes.world import SECRETS, configured

TEXT = """\
version: 1
upstream: {url: "http://127.0.0.1:9"}
identities: [{id: reader, key: issued}]
credentials: [{id: sa, token: "${env:SA}"}]
rules: [{id: reads, for: [reader], use: sa, allow: [{access: read}]}]
"""


def figures(parts: Assembly) -> dict[str, float]:
    return {" ".join((reading.name, *reading.labels.values())): reading.value for reading in readings(parts)}


async def test_readings_say_what_is(tmp_path: Path) -> None:
    parts = await assemble(configured(TEXT, tmp_path))
    async with parts.stack:
        before = figures(parts)
        assert before["gitlab_gateway_requests_in_flight"] == 0
        assert before["gitlab_gateway_credential_refused sa"] == 0
        parts.alarm("sa", False)
        parts.gateway.active = 3
        parts.server.slow_heads = 2
        parts.admin_refusals[401] += 4
        after = figures(parts)
    assert after["gitlab_gateway_credential_refused sa"] == 1
    assert after["gitlab_gateway_requests_in_flight"] == 3
    assert after["gitlab_gateway_slow_heads"] == 2
    assert (after["gitlab_gateway_admin_refusals 401"], after["gitlab_gateway_admin_refusals 403"]) == (4, 0)
    breaker = {name: value for name, value in after.items() if name.startswith("gitlab_gateway_upstream_breaker")}
    assert sum(breaker.values()) == 1, "in one state at a time"


async def test_a_credential_that_works_again_ends_its_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = await assemble(configured(TEXT, tmp_path))
    async with parts.stack:
        parts.alarm("sa", True)
        assert "accepts" not in caplog.text
        parts.alarm("sa", False)
        assert readiness(parts).checks["credential sa"] == "degraded: GitLab refuses it"
        parts.alarm("sa", True)
        assert "credential sa" not in readiness(parts).checks


async def test_a_certificate_that_can_not_be_read_again_shows(tmp_path: Path) -> None:
    def broken() -> Callable[[], None]:
        raise OSError

    certificates = Certificates([], {"upstream.ca_file": broken})
    certificates.watch()
    parts = await assemble(configured(TEXT, tmp_path))
    async with parts.stack:
        for failing in (False, True):
            found = {reading.name: reading.value for reading in readings(parts, certificates)}
            assert found["gitlab_gateway_certificates_failing"] == failing
            assert ("certificates" in readiness(parts, certificates).checks) is failing
            certificates.reload()
            async with asyncio.timeout(30):
                while not certificates.failing:
                    await asyncio.sleep(0)
        assert readiness(parts, certificates).ready
    await certificates.close()


async def test_how_long_the_certificate_lasts_that_is_served(tmp_path: Path) -> None:
    parts = await assemble(configured(TEXT, tmp_path))
    now = time.time()
    async with parts.stack:
        for certificates, left in (
            (Certificates([], {}), None),
            (Certificates([], {}, lambda: now + 7_000_000), 7_000_000),
            (Certificates([], {}, lambda: now - 7_000_000), -7_000_000),
            (Certificates([], {}, lambda: math.inf), math.inf),
        ):
            found = [one for one in readings(parts, certificates) if one.name.endswith("_certificate_expires_seconds")]
            assert [one.value for one in found] == ([] if left is None else [pytest.approx(left, rel=0.01)])
            await certificates.close()


async def test_readiness(tmp_path: Path) -> None:
    parts = await assemble(configured(TEXT, tmp_path))
    async with parts.stack:
        ready = readiness(parts)
        assert ready.ready
        assert (ready.checks["traffic"], ready.checks["audit"], ready.checks["upstream"]) == ("ok", "ok", "ok")
        parts.audit.writer.failing = True
        assert readiness(parts).ready
        assert readiness(parts).checks["audit"] == "degraded: the sink fails, lines are spooled"
        parts.audit.writer.failing, parts.audit.writer.sync_failing = False, True
        for durable, follows in (
            (False, "lines that it took from the spool stay in it"),
            (True, "requests that change something are refused"),
        ):
            parts.audit.writer.durable = durable
            assert readiness(parts).checks["audit"] == f"degraded: the sink can't be synced, {follows}"
        assert {one.name: one.value for one in readings(parts)}["gitlab_gateway_audit_failing"] == 1
        parts.audit.writer.sync_failing = False
        assert figures(parts)["gitlab_gateway_audit_failing"] == 0
        parts.server.drain()
        assert not readiness(parts).ready
        assert readiness(parts).checks["traffic"] == "down: draining"


class Held(MemorySink):
    """On a disk that does not return."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, lines: bytes) -> int:
        assert self.go.wait(30)
        return super().write(lines)


async def test_an_audit_that_hangs_is_reported(tmp_path: Path) -> None:
    parts = await assemble(configured(TEXT, tmp_path))
    async with parts.stack:
        sink, before = Held(), parts.audit.writer
        parts.audit.writer = AuditWriter(sink, patience_s=0.01)
        try:
            parts.audit.writer.offer(b"line\n")
            async with asyncio.timeout(30):
                while readiness(parts).checks["audit"] == "ok":
                    await asyncio.sleep(0.001)
            assert readiness(parts).checks["audit"] == "degraded: the sink does not return, lines wait in memory"
            assert figures(parts)["gitlab_gateway_audit_failing"] == 1
            sink.go.set()
            async with asyncio.timeout(30):
                while readiness(parts).checks["audit"] != "ok":
                    await asyncio.sleep(0.001)
        finally:
            sink.go.set()
            parts.audit.writer.close()
            parts.audit.writer = before


async def test_a_shared_store_is_watched(tmp_path: Path, redis_url: str) -> None:
    parts = await assemble(configured(f'{TEXT}{SECRETS}stores: {{shared: "{redis_url}"}}\n', tmp_path))
    async with parts.stack:
        stores = {name.rpartition("-")[2] for name in readiness(parts).checks if name.startswith("store ")}
        assert stores == {"buckets", "cache", "changes", "keys"}
        assert readiness(parts).checks["cache copies"] == "degraded: not used, not listening yet"
        assert figures(parts)["gitlab_gateway_cache_near_up"] == 0
        assert parts.cache_assembly.levels is not None
        parts.cache_assembly.levels.start()
        async with asyncio.timeout(30):
            while readiness(parts).checks["cache copies"] != "ok":
                await asyncio.sleep(0.01)
        assert figures(parts)["gitlab_gateway_cache_near_up"] == 1
        assert figures(parts)["gitlab_gateway_cache_near_hits"] == 0
        assert figures(parts)["gitlab_gateway_cache_led"] == figures(parts)["gitlab_gateway_cache_followed"] == 0
        assert {name for name in figures(parts) if name.startswith("gitlab_gateway_store_up")}


async def test_the_cache_tells_what_it_holds_and_whether_hooks_come(tmp_path: Path) -> None:
    text = TEXT + 'cache: {hooks: {secret: "${env:SA}"}}\n'
    parts = await assemble(configured(text, tmp_path))
    async with parts.stack:
        before = figures(parts)
        assert readiness(parts).checks["hooks"].startswith("degraded")
        caching = parts.cache_assembly
        assert caching.watch is not None
        await caching.watch.record_hook()
        after = figures(parts)
        assert readiness(parts).checks["hooks"] == "ok"
        assert readiness(parts).ready
    assert before["gitlab_gateway_hooks_silence_seconds"] == -1
    assert (before["gitlab_gateway_hooks_silent"], after["gitlab_gateway_hooks_silent"]) == (1, 0)
    assert 0 <= after["gitlab_gateway_hooks_silence_seconds"] < 60
    for name in ("cache_bytes", "cache_entries", "cache_evictions", "cache_projects_known", "hooks purged"):
        assert after[f"gitlab_gateway_{name}"] == 0, name


async def test_bandwidths_tell_what_flowed(tmp_path: Path) -> None:
    parts = await assemble(configured(TEXT + "limits: [{id: slow, by: caller, bandwidth: 1MiB/s}]\n", tmp_path))
    async with parts.stack:
        parts.bandwidth.octets_total["slow"] = 7
        now = figures(parts)
    assert now["gitlab_gateway_bandwidth_bytes slow"] == 7
    assert now["gitlab_gateway_bandwidth_waited_seconds slow"] == 0
    assert now["gitlab_gateway_bandwidth_waiting"] == 0
