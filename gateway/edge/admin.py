"""The admin port: metrics and health for everybody who reaches it, everything else behind an admin key.

Never the traffic port. A Host allow-list stops DNS rebinding, no CORS header is ever sent, and where no admin key is
configured the protected routes do not exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Readiness(msgspec.Struct, frozen=True):
    """What ``/readyz`` says."""

    ready: bool
    checks: dict[str, str]
    """Part → ``ok``, ``degraded: why`` or ``down: why``. Degraded parts leave the gateway ready."""


class AdminSettings(msgspec.Struct, frozen=True):
    """Who may ask."""

    key_hashes: tuple[bytes, ...] = ()
    """SHA-256 of each admin key; none: the protected routes do not exist."""
    hosts: frozenset[str] = frozenset()
    """Further Host names (without port) beside loopback's and the bound address."""


class Admin:
    """Builds the admin application.

    Args:
        settings: Keys and hosts.
        metrics: Renders the exposition.
        metrics_type: Its media type.
        readiness: Asks the parts.
        config: The effective configuration, already redacted.
    """

    def __init__(
        self,
        settings: AdminSettings,
        *,
        metrics: Callable[[], bytes],
        metrics_type: str,
        readiness: Callable[[], Readiness],
        config: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._metrics_type = metrics_type
        self._readiness = readiness
        self._config = config

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/livez", self._get_livez)
        app.router.add_get("/readyz", self._get_readyz)
        if self._settings.key_hashes:
            app.router.add_get("/-/config", self._get_config)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._host_allowed(request):
            return _refuse(421, "Misdirected Request")
        if request.path.startswith("/-/") and self._settings.key_hashes and not self._key_allowed(request):
            response = _refuse(401, "401 Unauthorized")
            response.headers["WWW-Authenticate"] = 'Bearer realm="gateway admin"'
            return response
        try:
            return await handler(request)
        except web.HTTPException as error:
            response = _refuse(error.status, f"{error.status} {error.reason}")
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response

    def _host_allowed(self, request: web.Request) -> bool:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1:
            return False
        name = _host_name(hosts[0])
        if name in _LOCAL_HOSTS or name in self._settings.hosts:
            return True
        transport = request.transport
        bound = transport.get_extra_info("sockname") if transport is not None else None
        return isinstance(bound, tuple) and name == bound[0]

    def _key_allowed(self, request: web.Request) -> bool:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return False
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        allowed = False
        for known in self._settings.key_hashes:  # every one is compared: the time tells nothing
            allowed |= hmac.compare_digest(known, digest)
        return allowed

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        # Rendering tens of thousands of series takes a while: off the event loop.
        body = await asyncio.to_thread(self._metrics)
        return web.Response(body=body, headers={"Content-Type": self._metrics_type, **_SAFE})

    async def _get_livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_SAFE)

    async def _get_readyz(self, _request: web.Request) -> web.Response:
        readiness = self._readiness()
        return _json(200 if readiness.ready else 503, {"ready": readiness.ready, "checks": readiness.checks})

    async def _get_config(self, _request: web.Request) -> web.Response:
        return _json(200, self._config())


class AdminServer:
    """The admin port, listening."""

    def __init__(self, admin: Admin) -> None:
        self._runner = web.AppRunner(admin.application(), access_log=None, handler_cancellation=True)

    async def listen(self, host: str | None, port: int) -> tuple[str, int]:
        """Bind and accept; the address bound."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        address: tuple[str, int] = self._runner.addresses[0][:2]
        return address

    async def close(self) -> None:
        await self._runner.cleanup()


def _host_name(host: str) -> str:
    """The Host's name without its port, brackets cut from an IPv6 literal, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _json(status: int, value: object) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value) + b"\n", headers={"Content-Type": "application/json", **_SAFE}
    )


def _refuse(status: int, message: str) -> web.Response:
    return _json(status, {"message": message})
