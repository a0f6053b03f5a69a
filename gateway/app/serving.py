"""Starts a gateway, serves, drains and stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial

import uvloop

from ..broker.static import CredentialsRefused
from ..config import Config
from ..edge.acceptor import Acceptor
from ..edge.admin import Admin, AdminServer, Readiness
from ..edge.connection import Connection
from ..edge.parsing import require_c_parser
from ..edge.tls import ListenerTls
from ..hardening import harden
from ..process_signals import OnSignal, run_process
from ..telemetry import logging as operator_log
from ..telemetry.metrics import CONTENT_TYPE, Reading
from ..upstream.client import HttpUpstream
from ..workers.listeners import naming
from .admin_api import admin_endpoints
from .all_workers import AllWorkers
from .assembly import Assembly, assemble
from .certificates import Certificates
from .component_settings import admin_settings
from .fan_out import fan_out
from .readings import readiness, readings
from .store_watch import StoreWatch
from .worker_slot import WorkerSlot

log = logging.getLogger("gateway.app")

_BACKLOG = 1024
SWITCH_S = 0.0005
_CHECK_EVERY_S = 0.1
_GRACE_S = 1.0
"""Added to the time that a connection may be idle, so that the last one is closed by then."""


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; blocking. Returns the exit code."""
    require_c_parser()
    harden()
    try:
        return run_process(lambda on_signal: _serve(config, on_signal), uvloop.new_event_loop)
    except CredentialsRefused as refused:
        for problem in refused.problems:
            log.error("%s", problem)
        return 1


