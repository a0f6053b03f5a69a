"""The admin port: metrics and health for everybody who reaches it, everything else behind an admin key.

It is never the data port. A Host allow-list stops DNS rebinding, no CORS header is ever sent, and where no admin key is
configured the protected routes do not exist. Each of these is an ``Endpoint``, and all work alike: JSON in, JSON out, and a
caller identified by the key it presents, which must have a permission that the endpoint names.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from aiohttp import web

from ..core.admin_permission import Permission
from ..core.peer_guard import PeerGuard, subject

log = logging.getLogger("gateway.edge")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_BODY_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
BODY_TIMEOUT_S = 10.0
"""How long a request's whole body may take to arrive."""
SHUTDOWN_TIMEOUT_S = 5.0
"""How long requests in progress may go on when the port closes. aiohttp waits that long twice; its own default, a minute,
outlasts the patience of service managers."""
_LOG_EVERY_S = 60.0
"""How often it is logged that one key is refused one endpoint, or strangers any; each refusal would fill the log."""
REFUSED = (401, 403, 421, 429)
"""The statuses of those who may not ask: without a valid key, without the permission, under a foreign Host, too often."""
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Readiness(msgspec.Struct, frozen=True):
    """The answer of ``/readyz``."""

    ready: bool
    checks: dict[str, str]
    """Part → ``ok``, ``degraded: why`` or ``down: why``. Degraded parts leave the gateway ready."""


class AdminRequest(msgspec.Struct, frozen=True):
    """One call to an endpoint, by the holder of an admin key."""

    who: str
    """``admin:`` and the first digits of the key's SHA-256: fit to be named in an audit line."""
    peer: str
    method: str
    names: dict[str, str] = {}
    """The variable parts of the path, by name."""
    query: dict[str, str] = {}
    body: dict[str, object] = {}
    identities: frozenset[str] | None = None
    """Whose gateway keys the admin key is for; None: every identity's."""


class AdminResponse(msgspec.Struct, frozen=True):
    """An endpoint's answer. ``body`` is sent as JSON; None: there is no body."""

    body: object
    status: int = 200


