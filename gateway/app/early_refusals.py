"""How refusals that come before there is a request reach telemetry."""

from __future__ import annotations

from ..core.catalogue import Surface
from ..core.errors import Rejection
from ..core.exchange import Exchange
from ..core.messages import ResponseHead
from ..core.refusal import render
from ..pipeline import Gateway


class EarlyRefusals:
    """Answers what never became a request, with a refusal that is counted and audited like any other."""

    def __init__(self) -> None:
        self.gateway: Gateway | None = None

    def __call__(self, rejection: Rejection, peer: str) -> tuple[ResponseHead, bytes]:
        gateway = self.gateway
        assert gateway is not None, "the server is made after the gateway"
        x = Exchange(gateway.mint_id(), gateway.monotonic(), "", peer)
        x.status, x.code, x.detail = rejection.status, rejection.code.value, rejection.detail
        extra = (*gateway.stages.dialect.own_fields(None, None), (b"X-Gateway-Request-Id", x.request_id.encode("ascii")))
        head, body = render(rejection, surface=Surface.REST, request_id=x.request_id, extra=extra)
        gateway.observe(x)
        return head, body
