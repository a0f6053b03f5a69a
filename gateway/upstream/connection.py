"""One HTTP/1.1 connection to GitLab: a request out, its answer in, then back to the pool or closed.

No task, no lock, one future per request; one timer per connection, moved lazily. Everything is decided in the callbacks of
the transport, so that a small answer costs one turn of the loop. The connection gives its place in the pool back by itself,
exactly once per exchange, whatever ends it.
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import termios
import time
from typing import cast

from ..core.answer_shape import shape_of
from ..core.errors import Rejection
from ..core.head_form import HeadForm, Values
from ..core.messages import ResponseHead
from ..outbox import Outbox
from ..ports import Answered
from ..reply import Reply
from .contract import ConnectionOwner, Waiter
from .deadline import Deadline
from .errors import Failure, UpstreamFailure, rejection
from .gathering import Gathering, fields_to_learn
from .head_forms import HeadForms
from .response import CHUNKED, BodyReader, CloseReader, Head, HeadBuffer, Malformed, only_chunk, parse_head
from .streams import Body, Stream, UpstreamTunnel

_MAX_INTERIM = 20
_LINGER_S = 5.0
"""How long a closed tunnel's last octets may take to go out."""
_PENDING = bytearray(4)  # where FIONREAD puts its answer
_NOTHING = bytes(4)


class _Phase(enum.Enum):
    IDLE = enum.auto()
    HEAD = enum.auto()
    """A request has been sent, wholly or in part; the head of its answer is awaited."""
    GATHER = enum.auto()
    """A small body is collected before its answer is handed on."""
    BODY = enum.auto()
    TUNNEL = enum.auto()
    CLOSED = enum.auto()


# Read many times per request; an enum's class looks its members up anew each time.
_IDLE, _HEAD, _GATHER, _BODY, _TUNNEL, _CLOSED = _Phase


