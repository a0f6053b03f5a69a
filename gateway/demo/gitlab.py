"""A small GitLab in memory: deterministic, and exact where clients and gateways look.

It answers like GitLab 19.3: encoded paths, order of credentials, error bodies, pages, validators, sudo, method overrides.
For anything that it does not have, it answers with a 404 in GitLab's own words.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from aiohttp import hdrs, web

from . import accounts, packages, projects, releases, repository, tokens, tracker
from .access import SAFE, identify
from .answer import Answer, Refusal, as_json, as_text, etag, framework_error, matches
from .request import Content, Malformed, Params, Request, effective_method, read_params, split_target
from .routing import Call, Router
from .seed import seed
from .state import State

LONGEST_LINE_BYTES = 64 * 1024
PARSED_MAX_BYTES = 64 * 1024 * 1024
KEPT_MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 50
WINDOW_S = 60

PARSED_TYPES = frozenset({"application/json", "application/x-www-form-urlencoded", "multipart/form-data"})
CREDENTIALS = frozenset({"authorization", "cookie", "deploy-token", "job-token", "private-token"})

ROUTES = (
    *accounts.ROUTES,
    *tokens.ROUTES,
    *projects.ROUTES,
    *repository.ROUTES,
    *releases.ROUTES,
    *tracker.ROUTES,
    *packages.ROUTES,
)

EXPOSED = (
    "Link, X-Total, X-Total-Pages, X-Per-Page, X-Page, X-Next-Page, X-Prev-Page, X-Gitlab-Blob-Id, X-Gitlab-Commit-Id, "
    "X-Gitlab-Content-Sha256, X-Gitlab-Encoding, X-Gitlab-File-Name, X-Gitlab-File-Path, X-Gitlab-Last-Commit-Id, "
    "X-Gitlab-Ref, X-Gitlab-Size, X-Request-Id, ETag"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as its octets arrived: the request line, and each header in order with its own spelling."""

    line: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def method(self) -> str:
        return self.line.split(b" ")[0].decode("ascii")

    def values(self, name: str) -> list[bytes]:
        return [value for field, value in self.headers if field.lower() == name.lower().encode()]


