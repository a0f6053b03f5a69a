"""Whom a connection speaks with: where it comes from and goes back to, and who waits for its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..reply import Reply

if TYPE_CHECKING:
    from .connection import Connection


class Home(Protocol):
    """Where connections come from and go back to."""

    def opened(self, connection: Connection) -> None: ...
    def returned(self, connection: Connection) -> None:
        """Fit for another request; its place is free."""
        ...

    def freed(self) -> None:
        """An exchange ended with its connection; its place is free."""
        ...

    def switched(self) -> None:
        """The exchange has become a tunnel: its place is free, it counts among the tunnels from now on."""
        ...

    def tunnel_ended(self) -> None: ...

    def gone(self, connection: Connection) -> None:
        """Closed, or closing: nobody may get it any more."""
        ...

    def broke_off(self, connection: Connection) -> None:
        """An answer failed after its head had been handed on."""
        ...


class Waiter(Protocol):
    """Who is told how an exchange went: a future, or what acts as one."""

    def done(self) -> bool: ...
    def set_result(self, reply: Reply, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...
