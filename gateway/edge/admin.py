"""The admin port: metrics and health for everybody who reaches it, everything else behind an admin key.

Never the traffic port. A Host allow-list stops DNS rebinding, no CORS header is ever sent, and where no admin key is
configured the protected routes do not exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Protocol

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


class LimitDesk(Protocol):
    """What operators may do to limits while the gateway runs."""

    async def top(self, count: int) -> object:
        """The callers that ask most at the moment, as JSON."""
        ...

    async def change(self, who: str, peer: str, wish: dict[str, object]) -> object:
        """Raise, lower, pause or reset one bucket; what holds now, as JSON. Raises ValueError for what can't be done."""
        ...


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
        limits: LimitDesk | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._metrics_type = metrics_type
        self._readiness = readiness
        self._config = config
        self._limits = limits

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/livez", self._get_livez)
        app.router.add_get("/readyz", self._get_readyz)
        if self._settings.key_hashes:
            app.router.add_get("/-/config", self._get_config)
            if self._limits is not None:
                app.router.add_get("/-/limits/top", self._get_limits)
                app.router.add_post("/-/limits", self._post_limits)
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

    async def _get_limits(self, request: web.Request) -> web.Response:
        assert self._limits is not None, "the route exists only then"
        count = request.query.get("count", "20")
        if not (count.isascii() and count.isdecimal() and 0 < len(count) <= 3):
            return _refuse(400, "count is a number below 1000")
        return _json(200, await self._limits.top(int(count)))

    async def _post_limits(self, request: web.Request) -> web.Response:
        assert self._limits is not None, "the route exists only then"
        if request.content_type != "application/json":  # what a browser's form can't send
            return _refuse(415, "415 Unsupported Media Type")
        try:
            wish = msgspec.json.decode(await request.read(), type=dict[str, object])
            return _json(200, await self._limits.change(self._who(request), request.remote or "", wish))
        except (ValueError, msgspec.DecodeError) as error:
            wrong = "the body is no JSON object" if isinstance(error, msgspec.DecodeError) else str(error)
            return _refuse(400, wrong)

    def _who(self, request: web.Request) -> str:
        """The admin key that was shown, as an audit may name it."""
        key = request.headers.get("Authorization", "").partition(" ")[2].strip()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return f"admin:{digest[:12]}"

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
