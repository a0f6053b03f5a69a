"""Start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
from collections.abc import AsyncIterator

import uvloop

from ..broker.static import CredentialsRefused
from ..config import Config
from ..edge.admin import Admin, AdminServer, AdminSettings
from ..edge.parsing import require_c_parser
from ..edge.tls import ListenerTls
from ..telemetry import logging as operator_log
from ..telemetry.metrics import CONTENT_TYPE
from .admin_api import admin_endpoints
from .assembly import Assembly, assemble
from .certificates import Certificates
from .readings import readiness, readings
from .store_watch import StoreWatch

log = logging.getLogger("gateway.app")


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; blocking. Returns the exit code."""
    operator_log.configure(config.logging.level.value)
    require_c_parser()
    harden()
    try:
        return uvloop.run(_serve(config))
    except CredentialsRefused as refused:
        for problem in refused.problems:
            log.error("%s", problem)
        return 1


def harden() -> None:
    """No core dump may hold a token; and as many connections as the system lets us have."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: Config) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(config) as started:
        log.info(
            "serving %s on %s, admin on %s",
            config.upstream.url,
            started.place,
            started.admin_place,
        )
        loop.add_signal_handler(signal.SIGHUP, started.certificates.reload)
        # What start-up made stays for good: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        # A request leaves no cycles behind: the default, 700, has the collector walk the cache's entries for nothing.
        gc.set_threshold(20_000, 20, 100)
        await stop.wait()
        stop.clear()
        log.info("draining")
        started.made.server.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(config.listen.drain.notice):
                await stop.wait()  # told twice: at once
    return 0


def _place(address: tuple[str, int]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


class Serving:
    """A gateway that answers."""

    def __init__(
        self, made: Assembly, address: tuple[str, int], admin_address: tuple[str, int], certificates: Certificates
    ) -> None:
        self.made = made
        self.certificates = certificates
        self.address = address
        self.admin_address = admin_address

    @property
    def place(self) -> str:
        """``host:port`` of the traffic port."""
        return _place(self.address)

    @property
    def admin_place(self) -> str:
        """``host:port`` of the admin port."""
        return _place(self.admin_address)


def _certificates(made: Assembly) -> tuple[ListenerTls | None, Certificates]:
    config = made.config
    tls = ListenerTls(config.listen.tls.cert_file, config.listen.tls.key_file) if config.listen.tls is not None else None
    files = [config.listen.tls.cert_file, config.listen.tls.key_file] if config.listen.tls is not None else []
    if config.upstream.ca_file is not None:
        files.append(config.upstream.ca_file)
    readers = [made.upstream.reload_tls, *([tls.reload] if tls is not None else [])]
    return tls, Certificates(files, readers)


@contextlib.asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Serving]:
    """Listen on both ports; drain and close on the way out."""
    made = await assemble(config)
    async with made.stack:
        tls, certificates = _certificates(made)
        made.metrics.export(lambda: readings(made, certificates))
        watch = StoreWatch(made.links)
        made.stack.push_async_callback(watch.close)
        await watch.start()
        if made.cache_room.levels is not None:
            made.cache_room.levels.start()
        admin = Admin(
            AdminSettings(
                tuple(bytes.fromhex(key.sha256) for key in config.admin.keys),
                frozenset({config.listen.admin.host.lower()}),
            ),
            metrics=made.metrics.render,
            metrics_type=CONTENT_TYPE,
            readiness=lambda: readiness(made, certificates),
            endpoints=admin_endpoints(
                config,
                made.catalogue,
                made.desk,
                made.key_desk,
                made.credentials if config.credentials else None,
                made.recent,
            ),
        )
        admin_server = AdminServer(admin)
        made.stack.push_async_callback(admin_server.close)
        certificates.watch()
        made.stack.push_async_callback(certificates.close)
        traffic = await made.server.listen(
            config.listen.address.host or None,
            config.listen.address.port,
            ssl_context=tls.context if tls is not None else None,
        )
        try:
            # Last: whoever reads 200 on /readyz may send requests at once.
            admin_address = await admin_server.listen(config.listen.admin.host or None, config.listen.admin.port)
            yield Serving(made, traffic.sockets[0].getsockname()[:2], admin_address, certificates)
        finally:
            made.server.draining = True
            traffic.close()
            made.server.pre_shutdown()
            made.server.stop_tunnels()
            await made.server.shutdown(config.listen.drain.deadline)
