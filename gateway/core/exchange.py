"""The facts of one request: written by the pipeline, read only by telemetry, once, at the end."""

from __future__ import annotations

import msgspec

from .errors import Code


class ObserverMemo:
    """What observers made of the first of several requests that are alike in all that is recorded of them, except for id,
    instants, octets and the limit's numbers.

    The code that sets an exchange's memo vouches for that likeness, and therefore does so last: requests refused by one
    limit share no memo with those refused by another, and requests near a limit, or beyond a shadow limit, have none.
    """

    __slots__ = ("audit_template", "metrics_row")

    def __init__(self) -> None:
        self.metrics_row: object = None
        self.audit_template: object = None


class Exchange(msgspec.Struct, gc=False):
    """Write-only until the ``finally`` of ``Gateway.handle``. Instants are monotonic seconds, durations are seconds."""

    request_id: str
    started_at: float
    method: str
    peer: str
    target: bytes = b""
    """The raw path and query without credentials; empty until parsed (an unparsed target may hold anything)."""
    operation: str = "other"
    user_agent: bytes = b""
    trace_id: str = ""
    """Of W3C Trace Context, in hex."""
    credential_kind: str = ""
    credential_fingerprint: str = ""
    credential_id: str = ""
    credential_subject: str = ""
    principal: str = ""
    principal_kind: str = ""
    identity: str = ""
    team: str = ""
    actor: str = ""
    sudo: str = ""
    rule: str = ""
    rule_shadow: str = ""
    permit_use: str = ""
    limit_id: str = ""
    limit_near: bool = False
    """Whether it was admitted with less than a tenth of the bucket left."""
    limit_remaining: float = -1.0
    limit_shadow: str = ""
    limit_waited_s: float = 0.0
    cache_status: str = ""
    cache_reason: str = ""
    cache_stored: str = ""
    status: int = 0
    code: str = ""
    detail: str = ""
    """``Rejection.detail``."""
    upstream_status: int = 0
    upstream_request_id: str = ""
    upstream_connect_s: float = 0.0
    upstream_first_byte_s: float = 0.0
    upstream_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    aborted: str = ""
    """``client`` or ``upstream`` if the answer was cut off after its first octet."""
    observer_memo: ObserverMemo | None = None


def note_cut(x: Exchange, *, drained: bool, started: bool) -> bool:
    """Note who cut an exchange short: its client, or a gateway that ``drained``. Returns whether the client can still be
    told so (503): not once the answer has ``started``."""
    if not drained:
        x.status, x.aborted = 499, "client"
        return False
    x.code = Code.DRAINING.value
    if started:
        x.aborted = "gateway"
    return not started
