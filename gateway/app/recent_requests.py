"""The last requests, to explain why one of them was answered as it was; the audit has all requests, and for longer."""

from __future__ import annotations

from collections import deque

from ..core.exchange import Exchange
from ..core.redaction import redact

MOST = 2000


class RecentRequests:
    """An observer that keeps the last requests in memory, up to a fixed number."""

    def __init__(self, most: int = MOST) -> None:
        self._last: deque[Exchange] = deque(maxlen=most)

    def observe(self, exchange: Exchange, duration_s: float) -> None:
        """Keep a finished request."""
        self._last.append(exchange)

    def find(self, request_id: str) -> Exchange | None:
        """Find a request by the id in its answer and audit line; of several that a trusted proxy gave one id, the last."""
        for exchange in reversed(self._last):
            if exchange.request_id == request_id:
                return exchange
        return None


def describe(x: Exchange) -> dict[str, object]:
    """What the gateway did with a request, in the audit's terms, without empty facts."""
    facts: dict[str, object] = {
        "request_id": x.request_id,
        "method": x.method,
        "target": _without_secrets(x.target),
        "operation": x.operation,
        "status": x.status,
        "code": x.code,
        "detail": _without_secrets(x.detail),
        "identity": x.identity,
        "principal": x.principal,
        "credential_id": _without_secrets(x.credential_id),
        "credential_subject": _without_secrets(x.credential_subject),
        "rule": x.rule,
        "upstream_credential": x.permit_use,
        "limit": x.limit_id,
        "cache_status": x.cache_status,
        "cache_reason": x.cache_reason,
        "upstream_status": x.upstream_status,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _without_secrets(words: bytes | str) -> str:
    octets = words if isinstance(words, bytes) else words.encode("utf-8", "surrogateescape")
    return redact(octets).decode("utf-8", "backslashreplace")