class Connection(asyncio.Protocol):
    """One connection, see the module. ``ticket`` and ``idle_at`` are notes of the client's and the pool's."""

    __slots__ = (
        "_bodiless",
        "_collects",
        "_deadline",
        "_drain",
        "_eof",
        "_fd",
        "_first_byte_s",
        "_foreign_codings",
        "_forms",
        "_gathering",
        "_idle_s",
        "_interim",
        "_like",
        "_loop",
        "_outbox",
        "_owner",
        "_partial",
        "_phase",
        "_reader",
        "_reading_paused",
        "_reusable",
        "_sent",
        "_started_at",
        "_stream",
        "_transport",
        "_unsent_bytes",
        "_upgrade",
        "_waiter",
        "_write_paused",
        "has_received",
        "idle_at",
        "ticket",
    )

    def __init__(
        self,
        owner: ConnectionOwner,
        loop: asyncio.AbstractEventLoop,
        idle_s: float,
        *,
        forms: HeadForms | None = None,
        outbox: Outbox | None = None,
        foreign_codings: bool = False,
    ) -> None:
        self._owner = owner
        self._outbox = outbox if outbox is not None else Outbox(loop)
        self._loop = loop
        self._idle_s = idle_s
        self._forms = forms if forms is not None else HeadForms()
        self._foreign_codings = foreign_codings
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # from connection_made on
        self._phase = _IDLE
        self._waiter: Waiter | None = None
        self._drain: asyncio.Future[None] | None = None
        self._stream: Stream | None = None
        self._reader: BodyReader | None = None
        self._gathering: Gathering | None = None
        self._partial: HeadBuffer | None = None
        self._deadline = Deadline(loop, self._on_deadline)
        self._write_paused = self._reading_paused = self._eof = self._reusable = False
        self._unsent_bytes, self._fd = 0, -1
        self.has_received = False
        """Whether an octet of an answer to the current request has come."""
        self.idle_at = 0.0
        self.ticket = 0

    def is_usable(self) -> bool:
        """Whether the connection is idle, open as far as is known, and silent.

        Octets that the kernel has, but the loop has not read yet, are looked for: surplus octets just behind an answer
        must not meet the next request. (TLS connections are not checked: TLS has records of its own there.)
        """
        if self._phase is not _IDLE or self._transport.is_closing():
            return False
        if self._fd < 0:
            return True
        fcntl.ioctl(self._fd, termios.FIONREAD, _PENDING)
        return _PENDING == _NOTHING

    # Sending

    def begin(
        self,
        octets: bytes,
        waiter: Waiter,
        first_byte_s: float,
        *,
        bodiless: bool = False,
        upgrade: bool = False,
        body_follows: bool = False,
        collects: bool = False,
        like: Answered | None = None,
    ) -> None:
        """Write a request, or its head. ``waiter`` is given the Reply or an UpstreamFailure.

        ``collects``: gather small JSON even if it comes in chunks; not for every request, as a watch is answered so, too.
        ``like``: how requests of this kind were answered. From here on it is for the connection to free the pool's place.
        """
        self._phase = _HEAD
        self._bodiless = bodiless
        self._upgrade = upgrade
        self._collects, self._like = collects, like
        self._sent = not body_follows
        self._interim = 0
        self.has_received = False
        self._started_at = time.monotonic()  # the loop's own clock ticks in milliseconds
        self._waiter = waiter
        if self._transport.is_closing():
            self.fail(Failure.RESET)
            return
        # While the body comes, the edge enforces the client's time limits.
        if body_follows:
            self._first_byte_s = first_byte_s  # from the body's end on
            self._deadline.clear()
            self._transport.write(octets)  # past the outbox, as the body will be
        else:
            self._deadline.set(first_byte_s)
            self._outbox.put(self._transport, octets)

    def write(self, data: bytes) -> bool:
        """Write some of a request body or of a tunnel's octets; False if the connection takes no more."""
        if self._phase is _CLOSED or self._transport.is_closing():
            return False
        self._transport.write(data)
        return True

    async def writable(self) -> None:
        """Wait until more may be written. Raises UpstreamFailure if the connection ends instead."""
        if self._phase is _CLOSED:
            raise UpstreamFailure(Failure.RESET)
        if not self._write_paused:
            return
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._deadline.set(self._idle_s)
        self._drain = self._loop.create_future()
        try:
            await self._drain
        finally:
            self._drain = None

    def end_body(self) -> None:
        """Note that the whole request has been written."""
        self._sent = True
        if self._phase is _HEAD:
            self._started_at = time.monotonic()  # what its client took to send the body is no latency of GitLab's
            self._deadline.set(self._first_byte_s)
        elif self._phase is _BODY and not self._reading_paused:
            self._deadline.set(self._idle_s)

    def write_eof(self) -> None:
        if self._phase is not _TUNNEL or self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self.close()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._phase is _TUNNEL or (self._phase in (_HEAD, _BODY) and not self._sent):
            self._deadline.clear()
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    # Receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if transport.get_extra_info("sslcontext") is None:
            self._fd = transport.get_extra_info("socket").fileno()
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            if self._phase is _HEAD:
                self.has_received = True
                self._read_head(data)
            elif self._phase in (_BODY, _GATHER):
                self._read_body(data)
            elif self._phase is _TUNNEL:
                self._feed_stream(data)
            else:
                # An answer that nobody asked for must never become that of the next request (RFC 9112 §9.2).
                self.close()
        except Malformed as malformed:
            self.fail(Failure.PROTOCOL, str(malformed))

    def eof_received(self) -> bool:
        self._eof = True
        if self._phase is not _TUNNEL or self._stream is None:
            return False
        self._stream.end()
        return self._transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        if (phase := self._phase) is _BODY and isinstance(self._reader, CloseReader) and error is None and self._eof:
            self._finish_stream()
        elif phase is _TUNNEL and error is None:
            self.close()
        elif phase is _HEAD:
            self.fail(Failure.RESET)
        elif phase is not _CLOSED:
            self.fail(Failure.INCOMPLETE)
        self._owner.gone(self)

    def _read_head(self, data: bytes) -> None:
        plain = not (self._bodiless or self._upgrade)
        if plain and self._partial is None and (known := self._forms.match_start(data, self._like)) is not None:
            self._read_known(*known)
            return
        while data:
            if self._partial is None:
                octets, end, data = data.partition(b"\r\n\r\n")
                if not end:
                    self._partial, data = HeadBuffer(), octets
                    continue
            else:
                taken = self._partial.feed(data)
                if taken is None:
                    return
                octets, data = taken
                self._partial = None
            if plain and (found := self._forms.read(octets, self._like)) is not None:
                self._read_known(*found, data)
                return
            head = parse_head(octets, bodiless=self._bodiless, foreign_codings=self._foreign_codings)
            if head.status >= 200:
                if not self._bodiless and (fields := fields_to_learn(head)) is not None:
                    self._forms.learn(octets, fields, head.reason)
                # A connection that was asked to switch protocols may do so late: it carries no other request.
                self._reusable = head.persistent and not self._upgrade
                answer = ResponseHead(head.status, head.fields, head.reason, shape_of(head.fields))
                self._read_answer(Reply(answer), head.length, data)
                return
            if head.status == 101:
                self._switch(head, data)
                return
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise Malformed("too many interim responses")

    def _read_known(self, form: HeadForm, values: Values, data: bytes) -> None:
        """Take an answer whose head is of a known form; ``data`` is what has come of its body."""
        self._reusable = True
        length = values[form.length]
        if length and length == b"%d" % len(data):  # the whole body has come, and nothing more
            self._answer(Reply(None, data, form=form, values=values))
        elif not length and (whole := only_chunk(data)) is not None:
            self._answer(Reply(None, whole, form=form, values=form.with_content_length(values, len(whole))))
        else:
            self._read_answer(Reply(None, form=form, values=values), int(length) if length else CHUNKED, data)

    def _read_answer(self, reply: Reply, length: int, data: bytes) -> None:
        gathering = Gathering(reply, length)
        reader = self._reader = gathering.reader
        if (data or reader.done) and gathering.feed(data) is not None:
            self._reusable = self._reusable and not reader.surplus
            self._answer(reply)
        elif self._sent and gathering.is_small(collects=self._collects):
            self._phase = _GATHER
            self._gathering = gathering
            reply.first_byte_s = time.monotonic() - self._started_at
            self._deadline.set(self._idle_s)
        else:
            self._begin_stream(gathering)

    def _read_body(self, data: bytes) -> None:
        gathering = self._gathering
        reader = cast("BodyReader", self._reader)
        if gathering is not None:
            reply = gathering.feed(data)
            if reply is not None:
                self._reusable = self._reusable and not reader.surplus
                self._answer(reply)
                return
            if not gathering.is_small(collects=True):
                self._gathering = None
                self._begin_stream(gathering)
                return
        elif payload := reader.feed(data):
            self._feed_stream(payload)
        if reader.done:
            self._reusable = self._reusable and not reader.surplus
            self._finish_stream()
        elif not self._reading_paused:
            self._expect_more()

    def _begin_stream(self, gathering: Gathering) -> None:
        self._phase = _BODY
        stream = self._stream = Body(self)
        self._expect_more()
        head, payload = gathering.to_stream()
        if payload:
            self._feed_stream(payload)
        self._deliver(Reply(head, None, stream, stream.close, first_byte_s=gathering.first_byte_s))

    def _expect_more(self) -> None:
        # While the request's body still goes up, GitLab may well be silent: the edge enforces the client's time limits.
        if self._sent:
            self._deadline.set(self._idle_s)
        elif self._drain is None:
            self._deadline.clear()

    def _switch(self, head: Head, data: bytes) -> None:
        if not (self._upgrade and self._sent and head.upgrade):
            raise Malformed("unsolicited 101")
        self._phase = _TUNNEL
        self._owner.switched()
        tunnel = self._stream = UpstreamTunnel(self, half_closes=self._transport.can_write_eof())
        # Any time may pass between octets here: a tunnel's idle limit is enforced where both directions are seen.
        self._deadline.clear()
        if data:
            self._feed_stream(data)
        answer = ResponseHead(head.status, head.fields, head.reason)
        self._deliver(Reply(answer, None, None, tunnel.close, tunnel=tunnel))

    def _feed_stream(self, payload: bytes) -> None:
        if self._stream is not None and self._stream.push(payload):
            if not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()
            self._deadline.clear()  # no fault of GitLab's while its octets aren't taken

    def resume(self) -> None:
        """Read from the socket again: the stream's reader wants more."""
        if self._reading_paused and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()
            if self._phase is _BODY:
                self._expect_more()

    # Ending

    def _answer(self, reply: Reply) -> None:
        waiter, self._waiter = self._waiter, None
        reply.first_byte_s = reply.first_byte_s or time.monotonic() - self._started_at
        self._end_exchange()
        if waiter is not None and not waiter.done():
            waiter.set_result(reply)

    def _deliver(self, reply: Reply) -> None:
        waiter, self._waiter = self._waiter, None
        reply.first_byte_s = reply.first_byte_s or time.monotonic() - self._started_at
        if waiter is None or waiter.done():  # cancelled in this very turn of the loop: nobody will release the reply
            self.close()
        else:
            waiter.set_result(reply)

    def _finish_stream(self) -> None:
        stream, self._stream = self._stream, None
        self._end_exchange()
        if stream is not None:
            stream.detach()
            stream.end()

    def _end_exchange(self) -> None:
        """The whole answer has come: go back to the pool, or close."""
        if self._reader is not None:
            self._reader = self._gathering = None
        # After an early answer, the connection still owes GitLab the rest of the request: it can't be reused.
        if self._reusable and self._sent and not self._write_paused and not self._transport.get_write_buffer_size():
            self._phase = _IDLE
            if self._reading_paused:
                self._reading_paused = False
                self._transport.resume_reading()
            self._owner.returned(self)
        else:
            self.close()

    def abandon(self, waiter: asyncio.Future[Reply]) -> None:
        """End the exchange that ``waiter`` belongs to, whose awaiter was cancelled, and nothing else."""
        if self._waiter is waiter:
            self.close()
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            waiter.result().release()

    def abort_upload(self, error: BaseException) -> None:
        """End an exchange whose request body failed: GitLab must not take what it has got for the whole request."""
        if self._phase not in (_HEAD, _BODY) or self._sent:
            return
        waiter, self._waiter = self._waiter, None
        stream, self._stream = self._stream, None
        self.close()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        if stream is not None:
            stream.fail(error if isinstance(error, Rejection) else rejection(Failure.INCOMPLETE, "the request broke off"))

    def fail(self, failure: Failure, detail: str = "") -> None:
        """End the exchange, and tell whoever waits for its answer, or reads it, why."""
        waiter, self._waiter = self._waiter, None
        stream, self._stream = self._stream, None
        in_body = self._phase is _BODY
        self.close()
        if waiter is not None and not waiter.done():
            waiter.set_exception(UpstreamFailure(failure, detail))
        if stream is not None:
            stream.fail(rejection(failure, detail))
            if in_body:
                self._owner.broke_off(self)

    def close(self) -> None:
        """Close at once and for good. Idempotent; frees the place if an exchange was in progress."""
        phase = self._phase
        if phase is _CLOSED:
            return
        self._phase = _CLOSED
        self._deadline.cancel()
        if self._drain is not None and not self._drain.done():
            self._drain.set_exception(UpstreamFailure(Failure.RESET))
        # Unsent octets are not worth a wait: they belong to a request that nobody wants answered any more.
        if phase is _IDLE:
            self._transport.close()
        elif phase is _TUNNEL:
            # What either side said last must still reach the other.
            if self._stream is not None:
                self._stream.end()
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._loop.call_later(_LINGER_S, self._transport.abort)
            self._owner.tunnel_ended()
        else:
            self._transport.abort()
            self._owner.release_place()
        self._owner.gone(self)

    # Time

    def _on_deadline(self) -> None:
        if self._phase is _IDLE:
            return  # the exchange that the deadline was set for has ended
        if self._drain is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent_bytes:  # slow, not stalled
                self._unsent_bytes = unsent
                self._deadline.set(self._idle_s)
                return
            self.fail(Failure.WRITE_TIMEOUT)
        else:
            self.fail(Failure.FIRST_BYTE_TIMEOUT if self._phase is _HEAD else Failure.READ_TIMEOUT)
