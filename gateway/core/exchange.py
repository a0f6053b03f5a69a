"""The facts of one request: written by the pipeline, read only by telemetry, once, at the end."""

from __future__ import annotations


class Exchange:
    """Write-only until the ``finally`` of ``Gateway.handle``. Instants are monotonic seconds, durations seconds."""

    __slots__ = (
        "aborted",
        "actor",
        "bytes_in",
        "bytes_out",
        "cache_reason",
        "cache_status",
        "cache_stored",
        "code",
        "credential_fingerprint",
        "credential_kind",
        "identity",
        "limit_id",
        "limit_near",
        "limit_remaining",
        "limit_shadow",
        "limit_waited_s",
        "method",
        "operation",
        "peer",
        "permit_use",
        "principal",
        "principal_kind",
        "request_id",
        "rule",
        "started_at",
        "status",
        "sudo",
        "target",
        "team",
        "upstream_connect_s",
        "upstream_first_byte_s",
        "upstream_request_id",
        "upstream_s",
        "upstream_status",
        "user_agent",
    )

    def __init__(self, request_id: str, started_at: float, method: str, peer: str) -> None:
        self.request_id = request_id
        self.started_at = started_at
        self.method = method
        self.peer = peer
        self.target = b""
        """The raw path and query less credentials; empty until parsed (an unparsed target may hold anything)."""
        self.operation = "other"
        self.user_agent = b""
        self.credential_kind = ""
        self.credential_fingerprint = ""
        self.principal = ""
        self.principal_kind = ""
        self.identity = ""
        self.team = ""
        self.actor = ""
        self.sudo = ""
        self.rule = ""
        self.permit_use = ""
        self.limit_id = ""
        self.limit_near = False
        """Admitted, with less than a tenth of the bucket left."""
        self.limit_remaining = -1.0
        self.limit_shadow = ""
        self.limit_waited_s = 0.0
        self.cache_status = ""
        self.cache_reason = ""
        self.cache_stored = ""
        self.status = 0
        self.code = ""
        self.upstream_status = 0
        self.upstream_request_id = ""
        self.upstream_connect_s = 0.0
        self.upstream_first_byte_s = 0.0
        self.upstream_s = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.aborted = ""
        """``client`` or ``upstream`` when the answer was cut after its first octet."""
