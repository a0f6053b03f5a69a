"""Gathers an answer with a small body, in however many pieces it comes, and hands it on once it is whole.

Its head then states the length, also where GitLab sent chunks instead: decoding these puts the length in their place
(RFC 9112 §7.1.3). So both kinds come in the same forms (``head_forms``), and code that works on answers knows only one.
"""

from __future__ import annotations

from ..core.answer_shape import shape_of
from ..core.messages import Fields, ResponseHead, first, lower
from ..reply import Reply
from .response import CHUNKED, BodyReader, Head, body_reader
from .whole_body import SMALL_BODY_BYTES

_CHUNKED_FIELD = (b"Transfer-Encoding", b"chunked")


class Gathering:
    """The gathering of one answer.

    Args:
        reply: Holds the answer's head: in a form, its length empty where the body comes in chunks; or as it came.
        length: As in ``response.Head``.
    """

    __slots__ = ("_length", "_pieces", "_reply", "_size_bytes", "reader")

    def __init__(self, reply: Reply, length: int) -> None:
        self._reply = reply
        self._length = length
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self.reader: BodyReader = body_reader(length)

    def is_small(self, *, collects: bool) -> bool:
        """Whether the body is small enough to be waited for. One in chunks is so only as far as is known by now, only for
        requests that ``collects`` is set for, and only if it is JSON."""
        if self._length != CHUNKED:
            return 0 < self._length <= SMALL_BODY_BYTES
        if not collects or self._size_bytes > SMALL_BODY_BYTES:
            return False
        form = self._reply.form
        return _is_json(form.fields if form is not None else self._reply.head.fields)

    @property
    def first_byte_s(self) -> float:
        return self._reply.first_byte_s

    def feed(self, data: bytes) -> Reply | None:
        """Add octets of the body. Returns the answer if they were the last. Raises Malformed."""
        reader, pieces = self.reader, self._pieces
        payload = reader.feed(data)
        self._size_bytes += len(payload)
        if not reader.done:
            if payload:
                pieces.append(payload)
            return None
        if pieces:
            pieces.append(payload)
            payload = b"".join(pieces)
        reply = self._reply
        reply.whole = payload
        if self._length == CHUNKED:
            if reply.form is not None:
                reply.values = reply.form.with_content_length(reply.values, len(payload))
            else:
                head = reply.head
                fields = with_length(head.fields, b"%d" % len(payload))
                reply.head = ResponseHead(head.status, fields, head.reason, shape_of(fields))
        return reply

    def to_stream(self) -> tuple[ResponseHead, bytes]:
        """The head as it came, and what has come of the body, for an answer that goes on as a stream."""
        head, form = self._reply.head, self._reply.form
        if self._length == CHUNKED and form is not None:
            place = form.shape.place[b"content-length"]
            fields = (*head.fields[:place], _CHUNKED_FIELD, *head.fields[place + 1 :])
            head = ResponseHead(head.status, fields, head.reason)
        return head, b"".join(self._pieces)


def fields_to_learn(head: Head) -> Fields | None:
    """The head's fields as ``HeadForms`` learns them, for a request other than HEAD; None: it does not learn this head."""
    if head.status != 200 or not head.persistent:
        return None
    if head.length >= 0:
        return head.fields
    # Other answers in chunks may well have a head of their own each.
    return with_length(head.fields, b"0") if _is_json(head.fields) else None


def _is_json(fields: Fields) -> bool:
    kind = first(fields, b"content-type")
    return kind is not None and kind.partition(b";")[0].strip().lower() == b"application/json"


def with_length(fields: Fields, length: bytes) -> Fields:
    """The fields of a chunked answer, stating its length instead."""
    return tuple(
        [(b"Content-Length", length) if lower(name) == b"transfer-encoding" else (name, value) for name, value in fields]
    )