class AdminRefused(Exception):  # noqa: N818 — an answer, not a fault
    """The request cannot be fulfilled; the message is for the operator."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Endpoint(msgspec.Struct, frozen=True):
    """One route behind the admin key. ``answer`` raises AdminRefused, or ValueError for a request that makes no sense
    (400)."""

    method: str
    path: str
    answer: Callable[[AdminRequest], Awaitable[AdminResponse]]
    needs: tuple[Permission, ...]
    """The permissions any one of which opens it."""
    query: frozenset[str] = frozenset()
    """The query parameters it knows; any other is refused."""

    def __post_init__(self) -> None:
        if not self.needs:
            raise ValueError(f"{self.method} {self.path} names no permission")


class AdminKey(msgspec.Struct, frozen=True):
    """One key that opens the admin port."""

    id: str
    sha256: bytes
    may: frozenset[Permission]
    identities: frozenset[str] | None = None
    """See ``AdminRequest.identities``."""

    @property
    def who(self) -> str:
        """Its holder, as ``AdminRequest.who``."""
        return f"admin:{self.sha256.hex()[:12]}"


_KEY = web.RequestKey("_KEY", AdminKey)


class AdminSettings(msgspec.Struct, frozen=True):
    """Who may use the admin port, and under which Host names."""

    keys: tuple[AdminKey, ...] = ()
    """Empty: the protected routes do not exist."""
    hosts: frozenset[str] = frozenset()
    """Host names (without port) allowed in addition to those of loopback and the bound address."""


class Admin:
    """Builds the admin application.

    Args:
        settings: Keys and hosts.
        metrics: Renders the exposition, off the event loop where that takes long. May raise AdminRefused.
        metrics_type: The exposition's media type.
        readiness: Asks the gateway's parts whether they are ready.
        endpoints: The routes behind the admin key.
        refusals: Is counted up by status, for each of ``REFUSED``.
        monotonic: Seconds.
        body_s: Takes the place of ``BODY_TIMEOUT_S``.
    """

    def __init__(
        self,
        settings: AdminSettings,
        *,
        metrics: Callable[[], Awaitable[bytes]],
        metrics_type: str,
        readiness: Callable[[], Awaitable[Readiness]],
        endpoints: Iterable[Endpoint] = (),
        refusals: Counter[int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        body_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        self._body_s = body_s
        self._metrics = metrics
        self._metrics_type = metrics_type
        self._readiness = readiness
        self._endpoints = tuple(endpoints)
        self._refusals = Counter[int]() if refusals is None else refusals
        self._guard = PeerGuard()
        self._monotonic = monotonic
        self._logged_at: dict[tuple[str, str], float] = {}
        self._strangers_logged_at = -math.inf

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._check_access], client_max_size=_MAX_BODY_BYTES)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/livez", self._get_livez)
        app.router.add_get("/readyz", self._get_readyz)
        if self._settings.keys:
            for endpoint in self._endpoints:
                app.router.add_route(endpoint.method, endpoint.path, self._handler(endpoint))
        return app

    @web.middleware
    async def _check_access(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await self._respond(request, handler)
        if response.status in REFUSED:
            self._refusals[response.status] += 1
        return response

    async def _respond(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._host_allowed(request):
            return _refuse(421, "Misdirected Request")
        if request.path.startswith("/-/") and self._settings.keys:
            key = self._find_key(request)
            if key is None:
                return self._refuse_stranger(subject(request.remote or ""))
            request[_KEY] = key
        try:
            return await handler(request)
        except web.HTTPException as error:
            response = _refuse(error.status, f"{error.status} {error.reason}")
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response

    def _refuse_stranger(self, peer: str) -> web.Response:
        """The answer to a caller without a valid key: 401, or 429 after too many failures.

        The key is compared before this, so a caller with a valid one is never held up by others' failures.
        """
        now = self._monotonic()
        wait_s = self._guard.wait_s(peer, now)
        if wait_s > 0:
            response = _refuse(429, "429 Too Many Requests")
            response.headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
            return response
        self._guard.note_failure(peer, now)
        if self._guard.wait_s(peer, now) > 0 and now - self._strangers_logged_at >= _LOG_EVERY_S:
            self._strangers_logged_at = now
            log.warning("%s asks the admin port again and again without a valid key, and gets 429", peer)
        response = _refuse(401, "401 Unauthorized")
        response.headers["WWW-Authenticate"] = 'Bearer realm="gateway admin"'
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

    def _find_key(self, request: web.Request) -> AdminKey | None:
        presented = _presented_key(request)
        if not presented:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known in self._settings.keys:  # every one is compared, so that timing reveals nothing
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found

    def _refuse_key(self, key: AdminKey, endpoint: Endpoint, peer: str) -> web.Response:
        """The answer to a key that lacks a permission. Its holder is known, so this is no failed login."""
        name, now = f"{endpoint.method} {endpoint.path}", self._monotonic()
        lacks = " or ".join(f"`{permission}`" for permission in endpoint.needs)
        if now - self._logged_at.get((key.id, name), -math.inf) >= _LOG_EVERY_S:
            self._logged_at[key.id, name] = now
            log.warning("%s, key `%s`, from %s: refused %s, lacks the permission %s", key.who, key.id, peer, name, lacks)
        return _refuse(403, f"403 Forbidden: the admin key `{key.id}` lacks the permission {lacks} (`admin.keys[].may`)")

    async def _get_metrics(self, request: web.Request) -> web.StreamResponse:
        try:
            body = memoryview(await self._metrics())
        except AdminRefused as refused:
            return _refuse(refused.status, str(refused))
        answer = web.StreamResponse(headers={"Content-Type": self._metrics_type, **_SAFE})
        answer.content_length = len(body)
        await answer.prepare(request)
        for at in range(0, len(body) if request.method != "HEAD" else 0, _PIECE_BYTES):
            await answer.write(body[at : at + _PIECE_BYTES])
            await asyncio.sleep(0)  # writing megabytes at once takes milliseconds, in which nobody else is served
        await answer.write_eof()
        return answer

    async def _get_livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_SAFE)

    async def _get_readyz(self, _request: web.Request) -> web.Response:
        readiness = await self._readiness()
        return _json(200 if readiness.ready else 503, {"ready": readiness.ready, "checks": readiness.checks})

    def _handler(self, endpoint: Endpoint) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            key, peer = request[_KEY], request.remote or ""
            if key.may.isdisjoint(endpoint.needs):
                return self._refuse_key(key, endpoint, peer)
            if any(name not in endpoint.query or len(request.query.getall(name)) > 1 for name in request.query):
                known = ", ".join(sorted(endpoint.query)) or "none"
                return _refuse(400, f"known parameters, each at most once: {known}")
            body: dict[str, object] = {}
            if endpoint.method in {"POST", "PUT", "PATCH"}:
                if request.content_type != "application/json":  # a type that a browser's form can't send
                    return _refuse(415, "415 Unsupported Media Type")
                try:
                    async with asyncio.timeout(self._body_s):
                        octets = await request.read()
                except TimeoutError:
                    refusal = _refuse(408, "408 Request Timeout")
                    refusal.force_close()
                    return refusal
                try:
                    body = msgspec.json.decode(octets, type=dict[str, object])
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    return _refuse(400, "the body is not a JSON object")
            names, query = dict(request.match_info), dict(request.query)
            admin_request = AdminRequest(key.who, peer, endpoint.method, names, query, body, key.identities)
            try:
                answer = await endpoint.answer(admin_request)
            except AdminRefused as refused:
                return _refuse(refused.status, str(refused))
            except (ValueError, msgspec.ValidationError) as wrong:
                return _refuse(400, str(wrong))
            if answer.body is None:
                return web.Response(status=answer.status, headers=_SAFE)
            return _json(answer.status, answer.body)

        return handle


class AdminServer:
    """The server at the admin port. ``shutdown_timeout_s`` takes the place of ``SHUTDOWN_TIMEOUT_S``."""

    def __init__(self, admin: Admin, *, shutdown_timeout_s: float = SHUTDOWN_TIMEOUT_S) -> None:
        application = admin.application()
        application.on_response_prepare.append(self._end_connection)
        self._stopped = False
        # Bodies are not decompressed: a coded one is not JSON, and aiohttp would give answers of its own to one that it
        # can't decode.
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handler_cancellation=True,
            auto_decompress=False,
            shutdown_timeout=shutdown_timeout_s,
        )

    async def listen(self, host: str | None, port: int, bound: Iterable[socket.socket] = ()) -> tuple[str, int]:
        """Bind, or take the sockets that are already ``bound``, and accept. Returns the first address."""
        await self._runner.setup()
        sites: list[web.BaseSite] = [web.SockSite(self._runner, listener) for listener in bound]
        for site in sites or [web.TCPSite(self._runner, host, port)]:
            await site.start()
        address: tuple[str, int] = self._runner.addresses[0][:2]
        return address

    async def stop_accepting(self) -> None:
        """Accept no more. Each open connection gets one more answer and ends with it: a probe that has just connected must
        not fail."""
        self._stopped = True
        for site in list(self._runner.sites):
            await site.stop()

    async def _end_connection(self, _: web.Request, response: web.StreamResponse) -> None:
        if self._stopped:
            response.headers["Connection"] = "close"
            response.force_close()

    async def close(self) -> None:
        await self._runner.cleanup()


def _host_name(host: str) -> str:
    """The Host's name without its port, brackets cut from an IPv6 literal, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _presented_key(request: web.Request) -> str:
    """The key in either of the two headers that GitLab's clients use; empty if there is none, or more than one."""
    presented = request.headers.getall("Authorization", []) + request.headers.getall("PRIVATE-TOKEN", [])
    if len(presented) != 1:
        return ""
    if "PRIVATE-TOKEN" in request.headers:
        return presented[0].strip()
    scheme, _, key = presented[0].partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _json(status: int, value: object) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value) + b"\n", headers={"Content-Type": "application/json", **_SAFE}
    )


def _refuse(status: int, message: str) -> web.Response:
    return _json(status, {"message": message})