class DemoGitLab:
    """The demo server: start it on a host and port, send it requests, close it. ``state`` and ``journal``
    are open to its owner."""

    def __init__(
        self,
        state: State,
        *,
        external_url: str | None = None,
        latency_s: float = 0.0,
        per_minute: int | None = None,
        reveal: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.state = state
        self.external_url = external_url
        self.latency_s = latency_s
        self.per_minute = per_minute
        self.journal: deque[Recorded] = deque(maxlen=10_000)
        self.url = ""
        self._reveal = reveal
        self._now = now
        self._router = Router(ROUTES)
        self._observed: Counter[str] = Counter()
        self._window = 0
        self._requests = 0
        self._runner: web.ServerRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 picks a free one. ``url`` then says where, and links use it unless there is an
        ``external_url``."""
        server = web.Server(
            self._handle,
            access_log=None,
            auto_decompress=False,
            max_line_size=LONGEST_LINE_BYTES,
            max_field_size=LONGEST_LINE_BYTES,
        )
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0][1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        if self.external_url is None:
            self.external_url = self.url

    async def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # One request

    async def _handle(self, incoming: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        self.journal.append(_record(incoming))
        self._requests += 1
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        headers: dict[str, str] = {}
        try:
            answer = await self._answer(incoming, headers)
        except Refusal as refusal:
            answer = refusal.answer
        except Malformed as malformed:
            answer = as_text(str(malformed), 400)
        answer = _add_validators(answer, incoming)
        headers = {
            **self._common_headers(incoming),
            **headers,
            **answer.headers,
            "X-Runtime": f"{time.perf_counter() - started:.6f}",
        }
        return await _send(incoming, answer, headers)

    async def _answer(self, incoming: web.BaseRequest, extra: dict[str, str]) -> Answer:
        target = incoming.raw_path
        if target.startswith("/-/demo/requests"):
            return self._show_journal()
        segments, query = split_target(target)
        _refuse_path(target, segments)
        headers = _as_rack(incoming)
        if incoming.method == hdrs.METH_OPTIONS:
            return _preflight(headers)
        if segments[:2] == ("api", "v3"):
            raise framework_error(410, "API V3 is no longer supported. Use API V4 instead.")
        content = await _read(incoming)
        kind = headers.get("content-type", "")
        parsed = content.octets if kind.partition(";")[0].strip().lower() in PARSED_TYPES else b""
        params = read_params(query, kind, parsed)
        form: Params = params if "json" not in kind else {}
        request = Request(
            effective_method(incoming.method, headers, form), target, segments, query, headers, params, {}, content
        )
        route, request.path_params = self._router.find(request.method, segments)
        caller = identify(self.state, request, route.surface)
        self._throttle(caller.user.username if caller.user else incoming.remote or "", extra)
        return route.endpoint(Call(self.state, request, caller, self.external_url or self.url))

    def _throttle(self, key: str, extra: dict[str, str]) -> None:
        """Count requests in a fixed window, as Rack::Attack does; off unless ``per_minute`` is given."""
        if self.per_minute is None:
            return
        now = int(self._now())
        window = now - now % WINDOW_S
        if window != self._window:
            self._window, self._observed = window, Counter()
        self._observed[key] += 1
        observed = self._observed[key]
        extra.update(
            {
                "RateLimit-Name": "throttle_authenticated_api",
                "RateLimit-Limit": str(self.per_minute),
                "RateLimit-Observed": str(observed),
                "RateLimit-Remaining": str(max(0, self.per_minute - observed)),
                "RateLimit-Reset": str(window + WINDOW_S),
            }
        )
        if observed > self.per_minute:
            extra["RateLimit-ResetTime"] = formatdate(window + WINDOW_S, usegmt=True)
            extra["Retry-After"] = str(window + WINDOW_S - now)
            raise Refusal(as_text("Retry later\n", 429))

    def _common_headers(self, incoming: web.BaseRequest) -> dict[str, str]:
        number = hashlib.sha256(str(self._requests).encode()).hexdigest()[:26].upper()
        headers = {
            "Cache-Control": "no-cache",
            "Server": "nginx",
            "Vary": "Origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "SAMEORIGIN",
            "X-Gitlab-Meta": json.dumps({"correlation_id": number, "version": "1"}, separators=(",", ":")),
            "X-Request-Id": number,
        }
        if "Origin" in incoming.headers:
            headers |= {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": EXPOSED}
        return headers

    def _show_journal(self) -> Answer:
        shown = []
        for one in self.journal:
            fields = [
                (
                    name.decode("latin-1"),
                    value.decode("latin-1")
                    if self._reveal or name.lower().decode("latin-1").replace("_", "-") not in CREDENTIALS
                    else "[hidden]",
                )
                for name, value in one.headers
            ]
            line = one.line.decode("latin-1")
            if not self._reveal:
                line = line.partition("?")[0] if "token" in line else line
            shown.append({"line": line, "headers": fields})
        return as_json(shown)


def build_demo_gitlab(
    *,
    external_url: str | None = None,
    latency_s: float = 0.0,
    per_minute: int | None = None,
    items: int = 45,
    reveal: bool = False,
    now: Callable[[], float] = time.time,
) -> DemoGitLab:
    """Build a fresh demo GitLab.

    ``per_minute`` turns on GitLab's own throttle; ``items`` is how many public projects there are to page through;
    ``reveal`` lets ``/-/demo/requests`` show credentials, which only tests may want.
    """
    return DemoGitLab(
        seed(items), external_url=external_url, latency_s=latency_s, per_minute=per_minute, reveal=reveal, now=now
    )


# Octets in


def _record(incoming: web.BaseRequest) -> Recorded:
    version = f"HTTP/{incoming.version.major}.{incoming.version.minor}"
    line = f"{incoming.method} {incoming.raw_path} {version}".encode("utf-8", "surrogateescape")
    return Recorded(line, tuple(incoming.raw_headers))


def _as_rack(incoming: web.BaseRequest) -> dict[str, str]:
    """The headers as CGI variables convey them: ``_`` counts as ``-``, and repeated fields are joined with commas."""
    headers: dict[str, str] = {}
    for raw, value in incoming.headers.items():
        name = raw.lower().replace("_", "-")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def _read(incoming: web.BaseRequest) -> Content:
    """Read the body: whole if Rails would parse it, else hashed as it streams, with only its beginning kept."""
    if incoming.headers.get("Expect", "").lower() == "100-continue" and incoming.transport is not None:
        incoming.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parsed = incoming.headers.get("Content-Type", "").partition(";")[0].strip().lower() in PARSED_TYPES
    limit = PARSED_MAX_BYTES if parsed else KEPT_MAX_BYTES
    kept, size, digest = bytearray(), 0, hashlib.sha256()
    async for chunk in incoming.content.iter_any():
        size += len(chunk)
        digest.update(chunk)
        if size <= limit:
            kept += chunk
        elif parsed:
            raise framework_error(413, "413 Payload Too Large")
    return Content(bytes(kept), size, digest.hexdigest())


def _refuse_path(target: str, segments: tuple[str, ...]) -> None:
    """Refuse what GitLab's middleware refuses before any route is looked up."""
    if target.partition("?")[0].count("/") > MAX_DEPTH:
        raise Refusal(as_text("Request-URI Too Long: path exceeds maximum depth", 414))
    if any(part in {".", ".."} for segment in segments for part in segment.replace("\\", "/").split("/")):
        raise Refusal(as_text("Potential path traversal attempt detected.", 400))


def _preflight(headers: dict[str, str]) -> Answer:
    return Answer(
        200,
        b"",
        {
            "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
            "Access-Control-Max-Age": "7200",
        },
    )


# Octets out


def _add_validators(answer: Answer, incoming: web.BaseRequest) -> Answer:
    """Act as Rack::ETag and Rack::ConditionalGet: after the work is done, so that a 304 saves only octets."""
    if answer.status not in {200, 201} or answer.stream is not None or not answer.body:
        return answer
    headers = {"ETag": etag(answer.body), "Cache-Control": "max-age=0, private, must-revalidate", **answer.headers}
    if_none_match = incoming.headers.get("If-None-Match")
    if if_none_match is not None and incoming.method in SAFE and matches(if_none_match, headers["ETag"]):
        return Answer(304, b"", {name: value for name, value in headers.items() if name != "Content-Type"})
    return Answer(answer.status, answer.body, headers)


async def _send(incoming: web.BaseRequest, answer: Answer, headers: dict[str, str]) -> web.StreamResponse:
    if answer.stream is None:
        if incoming.method == hdrs.METH_HEAD:
            headers.setdefault("Content-Length", str(len(answer.body)))
            return web.Response(status=answer.status, headers=headers)
        headers.pop("Content-Length", None)
        return web.Response(status=answer.status, headers=headers, body=answer.body or None)
    if incoming.method == hdrs.METH_HEAD:
        return web.Response(status=answer.status, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(incoming)
    async for chunk in answer.stream:
        await response.write(chunk)
    await response.write_eof()
    return response
