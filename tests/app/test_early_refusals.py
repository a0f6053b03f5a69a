"""How exchanges reach telemetry."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.app.early_refusals import EarlyRefusals
from gateway.core.errors import Code, Rejection, bad_request
from gateway.core.messages import first
from gateway.pipeline import Gateway
from tests.fakes.world import RecordingObserver, world


async def test_what_never_became_a_request_is_answered_and_observed(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        seen = RecordingObserver()
        early = EarlyRefusals()
        early.gateway = Gateway(msgspec.structs.replace(made.made.gateway.stages, observers=(seen,)))
        long = Rejection(Code.TARGET_TOO_LONG, 414, "414 Request-URI Too Large", detail="by far")
        for rejection in (bad_request(close=True), long):
            head, body = early(rejection, "192.0.2.7")
            assert head.status == rejection.status
            assert first(head.fields, b"x-gateway-error") == rejection.code.value.encode()
            assert first(head.fields, b"ratelimit-limit") == b"60"
            assert rejection.message.encode() in body
            x = seen.exchanges[-1]
            assert first(head.fields, b"x-gateway-request-id") == x.request_id.encode()
            assert (x.status, x.code, x.detail, x.peer, x.method, x.target) == (
                rejection.status,
                rejection.code.value,
                rejection.detail,
                "192.0.2.7",
                "",
                b"",
            )
        assert len({x.request_id for x in seen.exchanges}) == 2


async def test_each_request_has_one_audit_line(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        down = made.down("GET", "/api/v4/projects/1")
        await made.made.gateway.handle(down)
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line)["principal"] for line in lines] == ["user:7"]