class StopRequest:
    """The request to drain and stop; made a second time, it skips the notice."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.at_once = asyncio.Event()
        self.replaced = False
        """Whether others accept at the same sockets, so that nobody need notice that this process goes."""

    def request(self) -> None:
        """Called on each signal to stop."""
        (self.at_once if self.requested.is_set() else self.requested).set()


async def _serve(config: Config, on_signal: OnSignal) -> int:
    operator_log.configure(config.logging.level.value)
    stop_request = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        on_signal(number, stop_request.request)
    async with contextlib.AsyncExitStack() as stack:
        started = await start_unless_stopped(stack, stop_request, config)
        if started is None:
            return 0
        on_signal(signal.SIGHUP, partial(_hang_up, started))
        log.info(
            "serving %s on %s, admin on %s",
            config.upstream.url,
            started.place,
            started.admin_place,
        )
        await serve_until_stopped(started, stop_request)
    return 0


def _hang_up(started: Serving) -> None:
    log.info("certificates are reloaded, the configuration is not: that needs a restart, or `listen.workers` above 1")
    started.certificates.reload()


async def start_unless_stopped(
    stack: contextlib.AsyncExitStack, stop_request: StopRequest, config: Config, slot: WorkerSlot | None = None
) -> Serving | None:
    """Enter ``serving``, to be left with ``stack``. None: told to stop before that was done; GitLab may take long to answer
    about its credentials."""
    starting = asyncio.ensure_future(stack.enter_async_context(serving(config, slot)))
    stopping = asyncio.ensure_future(stop_request.requested.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
    if starting.cancelled():
        log.info("told to stop before it served")
        return None
    return starting.result()


async def serve_until_stopped(started: Serving, stop_request: StopRequest) -> None:
    """Serve until told to stop, and through the notice that is given then."""
    # Objects made at start-up stay for good: the collector need not examine them again.
    gc.collect()
    gc.freeze()
    # Requests leave no cycles behind: with the default, 700, the collector would walk the cache's entries for nothing.
    gc.set_threshold(20_000, 20, 100)
    # How long another thread (audit, a scrape, certificates) may keep the interpreter from serving requests; the default is
    # ten times as long.
    sys.setswitchinterval(SWITCH_S)
    await stop_request.requested.wait()
    listen = started.parts.config.listen
    if stop_request.replaced:
        log.info("replaced: draining")
        await started.stop_accepting()
        await started.parts.server.drain_gradually(stop_request.at_once)
        log.info("replaced: every client's next answer is its last here")
    else:
        log.info("draining")
        started.parts.server.drain()
    with contextlib.suppress(TimeoutError):
        # A connection closed while its client writes the next request makes that request fail. A worker that is replaced
        # therefore lets clients learn of it from an answer, or when their connection has been idle for too long.
        async with asyncio.timeout(listen.idle_s + _GRACE_S if stop_request.replaced else listen.drain.notice):
            await (started.deserted(stop_request.at_once) if stop_request.replaced else stop_request.at_once.wait())


def _place(address: tuple[str, int]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


class Serving:
    """A gateway that is serving."""

    def __init__(
        self,
        parts: Assembly,
        address: tuple[str, int],
        admin_address: tuple[str, int],
        certificates: Certificates,
        stop_accepting: Callable[[], Awaitable[None]],
    ) -> None:
        self.parts = parts
        self.certificates = certificates
        self.stop_accepting = stop_accepting
        """Stops accepting at both ports; open connections stay."""
        self.address = address
        self.admin_address = admin_address

    async def deserted(self, at_once: asyncio.Event) -> None:
        """Wait until no client is connected, or ``at_once`` is set."""
        open_ = True
        while open_ and not at_once.is_set():
            # Wait before looking: a connection accepted a moment ago may not be counted yet.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_EVERY_S):
                    await at_once.wait()
            open_ = not self.parts.server.client_connections.is_empty

    @property
    def place(self) -> str:
        """``host:port`` of the data port."""
        return _place(self.address)

    @property
    def admin_place(self) -> str:
        """``host:port`` of the admin port."""
        return _place(self.admin_address)


def _certificates(parts: Assembly) -> tuple[ListenerTls | None, Certificates]:
    config = parts.config
    tls = ListenerTls(config.listen.tls.cert_file, config.listen.tls.key_file) if config.listen.tls is not None else None
    files = [config.listen.tls.cert_file, config.listen.tls.key_file] if config.listen.tls is not None else []
    if config.upstream.ca_file is not None:
        files.append(config.upstream.ca_file)
    readers = {
        "the system's authorities" if config.upstream.ca_file is None else "upstream.ca_file": parts.upstream.read_tls
    }
    if tls is not None:
        readers["listen.tls"] = tls.read
    return tls, Certificates(files, readers, (lambda: tls.expires_at) if tls is not None else None)


class _SingleProcess:
    """What the admin port reports about a gateway that is one process."""

    def __init__(self, parts: Assembly, certificates: Certificates) -> None:
        self._parts = parts
        self._certificates = certificates
        parts.metrics.add_readings(lambda: readings(parts, certificates))

    async def metrics(self) -> bytes:
        # Off the event loop: rendering tens of thousands of series takes a while.
        return await asyncio.to_thread(self._parts.metrics.render)

    async def readiness(self) -> Readiness:
        return readiness(self._parts, self._certificates)


def _all_workers(parts: Assembly, certificates: Certificates, slot: WorkerSlot) -> AllWorkers:
    def read() -> Iterable[Reading]:
        return readings(parts, certificates)

    return AllWorkers(slot.siblings, parts.metrics, read, lambda: readiness(parts, certificates), parts.catalogue.gitlab)


async def _listen(
    parts: Assembly, context: ssl.SSLContext | None, slot: WorkerSlot | None
) -> tuple[asyncio.Server | Acceptor[Connection], tuple[str, int]]:
    """Start to accept clients; returns what accepts them, and the address."""
    if slot is not None:
        parts.server.client_connections.on_count_change = slot.counts.tell
        slot.counts.capacity = parts.server.settings.max_connections
        times = parts.server.settings.tls_timeouts(context)
        acceptor = Acceptor(
            slot.traffic,
            parts.server,
            slot.counts,
            on_failed_handshake=parts.server.client_connections.forget_failed_handshake,
            context=context,
            times=times,
        )
        address = slot.traffic[0].getsockname()[:2]
        acceptor.start(_BACKLOG)
        return acceptor, address
    place = parts.config.listen.address
    with naming("listen.address", place):
        server = await parts.server.listen(place.host or None, place.port, ssl_context=context)
    return server, server.sockets[0].getsockname()[:2]


async def _look_for_gitlab(upstream: HttpUpstream) -> None:
    """Log that GitLab can't be reached. Without credentials to check, nobody would hear of it until so many requests have
    failed that the breaker opens; the start does not wait for this."""
    why = await upstream.try_to_connect()
    if why is not None:
        where = upstream.origin.authority.decode("ascii")
        log.warning("GitLab can't be reached at %s (%s): requests fail until it can", where, why.value)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(config: Config, slot: WorkerSlot | None = None) -> AsyncIterator[Serving]:
    """Listen on both ports, or on the sockets of ``slot``; drain and close on the way out."""
    parts = await assemble(config, slot)
    async with parts.stack:
        tls, certificates = _certificates(parts)
        watch = StoreWatch(parts.links)
        parts.stack.push_async_callback(watch.close)
        await watch.start()
        parts.stack.push_async_callback(parts.cache_assembly.close)
        parts.cache_assembly.start()
        endpoints = admin_endpoints(
            config,
            parts.catalogue,
            parts.limit_admin,
            parts.key_admin,
            parts.credentials if config.credentials else None,
            parts.recent,
        )
        reports = _SingleProcess(parts, certificates) if slot is None else _all_workers(parts, certificates, slot)
        port = Admin(
            admin_settings(config),
            metrics=reports.metrics,
            metrics_type=CONTENT_TYPE,
            readiness=reports.readiness,
            endpoints=endpoints if slot is None else fan_out(endpoints, slot.siblings),
            refusals=parts.admin_refusals,
        )
        admin_server = AdminServer(port)
        parts.stack.push_async_callback(admin_server.close)
        certificates.watch()
        parts.stack.push_async_callback(certificates.close)
        if slot is None or slot.number == 0:  # one of them says it for all
            looking = asyncio.get_running_loop().create_task(_look_for_gitlab(parts.upstream), name="look for GitLab")
            parts.stack.push_async_callback(_cancel, looking)
        traffic, address = await _listen(parts, tls.context if tls is not None else None, slot)
        try:
            # Last: a client that reads 200 on /readyz may send requests at once.
            admin = config.listen.admin
            with naming("listen.admin", admin):
                admin_address = await admin_server.listen(
                    admin.host or None, admin.port, slot.admin if slot is not None else ()
                )

            async def stop_accepting() -> None:
                traffic.close()
                await admin_server.stop_accepting()

            yield Serving(parts, address, admin_address, certificates, stop_accepting)
        finally:
            parts.server.drain()
            traffic.close()
            parts.server.pre_shutdown()
            parts.server.stop_tunnels()
            await parts.server.shutdown(config.listen.drain.deadline)
