"""``ports.Documents`` over separate connections, so that issuers' keys never wait behind GitLab's traffic."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from ..core.errors import Rejection
from ..ports import NotAnswering, UpstreamRequest
from .client import HttpUpstream, UpstreamSettings

_MAX_BYTES = 256 * 1024
_MAX_ORIGINS = 64
_FIELDS = (
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"identity"),
    (b"User-Agent", b"gitlab-gateway"),
)


class HttpDocuments:
    """Fetches documents over HTTP. One per set of authorities; ``ca_file`` is as in ``UpstreamSettings``."""

    def __init__(self, ca_file: str | None = None, *, timeout_s: float = 5.0) -> None:
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._origins: dict[str, HttpUpstream] = {}

    async def get(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._get(url)
        except TimeoutError:
            raise NotAnswering("the issuer does not answer in time") from None
        except Rejection as failed:
            raise NotAnswering(f"the issuer cannot be asked: {failed.code.value}") from failed

    async def close(self) -> None:
        for origin in self._origins.values():
            await origin.close()

    async def _get(self, url: str) -> bytes:
        try:
            upstream, target = self._located(url)
            while len(self._origins) > _MAX_ORIGINS:  # an issuer may name a different host each time
                await self._origins.pop(next(iter(self._origins))).close()
        except (ValueError, OSError) as error:
            raise NotAnswering("the issuer's address cannot be used", offered=False) from error
        fields = ((b"Host", upstream.origin.authority), *_FIELDS)
        reply = await upstream.send(UpstreamRequest("GET", target, fields, 0, self._timeout_s), None)
        try:
            if reply.head.status != 200:
                raise NotAnswering(f"the issuer answered {reply.head.status}", offered=reply.head.status >= 500)
            body = await reply.read_whole(_MAX_BYTES)
            if body is None:
                raise NotAnswering("the issuer's answer is too long", offered=False)
            return body
        finally:
            reply.release()

    def _located(self, url: str) -> tuple[HttpUpstream, bytes]:
        """The connections to the URL's origin, and the request target. Raises ValueError, which quotes nothing of it."""
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("no URL")
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"}:
            raise ValueError("neither http nor https")
        origin = f"{parts.scheme}://{parts.netloc}"
        upstream = self._origins.pop(origin, None)
        if upstream is None:
            settings = UpstreamSettings(origin, max_in_flight=4, max_idle=1, breaker=None, ca_file=self._ca_file)
            upstream = HttpUpstream(settings)
        self._origins[origin] = upstream  # last: those used longest ago are closed first
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return upstream, target.encode("ascii")
