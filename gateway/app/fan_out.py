"""Endpoints of the admin port that one worker alone can't answer: each asks all workers and combines their answers.

    GET /-/limits/top     every worker has its own callers: their numbers are added
    POST /-/explain       by request id: only the worker that answered the request knows it

Whatever else the admin port shows or changes goes through the shared stores, so that any worker can do it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from ..edge.admin import AdminRequest, AdminResponse, Endpoint
from .siblings import Siblings

_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(AdminRequest).decode
_decode_json: Callable[[bytes], Any] = msgspec.json.Decoder().decode

TOP = "GET /-/limits/top"
EXPLAIN = "POST /-/explain"


def fan_out(endpoints: Iterable[Endpoint], siblings: Siblings) -> tuple[Endpoint, ...]:
    """The same endpoints, but those two ask the siblings, and answer when these ask."""
    answers = {TOP: _top, EXPLAIN: _explain}

    def fanned_out(endpoint: Endpoint) -> Endpoint:
        name = f"{endpoint.method} {endpoint.path}"
        if name not in answers:
            return endpoint
        siblings.handle(name, _handler(endpoint))
        return msgspec.structs.replace(endpoint, answer=answers[name](endpoint, siblings))

    return tuple(map(fanned_out, endpoints))


def _handler(endpoint: Endpoint) -> Callable[[bytes], Awaitable[bytes]]:
    async def handle(about: bytes) -> bytes:
        try:
            return _encode((await endpoint.answer(_decode_request(about))).body)
        except ValueError:  # this worker knows nothing about it
            return b""

    return handle


def _top(endpoint: Endpoint, siblings: Siblings) -> Callable[[AdminRequest], Awaitable[AdminResponse]]:
    async def answer(request: AdminRequest) -> AdminResponse:
        here = await endpoint.answer(request)  # which also refuses an invalid request
        gathered = await siblings.ask(TOP, _encode(request))
        each = [_decode_json(octets) for octets in gathered.answers.values()]
        return AdminResponse(merge_tops(each, int(request.query.get("count", "20")))) if each else here

    return answer


def _explain(endpoint: Endpoint, siblings: Siblings) -> Callable[[AdminRequest], Awaitable[AdminResponse]]:
    async def answer(request: AdminRequest) -> AdminResponse:
        try:
            return await endpoint.answer(request)
        except ValueError:
            if "request_id" not in request.body:
                raise
            gathered = await siblings.ask(EXPLAIN, _encode(request))
            for octets in gathered.answers.values():
                return AdminResponse(_decode_json(octets))
            raise

    return answer


def merge_tops(each: list[Any], count: int) -> object:
    """The hottest callers of all workers, their numbers added up; the buckets as any one worker sees them in the store."""
    callers: dict[str, dict[str, Any]] = {}
    changed: dict[tuple[str, str], object] = {}
    for one in each:
        for caller in one["callers"]:
            known = callers.setdefault(caller["caller"], {**caller, "asked": 0, "refused": 0})
            known["asked"] += caller["asked"]
            known["refused"] += caller["refused"]
        changed |= {(change["limit"], change["subject"]): change for change in one["changed"]}
    hottest = sorted(callers.values(), key=lambda caller: -caller["asked"])
    return {
        "callers": hottest[:count],
        "changed": list(changed.values()),
        "waiting": sum(one["waiting"] for one in each),
    }
