"""Admission in front of GitLab: no more requests at one time than it can handle, and fair turns for those that wait.

send ── room for this class ──→ upstream ── latency ──→ adaptive limit
   └── else wait in turn ── 503 with Retry-After after ``wait_s``; when the queue is full, at once, background work first
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from ..core.access import Priority
from ..core.adaptive import AdaptiveLimit, AdaptiveSettings
from ..core.errors import Code, Rejection
from ..core.fair_queue import FairQueue
from ..core.messages import Fields
from ..ports import Admission, Cancellable, RepeatedFields, ReplyCallback, RequestBody, Upstream, UpstreamRequest
from ..reply import Reply
from .errors import Failure, rejection
from .parking import parked
from .whole_body import WholeBody, collect, is_small

_LONG_TIMEOUT_S = 60.0
"""A request that is allowed more time than this to its first octet is a clone: its latency says nothing about load. Nor
does that of a request that merely waits, for a job or a cluster, however it ends."""
_CONGESTION_CODES = frozenset({Code.UPSTREAM_TIMEOUT, Code.UPSTREAM_RESET, Code.UPSTREAM_CONNECT_TIMEOUT})


class AdmissionSettings(msgspec.Struct, frozen=True):
    """How many requests may wait, and for how long."""

    adaptive: AdaptiveSettings = AdaptiveSettings()
    max_waiting: int = 200
    per_caller: int = 50
    wait_s: float = 5.0


class _Waiter:
    __slots__ = ("admitted", "request")

    def __init__(self, request: UpstreamRequest, admitted: asyncio.Future[None]) -> None:
        self.request = request
        self.admitted = admitted

    def refuse(self) -> None:
        if not self.admitted.done():
            self.admitted.set_exception(rejection(Failure.BUSY))


class AdmittingUpstream:
    """Admits requests to another ``ports.Upstream``, as one itself. One per event loop; the figures are for metrics."""

    def __init__(self, upstream: Upstream, settings: AdmissionSettings) -> None:
        self._upstream = upstream
        self._settings = settings
        self._limit = AdaptiveLimit(settings.adaptive)
        self._queue: FairQueue[_Waiter] = FairQueue(bound=settings.max_waiting, per_caller=settings.per_caller)
        self.in_flight = 0
        self.shed_total: dict[Priority, int] = dict.fromkeys(Priority, 0)

    @property
    def limit(self) -> int:
        return self._limit.limit

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        if request.upgrade:
            return await self._upstream.send(request, body)  # a tunnel is not work in progress
        length = request.content_length
        if body is not None and length is not None and is_small(length):
            # Before a place is taken or a turn waited for: a client that sends slowly holds up nobody but itself.
            body = WholeBody(await collect(body, length))
        # While any requests wait, this one queues, too, so that it does not overtake others of its class.
        if self.in_flight >= self._limit.thresholds[request.priority] or self._queue.waiting:
            await self._wait(request)
        else:
            self.in_flight += 1
        in_flight = self.in_flight
        sent = self._upstream.send(request, body)
        if request.waits and (body is None or isinstance(body, WholeBody)):
            sent = parked(self, sent)
        try:
            reply = await sent
        except BaseException as failure:
            if isinstance(failure, Rejection) and failure.code in _CONGESTION_CODES and not request.waits:
                self._limit.record_drop(time.monotonic())
            self._free_place()
            raise
        if (request.first_byte_timeout_s or 0.0) <= _LONG_TIMEOUT_S and not request.waits:
            self._limit.observe(reply.first_byte_s, in_flight, time.monotonic())
        if reply.chunks is None:
            self.in_flight -= 1
            if self._queue.waiting:
                self._admit()
        else:
            reply.on_release(self._free_place)
        return reply

    def send_soon(
        self, target: bytes, own: Fields, repeated: RepeatedFields, then: ReplyCallback, admission: Admission | None = None
    ) -> Cancellable | None:
        del admission  # this upstream admits by itself
        if self.in_flight >= self._limit.thresholds[repeated.priority] or self._queue.waiting:
            return None
        sent = self._upstream.send_soon(target, own, repeated, then, self)
        if sent is not None:
            self.in_flight += 1
        return sent

    def request_ended(self, answer: Reply | Rejection | None) -> None:
        if isinstance(answer, Reply):
            self._limit.observe(answer.first_byte_s, self.in_flight, time.monotonic())
            if answer.chunks is not None:
                answer.on_release(self._free_place)
                return
        elif answer is not None and answer.code in _CONGESTION_CODES:
            self._limit.record_drop(time.monotonic())
        self.in_flight -= 1
        if self._queue.waiting:
            self._admit()

    async def close(self) -> None:
        while (waiter := self._queue.pop()) is not None:
            waiter.refuse()
        await self._upstream.close()

    # parking.Lot

    def park(self) -> bool:
        self._free_place()
        return True

    def unpark(self) -> None:
        self.in_flight += 1

    async def _wait(self, request: UpstreamRequest) -> None:
        """Wait for a place and take it. Raises Rejection UPSTREAM_BUSY."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(request, loop.create_future())
        shed = self._queue.push(request.caller, request.priority, waiter)
        if shed is not None:
            shed.refuse()
        self._admit()
        timer = loop.call_later(self._settings.wait_s, waiter.refuse)
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled() and waiter.admitted.exception() is None:
                self._free_place()  # the place was given in the very turn in which its taker left
            raise
        except Rejection:
            self.shed_total[request.priority] += 1
            raise
        finally:
            timer.cancel()
            self._queue.discard(request.caller, request.priority, waiter)

    def _free_place(self) -> None:
        self.in_flight -= 1
        if self._queue.waiting:
            self._admit()

    def _admit(self) -> None:
        """Give the free places to the requests whose turn it is."""
        while True:
            among = [priority for priority in Priority if self._limit.has_room(priority, self.in_flight)]
            waiter = self._queue.pop(among) if among else None
            if waiter is None:
                return
            if not waiter.admitted.done():
                self.in_flight += 1
                waiter.admitted.set_result(None)
