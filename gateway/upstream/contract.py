"""What a connection deals with: the owner that it comes from and returns to, and the waiter for its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..reply import Reply

if TYPE_CHECKING:
    from .connection import Connection


class ConnectionOwner(Protocol):
    """The owner of connections: learns when they open, fall idle or close, and when an exchange gives back its place."""

    def opened(self, connection: Connection) -> None: ...
    def returned(self, connection: Connection) -> None:
        """The connection is fit for another request; its place is free."""
        ...

    def release_place(self) -> None:
        """An exchange ended with its connection; its place is free."""
        ...

    def switched(self) -> None:
        """An exchange has become a tunnel: its place is free, and it counts among the tunnels from now on."""
        ...

    def tunnel_ended(self) -> None: ...

    def gone(self, connection: Connection) -> None:
        """The connection is closed or closing: it must not be given out any more."""
        ...

    def broke_off(self, connection: Connection) -> None:
        """The connection's answer failed after its head had been handed on."""
        ...


class Waiter(Protocol):
    """Receives the outcome of an exchange: a future, or something that acts as one."""

    def done(self) -> bool: ...
    def set_result(self, reply: Reply, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...
