"""Requests answered without a task of their own: the interface between a connection and the lane that answers for it."""

from __future__ import annotations

from typing import Protocol

from .core.messages import RequestHead


class Handover(Protocol):
    """A request that a lane has dealt with in part, and that now needs a task of its own."""

    head: RequestHead

    def leave(self) -> None:
        """The client went away before a task took the request on."""
        ...


class AnswerSink(Protocol):
    """The connection whose request is being answered without a task."""

    def is_gone(self) -> bool:
        """Whether the connection is lost or closing, so that nobody is left to answer."""
        ...

    def deliver(self, octets: bytes | None, handover: Handover | None = None) -> None:
        """Take the whole answer, as it goes over the wire. None: the request is to be handled like any other, or taken up
        where ``handover`` left off. Called once."""
        ...


class PendingAnswer(Protocol):
    """A request that is being answered without a task, until its ``AnswerSink`` has the answer."""

    def leave(self) -> None:
        """The client went away: ``AnswerSink.deliver`` is not called any more."""
        ...

    def drained(self) -> bytes:
        """The gateway shuts down and can't wait any longer: return the answer that says so. ``AnswerSink.deliver`` is not
        called any more."""
        ...
